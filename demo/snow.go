package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"servicenow-token/simulator"
	"servicenow-token/simulator/windmill"
)

// The fields of the file. The first three are required.
var fields = []string{"instance_url", "client_id", "client_secret", "username", "password"}

// readSnow returns the argument of the script from a file. No error quotes a value, because it may be a secret.
func readSnow(file string) (args string, err error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	if info.Mode()&0o077 != 0 {
		return "", fmt.Errorf("%s: other users can read the secrets in this file. Run: chmod 600 '%s'", file, file)
	}
	snow, err := decode(content)
	if err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	if err := checkFields(snow); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	encoded, err := json.Marshal(map[string]any{"snow": snow})
	return string(encoded), err
}

func decode(content []byte) (snow map[string]any, err error) {
	err = json.Unmarshal(content, &snow)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) { // Its text quotes a character.
		before := content[:max(syntax.Offset-1, 0)]
		line := 1 + bytes.Count(before, []byte("\n"))
		column := 1 + utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:])
		return nil, fmt.Errorf("line %d, column %d: this is not valid JSON", line, column)
	}
	if err != nil {
		return nil, errors.New("the content must be a JSON object with the fields " + strings.Join(fields, ", "))
	}
	return snow, nil
}

func checkFields(snow map[string]any) error {
	for name := range snow {
		if !slices.Contains(fields, name) {
			return fmt.Errorf("the field %q is unknown. The fields are %s", name, strings.Join(fields, ", "))
		}
	}
	isSet := make(map[string]bool)
	for _, name := range fields {
		value, isThere := snow[name]
		if !isThere {
			continue
		}
		text, isString := value.(string)
		if !isString {
			return fmt.Errorf("%s must be a string", name)
		}
		text = strings.TrimSpace(text)
		if strings.HasPrefix(text, "$res:") || strings.HasPrefix(text, "$var:") {
			return fmt.Errorf("%s refers to something in Windmill ($res: or $var:). Enter the value itself", name)
		}
		isSet[name] = text != ""
	}
	for _, name := range fields[:3] {
		if !isSet[name] {
			return fmt.Errorf("%s is missing or empty", name)
		}
	}
	if isSet["username"] && !isSet["password"] {
		return errors.New("password is missing or empty, but username is set")
	}
	if isSet["password"] && !isSet["username"] {
		return errors.New("username is missing or empty, but password is set")
	}
	return nil
}

// lifetimeLine is what the script prints about a token.
var lifetimeLine = regexp.MustCompile(`that is valid for (\S+)\.\n`)

// logIn runs the script as outside Windmill. The job has the caller's environment, which may set a proxy.
func (d *demo) logIn(ctx context.Context, args string) error {
	d.print("", "Running the script, which takes at most a minute.")
	outside := []string{"WM_TOKEN=", "WM_WORKSPACE=", "BASE_INTERNAL_URL="}
	done := d.Run(ctx, windmill.Job{
		Path:      simulator.ScriptPath,
		Args:      args,
		StartedBy: append(os.Environ(), outside...),
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	d.print("    ", done.Log)
	if done.Failed {
		return errors.New("the login failed")
	}
	match := lifetimeLine.FindStringSubmatch(done.Log)
	if match == nil {
		return errors.New("the script did not say how long the token is valid")
	}
	lifetime, err := time.ParseDuration(match[1])
	if err != nil {
		return err
	}
	d.print("", fmt.Sprintf("OK. ServiceNow gave a token that is valid for %s.", lifetime))
	if lifetime <= time.Minute {
		d.print("", "A flow reuses a token only if it is valid for more than a minute. "+
			"Raise the lifetime of its tokens in ServiceNow's OAuth application.")
	}
	return nil
}
