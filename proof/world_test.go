//go:build proof

package proof

import (
	"context"
	"flag"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"servicenow-token/simulator"
	"servicenow-token/simulator/windmill"
)

// Many proofs only wait for a deadline, so they may all run at once.
func TestMain(m *testing.M) {
	flag.Parse()
	check(flag.Set("test.parallel", "50"))
	os.Exit(m.Run())
}

// check stops the proofs if they cannot be prepared.
func check(err error) {
	if err != nil {
		panic(err)
	}
}

func readFile(name string) string {
	content, err := os.ReadFile(name)
	check(err)
	return string(content)
}

func writeFile(name, content string) { check(os.WriteFile(name, []byte(content), 0o600)) }

// world is a simulated world whose worker has main.go.
type world struct {
	*simulator.World
	t testing.TB
}

// newWorld builds main.go for a worker that runs as many jobs at once as it has slots.
func newWorld(t testing.TB, slots int) *world {
	w := &world{World: simulator.New(time.Now, t.TempDir(), slots), t: t}
	t.Cleanup(w.Close)
	w.deploy(simulator.ScriptPath, readFile("../main.go"))
	return w
}

func (w *world) deploy(path, source string) {
	w.t.Helper()
	if err := w.Worker.Deploy(context.Background(), path, source, ".."); err != nil {
		w.t.Fatal(err)
	}
}

// step returns a job that is a step of a flow.
func step() windmill.Job { return simulator.Job(windmill.StepOfFlow) }

// run runs a step, and kills it if it does not end.
func (w *world) run() windmill.Done {
	ctx, cancel := context.WithTimeout(context.Background(), 75*time.Second)
	defer cancel()
	return w.Run(ctx, step())
}

const ok = `"OK"` // the result of a job that does not fail

// expect fails the test unless a job returned or printed want, and took no longer than the limit.
func (w *world) expect(done windmill.Done, want string, limit time.Duration) {
	w.t.Helper()
	said := string(done.Result) + done.Log
	shouldFail := want != ok
	if !strings.Contains(said, want) || done.Failed != shouldFail {
		w.t.Errorf("want %s from a job that said:\n%s", want, said)
	}
	if done.Took > limit {
		w.t.Errorf("a job took %s; want at most %s", done.Took, limit)
	}
}

// expectToken fails the test unless the cache holds a valid token, and no other fields than it should.
func (w *world) expectToken() {
	w.t.Helper()
	whole := regexp.MustCompile(
		`^{"token":"[^"]+","expires_at":\d+,"instance_url":"http:[^"]+","job":"[\w-]+","seal":"\w{64}"}$`)
	cache := w.Windmill.Get(simulator.CachePath)
	if !whole.Match(cache) || !w.ServiceNow.IsValid(w.Token()) {
		w.t.Errorf("the cache holds no valid token: %s", cache)
	}
}

// What the failures hold, as patterns.
const (
	noFailure = `{}`
	fault     = `"hold":5,"refusals":0`
	refusal   = `"hold":600,"refusals":1`
)

func oneFailure(outcome, numbers string) string {
	return `{"\w{64}":{"job":"[\w-]+","outcome":"[^"]+` + outcome + `[^"]*","at":\d+,` + numbers + `}}`
}

// expectFailures fails the test unless the record of the failures matches the pattern.
func (w *world) expectFailures(pattern string) {
	w.t.Helper()
	failures := w.Windmill.Get(simulator.FailuresPath)
	if !regexp.MustCompile("^" + pattern + "$").Match(failures) {
		w.t.Errorf("the failures are %s; want %s", failures, pattern)
	}
}

// expectLogins fails the test unless ServiceNow has been asked at most so many times since before.
func (w *world) expectLogins(before, most int) {
	w.t.Helper()
	w.t.Logf("token requests: %d", w.Logins()-before)
	if w.Logins()-before > most {
		w.t.Errorf("want at most %d", most)
	}
}

// intercept answers a request itself and returns true, or leaves it to the simulated server.
type intercept = func(w http.ResponseWriter, r *http.Request, n int) bool

// hang does not answer until the client gives up.
func hang(_ http.ResponseWriter, r *http.Request, _ int) bool {
	<-r.Context().Done()
	return true
}

// delayed answers late: with a server's error, or as the simulated server does.
func delayed(by time.Duration, status int) intercept {
	return func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		time.Sleep(by)
		isFault := status >= 500
		if isFault {
			w.WriteHeader(status)
		}
		return isFault
	}
}
