package proof

import (
	"fmt"
	"math/rand"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"servicenow-token/local/lab"
	"servicenow-token/local/wire"
)

// herd is jobs at once, and what must hold of them at worst.
type herd struct {
	name    string
	jobs    int
	waits   bool                             // mostly for servers, so that trials may run side by side
	arrange func(t *testing.T, w *lab.World) // before they start
	// start runs the ith job; nil runs a flow step.
	start func(t *testing.T, w *lab.World, i int) lab.Ran
	asked int           // the most requests to ServiceNow
	limit time.Duration // the most that any job takes
	words []string      // in every job's error; nil where every job must end "OK"
	// then, where it is set, judges the runs in the place of words.
	then func(t *testing.T, w *lab.World, runs []lab.Ran, asked []wire.Call)
}

// run starts the jobs and returns how often ServiceNow was asked.
func (h herd) run(t *testing.T) (asked int) {
	t.Helper()
	w := lab.New(t)
	if h.arrange != nil {
		h.arrange(t, w)
	}
	w.Instance.TakeCalls()
	if h.start == nil {
		h.start = func(t *testing.T, w *lab.World, _ int) lab.Ran { return w.Start(t, lab.FlowStep) }
	}
	runs := make([]lab.Ran, h.jobs)
	var group sync.WaitGroup
	for i := range runs {
		group.Add(1)
		go func() {
			defer group.Done()
			runs[i] = h.start(t, w, i)
		}()
	}
	group.Wait()
	calls := w.Instance.TakeCalls()
	asked = len(calls)
	if asked > h.asked {
		t.Errorf("ServiceNow was asked %d times; want at most %d", asked, h.asked)
	}
	for _, r := range runs {
		w.CheckSecrets(t, r.Result+r.Log)
		if r.Took > h.limit {
			t.Errorf("took %s; want at most %s\n%s", r.Took, h.limit, r.Log)
		}
	}
	if h.then != nil {
		h.then(t, w, runs, calls)
		return asked
	}
	checkWhole(t, w)
	for _, r := range runs {
		if h.words == nil {
			checkOK(t, r)
			continue
		}
		if r.Result != "" {
			t.Errorf("result = %s; want a failure\n%s", r.Result, r.Log)
		}
		lab.CheckWords(t, r.Log, h.words...)
	}
	if h.words == nil {
		checkUsable(t, w)
	}
	return asked
}

// checkUsable fails the test unless the cache holds a token and no login.
func checkUsable(t *testing.T, w *lab.World) {
	t.Helper()
	if cached := checkWhole(t, w); cached.Token == "" || cached.Login != nil {
		t.Errorf("cached = %+v; want a token and no login", cached)
	}
}

// planted is a cache that holds a token of a given lifetime.
func planted(lifetime time.Duration) func(*testing.T, *lab.World) {
	return func(t *testing.T, w *lab.World) {
		t.Helper()
		w.Plant(t, w.Sealed("a-planted-token", lifetime))
	}
}

// remaining makes the world's token one that has lifetime left, in the cache and on
// the instance, where logins do not renew it: they bring the record that is there.
func remaining(lifetime time.Duration) func(*testing.T, *lab.World) {
	return func(t *testing.T, w *lab.World) {
		t.Helper()
		w.Instance.Remaining, w.Instance.Lifetime = true, lifetime
		w.Instance.TakeCalls() // its lock shows the new settings to the server
		response, err := http.PostForm(w.Snow.InstanceURL+"/oauth_token.do", url.Values{
			"grant_type": {"password"},
			"client_id":  {w.Snow.ClientID}, "client_secret": {w.Snow.ClientSecret},
			"username": {w.Snow.Username}, "password": {w.Snow.Password},
		})
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		w.Plant(t, w.Sealed(w.Instance.Issued()[0], lifetime))
	}
}

// slow lets the server answer after up to 1.5 s.
func slow(int, http.ResponseWriter, *http.Request) bool {
	time.Sleep(time.Duration(rand.Int63n(int64(1500 * time.Millisecond))))
	return false
}

// slowWindmill answers each call after up to 1.5 s.
func slowWindmill(_ *testing.T, w *lab.World) { w.Workspace.SetFault(slow) }

// wrongPassword is one that no account has.
const wrongPassword = "Wr0ng!password"

// second is the world of a user with a wrong password, who shares the cache.
func second(w *lab.World) *lab.World {
	other := *w
	other.Snow.Username, other.Snow.Password = "second user", wrongPassword
	return &other
}

// twoUsers has the tests look for the second user's password, too.
func twoUsers(_ *testing.T, w *lab.World) { w.Secrets = []string{wrongPassword} }

// alternating starts the jobs of the first user at even places, those of the second
// at odd ones.
func alternating(origin []string) func(*testing.T, *lab.World, int) lab.Ran {
	return func(t *testing.T, w *lab.World, i int) lab.Ran {
		t.Helper()
		if i%2 != 0 {
			w = second(w)
		}
		return w.Start(t, origin)
	}
}

// checkTwoUsers fails the test unless the jobs of the first user, at even places,
// end with that user's token or say why not, and those of the second with a refusal.
func checkTwoUsers(t *testing.T, w *lab.World, runs []lab.Ran, asked []wire.Call) {
	t.Helper()
	good, refused := 0, 0
	for i, r := range runs {
		first := i%2 == 0
		switch {
		case r.OK() && first && strings.Contains(r.Log, strconv.Quote(w.Snow.Username)):
			good++
		case r.Result == "" && first:
			lab.CheckWords(t, tail(r.Log), "other jobs have been logging in all the time")
		case r.Result == "":
			lab.CheckWords(t, r.Log, "answered 401")
		default:
			t.Errorf("first user: %t, result = %s\n%s", first, r.Result, r.Log)
		}
	}
	for _, call := range asked {
		if call.Status != http.StatusOK {
			refused++
		}
	}
	if good == 0 || refused == 0 || refused > 3 {
		t.Errorf("%d jobs got the first user's token, %d logins were refused; want some, and 1 to 3", good, refused)
	}
	t.Logf("two users: %d of %d jobs got the first user's token, %d logins were refused", good, len(runs)/2, refused)
	// The record may hold a token of the first user, and a login of either.
	cached, _ := w.Cached(t)
	if token := w.Seal(cached.Token, cached.ExpiresAt); cached.Token != "" && cached.Seal != token.Seal {
		t.Errorf("cached = %+v; want a token of the first user", cached)
	}
	if login := cached.Login; login != nil && *login != *w.SealLogin(*login) && *login != *second(w).SealLogin(*login) {
		t.Errorf("cached = %+v; want a login of either user", login)
	}
}

// scheduledAmongFlows starts every tenth job by a schedule, and sees to it that no
// flow step logs in.
func scheduledAmongFlows(t *testing.T, w *lab.World, i int) lab.Ran {
	t.Helper()
	if i%10 == 0 {
		return w.Start(t, lab.Schedule)
	}
	r := w.Start(t, lab.FlowStep)
	if strings.Contains(r.Log, "accepted the login") {
		t.Errorf("a flow step logged in:\n%s", r.Log)
	}
	return r
}

// smallHerd is what a quick test has. Its Windmill takes a tenth of a second to
// answer, so that all jobs have read the cache before one claims the login.
var smallHerd = herd{name: "cold", jobs: 20, asked: 2, limit: time.Minute,
	arrange: func(_ *testing.T, w *lab.World) {
		w.Workspace.SetFault(func(int, http.ResponseWriter, *http.Request) bool {
			time.Sleep(100 * time.Millisecond)
			return false
		})
	}}

// herds run one after the other, so that each has the machine for itself.
var herds = []herd{
	{name: "cold", jobs: 50, asked: 2, limit: time.Minute},
	{name: "about to expire", jobs: 50, arrange: planted(59 * time.Second), asked: 2, limit: time.Minute},
	{name: "warm", jobs: 50, arrange: planted(20 * time.Minute), asked: 0, limit: time.Minute},
	{name: "warm, five of them scheduled", jobs: 50, arrange: planted(20 * time.Minute), asked: 5, limit: time.Minute,
		start: scheduledAmongFlows},
	{name: "warm, five of them scheduled, no renewal", jobs: 50, arrange: remaining(20 * time.Minute), asked: 5,
		limit: time.Minute, start: scheduledAmongFlows},
	{name: "a token's last minute", jobs: 50, arrange: remaining(40 * time.Second), asked: 2, limit: 5 * time.Second},
	{name: "wrong password", jobs: 50, asked: 2, limit: time.Minute, words: []string{"answered 401"},
		arrange: func(_ *testing.T, w *lab.World) {
			w.Snow.Password, w.Secrets = wrongPassword, []string{wrongPassword}
		}},
	{name: "ServiceNow answers 503", jobs: 50, asked: 6, limit: time.Minute, words: []string{"answered 503"},
		arrange: func(_ *testing.T, w *lab.World) { w.Instance.SetFault(wire.Reply(503, "", "")) }},
	{name: "unknown host", jobs: 50, asked: 0, limit: 10 * time.Second,
		words:   []string{"cannot be reached: DNS gave no address"},
		arrange: func(_ *testing.T, w *lab.World) { w.Snow.InstanceURL = "https://no-such-instance.invalid" }},
	{name: "two users, one with a wrong password", jobs: 50, asked: 10, limit: time.Minute, then: checkTwoUsers,
		arrange: twoUsers, start: alternating(lab.FlowStep)},
	{name: "two users, scheduled, one with a wrong password", jobs: 50, asked: 10, limit: time.Minute, then: checkTwoUsers,
		arrange: twoUsers, start: alternating(lab.Schedule)},
	{name: "slow Windmill", jobs: 2, waits: true, arrange: slowWindmill, asked: 2, limit: time.Minute},
	{name: "slow Windmill", jobs: 5, waits: true, arrange: slowWindmill, asked: 2, limit: time.Minute},
	{name: "slow Windmill", jobs: 50, waits: true, arrange: slowWindmill, asked: 2, limit: time.Minute},
	{name: "ServiceNow hangs", jobs: 50, waits: true, asked: 2, limit: 45 * time.Second,
		words:   []string{"did not answer in time"},
		arrange: func(_ *testing.T, w *lab.World) { w.Instance.SetFault(wire.Hang("")) }},
}

// trials is how often each herd is run: HERD_TRIALS, or once.
func trials(t *testing.T) int {
	t.Helper()
	text := os.Getenv("HERD_TRIALS")
	if text == "" {
		return 1
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("HERD_TRIALS: %v", err)
	}
	return n
}

// TestHerd starts up to 50 jobs at once. What its log says of the requests to
// ServiceNow, with -v, stands in local/README.md.
func TestHerd(t *testing.T) {
	if testing.Short() {
		smallHerd.run(t)
		return
	}
	for _, h := range herds {
		t.Run(fmt.Sprintf("%d jobs, %s", h.jobs, h.name), func(t *testing.T) {
			counts := make([]int, trials(t))
			atOnce := make(chan struct{}, 1)
			if h.waits {
				atOnce = make(chan struct{}, 200/h.jobs)
			}
			var group sync.WaitGroup
			for i := range counts {
				atOnce <- struct{}{}
				group.Add(1)
				go func() {
					defer group.Done()
					defer func() { <-atOnce }()
					counts[i] = h.run(t)
				}()
			}
			group.Wait()
			t.Logf("%d jobs, %s: logins %v", h.jobs, h.name, counts)
		})
	}
}
