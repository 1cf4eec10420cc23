package windmill

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// newWorkspace has a folder f/a, its writer, its reader, and a stranger.
func newWorkspace() *Workspace {
	ws := &Workspace{Name: "ws", Variables: map[string]string{"f/a/secret": `"quoted"`, "f/b/secret": "b"},
		Users: map[string]Rights{"writer": {"f/a": true}, "reader": {"f/a": false}, "stranger": nil}}
	ws.Set("f/a/refers", json.RawMessage(`{"v": "$var:f/a/secret", "n": 12345678901234567890}`))
	ws.Set("f/a/null", json.RawMessage(`null`))
	ws.Set("f/a/nested", json.RawMessage(`{"v": "$var:f/b/secret"}`))
	ws.Set("f/b/other", json.RawMessage(`1`))
	return ws
}

func TestTheResourceAPI(t *testing.T) {
	const (
		get    = "GET get_value/f%2Fa%2F"
		create = "POST create?update_if_exists=true "
		denied = "400 text/plain SqlErr: error returned from database: new row violates row-level security policy " +
			`for table "resource" @resources.rs:872:5`
	)
	ws := newWorkspace()
	for _, test := range []struct{ token, call, want string }{
		{"nobody", get + "refers", "401 text/plain Not authorized: Unauthorized"},
		{"reader", get + "refers", `200 application/json {"v": "$var:f/a/secret", "n": 12345678901234567890}`},
		{"reader", get + "null", "200 application/json null"},
		{"stranger", get + "gone", "404 text/plain Not found: Resource f/a/gone not found"},
		{"stranger", get + "null", "401 text/plain Not authorized: Resource exists but you don't have access to it:\n" +
			"folder perms: {}\ngroups: [all]\ntoken prefix: stranger"},
		{"reader", create + `{"path":"f/a/null","value":1}`, denied},
		{"reader", get + "null", "200 application/json null"},
		{"writer", `GET create?update_if_exists=true {"path":"f/a/null","value":3}`, "404 text/plain Not found: no such route"},
		{"writer", `POST create {"path":"f/a/new","value":2}`, "201 text/plain resource f/a/new created"},
		{"writer", create + `{"path":"f/b/new","value":1}`, denied}, // there is no such folder
		{"writer", create + `{"path":"f/a/null","value":1.50}`, "201 text/plain resource f/a/null created"},
		{"writer", get + "null", "200 application/json 1.50"},
		{"writer", create + `{"path":"f/a/null","value":null}`, "201 text/plain resource f/a/null created"},
		{"writer", get + "null", "200 application/json null"},
		{"writer", `POST create {"path":"f/a/null","value":2}`, "400 text/plain Bad request: Resource f/a/null already exists"},
	} {
		method, rest, _ := strings.Cut(test.call, " ")
		endpoint, body, _ := strings.Cut(rest, " ")
		request := httptest.NewRequest(method, "/api/w/ws/resources/"+endpoint, strings.NewReader(body))
		request.Header.Set("Authorization", "Bearer "+test.token)
		response := httptest.NewRecorder()
		ws.ServeHTTP(response, request)
		got := fmt.Sprint(response.Code, " ", response.Header().Get("Content-Type"), " ", response.Body)
		if got != test.want {
			t.Errorf("%s: %s:\ngot  %s\nwant %s", test.token, test.call, got, test.want)
		}
	}
}

// script has no package clause: the worker writes one before it, and takes no comment for one.
const script = `// package
//require github.com/windmill-labs/windmill-go-client v1.501.4
import (
	"context"; "errors"; "fmt"; "os"; "strings"; "time"
	wmill "github.com/windmill-labs/windmill-go-client"
)

func main(given map[string]any) (any, error) {
	fmt.Println("to standard output")
	fmt.Fprintln(os.Stderr, "to standard error")
	switch folder := fmt.Sprint(given["folder"]); given["mode"] {
	case "fail":
		return nil, errors.New("it failed")
	case "hang":
		time.Sleep(20 * time.Second)
	case "alone":
		if err := os.Mkdir(folder, 0o700); err != nil {
			return nil, err
		}
		time.Sleep(20 * time.Millisecond)
		return nil, os.Remove(folder)
	}
	client, _ := wmill.GetClient()
	got, err := client.Client.GetResourceValueWithResponse(context.Background(), client.Workspace, "f/a/refers")
	names := os.Environ()
	for i, setting := range names {
		names[i], _, _ = strings.Cut(setting, "=")
	}
	return []any{given["v"], string(got.Body), names}, err
}
`

func TestTheWorker(t *testing.T) {
	t.Setenv("GOFLAGS", "-mod=vendor") // the worker's own, which would stop a build, and is none of the job's
	ws := newWorkspace()
	server := httptest.NewServer(ws)
	defer server.Close()
	worker := &Worker{Workspace: ws, BaseURL: server.URL, Dir: t.TempDir(), Slots: make(chan struct{}, 1)}
	file := filepath.Join(worker.Dir, "script.go")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	binary, err := worker.Build(context.Background(), file, "../..")
	if err != nil {
		t.Fatal(err)
	}
	const log = "to standard output\nto standard error\n"
	try := func(ctx context.Context, given string, failed bool, wantErr error, wantLog, want string) {
		done, err := worker.Run(ctx, Job{Binary: binary, Token: "reader", Args: `{"given": ` + given + `}`})
		if err != wantErr || done.Failed != failed || done.Log != wantLog || string(done.Result) != want || done.Took > 10*time.Second {
			t.Errorf("%v: after %s error %v, failed %t, log %q, result\n%s; want %v, %t, %q\n%s",
				given, done.Took, err, done.Failed, done.Log, done.Result, wantErr, failed, wantLog, want)
		}
	}
	ctx := context.Background()
	try(ctx, `"$res:f/a/refers"`, false, nil, log, `["\"quoted\"","{\"v\": \"$var:f/a/secret\", \"n\": 12345678901234567890}",`+
		`["WM_WORKSPACE","WM_TOKEN","WM_JOB_ID","WM_JOB_PATH","WM_BASE_URL","BASE_INTERNAL_URL","WM_EMAIL","WM_USERNAME",`+
		`"WM_PERMISSIONED_AS","WM_FLOW_JOB_ID","WM_ROOT_FLOW_JOB_ID","WM_FLOW_PATH","WM_FLOW_STEP_ID","WM_SCHEDULE_PATH",`+
		`"WM_STATE_PATH","WM_OBJECT_PATH","WM_WORKER_GROUP","TZ","HOME","PATH","HTTP_PROXY","HTTPS_PROXY","NO_PROXY"]]`)
	try(ctx, `{"mode": "fail"}`, true, nil, log+"it failed\n", "")
	try(ctx, `"$res:f/a/gone"`, true, nil, "Not found: Resource f/a/gone not found\n", "")
	try(ctx, `"$res:f/a/nested"`, true, nil, "Not found: Variable f/b/secret not found\n", "")
	try(ctx, `"$res:f/b/other"`, true, nil, "Not authorized: Resource exists but you don't have access to it:\n"+
		"folder perms: {}\ngroups: [all]\ntoken prefix: reader\n", "")
	try(ctx, `["$var:f/a/gone"]`, true, nil, "Not found: Variable f/a/gone not found\n", "")

	ended := make(chan bool)
	for range 4 { // each fails that is not alone
		go func() {
			try(ctx, fmt.Sprintf(`{"mode": "alone", "folder": %q}`, worker.Dir+"/alone"), false, nil, log, "null")
			ended <- true
		}()
	}
	for range 4 {
		<-ended
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	try(ctx, `{"mode": "hang"}`, false, context.DeadlineExceeded, log, "")
	if left, _ := filepath.Glob(worker.Dir + "/job*"); left != nil {
		t.Errorf("jobs left %v", left)
	}
}
