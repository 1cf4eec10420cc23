package windmill_test

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// needsNode skips a test that runs Windmill's own tools, which npm installs, unless
// WMILL_TOOLS is set, as `make check` does.
func needsNode(t *testing.T) {
	t.Helper()
	if os.Getenv("WMILL_TOOLS") == "" {
		t.Skip("needs Node.js; make check runs it")
	}
}

// registry is a workspace that keeps what is pushed to it, and records it.
type registry struct {
	mu     sync.Mutex
	kept   map[string]json.RawMessage // by the path of the GET that reads it
	pushed []push
	broken bool // every read fails
}

// push is a POST, by what was asked and with what body.
type push struct {
	Endpoint string
	Body     map[string]any
}

func (reg *registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	answer := func(status int, contentType, body string) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
	endpoint := strings.TrimPrefix(r.URL.Path, "/api/w/ws/")
	switch {
	case r.Header.Get("Authorization") != "Bearer t0ken":
		answer(http.StatusUnauthorized, "text/plain", "Unauthorized")
	case r.URL.Path == "/api/users/whoami":
		answer(http.StatusOK, "application/json", `{"email":"a@example.com","username":"a","is_admin":true}`)
	case r.Method == http.MethodGet && reg.broken:
		answer(http.StatusInternalServerError, "text/plain", "SqlErr: down")
	case r.Method == http.MethodGet:
		if kept, found := reg.kept[endpoint]; found {
			answer(http.StatusOK, "application/json", string(kept))
		} else {
			answer(http.StatusNotFound, "text/plain", "Not found: "+endpoint)
		}
	default:
		content, _ := io.ReadAll(r.Body)
		var body map[string]any
		_ = json.Unmarshal(content, &body) // what is no object is recorded without a body
		reg.pushed = append(reg.pushed, push{r.Method + " " + endpoint, maps.Clone(body)})
		name, _ := body["path"].(string)
		if name == "" {
			name, _ = body["name"].(string)
		}
		read := strings.Replace(endpoint, "/create", "/get/", 1) + name
		if endpoint == "scripts/create" {
			read = "scripts/get/p/" + name
			// What a deploy fills in by itself.
			body["hash"], body["lock"], body["ws_error_handler_muted"] = "0123456789abcdef", "module mymod\n\ngo 1.26\n", false
			content, _ = json.Marshal(body)
		}
		reg.kept[read] = content
		answer(http.StatusCreated, "text/plain", "created")
	}
}

// change calls by, which changes the registry, while nothing is served.
func (reg *registry) change(by func()) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	by()
}

// take returns what was pushed since it was last asked.
func (reg *registry) take() []push {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	pushed := reg.pushed
	reg.pushed = nil
	return pushed
}

// runMake runs make in the repository and returns what it printed.
func runMake(t *testing.T, flags string, targets ...string) (output string, err error) {
	t.Helper()
	command := exec.Command("make", append([]string{"--no-print-directory", "WMILL_FLAGS=" + flags}, targets...)...)
	command.Dir = ".."
	command.Env = append(os.Environ(), "HOME="+t.TempDir(), "MAKEFLAGS=", "MAKELEVEL=")
	text, err := command.CombinedOutput()
	return string(text), err
}

func readJSON(t *testing.T, value any, text string) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), value); err != nil {
		t.Fatal(err)
	}
}

func TestPush(t *testing.T) {
	needsNode(t)
	reg := &registry{kept: make(map[string]json.RawMessage)}
	server := httptest.NewServer(reg)
	defer server.Close()
	flags := "--base-url " + server.URL + " --token t0ken --workspace ws"

	output, err := runMake(t, flags, "push")
	if err != nil {
		t.Fatalf("make push: %v\n%s", err, output)
	}
	if want := "resource-type servicenow: created\nfolder ServiceNow: created\nscript f/ServiceNow/get_token: pushed\n"; !strings.HasSuffix(output, want) { // npm may come first
		t.Errorf("make push printed %q; want %q", output, want)
	}
	got := reg.take()
	if len(got) != 3 {
		t.Fatalf("make push sent %v; want the resource type, the folder and the script", got)
	}
	source, err := os.ReadFile("../main.go")
	if err != nil {
		t.Fatal(err)
	}

	var schema map[string]any
	readJSON(t, &schema, `{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "order": ["snow"], "required": ["snow"],
		"properties": {"snow": {"type": "object", "format": "resource-servicenow", "default": null,
			"description": "The ServiceNow instance, and the OAuth application and user to log in with"}}}`)
	if got[0].Endpoint != "POST resources/type/create" || got[0].Body["name"] != "servicenow" {
		t.Errorf("first came %s %v; want the resource type", got[0].Endpoint, got[0].Body["name"])
	}
	fields := []any{"instance_url", "client_id", "client_secret", "username", "password"}
	typeSchema := got[0].Body["schema"].(map[string]any)
	for _, list := range []string{"order", "required"} {
		if diff := cmp.Diff(fields, typeSchema[list]); diff != "" {
			t.Errorf("the resource type's %s mismatch (-want +got):\n%s", list, diff)
		}
	}
	for _, name := range fields {
		field := typeSchema["properties"].(map[string]any)[name.(string)].(map[string]any)
		secret := name == "client_secret" || name == "password"
		if field["type"] != "string" || field["description"] == "" || field["placeholder"] == "" || (field["password"] == true) != secret {
			t.Errorf("the resource type's field %s is %v", name, field)
		}
	}
	if got[1].Endpoint != "POST folders/create" || got[1].Body["name"] != "ServiceNow" {
		t.Errorf("second came %s %v; want the folder", got[1].Endpoint, got[1].Body)
	}
	script := got[2].Body
	if got[2].Endpoint != "POST scripts/create" || script["path"] != "f/ServiceNow/get_token" || script["language"] != "go" || script["kind"] != "script" {
		t.Errorf("third came %s, path %v, language %v, kind %v; want the script", got[2].Endpoint, script["path"], script["language"], script["kind"])
	}
	if diff := cmp.Diff(string(source), script["content"]); diff != "" {
		t.Errorf("the script's content mismatch (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(schema, script["schema"]); diff != "" {
		t.Errorf("the script's schema mismatch (-want +got):\n%s", diff)
	}
	if script["timeout"] != 90.0 || !strings.Contains(script["description"].(string), "`f/ServiceNow/snow_token_cache`") {
		t.Errorf("the script's timeout is %v, its description %v", script["timeout"], script["description"])
	}

	output, err = runMake(t, flags, "push-examples")
	if err != nil {
		t.Fatalf("make push-examples: %v\n%s", err, output)
	}
	got = reg.take()
	if len(got) != 2 || got[0].Endpoint != "POST schedules/create" || got[1].Endpoint != "POST flows/create" {
		t.Fatalf("make push-examples sent %v; want the schedule and the flow", got)
	}
	var schedule map[string]any
	readJSON(t, &schedule, `{"path": "f/ServiceNow/warm_token", "schedule": "0 */15 * * * *", "timezone": "UTC", "enabled": false,
		"script_path": "f/ServiceNow/get_token", "is_flow": false, "args": {"snow": "$res:f/ServiceNow/servicenow"}}`)
	delete(got[0].Body, "summary")
	delete(got[0].Body, "description")
	if diff := cmp.Diff(schedule, got[0].Body); diff != "" {
		t.Errorf("schedule mismatch (-want +got):\n%s", diff)
	}
	modules := got[1].Body["value"].(map[string]any)["modules"].([]any)
	inline, err := os.ReadFile(flowFolder + "/count_open_incidents.go")
	if err != nil {
		t.Fatal(err)
	}
	last := modules[len(modules)-1].(map[string]any)["value"].(map[string]any)
	if len(modules) != 2 || last["language"] != "go" || last["content"] != string(inline) || got[1].Body["path"] != "f/ServiceNow/open_incidents" {
		t.Errorf("the flow is %v", got[1].Body)
	}

	// Again: nothing changes, and nothing of an admin's is overwritten.
	output, err = runMake(t, flags, "push", "push-examples")
	if err != nil {
		t.Errorf("make push again: %v\n%s", err, output)
	}
	if got := reg.take(); len(got) != 0 {
		t.Errorf("make push again sent %v; want nothing", got)
	}
	if n := strings.Count(output, "already there, left as it is"); n != 4 || !strings.Contains(output, "get_token: up to date") {
		t.Errorf("%d left as they are; want 4:\n%s", n, output)
	}

	// Other code is pushed, with no lock of the old.
	reg.change(func() {
		const script = "scripts/get/p/f/ServiceNow/get_token"
		reg.kept[script] = json.RawMessage(strings.Replace(string(reg.kept[script]), "package inner", "package inner ", 1))
	})
	output, err = runMake(t, flags, "push")
	if got := reg.take(); err != nil || len(got) != 1 || got[0].Body["content"] != string(source) || got[0].Body["lock"] == "module mymod\n\ngo 1.26\n" {
		t.Errorf("make push over an older version = %v, sent %d; want the script\n%s", err, len(got), output)
	}

	// A workspace that cannot say what it has keeps it.
	reg.change(func() { reg.broken = true })
	for _, target := range []string{"push", "push-examples"} {
		output, err = runMake(t, flags, target)
		if got := reg.take(); err == nil || len(got) != 0 || !strings.Contains(output, "cannot tell whether it is already there") {
			t.Errorf("make %s with a broken workspace = %v, sent %v; want an error and nothing sent\n%s", target, err, got, output)
		}
	}
	if strings.Contains(output, "t0ken") {
		t.Errorf("the token was printed:\n%s", output)
	}
}

func TestPushWithoutAWorkspaceSaysWhatToDo(t *testing.T) {
	needsNode(t)
	output, err := runMake(t, "", "push")
	if err == nil || !strings.Contains(output, "wmill workspace add") || !strings.Contains(output, "WMILL_FLAGS") {
		t.Errorf("make push = %v; want an error that says what to do\n%s", err, output)
	}
}

func TestPushWithoutNodeSaysWhatToDo(t *testing.T) {
	bare := t.TempDir()
	for _, name := range []string{"bash", "dirname"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skip(err)
		}
		if err := os.Symlink(path, bare+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	command := exec.Command("bash", "../windmill/push.sh", "script")
	command.Env = []string{"PATH=" + bare}
	output, err := command.CombinedOutput()
	if err == nil || !strings.Contains(string(output), "Node.js") {
		t.Errorf("push.sh = %v; want an error that names Node.js\n%s", err, output)
	}
}

func TestTheCLIAcceptsTheFiles(t *testing.T) {
	needsNode(t)
	output, err := exec.Command("../windmill/push.sh", "lint").CombinedOutput()
	if err != nil || !strings.Contains(string(output), "2 valid") {
		t.Errorf("wmill lint = %v; want the schedule and the flow valid\n%s", err, output)
	}
}

func TestWindmillsOwnParserReadsTheArgument(t *testing.T) {
	needsNode(t)
	output, err := exec.Command("node", "../windmill/cli/parse.mjs", "../main.go").Output()
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Args []map[string]any }
	readJSON(t, &got, string(output))
	want := []map[string]any{{"name": "snow", "otyp": "servicenow", "typ": "unknown", "default": nil, "has_default": false, "oidx": nil}}
	if diff := cmp.Diff(want, got.Args); diff != "" {
		t.Errorf("arguments mismatch (-want +got):\n%s", diff)
	}
}
