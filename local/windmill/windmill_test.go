package windmill

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// newWorkspace has a folder f/a, its writer, its reader, and a stranger.
func newWorkspace() *Workspace {
	ws := &Workspace{Name: "ws"}
	ws.AddFolder("f/a")
	ws.AddUser("writer", Rights{"f/a": Write, "f/b": Write})
	ws.AddUser("reader", Rights{"f/a": Read})
	ws.AddUser("stranger", nil)
	ws.SetVariable("f/a/secret", `"quoted"`)
	ws.Set("f/a/refers", Resource{"any", json.RawMessage(`{"v": "$var:f/a/secret", "n": 12345678901234567890}`)})
	ws.Set("f/a/null", Resource{"any", json.RawMessage(`null`)})
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
		{"reader", create + `{"path":"f/a/null","resource_type":"state","value":1}`, denied},
		{"writer", create + `{"path":"f/b/new","resource_type":"state","value":1}`, denied}, // there is no such folder
		{"writer", create + `{"path":"f/a/null","resource_type":"state","value":1.50}`, "201 text/plain resource f/a/null created"},
		{"writer", get + "null", "200 application/json 1.50"},
		{"writer", create + `{"path":"f/a/null","resource_type":"state","value":null}`, "201 text/plain resource f/a/null created"},
		{"writer", get + "null", "200 application/json null"},
		{"writer", "POST create " + `{"path":"f/a/null","resource_type":"state","value":2}`,
			"400 text/plain Bad request: Resource f/a/null already exists"},
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
	if r, _ := ws.Get("f/a/null"); r.Type != "state" {
		t.Errorf("the type is still %s", r.Type)
	}
}

// script has no package clause: the worker writes one before it.
const script = `//require github.com/windmill-labs/windmill-go-client v1.501.4
import (
	"context"; "errors"; "fmt"; "os"; "os/exec"; "strings"; "time"
	wmill "github.com/windmill-labs/windmill-go-client"
)

func main(mode string, alone string, given map[string]any) (any, error) {
	fmt.Println("to standard output")
	fmt.Fprintln(os.Stderr, "to standard error")
	switch mode {
	case "fail":
		return nil, errors.New("it failed")
	case "hang":
		child := exec.Command("sh", "-c", "echo child; sleep 20")
		child.Stdout = os.Stdout
		return nil, child.Run()
	case "alone":
		if err := os.Mkdir(alone, 0o700); err != nil {
			return nil, err
		}
		time.Sleep(20 * time.Millisecond)
		return nil, os.Remove(alone)
	}
	client, _ := wmill.GetClient()
	got, err := client.Client.GetResourceValueWithResponse(context.Background(), client.Workspace, "f/a/refers")
	names := os.Environ()
	for i, setting := range names {
		names[i], _, _ = strings.Cut(setting, "=")
	}
	return []any{given["v"], (*got.JSON200).(map[string]any)["v"], names}, err
}
`

// canceller is called when a job has written that its child runs.
type canceller func()

func (c canceller) Write(text []byte) (int, error) {
	if strings.Contains(string(text), "child") {
		c()
	}
	return len(text), nil
}

func TestTheWorker(t *testing.T) {
	t.Setenv("PLANTED", "in the worker's own environment")
	ws := newWorkspace()
	server := httptest.NewServer(ws)
	defer server.Close()
	worker := &Worker{Workspace: ws, BaseURL: server.URL, Dir: t.TempDir(), Slots: 1}
	file := filepath.Join(worker.Dir, "script.go")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	binary, err := worker.Build(context.Background(), file, "../..")
	if err != nil {
		t.Fatal(err)
	}
	job := func(mode string, given any) Job {
		return Job{Binary: binary, Token: "reader", Args: map[string]any{"mode": mode, "alone": worker.Dir + "/alone", "given": given}}
	}
	const log = "to standard output\nto standard error\n"

	done, err := worker.Run(context.Background(), job("", "$res:f/a/refers"))
	want := `["\"quoted\"","$var:f/a/secret",["WM_WORKSPACE","WM_TOKEN","WM_JOB_ID","WM_JOB_PATH","WM_BASE_URL","BASE_INTERNAL_URL",` +
		`"WM_EMAIL","WM_USERNAME","WM_PERMISSIONED_AS","WM_FLOW_JOB_ID","WM_ROOT_FLOW_JOB_ID","WM_FLOW_PATH","WM_FLOW_STEP_ID",` +
		`"WM_SCHEDULE_PATH","WM_STATE_PATH","WM_OBJECT_PATH","WM_WORKER_GROUP","TZ","HOME","PATH","HTTP_PROXY","HTTPS_PROXY","NO_PROXY"]]`
	if err != nil || done.Failed || done.Log != log || string(done.Result) != want {
		t.Errorf("error %v, failed %t, log %q, result\n%s; want\n%s", err, done.Failed, done.Log, done.Result, want)
	}
	for _, test := range []struct {
		job  Job
		want string
	}{
		{job("fail", nil), log + "it failed\n"},
		{job("", "$res:f/a/gone"), "Not found: Resource f/a/gone not found"},
		{job("", []string{"$var:f/a/gone"}), "Not found: Variable f/a/gone not found"},
	} {
		if done, err := worker.Run(context.Background(), test.job); err != nil || !done.Failed || done.Log != test.want {
			t.Errorf("error %v, failed %t, log %q; want %q", err, done.Failed, done.Log, test.want)
		}
	}

	var group sync.WaitGroup
	for range 4 { // each fails that is not alone
		group.Add(1)
		go func() {
			defer group.Done()
			if done, err := worker.Run(context.Background(), job("alone", nil)); err != nil || done.Failed {
				t.Errorf("with one slot: %v, log %q", err, done.Log)
			}
		}()
	}
	group.Wait()

	// It ends before its child would: the child holds the job's standard output.
	ctx, cancel := context.WithCancel(context.Background())
	hung := job("hang", nil)
	hung.Output = canceller(cancel)
	if done, err := worker.Run(ctx, hung); err != context.Canceled || done.Took > 10*time.Second {
		t.Errorf("a job whose context ended: error %v after %v", err, done.Took)
	}
	if left, _ := filepath.Glob(worker.Dir + "/job*"); left != nil {
		t.Errorf("jobs left %v", left)
	}
}
