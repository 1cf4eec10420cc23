package windmill

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)

// newWorkspace has a folder f/a, its writer, its reader, and a stranger.
func newWorkspace() *Workspace {
	ws := &Workspace{
		Name:      "ws",
		Now:       func() time.Time { return noon },
		Variables: map[string]string{"f/a/secret": `"quoted"`, "f/b/secret": "b"},
		Users: map[string]User{
			"writer":   {Name: "u/writer", Folders: map[string]bool{"f/a": true}},
			"reader":   {Name: "u/reader", Folders: map[string]bool{"f/a": false}},
			"stranger": {Name: "u/stranger"},
		},
	}
	ws.Set("f/a/refers", json.RawMessage(`{"v": "$var:f/a/secret", "n": 12345678901234567890}`))
	ws.Set("f/a/null", json.RawMessage(`null`))
	ws.Set("f/a/nested", json.RawMessage(`{"v": "$var:f/b/secret"}`))
	ws.Set("f/b/other", json.RawMessage(`1`))
	return ws
}

// send calls the API, and returns status, content type and body.
func send(ws *Workspace, token, method, endpoint, body string) string {
	request := httptest.NewRequest(method, "/api/w/ws/"+endpoint, strings.NewReader(body))
	request.Header.Set("Authorization", "Bearer "+token)
	response := httptest.NewRecorder()
	ws.ServeHTTP(response, request)
	return fmt.Sprint(response.Code, " ", response.Header().Get("Content-Type"), " ", response.Body)
}

// The rows follow one another.
func TestResources(t *testing.T) {
	const (
		get    = "resources/get_value/f%2Fa%2F"
		full   = "resources/get_value_interpolated/f/a/"
		create = "resources/create?update_if_exists=true"
		denied = "400 text/plain SqlErr: error returned from database: new row violates row-level security policy " +
			`for table "resource" @resources.rs:872:5`
		hidden = "401 text/plain Not authorized: Resource exists but you don't have access to it:\n" +
			"folder perms: {}\ngroups: [all]\ntoken prefix: stranger"
	)
	ws := newWorkspace()
	for _, test := range []struct{ name, token, method, endpoint, body, want string }{
		{"unknown token", "nobody", "GET", get + "null", "", "401 text/plain Not authorized: Unauthorized"},
		{"unknown route", "reader", "GET", "resources/list", "", "404 text/plain Not found: no such route"},
		{"as stored", "reader", "GET", get + "refers", "",
			`200 application/json {"v": "$var:f/a/secret", "n": 12345678901234567890}`},
		{"with values", "reader", "GET", full + "refers", "",
			`200 application/json {"v": "\"quoted\"", "n": 12345678901234567890}`},
		{"with a hidden value", "reader", "GET", full + "nested", "", "404 text/plain Not found: Variable f/b/secret not found"},
		{"null", "reader", "GET", get + "null", "", "200 application/json null"},
		{"missing", "stranger", "GET", get + "gone", "", "404 text/plain Not found: Resource f/a/gone not found"},
		{"no right to read", "stranger", "GET", get + "null", "", hidden},
		{"exists", "reader", "GET", "resources/exists/f/a/null", "", "200 application/json true"},
		{"does not exist", "reader", "GET", "resources/exists/f/a/gone", "", "200 application/json false"},
		{"no right to write", "reader", "POST", create, `{"path":"f/a/null","value":1}`, denied},
		{"no folder", "writer", "POST", create, `{"path":"f/b/new","value":1}`, denied},
		{"create", "writer", "POST", "resources/create", `{"path":"f/a/new","value":2}`,
			"201 text/plain resource f/a/new created"},
		{"create again", "writer", "POST", "resources/create", `{"path":"f/a/new","value":3}`,
			"400 text/plain Bad request: Resource f/a/new already exists"},
		{"replace", "writer", "POST", create, `{"path":"f/a/new","value":1.50}`, "201 text/plain resource f/a/new created"},
		{"replaced", "writer", "GET", get + "new", "", "200 application/json 1.50"},
		{"update", "writer", "POST", "resources/update_value/f/a/new", `{"value":4}`,
			"200 text/plain value of resource f/a/new updated"},
		{"update without right", "reader", "POST", "resources/update_value/f/a/new", `{"value":5}`,
			"200 text/plain value of resource f/a/new updated"},
		{"updated once", "writer", "GET", get + "new", "", "200 application/json 4"},
		{"update of nothing", "writer", "POST", "resources/update_value/f/a/gone", `{"value":5}`,
			"200 text/plain value of resource f/a/gone updated"},
		{"still missing", "writer", "GET", get + "gone", "", "404 text/plain Not found: Resource f/a/gone not found"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := send(ws, test.token, test.method, test.endpoint, test.body); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestQueue(t *testing.T) {
	ws := newWorkspace()
	wk := NewWorker(ws, "", t.TempDir(), 1)
	defer wk.Enqueue(Job{
		ID: "1", Path: "f/a/x", Token: "writer",
		StartedBy: []string{"WM_FLOW_PATH=f/a/x", "WM_FLOW_JOB_ID=2"}, // a schedule with retries
	})()
	wk.Enqueue(Job{ID: "3", Path: "f/a/x", Token: "writer"})() // has already ended
	ws.Enqueue(QueuedJob{ID: "4", Kind: "script", ScriptPath: "f/a/x", PermissionedAs: "u/stranger"})
	ws.Enqueue(QueuedJob{ID: "5", Kind: "script", ScriptPath: "f/b/x", PermissionedAs: "u/stranger", StartedAt: noon})
	const job = `{"id":"1","job_kind":"script","permissioned_as":"u/writer","running":true,"script_path":"f/a/x",` +
		`"started_at":"2026-03-01T12:00:00.123456Z"}`
	const flow = `{"id":"2","job_kind":"singlestepflow","permissioned_as":"u/writer","running":true,"script_path":"f/a/x",` +
		`"started_at":"2026-03-01T11:59:59.123456Z"}`
	const waiting = `{"id":"4","job_kind":"script","permissioned_as":"u/stranger","running":false,"script_path":"f/a/x",` +
		`"started_at":null}`
	for _, test := range []struct{ name, token, query, want string }{
		{"running", "reader", "?script_path_exact=f%2Fa%2Fx&running=true", flow + "," + job},
		{"all", "reader", "?script_path_exact=f%2Fa%2Fx", waiting + "," + flow + "," + job},
		{"waiting", "reader", "?running=false", waiting},
		{"a stranger sees only his own", "stranger", "?script_path_exact=f/a/x&running=true", ""},
		{"an unknown script", "reader", "?script_path_exact=f/a/y", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			want := "200 application/json [" + test.want + "]"
			if got := send(ws, test.token, "GET", "jobs/queue/list"+test.query, ""); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

// script has no package clause: the worker writes one before it, and does not see the one in the comment.
const script = `// package
//require github.com/windmill-labs/windmill-go-client v1.501.4
import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	wmill "github.com/windmill-labs/windmill-go-client"
)

func main(given map[string]any) (any, error) {
	fmt.Println("to standard output")
	fmt.Fprintln(os.Stderr, "to standard error")
	switch given["mode"] {
	case "fail":
		return nil, errors.New("it failed")
	case "hang":
		time.Sleep(20 * time.Second)
	case "alone": // The folder shows whether another job runs at the same time.
		folder := fmt.Sprint(given["folder"])
		if err := os.Mkdir(folder, 0o700); err != nil {
			return nil, err
		}
		time.Sleep(20 * time.Millisecond)
		return nil, os.Remove(folder)
	}
	client, err := wmill.GetClient()
	names := os.Environ()
	for i, setting := range names {
		names[i], _, _ = strings.Cut(setting, "=")
	}
	return []any{given["v"], client.Workspace, names}, err
}
`

func TestWorker(t *testing.T) {
	t.Setenv("GOFLAGS", "-mod=vendor") // The caller's GOFLAGS must not reach the build.
	ws := newWorkspace()
	server := httptest.NewServer(ws)
	defer server.Close()
	dir := t.TempDir()
	worker := NewWorker(ws, server.URL, dir, 1)
	if err := worker.Deploy(context.Background(), "f/a/x", script, "../.."); err != nil {
		t.Fatal(err)
	}
	const log = "to standard output\nto standard error\n"
	const names = `["WM_WORKSPACE","WM_TOKEN","WM_JOB_ID","WM_JOB_PATH","WM_BASE_URL","BASE_INTERNAL_URL","WM_EMAIL",` +
		`"WM_USERNAME","WM_PERMISSIONED_AS","WM_FLOW_JOB_ID","WM_ROOT_FLOW_JOB_ID","WM_FLOW_PATH","WM_FLOW_STEP_ID",` +
		`"WM_SCHEDULE_PATH","WM_STATE_PATH","WM_OBJECT_PATH","WM_WORKER_GROUP","TZ","HOME","PATH","HTTP_PROXY",` +
		`"HTTPS_PROXY","NO_PROXY"]`
	for _, test := range []struct {
		name, given string
		isFailed    bool
		log, result string
	}{
		{"result", `"$res:f/a/refers"`, false, log, `["\"quoted\"","ws",` + names + `]`},
		{"error", `{"mode": "fail"}`, true, log + "it failed\n", ""},
		{"no such resource", `"$res:f/a/gone"`, true, "Not found: Resource f/a/gone not found\n", ""},
		{"hidden variable", `"$res:f/a/nested"`, true, "Not found: Variable f/b/secret not found\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			job := Job{Path: "f/a/x", Token: "reader", Args: `{"given": ` + test.given + `}`}
			done, err := worker.Run(context.Background(), job)
			if err != nil || done.Failed != test.isFailed || done.Log != test.log || string(done.Result) != test.result {
				t.Errorf("%v, failed %t, log %q, result\n%s\nwant %q\n%s", err, done.Failed, done.Log, done.Result, test.log, test.result)
			}
		})
	}
	t.Run("one slot", func(t *testing.T) {
		failed := make(chan bool)
		for range 4 {
			go func() {
				args := fmt.Sprintf(`{"given": {"mode": "alone", "folder": %q}}`, filepath.Join(dir, "alone"))
				done, err := worker.Run(context.Background(), Job{Path: "f/a/x", Token: "reader", Args: args})
				failed <- err != nil || done.Failed
			}()
		}
		for range 4 {
			if <-failed {
				t.Error("two jobs ran at once, or one failed")
			}
		}
	})
	t.Run("a job that is ended leaves nothing", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := worker.Run(ctx, Job{Path: "f/a/x", Token: "reader", Args: `{"given": {"mode": "hang"}}`})
		left, _ := filepath.Glob(dir + "/job*")
		if err != context.DeadlineExceeded || len(left) > 0 || len(ws.Queue()) > 0 {
			t.Errorf("error %v, files %v, queue %v", err, left, ws.Queue())
		}
	})
	t.Run("started by a client", func(t *testing.T) { startThroughTheAPI(t, ws) })
}

// startThroughTheAPI starts jobs as Windmill's clients do, and reads their results.
func startThroughTheAPI(t *testing.T, ws *Workspace) {
	for _, test := range []struct{ name, given, want string }{
		{"result", `"$res:f/a/refers"`, `"success":true}`},
		{"error", `{"mode": "fail"}`, `"result":{"error":{"message":"to standard output\nto standard error\nit failed\n",` +
			`"name":"ExecutionErr"}},"started":true,"success":false}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			id, isStarted := strings.CutPrefix(
				send(ws, "reader", "POST", "jobs/run/p/f/a/x?parent_job=1", `{"given": `+test.given+`}`), "201 text/plain ")
			if !isStarted {
				t.Fatal(id)
			}
			got := ""
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				got = send(ws, "reader", "GET", "jobs_u/completed/get_result_maybe/"+id, "")
				if strings.Contains(got, `"completed":true`) {
					break
				}
			}
			if !strings.Contains(got, test.want) {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
	t.Run("no right", func(t *testing.T) {
		got := send(ws, "stranger", "POST", "jobs/run/p/f/a/x", `{}`)
		if want := "404 text/plain Not found: Script not found at name f/a/x"; got != want {
			t.Errorf("got %s; want %s", got, want)
		}
	})
}
