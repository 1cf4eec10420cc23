package windmill

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
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
		ws.AddToken("all", Rights{"f/a": Write, "f/b": Write})
		ws.AddToken("reader", Rights{"f/a": Read, "f/b": Write})
		ws.AddToken("nobody", Rights{})
		ws.SetVariable("f/a/secret", "s3cret")
		ws.SetVariable("f/a/json", `{"x":[1.50]}`)
		ws.SetVariable("f/c/secret", "s3cret")
		for path, value := range map[string]string{
			"f/a/there":    `{"n":1}`,
			"f/a/refers":   `{"v":"$var:f/a/secret","j":["$jsonvar:f/a/json"],"r":"$res:f/a/there"}`,
			"f/a/digits":   `{"a":1767225600.25,"b":12345678901234567890,"c":1.0,"d":1e3}`,
			"f/a/dangling": `"$var:f/a/gone"`,
			"f/a/other":    `"$var:f/c/secret"`,
			"f/a/circle":   `"$res:f/a/circle"`,
			"f/a/null":     `null`,
		} {
			ws.SetResource(path, Resource{Type: "state", Value: json.RawMessage(value)})
		}
		return ws
	}
	const (
		get       = "GET get_value_interpolated/"
		create    = "POST create?update_if_exists=true"
		update    = "POST update_value/"
		newRow    = `{"path":"f/a/new","value":2.50,"resource_type":"state"}`
		thatRow   = `{"path":"f/a/there","value":2.50,"resource_type":"state"}`
		noFolder  = `{"path":"f/b/new","value":2.50,"resource_type":"state"}`
		badPath   = `{"path":"there","value":2.50,"resource_type":"state"}`
		noType    = `{"path":"f/a/new","value":2.50}`
		newValue  = `{"value":2.50}`
		updated   = "value of resource f/a/there updated"
		created   = "resource f/a/new created"
		noRight   = "Not authorized: You don't have write permission at this path"
		oldNo     = `SqlErr: new row violates row-level security policy for table "resource"`
		forbidden = "Permission denied: Cannot directly deploy in this workspace. Fork or Pull request required."
		hidden    = "Not authorized: Resource exists but you don't have access to it:\nresource perms: {}\nfolder perms: {}"
		badCreate = "Bad request: invalid path or type"
		there     = "f%2Fa%2Fthere"
		gone      = "f%2Fa%2Fgone"
		goneText  = "Not found: Resource f/a/gone not found"
		thereText = "Not found: Resource f/a/there not found"
	)
	type answer struct {
		Status int
		Text   string
		Stored bool // is 2.50 stored?
	}
	same := func(status int, text string, stored bool) [2]answer {
		return [2]answer{{status, text, stored}, {status, text, stored}}
	}
	for _, test := range []struct {
		name, token, call, body string
		want                    [2]answer // of a new server, of an old one
	}{
		{"read", "all", get + there, "", same(200, `{"n":1}`, false)},
		{"read null", "all", get + "f%2Fa%2Fnull", "", same(200, "null", false)},
		{"read references", "all", get + "f%2Fa%2Frefers", "",
			same(200, `{"j":[{"x":[1.50]}],"r":{"n":1},"v":"s3cret"}`, false)},
		{"read digits", "all", get + "f%2Fa%2Fdigits", "",
			same(200, `{"a":1767225600.25,"b":12345678901234567890,"c":1.0,"d":1e3}`, false)},
		{"read a reference to nothing", "all", get + "f%2Fa%2Fdangling", "",
			same(404, "Not found: variable f/a/gone not found", false)},
		{"read a reference to itself", "all", get + "f%2Fa%2Fcircle", "",
			same(404, "Not found: references nested too deeply", false)},
		{"read no row", "all", get + gone, "", same(404, goneText, false)},
		{"read without the right", "nobody", get + there, "", same(401, hidden, false)},
		{"read no row without the right", "nobody", get + gone, "", same(404, goneText, false)},
		{"read a reference without the right to it", "all", get + "f%2Fa%2Fother", "",
			same(404, "Not found: variable f/c/secret not found", false)},
		{"read with an unknown token", "stranger", get + there, "", same(401, "Unauthorized", false)},
		{"no such action", "all", "GET list/" + there, "", same(404, "Not found: no such route", false)},

		{"create", "all", create, newRow, same(201, created, true)},
		{"create what exists", "all", create, thatRow, same(201, "resource f/a/there created", true)},
		{"create what exists, no update", "all", "POST create", thatRow,
			same(400, "Bad request: Resource f/a/there already exists", false)},
		{"create at a bad path", "all", create, badPath, same(400, badCreate, false)},
		{"create without a type", "all", create, noType, same(400, badCreate, false)},
		{"create in no folder", "all", create, noFolder, [2]answer{{401, noRight, false}, {400, oldNo, false}}},
		{"create without the right", "reader", create, newRow, [2]answer{{401, noRight, false}, {400, oldNo, false}}},
		{"create what exists without the right", "reader", create, thatRow,
			[2]answer{{401, noRight, false}, {400, oldNo, false}}},
		{"create, protected", "all", create, newRow, same(403, forbidden, false)},
		{"create without the right, protected", "reader", create, newRow, same(403, forbidden, false)},

		{"update", "all", update + there, newValue, same(200, updated, true)},
		{"update without the right", "reader", update + there, newValue,
			[2]answer{{404, thereText, false}, {200, updated, false}}},
		{"update no row", "all", update + gone, newValue,
			[2]answer{{404, goneText, false}, {200, "value of resource f/a/gone updated", false}}},
		{"update no row without the right", "reader", update + gone, newValue,
			[2]answer{{404, goneText, false}, {200, "value of resource f/a/gone updated", false}}},
		{"update, protected", "all", update + there, newValue, same(403, forbidden, false)},
		{"update without the right, protected", "reader", update + there, newValue, same(403, forbidden, false)},
		{"read, protected", "all", get + there, "", same(200, `{"n":1}`, false)},
	} {
		for i, server := range []string{"new", "old"} {
			t.Run(test.name+", "+server+" server", func(t *testing.T) {
				ws := newWorkspace()
				ws.OldCreate, ws.OldUpdate = server == "old", server == "old"
				ws.Protected = strings.HasSuffix(test.name, "protected")
				method, endpoint, _ := strings.Cut(test.call, " ")
				var got answer
				got.Status, got.Text = call(t, ws, test.token, method, endpoint, test.body)
				for _, path := range []string{"f/a/there", "f/a/new", "f/a/gone", "f/b/new", "there"} {
					resource, found := ws.Resource(path)
					got.Stored = got.Stored || string(resource.Value) == "2.50"
					if found && resource.Type != "state" {
						t.Errorf("%s has the type %s; want state", path, resource.Type)
					}
				}
				if diff := cmp.Diff(test.want[i], got); diff != "" {
					t.Errorf("answer mismatch (-want +got):\n%s", diff)
				}
			})
		}
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
	return map[string]any{"first": first, "count": count, "environment": os.Environ()}, nil
}
`

func TestTheWorker(t *testing.T) {
	t.Setenv("PLANTED", "by the worker's own environment")
	t.Setenv("HTTP_PROXY", "")
	t.Setenv("HTTPS_PROXY", "http://proxy.example")
	t.Setenv("https_proxy", "http://lower.example")
	t.Setenv("NO_PROXY", "")
	ws := &Workspace{Name: "ws"}
	ws.AddToken("token", Rights{"f/a": Read})
	ws.SetResource("f/a/pair", Resource{Type: "pair", Value: json.RawMessage(`{"A":"$var:f/a/secret","B":"b"}`)})
	ws.SetVariable("f/a/secret", "a")
	ws.SetResource("f/a/count", Resource{Type: "any", Value: json.RawMessage("9007199254740993")})
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	worker := &Worker{Workspace: ws, BaseURL: server.URL, Dir: t.TempDir()}
	binary, err := worker.Build(context.Background(), writeScript(t, script), "../..")
	if err != nil {
		t.Fatal(err)
	}

	var output strings.Builder
	job := Job{
		Binary: binary, Args: map[string]any{"first": "$res:f/a/pair", "count": "$res:f/a/count"},
		Token: "token", Path: "f/a/script", ID: "the id", Output: &output,
		Env: []string{"WM_SCHEDULE_PATH=f/a/schedule", "ADDED=1", "ADDED=2"},
	}
	done, err := worker.Run(context.Background(), job)
	if err != nil || done.Failed {
		t.Fatalf("the job failed: %v\n%s", err, done.Log)
	}
	got, err := parse(done.Result)
	if err != nil {
		t.Fatal(err)
	}
	var want any = map[string]any{
		"first": map[string]any{"A": "a", "B": "b"}, "count": json.Number("9007199254740993"),
		"environment": []any{
			"WM_WORKSPACE=ws", "WM_TOKEN=token", "WM_EMAIL=user@example.com", "WM_USERNAME=user",
			"WM_BASE_URL=" + server.URL, "WM_JOB_ID=the id", "WM_JOB_PATH=f/a/script", "WM_FLOW_JOB_ID=",
			"WM_ROOT_FLOW_JOB_ID=", "WM_FLOW_PATH=", "WM_FLOW_STEP_ID=", "WM_PERMISSIONED_AS=u/user",
			"WM_STATE_PATH=", "WM_OBJECT_PATH=", "WM_WORKER_GROUP=", "BASE_INTERNAL_URL=" + server.URL,
			"PATH=" + os.Getenv("PATH"), "TZ=UTC", "HOME=/tmp/go", "HTTP_PROXY=", "HTTPS_PROXY=http://proxy.example",
			"NO_PROXY=", "WM_SCHEDULE_PATH=f/a/schedule", "ADDED=2",
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("result mismatch (-want +got):\n%s", diff)
	}
	if want := "to standard output\nto standard error\n"; done.Log != want {
		t.Errorf("log = %q; want %q", done.Log, want)
	}
	if output.String() != done.Log {
		t.Errorf("Output got %q; want the log", output.String())
	}

	job.Args["fail"] = true
	done, err = worker.Run(context.Background(), job)
	if err != nil || !done.Failed || done.Result != nil {
		t.Errorf("a failing job: failed = %t, result = %s, %v; want a failure without a result",
			done.Failed, done.Result, err)
	}
	if text := done.FailureText(); len(text) != 600 || !strings.HasSuffix(text, "xend") {
		t.Errorf("FailureText has %d characters; want the last 600", len(text))
	}

	job.Args["first"] = "$res:f/a/gone"
	if _, err := worker.Run(context.Background(), job); err == nil {
		t.Error("a job with a missing resource ran")
	}
	job.Args["first"] = "$res:f/a/pair"
	ws.SetResource("f/a/pair", Resource{Type: "pair", Value: json.RawMessage(`{"A":"$var:f/b/secret","B":"b"}`)})
	ws.SetVariable("f/b/secret", "b")
	if _, err := worker.Run(context.Background(), job); err == nil {
		t.Error("a job with a variable that its user may not read ran")
	}
	ws.SetResource("f/a/pair", Resource{Type: "pair", Value: json.RawMessage(`{"A":"a","B":"b"}`)})
	job.Token = "of nobody"
	if _, err := worker.Run(context.Background(), job); err == nil {
		t.Error("a job with a resource that its user may not read ran")
	}
	left, err := filepath.Glob(filepath.Join(worker.Dir, "job*"))
	if err != nil || left != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// writerFunc is an io.Writer.
type writerFunc func(data []byte) (int, error)

func (f writerFunc) Write(data []byte) (int, error) { return f(data) }

func TestTheLogIsWrittenWhileTheJobRuns(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "job")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\necho printed >&2\nexec sleep 30\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	worker := &Worker{Workspace: &Workspace{Name: "ws"}, Dir: t.TempDir()}
	done, err := worker.Run(ctx, Job{Binary: binary, Output: writerFunc(func(data []byte) (int, error) {
		cancel() // or else the job sleeps on
		return len(data), nil
	})})
	if !errors.Is(err, context.Canceled) || done.Log != "printed\n" {
		t.Errorf("Run = log %q, %v; want what was printed before the job was stopped", done.Log, err)
	}
}

// The table of who is what, row by row, and what a script concludes from it.
func TestWhoStartsAJob(t *testing.T) {
	worker := &Worker{Workspace: &Workspace{Name: "ws"}}
	names := []string{"WM_SCHEDULE_PATH", "WM_FLOW_STEP_ID", "WM_FLOW_JOB_ID", "WM_ROOT_FLOW_JOB_ID", "WM_FLOW_PATH"}
	for _, test := range []struct {
		name      string
		env       []string
		want      []string // the values of names; ID is any id
		scheduled bool     // does a schedule run the script itself?
	}{
		{"by hand", ByHand(), []string{"", "", "", "", ""}, false},
		{"by schedule", BySchedule("f/a/s"), []string{"f/a/s", "", "", "", ""}, true},
		{
			"by wrapped schedule", ByWrappedSchedule("f/a/s", "f/a/script"),
			[]string{"f/a/s", "a", "ID", "ID", "f/a/script"}, true,
		},
		{"step of flow", StepOfFlow("f/a/flow", "b"), []string{"", "b", "ID", "ID", "f/a/flow"}, false},
		{
			"step of scheduled flow", StepOfScheduledFlow("f/a/flow", "b", "f/a/s"),
			[]string{"f/a/s", "b", "ID", "ID", "f/a/flow"}, false,
		},
		{"by script", ByScript("f/a/caller"), []string{"", "", "ID", "ID", "f/a/caller"}, false},
		{"by flow editor", ByFlowEditor("f/a/flow"), []string{"", "", "", "", "f/a/flow"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			env := make(map[string]string)
			for _, setting := range worker.Environment(Job{Path: "f/a/script", Env: test.env}) {
				name, value, _ := strings.Cut(setting, "=")
				env[name] = value
			}
			var got []string
			for _, name := range names {
				got = append(got, idPattern.ReplaceAllString(env[name], "ID"))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("%v mismatch (-want +got):\n%s", names, diff)
			}
			if env["WM_FLOW_JOB_ID"] != env["WM_ROOT_FLOW_JOB_ID"] {
				t.Error("the flow is not its own root")
			}
			if !idPattern.MatchString(env["WM_JOB_ID"]) || env["WM_JOB_ID"] == env["WM_FLOW_JOB_ID"] {
				t.Errorf("WM_JOB_ID = %q; want an id of its own", env["WM_JOB_ID"])
			}
			scheduled := env["WM_SCHEDULE_PATH"] != "" &&
				(env["WM_FLOW_STEP_ID"] == "" || env["WM_FLOW_PATH"] == env["WM_JOB_PATH"])
			if scheduled != test.scheduled {
				t.Errorf("a schedule runs the script itself: %t; want %t", scheduled, test.scheduled)
			}
		})
	}
}

var idPattern = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

func TestTheBuild(t *testing.T) {
	// A caller's settings that would break a build, were they handed on.
	t.Setenv("GOFLAGS", "-mod=vendor")
	const body = "import \"errors\"\n\nfunc main() (any, error) { return nil, errors.New(\"ran\") }\n"
	for _, test := range []struct{ name, source, complaint string }{
		{"package first", "package inner\n\n" + body, ""},
		{"white space first", " \n\t\npackage inner\n\n" + body, ""},
		{"a comment after package", "package inner\n\n// A comment.\n" + body, ""},
		{"no package", body, ""},
		{"a comment first", "// Package inner is a script.\npackage inner\n\n" + body, "inner_main.go:2:1: syntax error"},
		{"a comment first on package's line", "/* A comment. */ package inner\n\n" + body, "syntax error"},
		{"no main", "package inner\n", "no line that starts with func main("},
		{"main within a line", "package inner\n\nvar x = 1; func main() {}\n", "no line that starts with func main("},
		{"another package", "package other\n\n" + body, "found packages"},
	} {
		t.Run(test.name, func(t *testing.T) {
			worker := &Worker{Workspace: &Workspace{Name: "ws"}, Dir: t.TempDir()}
			binary, err := worker.Build(context.Background(), writeScript(t, test.source), "../..")
			if test.complaint != "" {
				if err == nil || !strings.Contains(err.Error(), test.complaint) {
					t.Errorf("Build = %v; want an error with %q", err, test.complaint)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			done, err := worker.Run(context.Background(), Job{Binary: binary})
			if err != nil || !done.Failed || done.Log != "ran\n" {
				t.Errorf("the job: failed = %t, log = %q, %v; want a failure that logs ran", done.Failed, done.Log, err)
			}
		})
	}
}

func TestTheBuildsFolder(t *testing.T) {
	worker := &Worker{Dir: t.TempDir()}
	source := "//require example.com/unused v1.2.3\n" +
		"func main(snow map[string]any, überzahl int) (any, error) { return nil, nil }\n"
	binary, err := worker.Build(context.Background(), writeScript(t, source), "../..")
	if err != nil {
		t.Fatal(err)
	}
	if base := filepath.Base(filepath.Dir(binary)); base != "go" {
		t.Errorf("built in the folder %s; want go", base)
	}
	for name, want := range map[string]string{
		"go.mod":              "module mymod\n",
		"inner/inner_main.go": "package inner; " + source,
		"inner/runner.go":     "{\n\tSnow map[string]any `json:\"snow\"`\n\tÜberzahl int `json:\"überzahl\"`\n}\n",
		"main.go":             "\"mymod/inner\"",
	} {
		got, err := os.ReadFile(filepath.Join(filepath.Dir(binary), name))
		if err != nil || !strings.Contains(string(got), want) {
			t.Errorf("%s is %q, %v; want one with %q", name, got, err, want)
		}
	}
}

// The client's stand-in may lie anywhere, and the caller's GOWORK says whether
// there is one.
func TestTheBuildWithAStandInForTheClient(t *testing.T) {
	module := filepath.Join(t.TempDir(), "a folder with blanks")
	for name, content := range map[string]string{
		"go.mod":           "module example.com/m\n\ngo 1.22\n\nrequire " + clientModule + " v1.501.4\n",
		"go.work":          "go 1.22\n\nuse .\n\nreplace " + clientModule + " => \"./a client\"\n",
		"a client/go.mod":  "module " + clientModule + "\n\ngo 1.22\n",
		"a client/give.go": "package windmill\n\nfunc Give() string { return \"given\" }\n",
	} {
		file := filepath.Join(module, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("GOWORK", filepath.Join(module, "go.work"))
	t.Setenv("GOFLAGS", "-mod=vendor")
	worker := &Worker{Workspace: &Workspace{Name: "ws"}, Dir: t.TempDir()}
	binary, err := worker.Build(context.Background(), writeScript(t, `package inner

//require `+clientModule+` v1.501.4

import wmill "`+clientModule+`"

func main() (string, error) { return wmill.Give(), nil }
`), module)
	if err != nil {
		t.Fatal(err)
	}
	done, err := worker.Run(context.Background(), Job{Binary: binary})
	if err != nil || string(done.Result) != `"given"` {
		t.Errorf("result = %s, %v; want what the stand-in gives\n%s", done.Result, err, done.Log)
	}
}

// A worker adds a package clause of its own to a file that begins with anything else.
func TestScriptsThatArePushedBeginWithPackage(t *testing.T) {
	scripts := []string{"../../main.go"}
	err := filepath.WalkDir("../../windmill/f", func(path string, _ fs.DirEntry, err error) error {
		if filepath.Ext(path) == ".go" {
			scripts = append(scripts, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(scripts) < 2 {
		t.Error("no scripts below windmill/f")
	}
	for _, name := range scripts {
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(source), "package inner\n") {
			first, _, _ := strings.Cut(string(source), "\n")
			t.Errorf("%s begins with %q; want package inner", name, first)
		}
	}
}

// writeScript writes a script's file and returns its name.
func writeScript(t *testing.T, source string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "script.go")
	if err := os.WriteFile(file, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}
