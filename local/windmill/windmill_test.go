package windmill

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// call asks the workspace's resource API and returns status and body.
func call(t *testing.T, ws *Workspace, token, method, endpoint, body string) (int, string) {
	t.Helper()
	request := httptest.NewRequest(method, "/api/w/"+ws.Name+"/resources/"+endpoint, strings.NewReader(body))
	request.Header.Set("Authorization", "Bearer "+token)
	response := httptest.NewRecorder()
	ws.ServeHTTP(response, request)
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.Code, strings.TrimSpace(string(text))
}

func TestTheResourceAPI(t *testing.T) {
	newWorkspace := func() *Workspace {
		ws := &Workspace{Name: "ws"}
		ws.AddFolder("f/a")
		ws.AddToken("all", Rights{Read: true, Write: true})
		ws.AddToken("reader", Rights{Read: true})
		ws.AddToken("nobody", Rights{})
		ws.SetVariable("f/a/secret", "s3cret")
		ws.SetVariable("f/a/json", `{"x":[1]}`)
		ws.SetResource("f/a/there", Resource{Type: "state", Value: json.RawMessage(`{"n":1}`)})
		ws.SetResource("f/a/refers", Resource{Type: "any", Value: json.RawMessage(`{"v":"$var:f/a/secret","j":["$jsonvar:f/a/json"],"r":"$res:f/a/there"}`)})
		ws.SetResource("f/a/dangling", Resource{Type: "any", Value: json.RawMessage(`"$var:f/a/gone"`)})
		ws.SetResource("f/a/circle", Resource{Type: "any", Value: json.RawMessage(`"$res:f/a/circle"`)})
		ws.SetResource("f/a/null", Resource{Type: "any", Value: json.RawMessage(`null`)})
		return ws
	}
	for _, test := range []struct {
		name, token, method, endpoint, body string
		old                                 bool
		status                              int
		answer                              string
	}{
		{"a value", "all", "GET", "get_value_interpolated/f%2Fa%2Fthere", "", false, 200, `{"n":1}`},
		{"a null value", "all", "GET", "get_value_interpolated/f%2Fa%2Fnull", "", false, 200, `null`},
		{"a value that refers to others", "all", "GET", "get_value_interpolated/f%2Fa%2Frefers", "", false, 200, `{"j":[{"x":[1]}],"r":{"n":1},"v":"s3cret"}`},
		{"a value that refers to nothing", "all", "GET", "get_value_interpolated/f%2Fa%2Fdangling", "", false, 404, "Not found: variable f/a/gone not found"},
		{"a value that refers to itself", "all", "GET", "get_value_interpolated/f%2Fa%2Fcircle", "", false, 404, "Not found: references nested too deeply"},
		{"no value", "all", "GET", "get_value_interpolated/f%2Fa%2Fgone", "", false, 404, "Not found: Resource f/a/gone not found"},
		{"a value that may not be read", "nobody", "GET", "get_value_interpolated/f%2Fa%2Fthere", "", false, 401, "Not authorized: Resource exists but you don't have access to it"},
		{"an unknown token", "stranger", "GET", "get_value_interpolated/f%2Fa%2Fthere", "", false, 401, "Unauthorized"},
		{"no such action", "all", "GET", "list/f%2Fa%2Fthere", "", false, 404, "Not found: no such route"},
		{"a new resource", "all", "POST", "create?update_if_exists=true", `{"path":"f/a/new","value":2,"resource_type":"state"}`, false, 201, "resource f/a/new created"},
		{"a resource that exists", "all", "POST", "create", `{"path":"f/a/there","value":2,"resource_type":"state"}`, false, 400, "Bad request: Resource f/a/there already exists"},
		{"a resource that exists, to be updated", "all", "POST", "create?update_if_exists=true", `{"path":"f/a/there","value":2,"resource_type":"state"}`, false, 201, "resource f/a/there created"},
		{"a resource at a bad path", "all", "POST", "create?update_if_exists=true", `{"path":"there","value":2,"resource_type":"state"}`, false, 400, "Bad request: invalid path or type"},
		{"a resource in no folder", "all", "POST", "create?update_if_exists=true", `{"path":"f/b/new","value":2,"resource_type":"state"}`, false, 401, "Not authorized: You don't have write permission at this path"},
		{"a resource without the right", "reader", "POST", "create?update_if_exists=true", `{"path":"f/a/new","value":2,"resource_type":"state"}`, false, 401, "Not authorized: You don't have write permission at this path"},
		{"an update", "all", "POST", "update_value/f%2Fa%2Fthere", `{"value":2}`, false, 200, "value of resource f/a/there updated"},
		{"an update of nothing", "all", "POST", "update_value/f%2Fa%2Fgone", `{"value":2}`, false, 404, "Not found: Resource f/a/gone not found"},
		{"an update without the right", "reader", "POST", "update_value/f%2Fa%2Fthere", `{"value":2}`, false, 404, "Not found: Resource f/a/there not found"},
		{"an update without the right on an old server", "reader", "POST", "update_value/f%2Fa%2Fthere", `{"value":2}`, true, 200, "value of resource f/a/there updated"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ws := newWorkspace()
			ws.Old = test.old
			status, answer := call(t, ws, test.token, test.method, test.endpoint, test.body)
			if status != test.status || answer != test.answer {
				t.Errorf("answered %d %q; want %d %q", status, answer, test.status, test.answer)
			}
			want := `{"n":1}`
			if test.token == "all" && test.method == "POST" && status < 300 && strings.Contains(test.endpoint+test.body, "there") {
				want = "2"
			}
			if got, _ := ws.Resource("f/a/there"); string(got.Value) != want || got.Type != "state" {
				t.Errorf("afterwards the resource is %s %s; want state %s", got.Type, got.Value, want)
			}
		})
	}
}

const script = `package inner

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

type pair struct{ A, B string }

func helper() {}

func main(first pair, count int, fail bool) (map[string]any, error) {
	helper()
	fmt.Println("to standard output")
	fmt.Fprintln(os.Stderr, "to standard error")
	if fail {
		return nil, errors.New(strings.Repeat("x", 700) + "end")
	}
	_, home := os.LookupEnv("HOME")
	_, planted := os.LookupEnv("PLANTED")
	return map[string]any{"first": first, "count": count, "home": home, "planted": planted,
		"token": os.Getenv("WM_TOKEN"), "schedule": os.Getenv("WM_SCHEDULE_PATH")}, nil
}
`

func TestTheWorker(t *testing.T) {
	t.Setenv("PLANTED", "by the worker's own environment")
	ws := &Workspace{Name: "ws"}
	ws.SetResource("f/a/pair", Resource{Type: "pair", Value: json.RawMessage(`{"A":"$var:f/a/secret","B":"b"}`)})
	ws.SetVariable("f/a/secret", "a")
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	worker := &Worker{Workspace: ws, BaseURL: server.URL, Dir: t.TempDir()}
	file := filepath.Join(t.TempDir(), "script.go")
	if err := os.WriteFile(file, []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
	binary, err := worker.Build(context.Background(), file, "../..")
	if err != nil {
		t.Fatal(err)
	}

	job := Job{
		Binary: binary, Args: map[string]any{"first": "$res:f/a/pair", "count": 3},
		Token: "token", Env: []string{"WM_SCHEDULE_PATH=f/a/schedule"},
	}
	done, err := worker.Run(context.Background(), job)
	if err != nil || done.Failed {
		t.Fatalf("the job failed: %v\n%s", err, done.Log)
	}
	var got map[string]any
	if err := json.Unmarshal(done.Result, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"first": map[string]any{"A": "a", "B": "b"}, "count": 3.0, "home": true, "planted": false,
		"token": "token", "schedule": "f/a/schedule",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("result mismatch (-want +got):\n%s", diff)
	}
	if want := "to standard output\nto standard error\n"; done.Log != want {
		t.Errorf("log = %q; want %q", done.Log, want)
	}

	job.Args["fail"] = true
	done, err = worker.Run(context.Background(), job)
	if err != nil || !done.Failed || done.Result != nil {
		t.Errorf("a failing job: failed = %t, result = %s, %v; want a failure without a result", done.Failed, done.Result, err)
	}
	if text := done.FailureText(); len(text) != 600 || !strings.HasSuffix(text, "xend") {
		t.Errorf("FailureText has %d characters; want the last 600", len(text))
	}

	job.Args["first"] = "$res:f/a/gone"
	if _, err := worker.Run(context.Background(), job); err == nil {
		t.Error("a job with a missing resource ran")
	}
	left, err := filepath.Glob(filepath.Join(worker.Dir, "job*"))
	if err != nil || left != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
