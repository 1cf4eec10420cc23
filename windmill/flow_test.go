package windmill_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"servicenow-token/local/servicenow"
	"servicenow-token/local/windmill"
)

const (
	flowFolder = "f/ServiceNow/open_incidents.flow"
	cachePath  = "f/ServiceNow/snow_token_cache"
	// Secrets whose traces the tests look for.
	jobToken  = "S3cret-workspace-token"
	snowToken = "S3cret-ServiceNow-token"
)

// rights are a user's in the two folders that make push creates.
func rights(token, credentials windmill.Right) windmill.Rights {
	return windmill.Rights{"f/ServiceNow": token, "f/ServiceNow_login": credentials}
}

// newWorker starts a Windmill with a workspace that holds both folders, and a token of
// a user who may do what a flow with a login step needs.
func newWorker(t *testing.T) *windmill.Worker {
	t.Helper()
	workspace := &windmill.Workspace{Name: "local"}
	workspace.AddFolder("f/ServiceNow")
	workspace.AddFolder("f/ServiceNow_login")
	workspace.AddToken(jobToken, rights(windmill.Write, windmill.Read))
	server := httptest.NewServer(workspace)
	t.Cleanup(server.Close)
	return &windmill.Worker{Workspace: workspace, BaseURL: server.URL, Dir: t.TempDir()}
}

func build(t *testing.T, worker *windmill.Worker, file string) (binary string) {
	t.Helper()
	binary, err := worker.Build(context.Background(), file, "..")
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

func setResource(t *testing.T, worker *windmill.Worker, path, kind string, value any) {
	t.Helper()
	content, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	worker.Workspace.SetResource(path, windmill.Resource{Type: kind, Value: content})
}

// step is a module of the flow: a script by its path or an inline one, its file, and
// its arguments as the flow gives them.
type step struct {
	id, path, file string
	args           map[string]any
}

// readFlow reads the steps of flow.yaml, as far as this flow uses the format.
func readFlow(t *testing.T) []step {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(flowFolder, "flow.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	modules, _, _ := strings.Cut(string(content), "\nschema:")
	static := regexp.MustCompile(`(?m)^          (\w+):\n            type: static\n            value: (.+)$`)
	var steps []step
	for _, module := range strings.Split(modules, "    - id: ")[1:] {
		id, rest, _ := strings.Cut(module, "\n")
		s := step{id: id, args: make(map[string]any)}
		if path := regexp.MustCompile(`(?m)^        path: (.+)$`).FindStringSubmatch(rest); path != nil {
			if path[1] != "f/ServiceNow/get_token" {
				t.Fatalf("step %s runs %s; want the script that is pushed, f/ServiceNow/get_token", id, path[1])
			}
			s.path, s.file = path[1], "../main.go"
		}
		if inline := regexp.MustCompile(`(?m)^        content: '!inline (.+)'$`).FindStringSubmatch(rest); inline != nil {
			s.file = filepath.Join(flowFolder, inline[1])
		}
		for _, argument := range static.FindAllStringSubmatch(rest, -1) {
			s.args[argument[1]] = argument[2]
		}
		if want := strings.Count(rest, "            type: "); len(s.args) != want {
			t.Fatalf("step %s has %d arguments, %d of which are static", id, want, len(s.args))
		}
		steps = append(steps, s)
	}
	return steps
}

// flowWorld is a Windmill with the flow's steps and credentials, and an instance.
type flowWorld struct {
	worker   *windmill.Worker
	instance *servicenow.Instance
	steps    []step
	binaries map[string]string // by the step's id
	secrets  []string
}

func newFlowWorld(t *testing.T) *flowWorld {
	t.Helper()
	w := &flowWorld{worker: newWorker(t), steps: readFlow(t), binaries: make(map[string]string)}
	w.instance = &servicenow.Instance{Incidents: map[string]int{"1 - Critical": 2, "3 - Moderate": 40}}
	server := httptest.NewServer(w.instance)
	t.Cleanup(server.Close)
	account := servicenow.Account{
		ClientID: "id", ClientSecret: "S3cret-of-client", Username: "windmill.integration", Password: "S3cret-password",
	}
	w.instance.SetAccount(account, true)
	w.secrets = []string{jobToken, account.ClientSecret, account.Password}

	if len(w.steps) != 2 {
		t.Fatalf("%d steps; want 2", len(w.steps))
	}
	if diff := cmp.Diff(map[string]any{"cache": "$res:" + cachePath}, w.steps[1].args); diff != "" {
		t.Errorf("the second step's arguments mismatch (-want +got):\n%s", diff)
	}
	snow, _ := w.steps[0].args["snow"].(string)
	credentials, found := strings.CutPrefix(snow, "$res:")
	if !found {
		t.Fatalf("the first step's snow is %q; want a resource", snow)
	}
	setResource(t, w.worker, credentials, "servicenow", map[string]string{
		"instance_url": server.URL + "/", "client_id": account.ClientID, "client_secret": account.ClientSecret,
		"username": account.Username, "password": account.Password,
	})
	for _, s := range w.steps {
		w.binaries[s.id] = build(t, w.worker, s.file)
	}
	return w
}

// run runs a step, started as origin tells. The error means that Windmill could not
// start it.
func (w *flowWorld) run(t *testing.T, s step, origin []string, token string) (windmill.Done, error) {
	t.Helper()
	done, err := w.worker.Run(context.Background(), windmill.Job{
		Binary: w.binaries[s.id], Args: s.args, Path: s.path, Env: origin, Token: token,
	})
	for _, secret := range append(w.instance.Issued(), w.secrets...) {
		if strings.Contains(done.Log+string(done.Result), secret[:8]) {
			t.Errorf("a secret in:\n%s%s", done.Log, done.Result)
		}
	}
	return done, err
}

// runFlow runs the steps until one fails, and returns that or the last one's end.
func (w *flowWorld) runFlow(t *testing.T) (id string, done windmill.Done) {
	t.Helper()
	for _, s := range w.steps {
		var err error
		if done, err = w.run(t, s, windmill.StepOfFlow("f/ServiceNow/open_incidents", s.id), jobToken); err != nil {
			t.Fatal(err)
		}
		if id = s.id; done.Failed {
			break
		}
	}
	return id, done
}

// checkFlow runs the flow, which must end with the instance's counts.
func (w *flowWorld) checkFlow(t *testing.T) {
	t.Helper()
	_, done := w.runFlow(t)
	var got map[string]int
	if err := json.Unmarshal(done.Result, &got); err != nil {
		t.Fatalf("result = %s: %v\n%s", done.Result, err, done.Log)
	}
	if diff := cmp.Diff(w.instance.Incidents, got); diff != "" {
		t.Errorf("open incidents mismatch (-want +got):\n%s", diff)
	}
}

func TestTheFlow(t *testing.T) {
	w := newFlowWorld(t)
	w.checkFlow(t)
	w.instance.TakeCalls()
	w.checkFlow(t)
	if calls := w.instance.TakeCalls(); len(calls) != 1 {
		t.Errorf("with a token in the cache the flow made %d calls to the instance; want 1", len(calls))
	}

	// A revoked token: the cache cannot know, so the second step fails and says what
	// to do, after which the flow runs again.
	w.instance.Revoke()
	id, done := w.runFlow(t)
	if id != "b" || !done.Failed || !strings.Contains(done.Log, "Run f/ServiceNow/get_token by hand") {
		t.Errorf("with a revoked token, step %s: failed = %t; want step b to fail and to say what to do\n%s",
			id, done.Failed, done.Log)
	}
	if done, err := w.run(t, w.steps[0], windmill.ByHand(), jobToken); err != nil || done.Failed {
		t.Fatalf("the run by hand failed: %v\n%s", err, done.Log)
	}
	w.checkFlow(t)
}

// The rights that README's table names are enough, and less is not.
func TestTheRightsOfWhoRunsWhat(t *testing.T) {
	const read, write, nothing = windmill.Read, windmill.Write, windmill.Right(0)
	w := newFlowWorld(t)
	w.checkFlow(t) // so that there is a token
	logIn, useToken := w.steps[0], w.steps[1]
	flowStep := windmill.StepOfFlow("f/ServiceNow/open_incidents", "x")
	for _, test := range []struct {
		name   string
		step   step
		origin []string
		rights windmill.Rights
		fault  string // "" where the run succeeds
	}{
		{"the schedule", logIn, windmill.BySchedule("f/ServiceNow/warm_token"), rights(write, read), ""},
		{"the schedule, reading only", logIn, windmill.BySchedule("f/ServiceNow/warm_token"), rights(read, read), "cannot be written"},
		{"the schedule, without the credentials", logIn, windmill.BySchedule("f/ServiceNow/warm_token"), rights(write, nothing), "not found"},
		{"a flow that reads the token", useToken, flowStep, rights(read, nothing), ""},
		{"a flow that may not read it", useToken, flowStep, rights(nothing, read), "not found"},
		{"a flow's login step", logIn, flowStep, rights(write, read), ""},
		{"a flow's login step, without the credentials", logIn, flowStep, rights(write, nothing), "not found"},
		{"by hand, who keeps the credentials", logIn, windmill.ByHand(), rights(write, write), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.worker.Workspace.AddToken("S3cret-of-another-user", test.rights)
			done, err := w.run(t, test.step, test.origin, "S3cret-of-another-user")
			fault := done.Log
			if err != nil {
				fault = err.Error()
			}
			if failed := err != nil || done.Failed; failed != (test.fault != "") || !strings.Contains(fault, test.fault) {
				t.Errorf("failed = %t; want %q\n%s", failed, test.fault, fault)
			}
		})
	}
}

// TestTheSecondStep runs the second step alone, on a record that the test plants.
func TestTheSecondStep(t *testing.T) {
	counts := func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"result": [
			{"stats": {"count": "2"}, "groupby_fields": [{"field": "priority", "value": "1 - Critical"}]},
			{"stats": {"count": "40"}, "groupby_fields": [{"field": "priority", "value": "3 - Moderate"}]}]}`)
	}
	status := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}
	}
	const result = `{"1 - Critical":2,"3 - Moderate":40}`
	future := float64(time.Now().Add(30 * time.Minute).Unix())
	at := func(instanceURL string) map[string]any {
		return map[string]any{"token": snowToken, "expires_at": future, "instance_url": instanceURL}
	}

	// Another host, to which nothing must come.
	var strayed atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { strayed.Add(1) }))
	t.Cleanup(other.Close)
	otherHost := strings.TrimPrefix(other.URL, "http://")
	closed := httptest.NewServer(nil)
	closed.Close()

	worker := newWorker(t)
	binary := build(t, worker, filepath.Join(flowFolder, "count_open_incidents.go"))

	// HOST stands for the host and port of the test's own server.
	tests := map[string]struct {
		record any
		serve  http.HandlerFunc
		want   string   // the result
		fails  []string // what the error says
		calls  int32    // that the server gets
	}{
		"counts the open incidents": {
			record: at("http://HOST"),
			serve:  counts, want: result, calls: 1,
		},
		"keeps a path prefix": {
			record: at("http://HOST/gateway"),
			serve: func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/gateway/api/now/stats/incident" {
					counts(w, r)
				}
			},
			want: result, calls: 1,
		},
		"takes http for localhost": {
			record: at("http://localhost:PORT"),
			serve:  counts, want: result, calls: 1,
		},
		"takes an expiry with a fraction": {
			record: map[string]any{"token": snowToken, "expires_at": future + 0.25, "instance_url": "http://HOST"},
			serve:  counts, want: result, calls: 1,
		},
		"returns nothing where no incident is open": {
			record: at("http://HOST"),
			serve:  status(200, `{"result": []}`), want: `{}`, calls: 1,
		},
		"says when the token expired and what to do": {
			record: map[string]any{"token": snowToken, "expires_at": 1732449600, "instance_url": "http://HOST"},
			fails: []string{
				"the cached token expired at 2024-11-24T12:00:00Z: nothing keeps the cache warm",
				"Switch the schedule f/ServiceNow/warm_token on", "put f/ServiceNow/get_token before this step",
			},
		},
		"says that nobody has logged in yet": {
			record: map[string]any{"token": "", "expires_at": 0, "seal": "", "login": map[string]any{"refused": 3}},
			fails:  []string{"nobody has logged in successfully yet", "f/ServiceNow/get_token"},
		},
		"says that nobody has logged in yet where the resource is empty": {
			record: nil,
			fails:  []string{"nobody has logged in successfully yet"},
		},
		"says who must write the record where the Python script wrote it": {
			record: map[string]any{"token": snowToken, "expires_at": future + 0.5},
			fails:  []string{"no instance_url", "f/ServiceNow/get_token must have written it"},
		},
		"refuses http": {
			record: at("http://dev12345.service-now.com"),
			fails:  []string{"it must look like https://"},
		},
		"refuses another scheme": {
			record: at("ftp://HOST"),
			fails:  []string{"it must look like https://"},
		},
		"refuses a bare host": {
			record: at("dev12345.service-now.com"),
			fails:  []string{"it must look like https://"},
		},
		"refuses an address without a host": {
			record: at("https:///path"),
			fails:  []string{"it must look like https://"},
		},
		"refuses a loopback address that is only a user's name": {
			record: at("http://127.0.0.1:1@HOST"),
			fails:  []string{"it must look like https://"},
		},
		"refuses a loopback address that is only a user's name, before a public host": {
			record: at("http://127.0.0.1:1@evil.example.com"),
			fails:  []string{"it must look like https://"},
		},
		"refuses a host that only begins like a loopback address": {
			record: at("http://127.0.0.1.evil.example.com"),
			fails:  []string{"it must look like https://"},
		},
		"refuses a query": {
			record: at("http://HOST?"),
			fails:  []string{"it must look like https://"},
		},
		"refuses a fragment": {
			record: at("http://HOST#"),
			fails:  []string{"it must look like https://"},
		},
		"refuses what is no address": {
			record: at("https://a b\x00%zz"),
			fails:  []string{"it must look like https://"},
		},
		"follows no redirect, for the other host would get the token": {
			record: at("http://HOST"),
			serve: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", other.URL+"/path?sysparm_token="+snowToken)
				w.WriteHeader(http.StatusTemporaryRedirect)
			},
			fails: []string{"answered 307, a redirect to " + otherHost + ", which"}, calls: 1,
		},
		"follows no redirect to the same host either": {
			record: at("http://HOST"),
			serve: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "/login.do")
				w.WriteHeader(http.StatusFound)
			},
			fails: []string{"answered 302, a redirect to HOST, which"}, calls: 1,
		},
		"says what to do about a token that ServiceNow refuses": {
			record: at("http://HOST"),
			serve:  status(401, `{"error":{"message":"User Not Authenticated"},"status":"failure"}`),
			fails:  []string{"HOST does not accept the cached token", "Run f/ServiceNow/get_token by hand"}, calls: 1,
		},
		"names another status, and nothing of the answer": {
			record: at("http://HOST"),
			serve:  status(403, `{"error":{"message":"Missing required api access scope, `+snowToken+`"}}`),
			fails:  []string{"HOST answered 403\n"}, calls: 1,
		},
		"names the host that answers with a page": {
			record: at("http://HOST"),
			serve:  status(200, "<html>Instance Hibernating page "+snowToken+"</html>"),
			fails:  []string{"HOST answered with something other than counts by priority\n"}, calls: 1,
		},
		"refuses JSON that has no result": {
			record: at("http://HOST"),
			serve:  status(200, `{}`),
			fails:  []string{"HOST answered with something other than counts by priority\n"}, calls: 1,
		},
		"refuses a count that is no number": {
			record: at("http://HOST"),
			serve:  status(200, `{"result": [{"stats": {"count": "`+snowToken+`"}, "groupby_fields": [{"value": "1"}]}]}`),
			fails:  []string{"HOST answered with something other than counts by priority\n"}, calls: 1,
		},
		"refuses a group without a priority": {
			record: at("http://HOST"),
			serve:  status(200, `{"result": [{"stats": {"count": "1"}}]}`),
			fails:  []string{"HOST answered with something other than counts by priority\n"}, calls: 1,
		},
		"repeats nothing of an answer that is no HTTP": {
			record: at("http://HOST"),
			serve: func(w http.ResponseWriter, r *http.Request) {
				connection, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					panic(err)
				}
				fmt.Fprintf(connection, "220 mail %s\r\n\r\n", r.Header.Get("Authorization"))
				connection.Close()
			},
			fails: []string{"HOST did not answer as an HTTPS server with a trusted certificate does"}, calls: 1,
		},
		"says that nobody listens": {
			record: at(closed.URL),
			fails:  []string{strings.TrimPrefix(closed.URL, "http://") + " could not be reached: ", "connection refused"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int32
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				if r.Header.Get("Authorization") != "Bearer "+snowToken {
					t.Errorf("Authorization = %q", r.Header.Get("Authorization"))
				}
				test.serve(w, r)
			}))
			t.Cleanup(server.Close)
			host := strings.TrimPrefix(server.URL, "http://")
			port := strings.TrimPrefix(host, "127.0.0.1:")
			fill := strings.NewReplacer("HOST", host, "PORT", port).Replace

			if record, ok := test.record.(map[string]any); ok {
				if address, ok := record["instance_url"].(string); ok {
					record["instance_url"] = fill(address)
				}
			}
			done := runStep(t, worker, binary, test.record)
			if done.Failed != (test.fails != nil) || string(done.Result) != test.want {
				t.Errorf("failed = %t, result = %s; want %s\n%s", done.Failed, done.Result, test.want, done.Log)
			}
			for _, want := range test.fails {
				if !strings.Contains(done.Log, fill(want)) {
					t.Errorf("no %q in:\n%s", fill(want), done.Log)
				}
			}
			if calls.Load() != test.calls {
				t.Errorf("%d calls; want %d", calls.Load(), test.calls)
			}
		})
	}
	t.Cleanup(func() { // when the parallel tests have ended
		if n := strayed.Load(); n != 0 {
			t.Errorf("the other host got %d requests; want none", n)
		}
	})
}

// runStep runs the second step with a record for its argument, and sees that its
// log shows no secret and no panic.
func runStep(t *testing.T, worker *windmill.Worker, binary string, record any) windmill.Done {
	t.Helper()
	done, err := worker.Run(context.Background(), windmill.Job{
		Binary: binary, Args: map[string]any{"cache": record}, Token: jobToken,
		Env: windmill.StepOfFlow("f/ServiceNow/open_incidents", "b"),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, unwanted := range []string{"S3cret", "panic", "goroutine"} {
		if strings.Contains(done.Log, unwanted) {
			t.Errorf("%s in:\n%s", unwanted, done.Log)
		}
	}
	return done
}

func TestTheSecondStepTrustsNoForeignCertificate(t *testing.T) {
	worker := newWorker(t)
	binary := build(t, worker, filepath.Join(flowFolder, "count_open_incidents.go"))
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the server got a request")
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // it complains that the step hangs up
	t.Cleanup(server.Close)
	done := runStep(t, worker, binary, map[string]any{
		"token": snowToken, "expires_at": time.Now().Add(time.Hour).Unix(), "instance_url": server.URL,
	})
	if !done.Failed || !strings.Contains(done.Log, "with a trusted certificate") {
		t.Errorf("failed = %t; want an error that names the certificate\n%s", done.Failed, done.Log)
	}
}

func TestTheSecondStepEndsWhateverTheAnswer(t *testing.T) {
	worker := newWorker(t)
	binary := build(t, worker, filepath.Join(flowFolder, "count_open_incidents.go"))
	record := func(address string) map[string]any {
		return map[string]any{"token": snowToken, "expires_at": time.Now().Add(time.Hour).Unix(), "instance_url": address}
	}

	t.Run("an answer without an end is read up to a mebibyte", func(t *testing.T) {
		t.Parallel()
		var sent atomic.Int64
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			blanks := []byte(strings.Repeat(" ", 1<<16))
			for sent.Load() < 1<<28 {
				n, err := w.Write(blanks)
				sent.Add(int64(n))
				if err != nil {
					return
				}
			}
		}))
		t.Cleanup(server.Close)
		done := runStep(t, worker, binary, record(server.URL))
		if !done.Failed || !strings.Contains(done.Log, "something other than counts by priority") || sent.Load() > 1<<25 {
			t.Errorf("failed = %t after %d bytes; want an error after little more than 1 MiB\n%s",
				done.Failed, sent.Load(), done.Log)
		}
	})
	t.Run("a server that never answers is given up after half a minute", func(t *testing.T) {
		if testing.Short() {
			t.Skip("takes half a minute")
		}
		t.Parallel()
		server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		t.Cleanup(server.Close)
		done := runStep(t, worker, binary, record(server.URL))
		if !done.Failed || !strings.Contains(done.Log, "did not answer in time") || done.Took > 40*time.Second {
			t.Errorf("failed = %t after %s; want an error after 30 s\n%s", done.Failed, done.Took, done.Log)
		}
	})
}

// example returns README's example in a language.
func example(t *testing.T, language string) string {
	t.Helper()
	_, rest, found := strings.Cut(readFile(t, "../README.md"), "```"+language+"\n")
	source, _, ended := strings.Cut(rest, "```")
	if !found || !ended {
		t.Fatalf("README has no example in %s", language)
	}
	return source
}

// incidents answers as the table API does, to whom the token is known.
func incidents(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/api/now/table/incident" || r.Header.Get("Authorization") != "Bearer "+snowToken {
		w.WriteHeader(http.StatusUnauthorized)
	}
	fmt.Fprint(w, `{"result":[{"number":"INC0010001"}]}`)
}

// README's Go example is a script that builds and does what it says.
func TestReadmesGoExample(t *testing.T) {
	file := filepath.Join(t.TempDir(), "example.go")
	if err := os.WriteFile(file, []byte(example(t, "go")), 0o600); err != nil {
		t.Fatal(err)
	}
	worker := newWorker(t)
	binary := build(t, worker, file)
	instance := httptest.NewServer(http.HandlerFunc(incidents))
	t.Cleanup(instance.Close)
	for lifetime, want := range map[time.Duration]string{
		time.Minute: `{"Result":[{"number":"INC0010001"}]}`, -time.Minute: "the ServiceNow token has expired",
	} {
		setResource(t, worker, cachePath, "state", map[string]any{
			"token": snowToken, "expires_at": time.Now().Add(lifetime).Unix(), "instance_url": instance.URL,
		})
		done, err := worker.Run(context.Background(), windmill.Job{
			Binary: binary, Args: map[string]any{"cache": "$res:" + cachePath}, Token: jobToken,
		})
		if err != nil || !strings.HasPrefix(string(done.Result)+done.Log, want) {
			t.Errorf("with a token for %s: result = %s, %v; want %s\n%s", lifetime, done.Result, err, want, done.Log)
		}
	}
}

// README's Bash example is the other one that builds its URL and header by itself.
func TestReadmesBashExample(t *testing.T) {
	for _, tool := range []string{"bash", "curl", "jq"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s here, as a worker has", tool)
		}
	}
	empty := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusFound) }
	worker := newWorker(t)
	soon := time.Now().Add(time.Minute).Unix()
	for name, test := range map[string]struct {
		record map[string]any // its instance_url is added, unless it has one
		serve  http.HandlerFunc
		want   string // the result; "" for a failure
		calls  int32
	}{
		"a token":                       {map[string]any{"token": snowToken, "expires_at": soon}, incidents, `[{"number":"INC0010001"}]`, 1},
		"an expired token":              {map[string]any{"token": snowToken, "expires_at": soon - 120}, incidents, "", 0},
		"a token that was revoked":      {map[string]any{"token": "another", "expires_at": soon}, incidents, "", 1},
		"an answer without a body":      {map[string]any{"token": snowToken, "expires_at": soon}, empty, "", 1},
		"a record of the Python script": {map[string]any{"token": snowToken, "expires_at": soon, "instance_url": nil}, incidents, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int32
			instance := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				test.serve(w, r)
			}))
			t.Cleanup(instance.Close)
			if _, set := test.record["instance_url"]; !set {
				test.record["instance_url"] = instance.URL
			}
			setResource(t, worker, cachePath, "state", test.record)
			folder := t.TempDir()
			authority := filepath.Join(folder, "authority.pem")
			certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: instance.Certificate().Raw})
			if err := os.WriteFile(authority, certificate, 0o600); err != nil {
				t.Fatal(err)
			}
			command := exec.Command("bash", "-c", example(t, "bash"))
			command.Dir = folder
			command.Env = []string{"PATH=" + os.Getenv("PATH"), "BASE_INTERNAL_URL=" + worker.BaseURL,
				"WM_WORKSPACE=" + worker.Workspace.Name, "WM_TOKEN=" + jobToken, "CURL_CA_BUNDLE=" + authority}
			output, err := command.CombinedOutput()
			result, _ := os.ReadFile(filepath.Join(folder, "result.json"))
			var compact bytes.Buffer
			if err == nil {
				err = json.Compact(&compact, result)
			}
			if got := compact.String(); got != test.want || (err == nil) != (test.want != "") || calls.Load() != test.calls {
				t.Errorf("result = %q, %v with %d calls to the instance; want %q with %d\n%s",
					got, err, calls.Load(), test.want, test.calls, output)
			}
			if strings.Contains(string(output), snowToken) || strings.Contains(string(output), "null") {
				t.Errorf("printed:\n%s", output)
			}
		})
	}
}
