package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"servicenow-token/local/servicenow"
)

// runLocal calls run in the repository's folder, with a folder for temporary files
// that must be empty afterwards.
func runLocal(t *testing.T, ctx context.Context, snowFile string) (output string, err error) {
	t.Helper()
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	folder, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Base(folder) == "local" {
		if err := os.Chdir(".."); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Chdir(folder) })
	}
	var text bytes.Buffer
	err = run(ctx, printer{Writer: &text}, snowFile)
	left, _ := filepath.Glob(filepath.Join(temporary, "servicenow-token*"))
	if left != nil {
		t.Errorf("left behind: %v", left)
	}
	return text.String(), err
}

func TestEachKindOfRunIsShown(t *testing.T) {
	output, err := runLocal(t, context.Background(), "")
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	for _, want := range []string{
		`^Windmill +http.*\nServiceNow +http.*\nBuilding the job .*\nJob +main.go, built in \d+\.\d s\n`,
		`\nby hand +verifies .*\n  log +Run on its own, by hand .*\n(?: {16}\S.*\n)+  result +"OK" in \d+ ms\n` +
			`  Windmill +read 404, .*, update 200\n  ServiceNow +login 200 \(one login due\)\n`,
		`\nflow step +reuses .*\n  log +Reused .*\n  result +"OK" in \d+ ms\n  Windmill +read 200\n  ServiceNow +no calls \(no login due\)\n`,
		`\nscheduled flow +.*\n  log +Reused .*\n  result +"OK" in \d+ ms\n  Windmill +read 200\n  ServiceNow +no calls \(no login due\)\n`,
		`\nschedule +renews .*\n  log +Run on its own, by a schedule.*\n(?: {16}\S.*\n)+  result +"OK" in \d+ ms\n` +
			`  Windmill +read 200, .*, update 200\n  ServiceNow +login 200 \(one login due\)\n`,
		`\n20 jobs at once .*\n  result +(one login|2 logins), all jobs ended within \d+ ms\n  ServiceNow +login 200.* \(one login due\)\n$`,
	} {
		if !regexp.MustCompile(want).MatchString(output) {
			t.Errorf("no %s in:\n%s", want, output)
		}
	}
	if strings.Contains(output, "\x1b") {
		t.Error("colours, though this is no terminal")
	}
}

func TestARealInstance(t *testing.T) {
	instance := &servicenow.Instance{}
	account := servicenow.Account{ClientID: "id", ClientSecret: "S3cret-of-client", Username: "user", Password: "S3cret-password"}
	instance.SetAccount(account, true)
	address, stop, err := serve(instance)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	write := func(mode os.FileMode, fields any) string {
		name := filepath.Join(t.TempDir(), "instance.json")
		content, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, content, mode); err != nil {
			t.Fatal(err)
		}
		return name
	}
	fields := map[string]string{
		"instance_url": address, "client_id": account.ClientID, "client_secret": account.ClientSecret,
		"username": account.Username, "password": account.Password,
	}

	output, err := runLocal(t, context.Background(), write(0o600, fields))
	if err != nil || len(instance.TakeCalls()) != 1 || !strings.Contains(output, `"OK"`) {
		t.Errorf("run = %v; want one login and OK\n%s", err, output)
	}

	_, err = runLocal(t, context.Background(), write(0o640, fields))
	if err == nil || !strings.Contains(err.Error(), "chmod 600") || len(instance.TakeCalls()) != 0 {
		t.Errorf("run with a file that others may read = %v; want it refused", err)
	}

	_, err = runLocal(t, context.Background(), write(0o600, []string{account.Password}))
	if err == nil || strings.Contains(err.Error(), account.Password) {
		t.Errorf("run with a file of something else = %v; want an error without its content", err)
	}

	fields["password"] = "S3cret-password-wrong"
	output, err = runLocal(t, context.Background(), write(0o600, fields))
	if err == nil || !strings.Contains(output, "answered 401") {
		t.Errorf("run with a wrong password = %v; want a failure with 401\n%s", err, output)
	}
	if strings.Contains(output, "S3cret") {
		t.Errorf("a secret in:\n%s", output)
	}
}

func TestCtrlCLeavesNothingBehind(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := runLocal(t, ctx, ""); err == nil {
		t.Error("run = nil; want an error, for it was stopped")
	}
}
