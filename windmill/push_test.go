package windmill_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	scriptGet   = "scripts/get/p/f/ServiceNow/get_token"
	pusherToken = "S3cret-pusher-token"
)

// needsNode skips a test that runs Windmill's own tools, which npm installs, unless
// WMILL_TOOLS is set, as `make check` does.
func needsNode(t *testing.T) {
	t.Helper()
	if os.Getenv("WMILL_TOOLS") == "" {
		t.Skip("needs Node.js; make check runs it")
	}
}

// object is a JSON object.
type object = map[string]any

// registry is a workspace that keeps what is pushed to it, and records it.
type registry struct {
	url string

	mu       sync.Mutex
	kept     map[string]any // by the path of the GET that reads it
	pushed   []push
	ran      []push
	versions int  // of scripts
	stale    bool // every push of what exists is refused
	broken   bool // every read but that of the user fails
	member   bool // the pusher is no admin
	// How the dependency job of the next version ends: it is pending for so many reads
	// of the script; then there is a lock, or why there is none.
	pending   int
	lockError string
	// How the next job ends.
	jobFails bool
	jobWaits bool // for ever
}

// push is a POST, by what was asked and with what body.
type push struct {
	Endpoint string
	Body     object
}

// newRegistry serves an empty workspace named ws.
func newRegistry(t *testing.T) *registry {
	t.Helper()
	reg := &registry{kept: make(map[string]any)}
	server := httptest.NewServer(reg)
	t.Cleanup(server.Close)
	reg.url = server.URL
	return reg
}

func (reg *registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	answer := func(status int, value any) {
		if text, ok := value.(string); ok {
			w.Header().Set("Content-Type", "text/plain")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, text)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(value)
	}
	endpoint := strings.TrimPrefix(r.URL.Path, "/api/w/ws/")
	switch {
	case r.Header.Get("Authorization") != "Bearer "+pusherToken:
		answer(http.StatusUnauthorized, "Unauthorized")
	case strings.HasSuffix(r.URL.Path, "users/whoami"):
		answer(http.StatusOK, object{
			"email": "a@example.com", "username": "a", "is_admin": !reg.member, "groups": []string{},
		})
	case r.Method == http.MethodGet && reg.broken:
		answer(http.StatusInternalServerError, "SqlErr: down")
	case endpoint == "resources/type/list":
		types := []any{}
		for path, kept := range reg.kept {
			if strings.HasPrefix(path, "resources/type/get/") {
				types = append(types, kept)
			}
		}
		answer(http.StatusOK, types)
	case strings.HasPrefix(endpoint, "jobs/run/p/"):
		reg.ran = append(reg.ran, push{endpoint, readBody(r)})
		answer(http.StatusCreated, "job-1")
	case strings.HasPrefix(endpoint, "jobs_u/completed/get/") && reg.jobWaits:
		answer(http.StatusNotFound, "Not found: job")
	case strings.HasPrefix(endpoint, "jobs_u/completed/get/"):
		result := any("OK")
		if reg.jobFails {
			result = object{"error": object{"message": "ServiceNow answered 401"}}
		}
		answer(http.StatusOK, object{"success": !reg.jobFails, "result": result, "logs": "what the job printed\n"})
	case strings.HasPrefix(endpoint, "jobs_u/getupdate/"):
		answer(http.StatusOK, object{"running": false, "completed": false})
	case r.Method == http.MethodGet:
		kept, found := reg.kept[endpoint]
		if !found {
			answer(http.StatusNotFound, "Not found: "+endpoint)
			return
		}
		if strings.HasPrefix(endpoint, "scripts/") {
			reg.endDependencyJob(kept.(object))
		}
		answer(http.StatusOK, kept)
	case creates[endpoint] == "":
		answer(http.StatusNotFound, "Not found: no such route")
	default:
		body := readBody(r)
		reg.pushed = append(reg.pushed, push{r.Method + " " + endpoint, maps.Clone(body)})
		name, _ := body["path"].(string)
		if name == "" {
			name, _ = body["name"].(string)
		}
		read := creates[endpoint] + name
		former, exists := reg.kept[read].(object)
		if exists && (reg.stale || endpoint != "scripts/create" || body["parent_hash"] != former["hash"] && former["archived"] != true) {
			answer(http.StatusBadRequest, "Bad request: "+name+" is already there")
			return
		}
		if endpoint == "scripts/create" {
			reg.versions++
			body["hash"] = fmt.Sprint("hash", reg.versions)
			if body["ws_error_handler_muted"] == nil {
				body["ws_error_handler_muted"] = false
			}
		}
		reg.kept[read] = body
		answer(http.StatusCreated, "created")
	}
}

// creates has the endpoints that create something, and where that is read.
var creates = map[string]string{
	"resources/type/create": "resources/type/get/",
	"folders/create":        "folders/get/",
	"scripts/create":        "scripts/get/p/",
	"schedules/create":      "schedules/get/",
	"flows/create":          "flows/get/",
}

// endDependencyJob ends a script's dependency job when it is due.
func (reg *registry) endDependencyJob(script object) {
	switch {
	case script["lock"] != nil || script["lock_error_logs"] != nil:
	case reg.pending > 0:
		reg.pending--
	case reg.lockError != "":
		script["lock_error_logs"] = reg.lockError
	default:
		script["lock"] = "module mymod\n\ngo 1.26\n"
	}
}

func readBody(r *http.Request) object {
	var body object
	_ = json.NewDecoder(r.Body).Decode(&body) // what is no object is recorded without a body
	return body
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

// takeScript returns the script that was pushed, alone, since take was last called.
func (reg *registry) takeScript(t *testing.T) object {
	t.Helper()
	pushed := reg.take()
	if len(pushed) != 1 || pushed[0].Endpoint != "POST scripts/create" {
		t.Fatalf("pushed: %v; want the script alone", endpoints(pushed))
	}
	return pushed[0].Body
}

func endpoints(pushed []push) []string {
	var names []string
	for _, p := range pushed {
		names = append(names, p.Endpoint)
	}
	return names
}

var installTools = sync.OnceValue(func() error {
	output, err := exec.Command("./push.sh", "lint").CombinedOutput()
	if err != nil {
		return fmt.Errorf("push.sh lint: %w\n%s", err, output)
	}
	return nil
})

// checkout copies what a push needs into a folder of its own, whose name has what a
// shell might trip over.
func checkout(t *testing.T) string {
	t.Helper()
	needsNode(t)
	if err := installTools(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), `an admin's "clone"`)
	if err := os.MkdirAll(filepath.Join(dir, "windmill"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"Makefile", "main.go", "script.yaml", "windmill/push.sh", "windmill/servicenow.resource-type.yaml",
	} {
		content, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if output, err := exec.Command("cp", "-R", "f", filepath.Join(dir, "windmill/f")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	tools, err := filepath.Abs("cli")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(tools, filepath.Join(dir, "windmill/cli")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// runMake runs make in a checkout with variables of the environment, and returns what
// it printed, which has no secret and no colour.
func runMake(t *testing.T, dir string, env []string, args ...string) (output string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, "make", append([]string{"--no-print-directory"}, args...)...)
	command.Dir = dir
	command.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, env...)
	text, err := command.CombinedOutput()
	output = string(text)
	if strings.Contains(output, "S3cret") || strings.Contains(output, "\x1b") {
		t.Errorf("a secret or a colour was printed:\n%q", output)
	}
	return output, err
}

// env names the workspace as an admin does in the environment.
func (reg *registry) env(more ...string) []string {
	return append(more, "WMILL_BASE_URL="+reg.url, "WMILL_WORKSPACE=ws", "WMILL_TOKEN="+pusherToken)
}

// mustMake runs make, which must succeed, on the registry.
func (reg *registry) mustMake(t *testing.T, dir string, args ...string) (output string) {
	t.Helper()
	output, err := runMake(t, dir, reg.env(), args...)
	if err != nil {
		t.Fatalf("make %s: %v\n%s", strings.Join(args, " "), err, output)
	}
	return output
}

// failMake runs make, which must fail and say why, on the registry.
func (reg *registry) failMake(t *testing.T, dir string, args []string, why ...string) {
	t.Helper()
	output, err := runMake(t, dir, reg.env(), args...)
	if err == nil {
		t.Errorf("make %s succeeded; want an error\n%s", strings.Join(args, " "), output)
	}
	for _, text := range why {
		if !strings.Contains(output, text) {
			t.Errorf("make %s does not say %q:\n%s", strings.Join(args, " "), text, output)
		}
	}
}

func readJSON(t *testing.T, text string) any {
	t.Helper()
	var value any
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		t.Fatal(err)
	}
	return value
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func checkText(t *testing.T, want, got string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("output mismatch (-want +got):\n%s", diff)
	}
}

// fields are those of a resource that the script reads.
var fields = []any{"instance_url", "client_id", "client_secret", "username", "password"}

// resourceType returns a resource type with the given fields.
func resourceType(workspace, name string, fields ...any) object {
	properties := make(object)
	for _, field := range fields {
		properties[field.(string)] = object{"type": "string"}
	}
	return object{"workspace_id": workspace, "name": name, "schema": object{"type": "object", "properties": properties}}
}

// havePushed puts into the registry what a push leaves there.
func (reg *registry) havePushed(t *testing.T, dir string) (script object) {
	t.Helper()
	reg.mustMake(t, dir, "push")
	reg.take()
	reg.change(func() { script = reg.kept[scriptGet].(object) })
	return script
}

func TestPushIntoAnEmptyWorkspace(t *testing.T) {
	t.Parallel()
	dir, reg := checkout(t), newRegistry(t)
	reg.pending = 1

	checkText(t, `Logging in to Windmill …
resource-type servicenow: created
folder ServiceNow: created
folder ServiceNow_login: created
script f/ServiceNow/get_token: pushed; waiting for Windmill to lock its dependencies
script f/ServiceNow/get_token: deployed
`, reg.mustMake(t, dir, "push"))
	got := reg.take()
	want := []string{"POST resources/type/create", "POST folders/create", "POST folders/create", "POST scripts/create"}
	if diff := cmp.Diff(want, endpoints(got)); diff != "" {
		t.Fatalf("calls mismatch (-want +got):\n%s", diff)
	}

	typeSchema := got[0].Body["schema"].(object)
	for _, list := range []string{"order", "required"} {
		if diff := cmp.Diff(fields, typeSchema[list]); diff != "" {
			t.Errorf("the resource type's %s mismatch (-want +got):\n%s", list, diff)
		}
	}
	for _, name := range fields {
		field := typeSchema["properties"].(object)[name.(string)].(object)
		secret := name == "client_secret" || name == "password"
		if field["type"] != "string" || field["description"] == "" || field["placeholder"] == "" ||
			(field["password"] == true) != secret {
			t.Errorf("the resource type's field %s is %v", name, field)
		}
	}
	if got[0].Body["name"] != "servicenow" || got[1].Body["name"] != "ServiceNow" ||
		got[2].Body["name"] != "ServiceNow_login" {
		t.Errorf("names are %v, %v, %v", got[0].Body["name"], got[1].Body["name"], got[2].Body["name"])
	}
	for _, folder := range got[1:3] {
		if folder.Body["owners"] != nil || folder.Body["extra_perms"] != nil {
			t.Errorf("the folder is %v; want its sharing left to Windmill", folder.Body)
		}
	}

	script := got[3].Body
	checkText(t, readFile(t, "../main.go"), script["content"].(string))
	schema := readJSON(t, `{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object",
		"order": ["snow"], "required": ["snow"], "properties": {"snow": {
			"type": "object", "format": "resource-servicenow", "default": null,
			"description": "The ServiceNow instance, and the OAuth application and user to log in with"}}}`)
	if diff := cmp.Diff(schema, script["schema"]); diff != "" {
		t.Errorf("the script's schema mismatch (-want +got):\n%s", diff)
	}
	if script["path"] != "f/ServiceNow/get_token" || script["language"] != "go" || script["kind"] != "script" ||
		script["timeout"] != 90.0 || !strings.Contains(script["description"].(string), "`f/ServiceNow/snow_token_cache`") {
		t.Errorf("the script's path is %v, language %v, kind %v, timeout %v, description %v",
			script["path"], script["language"], script["kind"], script["timeout"], script["description"])
	}

	checkText(t, "Logging in to Windmill …\nschedule f/ServiceNow/warm_token: created\nflow f/ServiceNow/open_incidents: created\n",
		reg.mustMake(t, dir, "push-examples"))
	got = reg.take()
	if diff := cmp.Diff([]string{"POST schedules/create", "POST flows/create"}, endpoints(got)); diff != "" {
		t.Fatalf("calls mismatch (-want +got):\n%s", diff)
	}
	schedule := readJSON(t, `{"path": "f/ServiceNow/warm_token", "schedule": "0 */15 * * * *", "timezone": "UTC",
		"enabled": false, "script_path": "f/ServiceNow/get_token", "is_flow": false,
		"args": {"snow": "$res:f/ServiceNow_login/servicenow"}}`).(object)
	delete(got[0].Body, "summary")
	delete(got[0].Body, "description")
	if diff := cmp.Diff(schedule, got[0].Body); diff != "" {
		t.Errorf("schedule mismatch (-want +got):\n%s", diff)
	}
	modules := got[1].Body["value"].(object)["modules"].([]any)
	last := modules[len(modules)-1].(object)["value"].(object)
	if len(modules) != 2 || last["language"] != "go" || got[1].Body["path"] != "f/ServiceNow/open_incidents" {
		t.Errorf("the flow is %v", got[1].Body)
	}
	checkText(t, readFile(t, flowFolder+"/count_open_incidents.go"), last["content"].(string))
	if properties := got[1].Body["schema"].(object)["properties"].(object); len(properties) != 0 {
		t.Errorf("the flow has the inputs %v; want none", properties)
	}

	// Again: nothing changes, and nothing of an admin's is overwritten.
	checkText(t, `Logging in to Windmill …
resource-type servicenow: already there, left as it is
folder ServiceNow: already there, left as it is
folder ServiceNow_login: already there, left as it is
script f/ServiceNow/get_token: up to date
Logging in to Windmill …
schedule f/ServiceNow/warm_token: already there, left as it is
flow f/ServiceNow/open_incidents: already there, left as it is
`, reg.mustMake(t, dir, "push", "push-examples"))
	if got := reg.take(); len(got) != 0 {
		t.Errorf("make push again sent %v; want nothing", endpoints(got))
	}
}

func TestPushTakesAResourceTypeThatHasTheFields(t *testing.T) {
	all := resourceType("admins", "servicenow", append(fields, "scope")...)
	for name, test := range map[string]struct {
		there  []object
		output string // of the resource types
		create string // the type that is created
		format string // of the script's form
	}{
		"one of the Hub's with the fields is used": {
			[]object{all}, "resource-type servicenow: already there, left as it is\n", "", "resource-servicenow",
		},
		"one that lacks fields is left, and c_servicenow created": {
			[]object{resourceType("admins", "servicenow", "instance_url", "username", "token")},
			"resource-type servicenow: already there, left as it is, but it lacks client_id, client_secret, password\n" +
				"resource-type c_servicenow: created\n",
			"c_servicenow", "resource-c_servicenow",
		},
		"one without a schema lacks all fields": {
			[]object{{"workspace_id": "admins", "name": "servicenow"}},
			"resource-type servicenow: already there, left as it is, but it lacks " +
				"instance_url, client_id, client_secret, username, password\nresource-type c_servicenow: created\n",
			"c_servicenow", "resource-c_servicenow",
		},
		"c_servicenow that has the fields is used": {
			[]object{resourceType("ws", "servicenow"), resourceType("ws", "c_servicenow", fields...)},
			"resource-type servicenow: already there, left as it is, but it lacks " +
				"instance_url, client_id, client_secret, username, password\n" +
				"resource-type c_servicenow: already there, left as it is\n",
			"", "resource-c_servicenow",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, reg := checkout(t), newRegistry(t)
			for _, there := range test.there {
				reg.kept["resources/type/get/"+there["name"].(string)] = there
			}
			output := reg.mustMake(t, dir, "push")
			types, _, _ := strings.Cut(output, "folder")
			checkText(t, "Logging in to Windmill …\n"+test.output, types)
			pushed := reg.take()
			created := ""
			if pushed[0].Endpoint == "POST resources/type/create" {
				created = pushed[0].Body["name"].(string)
			}
			snow := pushed[len(pushed)-1].Body["schema"].(object)["properties"].(object)["snow"].(object)
			if created != test.create || snow["format"] != test.format {
				t.Errorf("created %q, format %q; want %q, %q", created, snow["format"], test.create, test.format)
			}
			for _, p := range pushed {
				if strings.Contains(p.Endpoint, "type/update") {
					t.Errorf("%s; want the types there left alone", p.Endpoint)
				}
			}
			reg.mustMake(t, dir, "push")
			if got := reg.take(); len(got) != 0 {
				t.Errorf("make push again sent %v; want nothing", endpoints(got))
			}
		})
	}

	t.Run("where both lack fields nothing is pushed", func(t *testing.T) {
		t.Parallel()
		dir, reg := checkout(t), newRegistry(t)
		reg.kept["resources/type/get/servicenow"] = resourceType("admins", "servicenow", "token")
		reg.kept["resources/type/get/c_servicenow"] = resourceType("ws", "c_servicenow", "username", "password")
		reg.failMake(t, dir, []string{"push"},
			"c_servicenow: already there, left as it is, but it lacks instance_url, client_id, client_secret\n")
		if got := reg.take(); len(got) != 0 {
			t.Errorf("sent %v; want nothing", endpoints(got))
		}
	})
}

func TestPushKeepsWhatAnAdminSet(t *testing.T) {
	t.Parallel()
	dir, reg := checkout(t), newRegistry(t)
	script := reg.havePushed(t, dir)
	set := object{
		"tag": "snow", "envs": []any{"HTTPS_PROXY=http://proxy"}, "labels": []any{"prod"}, "priority": 7.0, "timeout": 120.0,
		"cache_ttl": 5.0, "cache_ignore_s3_path": true, "dedicated_worker": true, "has_preprocessor": false,
		"restart_unless_cancelled": true, "visible_to_runner_only": true, "ws_error_handler_muted": true,
		"delete_after_secs": 60.0, "concurrent_limit": 3.0, "concurrency_time_window_s": 10.0, "concurrency_key": "snow",
		"debounce_key": "k", "debounce_delay_s": 2.0, "debounce_args_to_accumulate": []any{"snow"},
		"max_total_debouncing_time": 20.0, "max_total_debounces_amount": 4.0, "kind": "script",
		"on_behalf_of_email": "bot@example.com", "on_behalf_of": "u/bot",
	}
	reg.change(func() {
		maps.Copy(script, set)
		script["content"] = "package inner\n"
		script["summary"], script["description"], script["schema"] = "old", "old", object{}
	})

	checkText(t, "script f/ServiceNow/get_token: its cache_ttl is kept, but take it off: "+
		"for so long Windmill answers a cached \"OK\" and does not run the script\n"+
		"script f/ServiceNow/get_token: deployed\n", afterFolders(reg.mustMake(t, dir, "push")))
	got := reg.takeScript(t)
	kept := make(object)
	for name := range set {
		kept[name] = got[name]
	}
	if diff := cmp.Diff(set, kept); diff != "" {
		t.Errorf("settings mismatch (-want +got):\n%s", diff)
	}
	if got["preserve_on_behalf_of"] != true {
		t.Error("on behalf of is not preserved")
	}
	if got["content"] != readFile(t, "../main.go") || got["summary"] == "old" || got["description"] == "old" ||
		got["schema"].(object)["properties"] == nil {
		t.Errorf("code, summary, description or schema are still old: %v, %v, %v",
			got["summary"], got["description"], got["schema"])
	}
	if lock, found := got["lock"]; found {
		t.Errorf("other code was pushed with the lock %v", lock)
	}
	reg.mustMake(t, dir, "push")
	if got := reg.take(); len(got) != 0 {
		t.Errorf("make push again sent %v; want nothing", endpoints(got))
	}

	// Windmill leaves out what is not set; the file's timeout does not come back.
	reg.change(func() {
		script := reg.kept[scriptGet].(object)
		delete(script, "timeout")
		script["description"] = "old"
	})
	reg.mustMake(t, dir, "push")
	if got := reg.takeScript(t)["timeout"]; got != nil {
		t.Errorf("timeout %v; want none, as an admin set it", got)
	}

	// The same code with another description needs no dependency job.
	reg.change(func() { reg.kept[scriptGet].(object)["description"] = "old" })
	reg.mustMake(t, dir, "push")
	if got := reg.takeScript(t); got["lock"] == nil || got["description"] == "old" {
		t.Errorf("lock %v, description %v; want the lock and the new description", got["lock"], got["description"])
	}
}

// afterFolders cuts what a push prints of the resource type and the folders.
func afterFolders(output string) string {
	return output[strings.Index(output, "script "):]
}

func TestPushSaysWhereOnBehalfOfCannotBeKept(t *testing.T) {
	t.Parallel()
	dir, reg := checkout(t), newRegistry(t)
	script := reg.havePushed(t, dir)
	reg.change(func() {
		reg.member = true
		script["content"], script["on_behalf_of_email"] = "package inner\n", "bot@example.com"
	})
	reg.failMake(t, dir, []string{"push"}, "it ran on behalf of bot@example.com, and no longer does", "wm_deployers")
}

func TestPushLeavesAScriptInAnotherLanguageAlone(t *testing.T) {
	t.Parallel()
	dir, reg := checkout(t), newRegistry(t)
	script := reg.havePushed(t, dir)
	python := func() {
		script["language"], script["content"], script["tag"] = "python3", "def main():\n  pass\n", "python"
		reg.kept[scriptGet] = script
	}
	reg.change(python)
	reg.failMake(t, dir, []string{"push"},
		"script f/ServiceNow/get_token: there is another one, in python3; it is left as it is.", "FORCE=1", "Archive")
	if got := reg.take(); len(got) != 0 {
		t.Errorf("sent %v; want nothing", endpoints(got))
	}
	reg.mustMake(t, dir, "push", "FORCE=1")
	if got := reg.takeScript(t); got["language"] != "go" || got["tag"] != nil {
		t.Errorf("language %v, tag %v; want the Go script without the other's settings", got["language"], got["tag"])
	}

	reg.change(python)
	reg.change(func() { script["archived"] = true })
	reg.mustMake(t, dir, "push")
	if got := reg.takeScript(t); got["language"] != "go" {
		t.Errorf("language %v; want the Go script in the place of the archived one", got["language"])
	}
}

func TestPushWaitsForTheLock(t *testing.T) {
	t.Run("a version that is not locked in time is not called deployed", func(t *testing.T) {
		t.Parallel()
		dir, reg := checkout(t), newRegistry(t)
		reg.pending = 1000
		reg.failMake(t, dir, []string{"push", "PUSH_WAIT=2"}, "waiting for Windmill to lock its dependencies",
			"not deployed after 2 seconds", "the version before goes on running", "Runs")
		reg.take()

		// A later push goes on waiting, and pushes nothing.
		reg.change(func() { reg.pending = 3 }) // two reads come before it waits
		checkText(t, `script f/ServiceNow/get_token: pushed; waiting for Windmill to lock its dependencies
script f/ServiceNow/get_token: deployed
`, afterFolders(reg.mustMake(t, dir, "push")))
		if got := reg.take(); len(got) != 0 {
			t.Errorf("sent %v; want nothing", endpoints(got))
		}
	})
	t.Run("a version that cannot be locked shows why, and is tried again", func(t *testing.T) {
		t.Parallel()
		dir, reg := checkout(t), newRegistry(t)
		reg.lockError = "go: \x1b[31mproxy.golang.org\x1b[0m: Forbidden"
		for range 2 {
			reg.failMake(t, dir, []string{"push"}, "not deployed: Windmill could not lock its dependencies.",
				"go: proxy.golang.org: Forbidden", "The version before goes on running")
			pushed := reg.take()
			if len(pushed) == 0 || pushed[len(pushed)-1].Endpoint != "POST scripts/create" {
				t.Errorf("sent %v; want the script", endpoints(pushed))
			}
		}
		reg.change(func() { reg.lockError = "" })
		checkText(t, "script f/ServiceNow/get_token: deployed\n", afterFolders(reg.mustMake(t, dir, "push")))
		reg.takeScript(t)
		checkText(t, "script f/ServiceNow/get_token: up to date\n", afterFolders(reg.mustMake(t, dir, "push")))
		if got := reg.take(); len(got) != 0 {
			t.Errorf("sent %v; want nothing", endpoints(got))
		}
	})
}

func TestPushIntoAFolderOfItsOwn(t *testing.T) {
	t.Parallel()
	dir, reg := checkout(t), newRegistry(t)
	reg.mustMake(t, dir, "FOLDER=Snow_Dev2", "push", "push-examples")
	pushed := reg.take()
	if len(pushed) != 6 {
		t.Fatalf("pushed %v; want the type, two folders, the script, the schedule and the flow", endpoints(pushed))
	}
	if pushed[1].Body["name"] != "Snow_Dev2" || pushed[2].Body["name"] != "Snow_Dev2_login" {
		t.Errorf("the folders are %v and %v", pushed[1].Body["name"], pushed[2].Body["name"])
	}
	old := regexp.MustCompile(`f/ServiceNow|ServiceNow_login`)
	for _, p := range pushed {
		text, err := json.Marshal(p.Body)
		if err != nil {
			t.Fatal(err)
		}
		if found := old.FindIndex(text); found != nil {
			t.Errorf("%s names the old folder: …%s…", p.Endpoint, text[max(0, found[0]-60):min(len(text), found[1]+60)])
		}
	}
	script := pushed[3].Body
	want := strings.ReplaceAll(readFile(t, "../main.go"), "f/ServiceNow", "f/Snow_Dev2")
	if diff := cmp.Diff(want, script["content"]); diff != "" {
		t.Errorf("content mismatch (-want +got):\n%s", diff)
	}
	if !strings.Contains(want, `"f/Snow_Dev2/snow_token_cache"`) || script["path"] != "f/Snow_Dev2/get_token" {
		t.Errorf("the script is %v, with the cache of another folder", script["path"])
	}
	if args := pushed[4].Body["args"]; !cmp.Equal(args, any(object{"snow": "$res:f/Snow_Dev2_login/servicenow"})) {
		t.Errorf("the schedule's arguments are %v", args)
	}

	reg.mustMake(t, dir, "FOLDER=Snow_Dev2", "push")
	if got := reg.take(); len(got) != 0 {
		t.Errorf("make push again sent %v; want nothing", endpoints(got))
	}
	for _, folder := range []string{"a b", "a/b", "../a", "a-b", "a'b", "$(HOME)", "é"} {
		reg.failMake(t, dir, []string{"push", "FOLDER=" + folder}, "FOLDER may have letters, digits and _ only")
	}
	if got := reg.take(); len(got) != 0 {
		t.Errorf("sent %v; want nothing", endpoints(got))
	}
}

func TestTryRunsTheDeployedScript(t *testing.T) {
	t.Parallel()
	dir, reg := checkout(t), newRegistry(t)
	reg.failMake(t, dir, []string{"try"}, "f/ServiceNow/get_token: not there", "make push")
	reg.havePushed(t, dir)
	for _, resource := range []string{"f/ServiceNow_login/servicenow", `f/x/a'b"c $(id) \`, ""} {
		args := []string{"try"}
		if resource != "" {
			args = append(args, "RESOURCE="+resource)
		}
		output := reg.mustMake(t, dir, args...)
		if resource == "" {
			resource = "f/ServiceNow_login/servicenow"
		}
		var ran []push
		reg.change(func() { ran, reg.ran = reg.ran, nil })
		want := []push{{"jobs/run/p/f/ServiceNow/get_token", object{"snow": "$res:" + resource}}}
		if diff := cmp.Diff(want, ran); diff != "" {
			t.Errorf("run mismatch (-want +got):\n%s", diff)
		}
		if !strings.Contains(output, "what the job printed") || !strings.Contains(output, `"OK"`) {
			t.Errorf("no log or no result:\n%s", output)
		}
	}

	reg.change(func() { reg.jobFails = true })
	reg.failMake(t, dir, []string{"try"}, "what the job printed", "ServiceNow answered 401")
	reg.change(func() { reg.jobWaits = true })
	reg.failMake(t, dir, []string{"try", "PUSH_WAIT=2"}, "No end after 2 seconds", "Workers")
}

func TestPushLeavesAWorkspaceThatCannotAnswerAlone(t *testing.T) {
	t.Parallel()
	dir, reg := checkout(t), newRegistry(t)
	reg.broken = true
	for _, target := range []string{"push", "push-examples", "try"} {
		reg.failMake(t, dir, []string{target}, "cannot tell whether it is already there", "SqlErr: down")
		if got := reg.take(); len(got) != 0 || len(reg.ran) != 0 {
			t.Errorf("make %s sent %v; want nothing", target, endpoints(got))
		}
	}
}

func TestPushThatIsRefusedDoesNotAdviseWhatDeletesThePicker(t *testing.T) {
	t.Parallel()
	dir, reg := checkout(t), newRegistry(t)
	reg.havePushed(t, dir)
	reg.change(func() { // so that what is sent has no right parent
		script := maps.Clone(reg.kept[scriptGet].(object))
		script["content"] = "package inner\n"
		reg.kept[scriptGet] = script
		reg.stale = true
	})
	output, err := runMake(t, dir, reg.env(), "push")
	if err == nil || !strings.Contains(output, "script f/ServiceNow/get_token: not pushed") ||
		!strings.Contains(output, "is already there") || strings.Contains(output, "generate-metadata") {
		t.Errorf("make push = %v; want what Windmill said, and no advice\n%s", err, output)
	}
}

func TestPushesAtOnce(t *testing.T) {
	t.Parallel()
	dir := checkout(t)
	var group sync.WaitGroup
	for _, folder := range []string{"A", "B"} {
		reg := newRegistry(t)
		group.Add(1)
		go func() {
			defer group.Done()
			output, err := runMake(t, dir, reg.env(), "push", "FOLDER="+folder)
			if pushed := reg.take(); err != nil || len(pushed) != 4 || pushed[3].Body["path"] != "f/"+folder+"/get_token" {
				t.Errorf("make push FOLDER=%s = %v, sent %v\n%s", folder, err, endpoints(pushed), output)
			}
		}()
	}
	group.Wait()
}

func TestPushFindsTheWorkspace(t *testing.T) {
	t.Run("from the environment, with the token on no command line", func(t *testing.T) {
		t.Parallel()
		dir, reg, elsewhere := checkout(t), newRegistry(t), newRegistry(t)
		// The CLI's active workspace is another one.
		home := t.TempDir()
		config := filepath.Join(home, ".config/windmill")
		if err := os.MkdirAll(config, 0o700); err != nil {
			t.Fatal(err)
		}
		remote := fmt.Sprintf(`{"name":"other","workspaceId":"ws","remote":"%s/","token":"%s"}`, elsewhere.url, pusherToken)
		for name, content := range map[string]string{"remotes.ndjson": remote + "\n", "activeWorkspace": "other"} {
			if err := os.WriteFile(filepath.Join(config, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if output, err := runMake(t, dir, []string{"HOME=" + home}, "push"); err != nil || len(elsewhere.take()) != 4 {
			t.Fatalf("make push to the CLI's active workspace = %v\n%s", err, output)
		}

		// A node that notes its command line.
		bin, notes := t.TempDir(), filepath.Join(t.TempDir(), "notes")
		node, err := exec.LookPath("node")
		if err != nil {
			t.Fatal(err)
		}
		wrapper := fmt.Sprintf("#!/bin/sh\necho \"$@\" >>'%s'\nexec '%s' \"$@\"\n", notes, node)
		if err := os.WriteFile(filepath.Join(bin, "node"), []byte(wrapper), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, target := range []string{"push", "try"} {
			if output, err := runMake(t, dir, reg.env("HOME="+home, "PATH="+bin+":"+os.Getenv("PATH")), target); err != nil {
				t.Fatalf("make %s: %v\n%s", target, err, output)
			}
		}
		if sent, strayed := reg.take(), elsewhere.take(); len(sent) != 4 || len(strayed) != 0 {
			t.Errorf("%d calls to the workspace of the environment, %d to the other; want 4, 0", len(sent), len(strayed))
		}
		lines := readFile(t, notes)
		if !strings.Contains(lines, "script push") || !strings.Contains(lines, "script run") ||
			strings.Contains(lines, "S3cret") {
			t.Errorf("command lines:\n%s", lines)
		}
	})
	t.Run("from flags", func(t *testing.T) {
		t.Parallel()
		dir, reg := checkout(t), newRegistry(t)
		flags := "WMILL_FLAGS=--base-url " + reg.url + " --token " + pusherToken + " --workspace ws"
		for _, target := range []string{"push", "push-examples", "try"} {
			if output, err := runMake(t, dir, nil, target, flags); err != nil {
				t.Errorf("make %s: %v\n%s", target, err, output)
			}
		}
		if got := reg.take(); len(got) != 6 {
			t.Errorf("sent %v; want 6 calls", endpoints(got))
		}
	})
	t.Run("or says what to do", func(t *testing.T) {
		t.Parallel()
		dir, reg := checkout(t), newRegistry(t)
		for _, target := range []string{"push", "push-examples", "try"} {
			output, err := runMake(t, dir, nil, target)
			if err == nil || !strings.Contains(output, "make workspace") || !strings.Contains(output, "WMILL_TOKEN") {
				t.Errorf("make %s = %v; want an error that says what to do\n%s", target, err, output)
			}
		}
		output, err := runMake(t, dir, reg.env()[:2], "push")
		if err == nil || !strings.Contains(output, "go together") {
			t.Errorf("make push without the token = %v; want an error\n%s", err, output)
		}
		output, err = runMake(t, dir, append(reg.env(), "WMILL_BASE_URL=windmill"), "push")
		if err == nil || !strings.Contains(output, "WMILL_BASE_URL must be your Windmill's address") {
			t.Errorf("make push to what is no address = %v; want an error\n%s", err, output)
		}
		output, err = runMake(t, dir, reg.env(), "workspace")
		if err == nil || !strings.Contains(output, "unset them first") {
			t.Errorf("make workspace beside one of the environment = %v; want an error\n%s", err, output)
		}
	})
	t.Run("and refuses a wrong token", func(t *testing.T) {
		t.Parallel()
		dir, reg := checkout(t), newRegistry(t)
		output, err := runMake(t, dir, append(reg.env(), "WMILL_TOKEN=S3cret-wrong"), "push")
		if err == nil || !strings.Contains(output, "Cannot log in to Windmill at "+reg.url) || !strings.Contains(output, "Could not authenticate") {
			t.Errorf("make push = %v; want an error that says so\n%s", err, output)
		}
	})
}

func TestPushWithoutNodeSaysWhatToDo(t *testing.T) {
	bare := t.TempDir()
	for _, name := range []string{"bash", "dirname", "sed"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skip(err)
		}
		if err := os.Symlink(path, filepath.Join(bare, name)); err != nil {
			t.Fatal(err)
		}
	}
	command := exec.Command("bash", "push.sh", "script")
	command.Env = []string{"PATH=" + bare}
	output, err := command.CombinedOutput()
	if err == nil || !strings.Contains(string(output), "Node.js") {
		t.Errorf("push.sh = %v; want an error that names Node.js\n%s", err, output)
	}
}

func TestTheCLIAcceptsTheFiles(t *testing.T) {
	dir := checkout(t)
	command := exec.Command("./push.sh", "lint")
	command.Dir = filepath.Join(dir, "windmill")
	output, err := command.CombinedOutput()
	if err != nil || !strings.Contains(string(output), "2 valid") {
		t.Errorf("wmill lint = %v; want the schedule and the flow valid\n%s", err, output)
	}
}

func TestWindmillsOwnParserReadsTheArgument(t *testing.T) {
	needsNode(t)
	if err := installTools(); err != nil {
		t.Fatal(err)
	}
	output, err := exec.Command("node", "cli/parse.mjs", "../main.go").Output()
	if err != nil {
		t.Fatal(err)
	}
	got := readJSON(t, string(output)).(object)["args"]
	want := []any{object{
		"name": "snow", "otyp": "servicenow", "typ": "unknown", "default": nil, "has_default": false, "oidx": nil,
	}}
	if diff := cmp.Diff(any(want), got); diff != "" {
		t.Errorf("arguments mismatch (-want +got):\n%s", diff)
	}
}
