package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"servicenow-token/local/servicenow"
	"servicenow-token/local/windmill"
	"servicenow-token/local/wire"
)

// builtOnce makes the runs of a test use one binary, which the first of them all builds.
func builtOnce(t *testing.T) {
	t.Helper()
	build := buildJob
	t.Cleanup(func() { buildJob = build })
	buildJob = func(context.Context, *windmill.Worker) (string, error) { return theJob() }
}

var (
	jobs   string // the folder of theJob
	theJob = sync.OnceValues(func() (binary string, err error) {
		return (&windmill.Worker{Dir: jobs}).Build(context.Background(), "main.go", ".")
	})
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if jobs, err = os.MkdirTemp("", "jobs"); err != nil {
			fmt.Println(err)
			return 1
		}
		defer os.RemoveAll(jobs)
		return m.Run()
	}())
}

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
	if left, err := os.ReadDir(temporary); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	return text.String(), err
}

func TestEachKindOfRunIsShown(t *testing.T) {
	output, err := runLocal(t, context.Background(), "")
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	const reused = `\n  log +Reused .*\n  result +"OK" in \d+ ms\n  Windmill +read 200\n` +
		`  ServiceNow +no calls \(no login due\)\n`
	for _, want := range []string{
		`^Windmill +http.*\nServiceNow +http.*\nBuilding the job .*\nJob +main.go, built in \d+\.\d s\n`,
		`\nby hand +verifies .*\n  log +Run on its own, by hand .*\n(?: {16}\S.*\n)+  result +"OK" in \d+ ms\n` +
			`  Windmill +read 404, .*, update 200\n  ServiceNow +login 200 \(one login due\)\n`,
		`\nflow step +reuses .*` + reused,
		`\nscheduled flow +its step reuses .*` + reused,
		`\nschedule +renews .*\n  log +Run on its own, by a schedule.*\n(?: {16}\S.*\n)+  result +"OK" in \d+ ms\n` +
			`  Windmill +read 200, .*, update 200\n  ServiceNow +login 200 \(one login due\)\n`,
		`\n20 jobs at once .*\n  result +(one login|2 logins), all jobs ended within \d+ ms\n` +
			`  ServiceNow +login 200.* \(one login due\)\n$`,
	} {
		if !regexp.MustCompile(want).MatchString(output) {
			t.Errorf("no %s in:\n%s", want, output)
		}
	}
	if strings.Contains(output, "\x1b") {
		t.Error("colours, though this is no terminal")
	}
}

// The sentinel secrets of the instance's files.
const (
	clientSecret = "S3cret-of-client"
	password     = "S3cret-password"
	windmillWord = "S3cret-of-windmill"
)

// newInstance serves an instance, with an account, and returns its fields of the file.
func newInstance(t *testing.T) (instance *servicenow.Instance, fields map[string]any) {
	t.Helper()
	builtOnce(t)
	for _, name := range []string{"BASE_INTERNAL_URL", "WM_WORKSPACE", "WM_TOKEN"} {
		t.Setenv(name, "")
	}
	instance = &servicenow.Instance{}
	account := servicenow.Account{ClientID: "id", ClientSecret: clientSecret, Username: "user", Password: password}
	instance.SetAccount(account, true)
	server := httptest.NewServer(instance)
	t.Cleanup(server.Close)
	return instance, map[string]any{
		"instance_url": server.URL, "client_id": account.ClientID, "client_secret": account.ClientSecret,
		"username": account.Username, "password": account.Password,
	}
}

// write writes content, as JSON unless it is text, to a file that its owner alone may
// read, in a path with a blank and a quote.
func write(t *testing.T, content any) (name string) {
	t.Helper()
	text, isText := content.(string)
	if !isText {
		encoded, err := json.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		text = string(encoded)
	}
	name = filepath.Join(t.TempDir(), "an admin's instance.json")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// checkSecrets fails the test if output or err has a secret in it.
func checkSecrets(t *testing.T, output string, err error) {
	t.Helper()
	if text := fmt.Sprint(output, err); strings.Contains(text, "S3cret") {
		t.Errorf("a secret in:\n%s", text)
	}
}

func TestARealInstance(t *testing.T) {
	instance, fields := newInstance(t)
	output, err := runLocal(t, context.Background(), write(t, fields))
	want := regexp.MustCompile(`^Windmill +a throw-away Windmill on this machine: the token is stored nowhere else\n` +
		`Building .*\nJob .*\n\nreal instance .*\n  log +Run on its own, by hand .*\n(?: {16}\S.*\n)+` +
		`  result +"OK" in \d+ ms\n  stored +on the throw-away Windmill, which has ended: nowhere else\n$`)
	if err != nil || !want.MatchString(output) {
		t.Errorf("run = %v; want %s; got\n%s", err, want, output)
	}
	if logins := instance.TakeCalls(); len(logins) != 1 {
		t.Errorf("%d logins; want 1", len(logins))
	}
	checkSecrets(t, output, err)
}

func TestARealInstanceThatFails(t *testing.T) {
	for _, test := range []struct {
		name, field string
		value       any // nil to leave the field out
		log, end    string
		logins      int
	}{
		{"a wrong password", "password", "S3cret-wrong", "answered 401",
			`^http://127\.0\.0\.1:\d+/oauth_token\.do answered 401 \(.+\)\. ServiceNow does not say why it refused the login\.$`, 1},
		{"an empty field", "username", "", "has nothing in username", `^the servicenow resource has nothing in username: `, 0},
		{"a missing field", "client_id", nil, "has nothing in client_id", `has nothing in client_id: `, 0},
		{"a secret for an address", "instance_url", "S3cret!", "not an instance's address",
			`^instance_url is not an instance's address: `, 0},
		{"a secret in the address", "instance_url", "https://S3cret:S3cret@snow.invalid/S3cret?S3cret",
			"not an instance's address", `^instance_url is not an instance's address: `, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			instance, fields := newInstance(t)
			fields[test.field] = test.value
			if test.value == nil {
				delete(fields, test.field)
			}
			output, err := runLocal(t, context.Background(), write(t, fields))
			if err == nil || !regexp.MustCompile(test.end).MatchString(err.Error()) {
				t.Errorf("run = %v; want %s", err, test.end)
			}
			if !strings.Contains(output, test.log) ||
				!regexp.MustCompile(`\n  result +failed in \d+ ms\n$`).MatchString(output) {
				t.Errorf("no %q in:\n%s", test.log, output)
			}
			if logins := instance.TakeCalls(); len(logins) != test.logins {
				t.Errorf("%d logins; want %d", len(logins), test.logins)
			}
			checkSecrets(t, output, err)
		})
	}
}

func TestAFolderIsNoFile(t *testing.T) {
	if _, err := readInstance(t.TempDir()); err == nil || !strings.Contains(err.Error(), "is a folder") {
		t.Errorf("readInstance = %v; want an error that says so", err)
	}
}

func TestAFileThatIsRefusedSendsNothing(t *testing.T) {
	for _, test := range []struct {
		name    string
		content func(fields map[string]any) any
		mode    os.FileMode
		want    []string
	}{
		{"others may read it", func(f map[string]any) any { return f }, 0o640, []string{"chmod 600"}},
		{"a list", func(map[string]any) any { return []string{password} }, 0o600, []string{"must be a JSON object"}},
		{"null", func(map[string]any) any { return "null" }, 0o600, []string{"must be a JSON object"}},
		{"half an object", func(map[string]any) any { return `{"password": "` + password }, 0o600,
			[]string{"must be a JSON object"}},
		{"nothing", func(map[string]any) any { return "" }, 0o600, []string{"must be a JSON object"}},
		{"text after the object", func(f map[string]any) any { return encode(f) + password }, 0o600,
			[]string{"something after"}},
		{"a second object", func(f map[string]any) any { return encode(f) + encode(f) }, 0o600, []string{"something after"}},
		{"a brace too many", func(f map[string]any) any { return encode(f) + "}" }, 0o600, []string{"something after"}},
		{"fields that do not belong", func(f map[string]any) any {
			f["passwort"], f["Password"] = password, password
			return f
		}, 0o600, []string{`do not belong there: "Password", "passwort".`, "Those that do are instance_url, client_id"}},
		{"fields that are no strings", func(f map[string]any) any {
			f["username"], f["password"] = nil, []string{password}
			return f
		}, 0o600, []string{"no strings: password, username"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			instance, fields := newInstance(t)
			file := write(t, test.content(fields))
			if err := os.Chmod(file, test.mode); err != nil {
				t.Fatal(err)
			}
			output, err := runLocal(t, context.Background(), file)
			for _, want := range test.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("run = %v; want %q", err, want)
				}
			}
			if logins := instance.TakeCalls(); logins != nil {
				t.Errorf("%d logins; want none", len(logins))
			}
			checkSecrets(t, output, err)
		})
	}
}

func encode(value any) string {
	encoded, _ := json.Marshal(value) // strings always marshal
	return string(encoded)
}

func TestARealWindmill(t *testing.T) {
	instance, fields := newInstance(t)
	workspace := &windmill.Workspace{Name: "a workspace"}
	workspace.AddFolder("f/ServiceNow")
	workspace.AddToken(windmillWord, windmill.Rights{"f/ServiceNow": windmill.Write})
	server := httptest.NewServer(workspace)
	defer server.Close()
	t.Setenv("BASE_INTERNAL_URL", server.URL)
	t.Setenv("WM_WORKSPACE", workspace.Name)
	t.Setenv("WM_TOKEN", windmillWord)

	output, err := runLocal(t, context.Background(), write(t, fields))
	if err != nil || !strings.HasPrefix(output, "Windmill        "+server.URL+", workspace a workspace\n") {
		t.Errorf("run = %v; want the Windmill named\n%s", err, output)
	}
	cached, _ := workspace.Resource("f/ServiceNow/snow_token_cache")
	if !strings.Contains(string(cached.Value), instance.Issued()[0]) {
		t.Errorf("the workspace has %s; want the token", cached.Value)
	}
	checkSecrets(t, output, err)

	instance.TakeCalls()
	for _, test := range []struct{ unset, want string }{
		{"WM_TOKEN", "WM_TOKEN not set"},
		{"WM_WORKSPACE", "WM_WORKSPACE and WM_TOKEN not set"}, // the token is still away
	} {
		t.Setenv(test.unset, "")
		output, err := runLocal(t, context.Background(), write(t, fields))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("run = %v; want %q", err, test.want)
		}
		checkSecrets(t, output, err)
	}
	if logins := instance.TakeCalls(); logins != nil {
		t.Errorf("%d logins; want none", len(logins))
	}
}

func TestTheJobGetsTheCallersWayIntoTheNetwork(t *testing.T) {
	instance, fields := newInstance(t)
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"} {
		t.Setenv(name, "")
	}
	server := httptest.NewTLSServer(instance)
	defer server.Close()
	authority := filepath.Join(t.TempDir(), "authority.pem")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}
	if err := os.WriteFile(authority, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	fields["instance_url"] = server.URL
	t.Setenv("SSL_CERT_FILE", authority)
	if output, err := runLocal(t, context.Background(), write(t, fields)); err != nil {
		t.Errorf("SSL_CERT_FILE: run = %v\n%s", err, output)
	}
	t.Setenv("SSL_CERT_FILE", os.DevNull)
	t.Setenv("SSL_CERT_DIR", filepath.Dir(authority))
	if output, err := runLocal(t, context.Background(), write(t, fields)); err != nil {
		t.Errorf("SSL_CERT_DIR: run = %v\n%s", err, output)
	}

	var proxy wire.Recorder
	proxyServer := httptest.NewServer(proxy.Record(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
	}))
	defer proxyServer.Close()
	fields["instance_url"] = "https://snow.invalid"
	t.Setenv("https_proxy", proxyServer.URL)
	_, err := runLocal(t, context.Background(), write(t, fields))
	if calls := proxy.TakeCalls(); err == nil || len(calls) != 1 || calls[0].Path != "snow.invalid:443" {
		t.Errorf("https_proxy: run = %v, calls to the proxy: %v; want one for snow.invalid", err, calls)
	}
	t.Setenv("no_proxy", "snow.invalid")
	_, err = runLocal(t, context.Background(), write(t, fields))
	if calls := proxy.TakeCalls(); err == nil || calls != nil {
		t.Errorf("no_proxy: run = %v, calls to the proxy: %v; want none", err, calls)
	}

	t.Setenv("no_proxy", "")
	t.Setenv("http_proxy", proxyServer.URL)
	t.Setenv("BASE_INTERNAL_URL", "http://windmill.invalid")
	t.Setenv("WM_WORKSPACE", "w")
	t.Setenv("WM_TOKEN", windmillWord)
	_, err = runLocal(t, context.Background(), write(t, fields))
	calls := proxy.TakeCalls()
	if err == nil || len(calls) == 0 || !strings.HasPrefix(calls[0].Path, "http://windmill.invalid/") {
		t.Errorf("http_proxy: run = %v, calls to the proxy: %v; want some for windmill.invalid", err, calls)
	}
}

func TestASignalEndsTheJobAndLeavesNothingBehind(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "run")
	if said, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	for _, stop := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE} {
		if testing.Short() && stop != syscall.SIGTERM {
			continue
		}
		t.Run(stop.String(), func(t *testing.T) {
			instance, fields := newInstance(t)
			asked, gone := make(chan bool), make(chan bool)
			instance.SetFault(func(_ int, _ http.ResponseWriter, r *http.Request) bool {
				asked <- true
				<-r.Context().Done() // the job's end closes its connection
				close(gone)
				return true
			})
			temporary := t.TempDir()
			var output bytes.Buffer
			command := exec.Command(binary)
			command.Dir = ".."
			command.Env = append(os.Environ(), "TMPDIR="+temporary, "SNOW="+write(t, fields))
			command.Stdout, command.Stderr = &output, &output
			if err := command.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- command.Wait() }()
			select {
			case <-asked:
			case err := <-ended:
				t.Fatalf("it ended before it asked the instance: %v\n%s", err, output.String())
			case <-time.After(time.Minute):
				_ = command.Process.Kill()
				t.Fatal("it did not ask the instance")
			}
			if err := command.Process.Signal(stop); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-ended:
				if command.ProcessState.ExitCode() != 1 {
					t.Errorf("it ended with %v; want status 1", err)
				}
			case <-time.After(10 * time.Second): // the job gives up by itself after 15 s
				_ = command.Process.Kill()
				t.Fatal("it did not end")
			}
			select {
			case <-gone:
			case <-time.After(5 * time.Second):
				t.Error("the job is still there")
			}
			// What the job had printed was shown while it ran.
			if !strings.Contains(output.String(), "  log           Run on its own, by hand") {
				t.Errorf("no log in:\n%s", output.String())
			}
			if left, err := os.ReadDir(temporary); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			checkSecrets(t, output.String(), nil)
		})
	}
}

func TestCtrlCLeavesNothingBehind(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := runLocal(t, ctx, ""); err == nil {
		t.Error("run = nil; want an error, for it was stopped")
	}
}
