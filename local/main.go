// Command local shows on this machine what the script does on Windmill: on a local Windmill, with a local ServiceNow.
// Where the environment variable SNOW names a file, it makes one login on the real instance that the file describes.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"servicenow-token/local/windmill"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Stdout, os.Getenv("SNOW"))
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run shows what the script does, or logs in once as snowFile says. It removes all that it has made.
func run(ctx context.Context, out io.Writer, snowFile string) error {
	dir, err := os.MkdirTemp("", "servicenow-token")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if snowFile != "" {
		return logIn(ctx, out, dir, snowFile)
	}
	return demonstrate(ctx, out, dir)
}

// logIn runs the job as outside Windmill, with the caller's environment, on the real instance that file describes.
func logIn(ctx context.Context, out io.Writer, dir, file string) error {
	args, err := readInstance(file)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "Building the job as a worker does …")
	worker := &windmill.Worker{Workspace: &windmill.Workspace{}, Dir: dir}
	binary, err := worker.Build(ctx, "main.go", ".")
	if err != nil {
		return err
	}
	env := append(os.Environ(), "WM_TOKEN=", "WM_JOB_ID=", "WM_WORKSPACE=", "BASE_INTERNAL_URL=")
	done, err := worker.Run(ctx, windmill.Job{Binary: binary, Args: args, Env: env})
	fmt.Fprint(out, done.Log)
	if err == nil && done.Failed { // the job has said why
		err = errors.New("the login failed")
	}
	return err
}

// readInstance reads the script's argument from a file that its owner alone may read. No error repeats what is in it.
func readInstance(name string) (args string, err error) {
	info, err := os.Stat(name)
	if err == nil && info.Mode()&0o077 != 0 {
		return "", fmt.Errorf("%s holds secrets, and others may read it: chmod 600 %[1]q", name)
	}
	content, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	named := strings.Contains(string(content), `"$res:`) || strings.Contains(string(content), `"$var:`)
	if json.Unmarshal(content, &map[string]string{}) != nil || named {
		return "", fmt.Errorf("%s must hold a JSON object of strings, each the value itself and none of Windmill's $res: or $var:, "+
			"instance_url, client_id, client_secret, username, password", name)
	}
	return fmt.Sprintf(`{"snow": %s}`, content), nil
}
