package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"servicenow-token/simulator"
)

// With the environment variable DEMO, this program is the demo instead of its test.
func TestMain(m *testing.M) {
	if err := os.Chdir(".."); err != nil {
		panic(err)
	}
	if os.Getenv("DEMO") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// watchFiles fails the test if the demo leaves a file behind.
func watchFiles(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Setenv("GOTMPDIR", "") // The demo sets it. This restores it.
	t.Cleanup(func() {
		if left, _ := filepath.Glob(dir + "/*"); len(left) > 0 {
			t.Errorf("the demo left %s", left)
		}
	})
}

// The demo and the logins share one build of main.go.
func TestDemo(t *testing.T) {
	watchFiles(t)
	var out bytes.Buffer
	d, err := newDemo(&out)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	ctx := context.Background()
	if err := d.deployScript(ctx); err != nil {
		t.Fatal(err)
	}
	t.Run("shows everything", func(t *testing.T) {
		if err := d.showAll(ctx); err != nil {
			t.Fatalf("%v\n%s", err, &out)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) > 26 { // The Makefile prints up to four more.
			t.Errorf("%d lines:\n%s", len(lines), &out)
		}
		for _, line := range lines {
			if utf8.RuneCountInString(line) > 160 {
				t.Errorf("this line is too long: %s", line)
			}
		}
	})
	for _, test := range []struct {
		name  string
		scene scene
		want  string
	}{
		{"result", scene{job: step, want: "failed"}, `failed was due from each job, but one said: "OK"`},
		{"logins", scene{job: step, want: ok, logins: 1}, "due: 1 login"},
		{"too few logins", scene{job: step, want: ok, logins: 1, mayBeMore: true}, "1 login or more were due"},
		{"calls", scene{job: step, want: ok, calls: 2}, "due: 2 calls to Windmill"},
		{"token", scene{job: step, want: ok, prepare: d.ServiceNow.Revoke}, "a valid token in the cache was due"},
	} {
		t.Run("notices another "+test.name, func(t *testing.T) {
			test.scene.jobs = 1
			err := d.show(ctx, test.scene)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("the error is %v; want %s", err, test.want)
			}
		})
	}
	d.ServiceNow.Intercept = nil // The logins need not be slow.
	t.Run("logs in", func(t *testing.T) { testLogIn(t, d, &out) })
}

// testLogIn logs in to the simulated instance, which has two addresses.
func testLogIn(t *testing.T, d *demo, out *bytes.Buffer) {
	secure := httptest.NewTLSServer(d.ServiceNow)
	defer secure.Close()
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
	// The job must have the first of these variables, like a proxy, and must not have the others.
	t.Setenv("SSL_CERT_FILE", writeFile(t, string(certificate)))
	t.Setenv("WM_TOKEN", simulator.JobToken)
	t.Setenv("WM_WORKSPACE", d.Windmill.Name)
	t.Setenv("BASE_INTERNAL_URL", "http://127.0.0.1:1")
	for _, test := range []struct {
		name     string
		address  string
		password string
		lifetime time.Duration
		want     string // of the output, as a regular expression
		failure  string
	}{
		{name: "accepted", address: d.InstanceURL, password: newPassword,
			want: `(?s)Received a token .*\nOK\. .* valid for (30m0|29m59)s\.\n$`},
		{name: "accepted for a minute", address: d.InstanceURL, password: newPassword, lifetime: time.Minute,
			want: `\nOK\. .* valid for (1m0|59)s\.\nA flow reuses a token only if`},
		{name: "accepted for longer", address: d.InstanceURL, password: newPassword, lifetime: 65 * time.Second,
			want: `\nOK\. .* valid for 1m[45]s\.\n$`},
		{name: "refused", address: d.InstanceURL, password: "wrong", want: `answered 401`, failure: "the login failed"},
		{name: "caller's environment", address: secure.URL, password: newPassword, want: `\nOK\.`},
	} {
		t.Run(test.name, func(t *testing.T) {
			out.Reset()
			d.ServiceNow.Lifetime = test.lifetime
			args, err := readSnow(snowFile(t, changes{"instance_url": test.address, "password": test.password}))
			if err != nil {
				t.Fatal(err)
			}
			err = d.logIn(context.Background(), args)
			failure := ""
			if err != nil {
				failure = err.Error()
			}
			if failure != test.failure || !regexp.MustCompile(test.want).MatchString(out.String()) {
				t.Errorf("want %s; the error is %v, and the output is\n%s", test.want, err, out)
			}
		})
	}
}

// changes are fields that differ from those of a correct file. A nil field is left out.
type changes map[string]any

// snowFile writes a file with the account of the simulated instance.
func snowFile(t *testing.T, changed changes) (name string) {
	fields := map[string]any{
		"instance_url":  "https://" + simulator.Sentinel + ".test",
		"client_id":     simulator.Account.ClientID,
		"client_secret": simulator.Account.ClientSecret,
		"username":      simulator.Account.Username,
		"password":      simulator.Account.Password,
	}
	for field, value := range changed {
		fields[field] = value
		if value == nil {
			delete(fields, field)
		}
	}
	content, err := json.MarshalIndent(fields, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return writeFile(t, string(content))
}

func writeFile(t *testing.T, content string) (name string) {
	name = filepath.Join(t.TempDir(), "instance.json")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// The demo checks the file before it builds or prints anything. Its errors quote no value.
func TestSnowFile(t *testing.T) {
	const secret = simulator.Sentinel
	for _, test := range []struct {
		name    string
		content string // if empty, that of a complete file with these changes
		changed changes
		mode    os.FileMode
		want    string
	}{
		{name: "readable by the group", mode: 0o640, want: "other users can read"},
		{name: "readable by others", mode: 0o604, want: "chmod 600 '"},
		{name: "invalid character", content: "{\n  \"client_id\": \"äö\", \"password\": " + secret,
			want: "line 2, column 34: "},
		{name: "ends too early", content: "{\n\"password\": \"" + secret, want: "line 2, column 21: "},
		{name: "empty file", content: " ", want: "line 1, column 1: "},
		{name: "no object", content: `["` + secret + `"]`, want: "JSON object with the fields instance_url, "},
		{name: "unknown field", changed: changes{"user": secret}, want: `the field "user" is unknown`},
		{name: "field of another case", changed: changes{"Password": secret}, want: `the field "Password" is unknown`},
		{name: "no instance_url", changed: changes{"instance_url": nil}, want: "instance_url is missing"},
		{name: "no client_id", changed: changes{"client_id": nil}, want: "client_id is missing"},
		{name: "blank client_secret", changed: changes{"client_secret": " "}, want: "client_secret is missing"},
		{name: "no username", changed: changes{"username": nil}, want: "username is missing"},
		{name: "empty password", changed: changes{"password": ""}, want: "password is missing"},
		{name: "list", changed: changes{"password": []string{secret}}, want: "password must be a string"},
		{name: "null", changed: changes{"client_secret": json.RawMessage("null")}, want: "client_secret must be"},
		{name: "$var", changed: changes{"password": " $var:" + secret}, want: "password refers to"},
		{name: "$res", changed: changes{"client_id": "$res:" + secret}, want: "client_id refers to"},
	} {
		t.Run(test.name, func(t *testing.T) {
			watchFiles(t)
			name := snowFile(t, test.changed)
			if test.content != "" {
				name = writeFile(t, test.content)
			}
			if err := os.Chmod(name, cmp.Or(test.mode, 0o600)); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			err := run(context.Background(), &out, name)
			if err == nil || !strings.Contains(err.Error(), test.want) || out.Len() > 0 {
				t.Fatalf("want %s; the error is %v, and the output is %s", test.want, err, &out)
			}
			for _, banned := range []string{secret, "resource"} {
				if strings.Contains(err.Error(), banned) {
					t.Errorf("the error contains %s: %v", banned, err)
				}
			}
		})
	}
	t.Run("client credentials", func(t *testing.T) {
		name := snowFile(t, changes{"username": nil, "password": nil})
		if args, err := readSnow(name); err != nil || !strings.Contains(args, `{"snow":{"client_id":"client"`) {
			t.Errorf("the argument is %s; the error is %v", args, err)
		}
	})
}

// The demo is a process that ends with 1 and leaves no files, whether its input is wrong or somebody interrupts it.
func TestProcess(t *testing.T) {
	for _, test := range []struct {
		name      string
		snowFile  string
		interrupt bool
		want      string
	}{
		{name: "no file", snowFile: "missing.json", want: "open missing.json: no such file or directory\n"},
		{name: "interrupted", interrupt: true, want: "interrupted\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			watchFiles(t)
			demo := exec.Command(os.Args[0])
			demo.Dir = "demo" // TestMain leaves it.
			demo.Env = append(os.Environ(), "DEMO=1", "SNOW="+test.snowFile)
			var complaint bytes.Buffer
			demo.Stderr = &complaint
			out, err := demo.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := demo.Start(); err != nil {
				t.Fatal(err)
			}
			if test.interrupt {
				_, _ = out.Read(make([]byte, 1)) // The first line says that the demo builds main.go.
				time.Sleep(300 * time.Millisecond)
				_ = demo.Process.Signal(os.Interrupt) // If it has ended, its exit code is another one.
			}
			_ = demo.Wait()
			if code := demo.ProcessState.ExitCode(); code != 1 || complaint.String() != test.want {
				t.Errorf("exit code %d, and the error is %q; want 1 and %q", code, &complaint, test.want)
			}
		})
	}
}
