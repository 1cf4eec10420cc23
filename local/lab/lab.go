// Package lab is the world in which tests and proofs run the job: a Windmill and a
// ServiceNow of a test's own, the job built as a worker builds it, and checks of what
// was sent, cached and printed. What it knows of the cached record's seals it has
// from local/README.md alone, so that it checks main.go independently.
package lab

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"servicenow-token/local/servicenow"
	"servicenow-token/local/windmill"
	"servicenow-token/local/wire"
)

const (
	// CachePath is the resource that holds the token.
	CachePath = "f/ServiceNow/snow_token_cache"
	// ScriptPath is where the script is deployed.
	ScriptPath = "f/ServiceNow/get_token"
	// SchedulePath is the schedule that warms the cache.
	SchedulePath = "f/ServiceNow/warm_token"
	// FlowPath is a flow with the script as a step.
	FlowPath = "f/ServiceNow/open_incidents"
)

// The secrets have characters that forms, URLs, HTML and JSON escape, and begin
// like nothing else that is printed.
const (
	Password     = "Zq7!päss wörd+\"<&>%41\\end"
	ClientSecret = "Kx9/secret=&?#'%Kx9"
	JobToken     = "Wm5-workspace-token"
)

// The ways in which a run is started, as its environment tells (see windmill's origin.go).
var (
	ByHand        = windmill.ByHand()
	FlowStep      = windmill.StepOfFlow(FlowPath, "a")
	Schedule      = windmill.BySchedule(SchedulePath)
	ScheduledFlow = windmill.StepOfScheduledFlow(FlowPath, "a", "f/ServiceNow/nightly")
)

// InProcess makes jobs run in the test's process, by CallMain: for coverage and
// mutation testing.
var InProcess = os.Getenv("IN_PROCESS") != ""

// CallMain runs the script's main with JSON arguments. The test of package inner
// sets it; without it, no job can run in process.
var CallMain func(args []byte) (any, error)

// jobs is the folder of the built job and of its runs.
var jobs string

// RunTests runs a package's tests and removes what the jobs left. A TestMain exits
// with what it returns.
func RunTests(m *testing.M) (status int) {
	if InProcess && CallMain == nil {
		fmt.Println("skipped: IN_PROCESS is for main.go's own tests")
		return 0
	}
	var err error
	if jobs, err = os.MkdirTemp("", "jobs"); err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(jobs)
	return m.Run()
}

// Root is the repository's folder.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// Job is main.go, built once as a worker does.
var Job = sync.OnceValues(func() (binary string, err error) {
	worker := &windmill.Worker{Dir: jobs}
	return worker.Build(context.Background(), filepath.Join(Root(), "main.go"), Root())
})

// ServiceNow is the job's argument, a resource of the type servicenow.
type ServiceNow struct {
	InstanceURL  string `json:"instance_url"`
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
	Username     string `json:"username"`
	Password     string `json:"password"`
}

// World is a Windmill and a ServiceNow of a test's own, and a resource for the job.
type World struct {
	Instance  *servicenow.Instance
	Workspace *windmill.Workspace
	Worker    *windmill.Worker
	Account   servicenow.Account
	Snow      ServiceNow // the job's argument
	Token     string     // the job's workspace token
	Secrets   []string   // what no run may print, besides what the world itself knows
}

// New makes a world with an account on the instance, a folder for the cache, and a
// workspace token that may read and write.
func New(t testing.TB) *World {
	t.Helper()
	w := &World{
		Instance:  &servicenow.Instance{},
		Workspace: &windmill.Workspace{Name: "test workspace"},
		Account: servicenow.Account{
			ClientID: "client&id", ClientSecret: ClientSecret, Username: "svc user", Password: Password,
		},
		Token: JobToken,
	}
	w.Instance.SetAccount(w.Account, true)
	w.Workspace.AddFolder("f/ServiceNow")
	w.Workspace.AddToken(w.Token, windmill.Rights{"f/ServiceNow": windmill.Write})
	w.Snow = ServiceNow{
		InstanceURL: Serve(t, w.Instance), ClientID: w.Account.ClientID, ClientSecret: w.Account.ClientSecret,
		Username: w.Account.Username, Password: w.Account.Password,
	}
	w.Worker = &windmill.Worker{Workspace: w.Workspace, BaseURL: Serve(t, w.Workspace), Dir: jobs}
	return w
}

// Serve serves handler on a port of its own until the test ends. Unlike httptest's,
// its end leaves the connections of other tests alone.
func Serve(t testing.TB, handler http.Handler) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }() // ends with an error when it is closed
	t.Cleanup(func() { _ = server.Close() })
	return "http://" + listener.Addr().String()
}

// Ran is what a run of the job came to, and which calls it made.
type Ran struct {
	Result   string // JSON; "" if the job failed
	Log      string // with the error of a job that failed
	Windmill []wire.Call
	Logins   []wire.Call
	Took     time.Duration
}

// OK reports whether the run returned what a good one does.
func (r Ran) OK() bool { return r.Result == `"OK"` }

// Run runs the job, started as origin tells, with additions to its environment, and
// sees to it that nothing secret was printed or left in the cache's login.
func (w *World) Run(t testing.TB, origin []string, env ...string) Ran {
	t.Helper()
	w.Instance.TakeCalls()
	w.Workspace.TakeCalls()
	r := w.Start(t, origin, env...)
	r.Windmill, r.Logins = w.Workspace.TakeCalls(), w.Instance.TakeCalls()
	w.CheckSecrets(t, r.Result+r.Log)
	return r
}

// Start runs the job and leaves the recorded calls to the caller, as is right for
// jobs that run at the same time.
func (w *World) Start(t testing.TB, origin []string, env ...string) Ran {
	t.Helper()
	job := w.Job(t, origin, env...)
	if InProcess {
		return w.callMain(t, job)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	done, err := w.Worker.Run(ctx, job)
	if err != nil {
		t.Fatal(err)
	}
	return Ran{Result: string(done.Result), Log: done.Log, Took: done.Took}
}

// Job is the job that Start runs.
func (w *World) Job(t testing.TB, origin []string, env ...string) windmill.Job {
	t.Helper()
	job := windmill.Job{
		Path: ScriptPath, Args: map[string]any{"snow": w.Snow}, Token: w.Token, Env: append(origin[:len(origin):len(origin)], env...),
	}
	if !InProcess {
		var err error
		if job.Binary, err = Job(); err != nil {
			t.Fatal(err)
		}
	}
	return job
}

// process guards what a test's process has one of: environment and standard output.
var process sync.Mutex

// RunInProcess is Run in the test's process, for tests that set clocks.
func (w *World) RunInProcess(t testing.TB, origin []string, env ...string) Ran {
	t.Helper()
	w.Instance.TakeCalls()
	w.Workspace.TakeCalls()
	r := w.callMain(t, windmill.Job{
		Path: ScriptPath, Args: map[string]any{"snow": w.Snow}, Token: w.Token, Env: append(origin[:len(origin):len(origin)], env...),
	})
	r.Windmill, r.Logins = w.Workspace.TakeCalls(), w.Instance.TakeCalls()
	w.CheckSecrets(t, r.Result+r.Log)
	return r
}

func (w *World) callMain(t testing.TB, job windmill.Job) (r Ran) {
	t.Helper()
	args, err := json.Marshal(w.Snow)
	if err != nil {
		t.Fatal(err)
	}
	process.Lock()
	defer process.Unlock()
	w.setenv(job)
	started := time.Now()
	r.Log = printed(t, func() {
		result, err := CallMain(args)
		if err != nil {
			fmt.Println(err)
			return
		}
		encoded, err := json.Marshal(result)
		if err != nil {
			t.Error(err)
		}
		r.Result = string(encoded)
	})
	r.Took = time.Since(started)
	return r
}

// setenv gives the process what a job finds in its environment.
func (w *World) setenv(job windmill.Job) {
	for _, setting := range w.Worker.Environment(job) {
		if name, value, _ := strings.Cut(setting, "="); strings.HasPrefix(name, "WM_") || name == "BASE_INTERNAL_URL" {
			os.Setenv(name, value)
		}
	}
}

// Setenv makes the test's process a job of the world's, for calls of the client.
func (w *World) Setenv(t testing.TB) {
	t.Helper()
	w.setenv(w.Job(t, FlowStep))
}

// printed returns what call writes to standard output.
func printed(t testing.TB, call func()) string {
	t.Helper()
	file, err := os.CreateTemp(t.TempDir(), "stdout")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	stdout := os.Stdout
	os.Stdout = file
	defer func() { os.Stdout = stdout }()
	call()
	text, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// CheckSecrets fails the test if text, or what the cache says of a login, has a
// secret in it, in whatever guise, or the beginning of one.
func (w *World) CheckSecrets(t testing.TB, text string) {
	t.Helper()
	if cached, ok := w.value(); ok {
		encoded, err := json.Marshal(cached["login"])
		if err != nil {
			t.Fatal(err)
		}
		text += string(encoded)
	}
	lower := strings.ToLower(text)
	secrets := append([]string{Password, ClientSecret, JobToken}, w.Secrets...)
	for _, secret := range append(secrets, w.Instance.Issued()...) {
		for _, guise := range []string{
			secret, secret[:6], url.QueryEscape(secret), url.PathEscape(secret), html.EscapeString(secret),
			strconv.Quote(secret), base64.StdEncoding.EncodeToString([]byte(secret)), hex.EncodeToString([]byte(secret)),
		} {
			if strings.Contains(lower, strings.ToLower(guise)) {
				t.Errorf("the secret %q stands as %q in:\n%s", secret, guise, text)
			}
		}
	}
}

// value returns the cached value, if it is an object.
func (w *World) value() (fields map[string]any, ok bool) {
	resource, _ := w.Workspace.Resource(CachePath)
	return fields, json.Unmarshal(resource.Value, &fields) == nil && fields != nil
}

// CheckLines fails the test unless log has as many lines as there are patterns,
// each matching its own.
func CheckLines(t testing.TB, log string, patterns ...string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(log), "\n")
	for i, pattern := range patterns {
		if i < len(lines) && !regexp.MustCompile("^"+pattern+"$").MatchString(lines[i]) {
			t.Errorf("line %d = %q; want %s", i+1, lines[i], pattern)
		}
	}
	if len(lines) != len(patterns) {
		t.Errorf("%d lines; want %d:\n%s", len(lines), len(patterns), log)
	}
}

// CheckWords fails the test unless text has all words in it.
func CheckWords(t testing.TB, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("no %q in:\n%s", word, text)
		}
	}
}

// Names lists calls as method, action and status.
func Names(calls []wire.Call) []string {
	var list []string
	for _, call := range calls {
		path := strings.TrimPrefix(call.Path, "/api/w/test%20workspace/resources/")
		list = append(list, fmt.Sprintf("%s %s %d", call.Method, path, call.Status))
	}
	return list
}

// The calls of a run to Windmill, by name.
const (
	EscapedPath = "f%2FServiceNow%2Fsnow_token_cache"
	ReadFound   = "GET get_value_interpolated/" + EscapedPath + " 200"
	ReadNothing = "GET get_value_interpolated/" + EscapedPath + " 404"
	Created     = "POST create?update_if_exists=true 201"
	Updated     = "POST update_value/" + EscapedPath + " 200"
)

// LoginCalls are the six calls to Windmill of a run that logs in, on a cache that
// holds something: read, claim, read the claim, store.
var LoginCalls = []string{ReadFound, ReadFound, Updated, ReadFound, ReadFound, Updated}

// CheckCalls fails the test unless the run called Windmill like that, and
// ServiceNow as often.
func CheckCalls(t testing.TB, r Ran, logins int, calls ...string) {
	t.Helper()
	if diff := cmp.Diff(calls, Names(r.Windmill)); diff != "" {
		t.Errorf("calls to Windmill mismatch (-want +got):\n%s", diff)
	}
	if len(r.Logins) != logins {
		t.Errorf("%d logins; want %d: %v", len(r.Logins), logins, Names(r.Logins))
	}
}
