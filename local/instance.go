package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"
	"strings"

	"servicenow-token/local/windmill"
)

// runInstance runs the job once, by hand, against the real instance that snowFile
// describes: on the Windmill of the environment, or else on one that ends with the
// run.
func runInstance(ctx context.Context, out printer, dir, snowFile string) error {
	snow, err := readInstance(snowFile)
	if err != nil {
		return err
	}
	real, err := realWindmill()
	if err != nil {
		return err
	}
	worker, token, stop, err := newWorker(dir)
	if err != nil {
		return err
	}
	defer stop()
	if real == nil {
		out.field("Windmill", "a throw-away Windmill on this machine: the token is stored nowhere else")
	} else {
		out.field("Windmill", fmt.Sprintf("%s, workspace %s", os.Getenv("BASE_INTERNAL_URL"), os.Getenv("WM_WORKSPACE")))
	}
	binary, err := build(ctx, out, worker)
	if err != nil {
		return err
	}
	out.heading("real instance", "as described in "+snowFile)
	done, err := worker.Run(ctx, windmill.Job{
		Binary: binary, Path: scriptPath, Args: map[string]any{"snow": snow}, Token: token,
		Env: append(append(windmill.ByHand(), real...), network()...), Output: &logPrinter{printer: out},
	})
	if err != nil {
		return err
	}
	out.result(done, !done.Failed)
	if done.Failed {
		return errors.New(lastWords(done.Log))
	}
	if real == nil {
		out.field("  stored", "on the throw-away Windmill, which has ended: nowhere else")
	}
	return nil
}

// lastWords returns the last line of a log that is no item of a list.
func lastWords(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	for len(lines) > 1 && strings.HasPrefix(lines[len(lines)-1], "- ") {
		lines = lines[:len(lines)-1]
	}
	return strings.TrimSuffix(lines[len(lines)-1], " Check:")
}

// readInstance reads the script's argument from a file that only its owner may
// read. No error repeats a field's value. That of an empty or a missing field is
// left to the script.
func readInstance(name string) (map[string]string, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, fmt.Errorf("%q is a folder: name a file in it", name)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%q holds secrets and others may read it: chmod 600 it", name)
	}
	names := []string{"instance_url", "client_id", "client_secret", "username", "password"}
	var fields map[string]any
	decoder := json.NewDecoder(file)
	if decoder.Decode(&fields) != nil || fields == nil {
		return nil, fmt.Errorf("%q must be a JSON object with the strings %s", name, strings.Join(names, ", "))
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%q has something after its JSON object: remove that", name)
	}
	snow := make(map[string]string)
	var strange, mistyped []string
	for field, value := range fields {
		text, isString := value.(string)
		switch {
		case !slices.Contains(names, field):
			strange = append(strange, fmt.Sprintf("%q", field))
		case !isString:
			mistyped = append(mistyped, field)
		}
		snow[field] = text
	}
	sort.Strings(strange)
	sort.Strings(mistyped)
	if strange != nil {
		return nil, fmt.Errorf("%q has fields that do not belong there: %s. Those that do are %s",
			name, strings.Join(strange, ", "), strings.Join(names, ", "))
	}
	if mistyped != nil {
		return nil, fmt.Errorf("%q has fields that are no strings: %s", name, strings.Join(mistyped, ", "))
	}
	return snow, nil
}

// realWindmill returns the environment of a job on the Windmill that the caller's
// environment names; nil if it names none.
func realWindmill() (env []string, err error) {
	var missing []string
	for _, name := range []string{"BASE_INTERNAL_URL", "WM_WORKSPACE", "WM_TOKEN"} {
		if value := os.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		} else {
			missing = append(missing, name)
		}
	}
	if env != nil && missing != nil {
		return nil, fmt.Errorf("%s not set: a run on your Windmill needs BASE_INTERNAL_URL, WM_WORKSPACE and WM_TOKEN, "+
			"a run on a throw-away Windmill none of them", strings.Join(missing, " and "))
	}
	if env != nil { // Windmill knows who that is, and does not tell
		env = append(env, "WM_PERMISSIONED_AS=the owner of WM_TOKEN")
	}
	return env, nil
}

// network returns what of the caller's environment says how to reach an instance,
// besides what a worker passes on.
func network() (env []string) {
	for _, name := range []string{"SSL_CERT_FILE", "SSL_CERT_DIR", "http_proxy", "https_proxy", "no_proxy"} {
		if value, set := os.LookupEnv(name); set {
			env = append(env, name+"="+value)
		}
	}
	return env
}
