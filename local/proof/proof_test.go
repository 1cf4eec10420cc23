// Package proof runs built jobs over real HTTP against what must not harm them:
// untrusted certificates, servers that hang, sudden death, and each other.
package proof

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"servicenow-token/local/lab"
	"servicenow-token/local/windmill"
	"servicenow-token/local/wire"
)

func TestMain(m *testing.M) { os.Exit(lab.RunTests(m)) }

// failing is a ServiceNow that gives no token, and what a run must make of it.
type failing struct {
	name   string
	fault  wire.Fault
	logins int      // as the instance saw them
	words  []string // in the error
}

// checkFails runs a flow step on a cold cache, and fails the test unless the run
// fails within limit as f says, and leaves no token, but word of the failure.
func checkFails(t *testing.T, w *lab.World, f failing, limit time.Duration, env ...string) {
	t.Helper()
	w.Instance.SetFault(f.fault)
	r := w.Run(t, lab.FlowStep, env...)
	if r.Result != "" {
		t.Errorf("result = %s; want a failure", r.Result)
	}
	lab.CheckCalls(t, r, f.logins,
		lab.ReadNothing, lab.ReadNothing, lab.Created, lab.ReadFound, lab.ReadFound, lab.ReadFound, lab.Updated)
	if r.Took > limit {
		t.Errorf("took %s; want at most %s", r.Took, limit)
	}
	words := append([]string{"/oauth_token.do"}, f.words...)
	lab.CheckWords(t, windmill.Done{Log: r.Log}.FailureText(), words...)
	cached := checkWhole(t, w)
	if cached.Token != "" || cached.Login == nil || cached.Login.By != "" {
		t.Fatalf("cached = %+v; want no token, and a login that has ended", cached)
	}
	lab.CheckWords(t, cached.Login.Outcome, words...)
}

// checkWhole fails the test unless the cache holds a record with its own fields
// alone, whose token and login, where there are any, have their seals.
func checkWhole(t testing.TB, w *lab.World) lab.Record {
	t.Helper()
	cached, found := w.Cached(t)
	if !found {
		t.Fatal("nothing cached")
	}
	var want lab.Record
	if cached.Token != "" {
		want = w.Seal(cached.Token, cached.ExpiresAt)
	}
	if cached.Login != nil {
		want.Login = w.SealLogin(*cached.Login)
	}
	if diff := cmp.Diff(want, cached); diff != "" {
		t.Errorf("cached record mismatch (-want +got):\n%s", diff)
	}
	return cached
}

// checkOK fails the test unless the run returned what a good one does.
func checkOK(t testing.TB, r lab.Ran) {
	t.Helper()
	if !r.OK() {
		t.Errorf("result = %s after %s; want \"OK\"\n%s", r.Result, r.Took, r.Log)
	}
}

// tail returns the last line of a log.
func tail(log string) string {
	log = strings.TrimSpace(log)
	return log[strings.LastIndex(log, "\n")+1:]
}
