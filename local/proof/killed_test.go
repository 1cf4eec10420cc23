package proof

import (
	"context"
	"fmt"
	"math/rand"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"servicenow-token/local/lab"
	"servicenow-token/local/wire"
)

// kill runs a job and kills it when the world's servers call the function that
// arrange gets, or else after limit.
func kill(t *testing.T, w *lab.World, origin []string, limit time.Duration, arrange func(kill func())) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	arrange(cancel)
	_, err := w.Worker.Run(ctx, w.Job(t, origin))
	w.Workspace.SetFault(nil)
	w.Instance.SetFault(nil)
	if err == nil {
		t.Fatal("the job ended before it was killed")
	}
}

// checkRecovers fails the test unless the next flow step brings a token within 30 s:
// the login of a job that was killed counts for 20 s.
func checkRecovers(t *testing.T, w *lab.World) {
	t.Helper()
	r := w.Run(t, lab.FlowStep)
	checkOK(t, r)
	if r.Took > 30*time.Second {
		t.Errorf("took %s; want at most 30 s\n%s", r.Took, r.Log)
	}
	w.CheckCached(t)
}

// nthPost lets fault answer the nth POST alone.
func nthPost(n int, fault wire.Fault) wire.Fault {
	posts := 0 // a job's calls come one after the other
	return func(i int, w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		posts++
		return posts == n && fault(i, w, r)
	}
}

func TestAJobKilledWhileItLogsIn(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits until the dead job's login counts no longer")
	}
	for _, test := range []struct {
		name    string
		arrange func(w *lab.World, kill func())
		logins  int
	}{
		{"after the claim", func(w *lab.World, kill func()) {
			w.Workspace.SetFault(nthPost(1, func(int, http.ResponseWriter, *http.Request) bool {
				kill()
				return false // and the claim is stored all the same
			}))
		}, 0},
		{"during the login", func(w *lab.World, kill func()) {
			w.Instance.SetFault(func(int, http.ResponseWriter, *http.Request) bool {
				kill()
				return false
			})
		}, 1},
		{"before the token is stored", func(w *lab.World, kill func()) {
			w.Workspace.SetFault(nthPost(2, func(n int, rw http.ResponseWriter, r *http.Request) bool {
				kill()
				return wire.Hang("")(n, rw, r)
			}))
		}, 1},
	} {
		for cache, plant := range map[string]func(w *lab.World){
			"cold": func(*lab.World) {},
			"warm": func(w *lab.World) { w.Plant(t, w.Sealed("an-old-token", 20*time.Minute)) },
			"late": func(w *lab.World) { w.Plant(t, w.Sealed("an-old-token", 50*time.Second)) },
		} {
			t.Run(test.name+", on a "+cache+" cache", func(t *testing.T) {
				t.Parallel()
				w := lab.New(t)
				plant(w)
				before, _ := w.Workspace.Resource(lab.CachePath)
				kill(t, w, lab.Schedule, time.Minute, func(kill func()) { test.arrange(w, kill) })
				if logins := len(w.Instance.TakeCalls()); logins != test.logins {
					t.Errorf("%d logins; want %d", logins, test.logins)
				}
				cached := checkWhole(t, w)
				if cached.Login == nil || cached.Login.By == "" {
					t.Fatalf("cached = %+v; want a login under way", cached)
				}
				if cache != "cold" {
					w.CheckUnchanged(t, before)
				}
				if cache == "warm" { // whatever becomes of the login
					r := w.Run(t, lab.FlowStep)
					checkOK(t, r)
					lab.CheckCalls(t, r, 0, lab.ReadFound)
					late := w.Sealed("an-old-token", 50*time.Second)
					late.Login = cached.Login
					w.Plant(t, late)
				}
				checkRecovers(t, w)
			})
		}
	}
}

func TestAJobKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits until the dead jobs' logins count no longer")
	}
	for i := range 30 {
		// A whole run takes somewhat more than the pause of 300 ms for its claim.
		limit := time.Duration(rand.Int63n(int64(400 * time.Millisecond)))
		if i%3 != 0 {
			limit = 300*time.Millisecond + limit/8 // where the login and the store are
		}
		t.Run(fmt.Sprintf("after %s", limit), func(t *testing.T) {
			t.Parallel()
			w := lab.New(t)
			old := w.Sealed("an-old-token", 50*time.Second)
			w.Plant(t, old)
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			if _, err := w.Worker.Run(ctx, w.Job(t, lab.FlowStep)); err == nil {
				t.Log("it ended before that")
			}
			cached := checkWhole(t, w)
			if cached.Token != old.Token && !w.Instance.Valid(cached.Token) {
				t.Errorf("cached = %+v; want the old token or a new one", cached)
			}
			checkRecovers(t, w)
		})
	}
}

// While scheduled runs die at their start, a flow step reads the record as it was.
func TestAReaderBesideJobsThatAreKilled(t *testing.T) {
	t.Parallel()
	w := lab.New(t)
	old := w.Sealed("a-good-token", 20*time.Minute)
	w.Plant(t, old)
	warming := w.Job(t, lab.Schedule)
	killed, claimed := 0, 0
	for range 20 {
		limit := time.Duration(rand.Int63n(int64(8 * time.Millisecond)))
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		reader := make(chan lab.Ran)
		go func() {
			r := w.Start(t, lab.FlowStep)
			reader <- r
		}()
		if _, err := w.Worker.Run(ctx, warming); err != nil {
			killed++
		}
		cancel()
		r := <-reader
		checkOK(t, r)
		w.CheckSecrets(t, r.Log)
		lab.CheckWords(t, r.Log, "Reused the token")
		cached := checkWhole(t, w)
		if cached.Login != nil {
			claimed++
		}
		cached.Login = nil
		if diff := cmp.Diff(old, cached); diff != "" {
			t.Errorf("the record, its login apart, mismatch (-want +got):\n%s", diff)
		}
		w.Plant(t, old)
	}
	if logins := len(w.Instance.TakeCalls()); killed < 20 || logins != 0 {
		t.Errorf("%d of 20 jobs killed, %d logins; want 20 and none", killed, logins)
	}
	t.Logf("%d of 20 had claimed the login", claimed)
}
