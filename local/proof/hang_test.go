package proof

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"servicenow-token/local/lab"
	"servicenow-token/local/wire"
)

// informational is an answer before the answer.
const informational = "HTTP/1.1 103 Early Hints\r\n\r\n"

func TestNothingHangs(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes a quarter of a minute")
	}
	late := []string{"did not answer in time"}
	for _, f := range []failing{
		{"no answer", wire.Hang(""), 1, late},
		{"slow headers", wire.Raw("HTTP/1.1 200 OK\r\n", true), 1, late},
		{"half a body, then silence", wire.Hang(`{"access_token":`), 1, late},
		{"a body by drips", wire.Drip(strings.Repeat(" ", 1000)), 1, late},
		{"informational answers, then silence", wire.Raw(strings.Repeat(informational, 4), true), 1, late},
		{"a 503 whose body hangs", func(n int, w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(http.StatusServiceUnavailable)
			return wire.Hang("<html>")(n, w, r)
		}, 1, []string{"answered 503"}},
		{"a refused login by drips", func(n int, w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(http.StatusUnauthorized)
			return wire.Drip(strings.Repeat(" ", 1000))(n, w, r)
		}, 1, []string{"answered 401"}},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			checkFails(t, lab.New(t), f, 20*time.Second)
		})
	}
}

func TestAWindmillThatHangs(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes a quarter of a minute")
	}
	t.Run("and a run by hand, which verifies the credentials all the same", func(t *testing.T) {
		t.Parallel()
		w := lab.New(t)
		w.Workspace.SetFault(wire.Hang(""))
		r := w.Run(t, lab.ByHand)
		if r.Result != "" || len(r.Logins) != 1 || r.Took > time.Minute {
			t.Errorf("result = %s, %d logins, after %s; want a failure with one login within a minute\n%s",
				r.Result, len(r.Logins), r.Took, r.Log)
		}
		lab.CheckWords(t, r.Log, "accepted the login")
		lab.CheckWords(t, tail(r.Log), lab.CachePath, "Windmill was not reached", "BASE_INTERNAL_URL")
	})
	t.Run("and a ServiceNow that hangs, too", func(t *testing.T) {
		t.Parallel()
		w := lab.New(t)
		w.Workspace.SetFault(wire.Hang(""))
		w.Instance.SetFault(wire.Hang(""))
		r := w.Run(t, lab.ByHand)
		if r.Result != "" || len(r.Logins) != 1 || r.Took > time.Minute {
			t.Errorf("result = %s, %d logins, after %s; want a failure with one login within a minute\n%s",
				r.Result, len(r.Logins), r.Took, r.Log)
		}
		lab.CheckWords(t, r.Log, lab.CachePath, "Windmill was not reached", "did not answer in time")
	})
	t.Run("and a flow step, which does not ask ServiceNow", func(t *testing.T) {
		t.Parallel()
		w := lab.New(t)
		w.Workspace.SetFault(wire.Hang(""))
		r := w.Run(t, lab.FlowStep)
		if r.Result != "" || len(r.Logins) != 0 || r.Took > 10*time.Second {
			t.Errorf("result = %s, %d logins, after %s; want a failure without a login within 10 s\n%s",
				r.Result, len(r.Logins), r.Took, r.Log)
		}
		lab.CheckWords(t, r.Log, lab.CachePath, "Windmill was not reached", "BASE_INTERNAL_URL")
	})
	t.Run("after the claim was done", func(t *testing.T) {
		t.Parallel()
		w := lab.New(t)
		w.Workspace.SetFault(nthPost(1, func(n int, rw http.ResponseWriter, r *http.Request) bool {
			w.Workspace.ServeHTTP(httptest.NewRecorder(), r)
			return wire.Hang("")(n, rw, r)
		}))
		checkOK(t, w.Run(t, lab.FlowStep))
	})
	t.Run("for the first read alone", func(t *testing.T) {
		t.Parallel()
		w := lab.New(t)
		w.Plant(t, w.Sealed("a-good-token", 20*time.Minute))
		w.Workspace.SetFault(wire.Nth(1, wire.Hang("")))
		r := w.Run(t, lab.FlowStep)
		checkOK(t, r)
		if len(r.Windmill) != 2 || len(r.Logins) != 0 || r.Took > 10*time.Second {
			t.Errorf("%v and %d logins in %s; want two reads alone within 10 s",
				lab.Names(r.Windmill), len(r.Logins), r.Took)
		}
	})
}
