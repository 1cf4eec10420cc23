package inner

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	sn "servicenow-token/local/servicenow"
	"servicenow-token/local/windmill"
)

// The tests call main, in this process, against a local Windmill and a local ServiceNow, and judge by what these
// were asked, by what the two resources hold, and by what was printed. They stand in main.go's order.

// What no log, error or resource may repeat. All three begin alike, so that a search finds a part of one, too.
const (
	thePassword = "s3ntinel Pass*word"
	theSecret   = "s3ntinel-client-secret"
	theToken    = "s3ntinelWindmillToken"
)

const begin = 1772366400 // when the clock of a world starts: 2026-03-01T12:00:00Z
var byHand, bySchedule, step = windmill.ByHand, windmill.BySchedule, windmill.StepOfFlow

// world is a Windmill and a ServiceNow for the runs of one test, with a clock of their own.
type world struct {
	testing.TB
	about    string // what each complaint begins with
	windmill *windmill.Workspace
	worker   *windmill.Worker
	instance *sn.Instance
	snow     servicenow
	clock    time.Time
	onSleep  func() // what happens while a run pauses
	stdout   *os.File
}

func newWorld(t testing.TB, about ...any) *world {
	w := &world{TB: t, about: fmt.Sprintf("%.80s", fmt.Sprint(about...)), clock: time.Unix(begin, 0), onSleep: func() {}}
	w.instance = &sn.Instance{Now: func() time.Time { return now() }, Accounts: map[sn.Account]bool{}}
	w.windmill = &windmill.Workspace{Name: "acme & co", Users: map[string]windmill.Rights{theToken: {"f/ServiceNow": true}}}
	w.worker = &windmill.Worker{Workspace: w.windmill, BaseURL: w.serve(w.windmill)}
	w.snow = servicenow{w.serve(w.instance), "client", theSecret, "svc user", thePassword}
	w.accept(w.snow, true)
	realNow, realSleep, realStdout := now, sleep, os.Stdout
	t.Cleanup(func() { now, sleep, os.Stdout = realNow, realSleep, realStdout; log.SetOutput(os.Stderr) })
	now = func() time.Time { return w.clock }
	sleep = func(d time.Duration) { w.clock = w.clock.Add(d); w.onSleep() }
	w.stdout, _ = os.Create(t.TempDir() + "/log")
	os.Stdout = w.stdout
	return w
}

// expect complains unless something is as it should be.
func (w *world) expect(ok bool, complaint string, values ...any) {
	w.Helper()
	if !ok {
		w.Errorf("%s: "+complaint, append([]any{w.about}, values...)...)
	}
}

func (w *world) serve(handler http.Handler) (url string) {
	server := httptest.NewServer(handler)
	w.Cleanup(server.Close)
	return server.URL
}

// accept makes the instance accept the login of snow, or not.
func (w *world) accept(snow servicenow, accepted bool) {
	w.instance.Accounts[sn.Account{ClientID: snow.ClientID, ClientSecret: snow.ClientSecret,
		Username: snow.Username, Password: snow.Password}] = accepted
}

// outcome is what came of a run.
type outcome struct {
	failure, log string
	calls        []string // of Windmill, such as "GET cache"
	logins       int      // requests to ServiceNow
	took         time.Duration
}

// run runs main as the job of whoever startedBy says, and looks for secrets in all that it left.
func (w *world) run(startedBy []string) outcome {
	w.Helper()
	for _, setting := range w.worker.Environment(windmill.Job{Token: theToken, Path: "f/ServiceNow/get_token", Env: startedBy}) {
		name, value, _ := strings.Cut(setting, "=")
		os.Setenv(name, value)
	}
	calls, logins, begun := len(w.windmill.Calls()), w.instance.Requests(), w.clock
	w.stdout.Truncate(0)
	w.stdout.Seek(0, io.SeekStart)
	log.SetOutput(w.stdout)
	result, err := main(w.snow)
	log.Print("s3ntinel, for whatever net/http may log")
	printed, _ := os.ReadFile(w.stdout.Name())
	o := outcome{log: string(printed), logins: w.instance.Requests() - logins, took: w.clock.Sub(begun)}
	if err != nil {
		o.failure = err.Error()
	}
	for _, call := range w.windmill.Calls()[calls:] {
		o.calls = append(o.calls, strings.Replace(call, "f/ServiceNow/snow_token_", "", 1))
	}
	cached := string(w.windmill.Get(cachePath))
	said := o.log + o.failure + string(w.windmill.Get(loginsPath))
	repeated := strings.Contains(strings.ToLower(said+cached), "s3ntinel")
	issued := w.instance.Issued()
	for _, token := range issued[max(0, len(issued)-6):] { // a run knows no older ones
		repeated = repeated || strings.Contains(said, token)
	}
	w.expect(!repeated, "a secret is repeated in %q", said+cached)
	w.expect((result == "OK") == (err == nil), "result = %q, error = %q; want OK or an error", result, o.failure)
	return o
}

// check runs main, and compares what came of it: the number of logins, and a part of its error ("" for none).
func (w *world) check(startedBy []string, logins int, failure string) outcome {
	w.Helper()
	o := w.run(startedBy)
	fits := strings.Contains(o.failure, failure) && (failure == "") == (o.failure == "")
	w.expect(fits && o.logins == logins, "%d requests to ServiceNow, error %q; want %d, %q\ncalls: %q\nlog: %s",
		o.logins, o.failure, logins, failure, o.calls, o.log)
	return o
}

// cache returns the cached token, and for how many seconds it is valid.
func (w *world) cache() (token string, left float64) {
	record := map[string]any{}
	w.get(cachePath, &record)
	token, _ = record["token"].(string)
	expiresAt, _ := record["expires_at"].(float64)
	return token, expiresAt - float64(w.clock.Unix())
}

// hideToken takes the cached token away until it is given back.
func (w *world) hideToken() (giveBack func()) {
	record := w.windmill.Get(cachePath)
	w.windmill.Delete(cachePath)
	return func() { w.windmill.Set(cachePath, record) }
}

func (w *world) set(path string, value any) {
	encoded, _ := json.Marshal(value)
	w.windmill.Set(path, encoded)
}

func (w *world) get(path string, value any) { _ = json.Unmarshal(w.windmill.Get(path), value) }

// login is the last one with these credentials.
func (w *world) login() login {
	logins := map[string]login{}
	w.get(loginsPath, &logins)
	return logins[w.snow.seal()]
}

func (w *world) setLogin(l login) { w.set(loginsPath, map[string]login{w.snow.seal(): l}) }

// during lets something happen at the nth request, before its answer.
func during(n int, do func()) func(http.ResponseWriter, *http.Request, int) bool {
	return func(_ http.ResponseWriter, _ *http.Request, request int) bool {
		if request == n {
			do()
		}
		return false
	}
}

// answers answers the requests from the first to the last: with a status, unless it is 0, and these bytes, and then the
// connection's end; with status -1 by resetting the connection.
func answers(first, last, status int, text string) func(http.ResponseWriter, *http.Request, int) bool {
	return func(rw http.ResponseWriter, _ *http.Request, n int) bool {
		isMeant := n >= first && n <= last
		if isMeant {
			connection, _, _ := http.NewResponseController(rw).Hijack()
			if status < 0 {
				connection.(*net.TCPConn).SetLinger(0)
			} else if status > 0 {
				fmt.Fprintf(connection, "HTTP/1.1 %d x\r\n\r\n", status)
			}
			io.WriteString(connection, text)
			connection.Close()
		}
		return isMeant
	}
}

var coldCalls = []string{"GET cache", "GET logins", "POST logins", "GET logins", "POST cache", "GET logins", "POST logins"}

// main.

func TestThreeUses(t *testing.T) {
	w := newWorld(t)
	cold := w.check(byHand, 1, "")
	w.expect(slices.Equal(cold.calls, coldCalls), "calls of a cold run: %q", cold.calls)
	said := "Asking " + w.snow.InstanceURL + " for a token.\nIt gave one that is valid for 30m0s.\nStored it in " + cachePath + ".\n"
	w.expect(cold.log == said, "a cold run printed %q", cold.log)
	token, left := w.cache()
	w.expect(w.instance.Valid(token) && left == 1800, "token %q for %.0f s; want a valid one for 30 minutes", token, left)
	w.clock = w.clock.Add(1739 * time.Second)
	warm := w.check(step, 0, "")
	w.expect(len(warm.calls) == 1, "calls of a warm step: %q", warm.calls)
	w.expect(strings.Contains(warm.log, "valid for another 1m1s at "+w.snow.InstanceURL), "a warm step printed %q", warm.log)
	w.clock = w.clock.Add(time.Second)
	w.check(step, 1, "")
	w.clock = w.clock.Add(time.Second)
	w.check(bySchedule, 1, "")
	_, left = w.cache()
	w.expect(left == 1800, "a scheduled run left a token for %.0f s", left)
	want := login{Job: w.login().Job, At: w.clock.Unix(), Outcome: "OK"}
	w.expect(w.login() == want && want.Job != "", "login = %+v; want %+v", w.login(), want)
}

func TestWhoStartedIt(t *testing.T) {
	sameFlow := []string{"WM_FLOW_JOB_ID=1", "WM_FLOW_PATH=f/ServiceNow/get_token"}
	agentWorker := []string{"WM_FLOW_JOB_ID=1", "WM_SCHEDULE_PATH=f/x/y", "WM_FLOW_PATH="}
	for logins, all := range [][][]string{
		{step, windmill.StepOfScheduledFlow, windmill.ByScript, sameFlow, agentWorker, {"WM_JOB_ID="}},
		{byHand, bySchedule, windmill.ByScheduleWithRetry},
	} {
		for _, started := range all {
			w := newWorld(t, started)
			w.run(byHand)
			w.check(started, logins, "")
			w.clock = w.clock.Add(time.Hour) // and whoever it was, nobody asks who may not store
			w.windmill.Users[theToken] = windmill.Rights{"f/ServiceNow": false}
			w.check(started, 0, "snow_token_logins cannot be written: Windmill answered 400")
			w.windmill.Users[theToken] = nil
			w.check(started, 0, "snow_token_cache cannot be read: Windmill answered 401")
		}
	}
}

func TestOutsideWindmill(t *testing.T) {
	outside := []string{"WM_TOKEN=", "WM_WORKSPACE=", "BASE_INTERNAL_URL=", "WM_JOB_ID="}
	w := newWorld(t)
	o := w.check(outside, 1, "")
	w.expect(len(o.calls) == 0 && strings.Contains(o.log, "nothing will be cached"), "calls = %q, log = %q", o.calls, o.log)
	w.accept(w.snow, false)
	w.check(outside, 1, "401 Unauthorized")
	w.check(outside[:1], 0, "sets WM_TOKEN, which is empty")
	w.check([]string{outside[0], outside[1], "WM_JOB_ID="}, 0, "sets WM_TOKEN, WM_WORKSPACE, which is empty")
	w.check(outside[:3], 0, "sets WM_TOKEN, WM_WORKSPACE, BASE_INTERNAL_URL, which is empty")
}

// The input.

func TestBadInputSendsNothing(t *testing.T) {
	for change, want := range map[string]string{
		`{"instance_url": "  "}`: "must have instance_url", `{"client_id": ""}`: "must have instance_url, client_id",
		`{"client_secret": " \n"}`: "must have instance_url", `{"instance_url": "u:` + thePassword + `@x"}`: "instance_url is not",
		`{"password": ""}`: "username and password, or neither", `{"username": " "}`: "username and password, or neither",
	} {
		w := newWorld(t, change)
		_ = json.Unmarshal([]byte(change), &w.snow)
		o := w.check(byHand, 0, want)
		w.expect(len(o.calls) == 0, "calls = %q; want none", o.calls)
	}
}

const dev = "https://dev12345.service-now.com"

var addresses = []struct{ given, want string }{
	{dev + "//", dev}, {"HTTPS://DEV12345.Service-Now.com", dev}, {"dev12345.service-now.com", dev}, {"dev12345", dev},
	{"dev12345.service-now.com/now/nav/ui/home", dev}, {dev + "/nav_to.do?uri=home.do#x", dev}, {dev + ":443/nav_to.do", dev + ":443"},
	{"acme-dev/", "https://acme-dev.service-now.com"}, {"https://xservice-now.com/snow", "https://xservice-now.com/snow"},
	{"https://agency.servicenowservices.com/any/path", "https://agency.servicenowservices.com"},
	{"https://it.example.com/nav_to.do?uri=home.do", "https://it.example.com"}, {"https://a_b.example.com", "https://a_b.example.com"},
	{"https://gw.example.com/snow/?", "https://gw.example.com/snow"}, {"https://gateway/snow", "https://gateway/snow"},
	{"gw.example.com:8443/a%2Fb", "https://gw.example.com:8443/a%2Fb"}, {"https://gateway:8443", "https://gateway:8443"},
	{"https://192.0.2.1", "https://192.0.2.1"}, {"localhost:8080", "https://localhost:8080"},
	{"https://[2001:db8::1]:8443/x", "https://[2001:db8::1]:8443/x"}, {"http://127.0.0.1:8080", "http://127.0.0.1:8080"},
	{"http://[::1]:8080", "http://[::1]:8080"}, {"http://LOCALHOST:8080", "http://localhost:8080"}, {"localhost/x", "https://localhost/x"}, {"localhost", "https://localhost"},

	{"/", ""}, {"https://:443", ""}, {".service-now.com", ""}, {"---", ""}, {"-dev12345", ""}, {"_dev12345", ""},
	{"https://[::]", ""}, {"https:/dev1.example.com", ""}, {"https:dev12345", ""}, {dev + ":", ""}, {dev + ":https", ""},
	{dev + `\.example.com`, ""}, {"gateway:8443", ""}, {"gateway/snow", ""}, {"http://dev1.example.com", ""},
	{"http://localhost.example.com", ""}, {"ftp://localhost", ""}, {"https://gw.example.com/snow?x=1", ""},
	{"https://gw.example.com/#top", ""}, {"https://gw.example.com/a@b", ""}, {"https://gw.example.com//a", ""},
	{"https://gw.example.com/a%4", ""}, {"admin:x@dev12345", ""}, {"https://admin:12/34@dev1.example.com", ""},
	{"https://dev\n12345", ""}, {"https://dev%2e12345", ""}, {"https://des\u212a.service-now.com", ""},
	{"https://[fe80::1%25eth0]", ""}, {"https://gw.example.com/a%40\xc0", ""},
}

func TestInstanceAddress(t *testing.T) {
	for _, test := range addresses {
		if got, ok := instanceAddress(test.given); ok != (test.want != "") || ok && got != test.want {
			t.Errorf("instanceAddress(%q) = %q, %t; want %q", test.given, got, ok, test.want)
		}
	}
}

// FuzzInstanceAddress: an address is safe, has no user, query or fragment, has a host that was given, and stays as it is.
func FuzzInstanceAddress(f *testing.F) {
	for _, test := range addresses {
		f.Add(test.given)
	}
	safe := regexp.MustCompile(`^(https://|http://(localhost|127\.0\.0\.1|\[::1\])(:|/|$))[^@?#]*$`)
	foreign := strings.NewReplacer("\u212a", "?", "\u0130", "?") // of which strings.ToLower makes a k and an i
	f.Fuzz(func(t *testing.T, given string) {
		address, ok := instanceAddress(given)
		if !ok {
			return
		}
		parsed, err := url.Parse(address + "/oauth_token.do")
		again, _ := instanceAddress(address)
		if err != nil || parsed.Host == "" || !safe.MatchString(address) || again != address {
			t.Fatalf("instanceAddress(%q) = %q, of which it makes %q: %v", given, address, again, err)
		}
		if !strings.Contains(strings.ToLower(foreign.Replace(given)), strings.TrimSuffix(parsed.Hostname(), ".service-now.com")) {
			t.Errorf("instanceAddress(%q) = %q, a host that nobody named", given, address)
		}
	})
}

// The two resources.

func TestClientOnTheWire(t *testing.T) {
	w := newWorld(t)
	type request struct{ Method, URL, ContentType, Authorization, Body string }
	var got []request
	w.windmill.Fault = func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		got = append(got, request{r.Method, r.RequestURI, r.Header.Get("Content-Type"), r.Header.Get("Authorization"), string(body)})
		return false
	}
	w.setLogin(login{Job: "job-0", Refusals: 1, RefusedAt: 5})
	w.run([]string{"WM_JOB_ID=job-1"})
	token, _ := w.cache()
	const resources = "/api/w/acme%20&%20co/resources/"
	read := request{"GET", resources + "get_value/f%2FServiceNow%2Fsnow_token_cache", "", "Bearer " + theToken, ""}
	write := request{"POST", resources + "create?update_if_exists=true", "application/json", "Bearer " + theToken,
		`{"path":"f/ServiceNow/snow_token_cache","resource_type":"state","value":` + fmt.Sprintf(
			`{"token":%q,"expires_at":%d,"instance_url":%q,"seal":%q}}`, token, begin+1800, w.snow.InstanceURL, w.snow.seal(token, begin+1800))}
	claim := write
	claim.Body = `{"path":"f/ServiceNow/snow_token_logins","resource_type":"state","value":` + fmt.Sprintf(
		`{%q:{"job":"job-1","at":%d,"outcome":"","refusals":1,"refused_at":5}}}`, w.snow.seal(), begin)
	diff := cmp.Diff([]request{read, claim, write}, []request{got[0], got[2], got[4]})
	w.expect(diff == "", "reading the cache, claiming the login and writing the cache (-want +got):\n%s", diff)
}

func TestCachedRecord(t *testing.T) {
	for logins, tests := range [][]struct{ snow, record string }{ // what changes of the credentials and of the record
		{{"", ""}, {`{"instance_url": " SAME/ "}`, ""}},
		{
			{`{"password": "x"}`, ""}, {`{"username": "x"}`, ""}, {`{"client_id": "x"}`, ""}, {`{"client_secret": "x"}`, ""},
			{`{"username": "", "password": ""}`, ""}, {`{"client_id": "clients", "username": "vc user"}`, ""}, // cut otherwise
			{`{"instance_url": "OTHER"}`, ""}, {`{"instance_url": "OTHER"}`, `{"instance_url": "OTHER"}`},
			{"", `{"instance_url": "OTHER"}`}, {"", `{"token": "planted"}`}, {"", `{"token": "$var:f/x/y"}`},
			{"", `{"token": null, "Token": "TOKEN"}`}, {"", `{"expires_at": 1772371800}`}, {"", `{"expires_at": 1772368200.5}`},
			{"", `{"seal": 5}`}, {"", `{"seal": "` + strings.Repeat("0", 64) + `"}`},
			{"", `{"seal": null, "instance_url": null, "expires_at": 1772368200.5}`}, // the last: of the Python script
		},
	} {
		for _, test := range tests {
			w := newWorld(t, test)
			w.run(byHand)
			w.windmill.Delete(loginsPath)
			record := map[string]any{}
			w.get(cachePath, &record)
			actual := strings.NewReplacer("OTHER", w.serve(w.instance), "SAME", "HTTP"+w.snow.InstanceURL[4:], "TOKEN", record["token"].(string))
			_ = json.Unmarshal([]byte(actual.Replace(test.record)), &record)
			w.set(cachePath, record)
			_ = json.Unmarshal([]byte(actual.Replace(test.snow)), &w.snow)
			w.accept(w.snow, true)
			o := w.check(step, logins, "")
			w.expect(len(o.calls) == 1+6*logins, "calls = %q", o.calls)
		}
	}
	for _, planted := range []string{"null", "5", `"$var:f/x/y"`, "[]", `{"token":{}}`} {
		w := newWorld(t, planted)
		w.set(cachePath, json.RawMessage(planted))
		w.set(loginsPath, json.RawMessage(planted))
		w.check(step, 1, "")
	}
}

func TestFaultsOfWindmill(t *testing.T) {
	const html, folder = "<html>\nbusy</html>", ". Check that the folder f/ServiceNow exists, and that u/user may read and write in it"
	const rls = `SqlErr: error returned from database: new row violates row-level security policy for table "resource" @resources.rs:872:5`
	for _, test := range []struct {
		status int // 0: the connection breaks off
		body   string
		times  int // 2 is once more than a run asks again
		want   string
	}{
		{502, html, 1, ""}, {500, "busy", 1, ""}, {0, "", 1, ""},
		{502, html, 2, "answered 502, (not repeated here). Check Windmill's server log"},
		{200, html, 1, "answered 200, which is no JSON. Check"}, {200, `{"token":"abc`, 1, "answered 200, which is no JSON. Check"},
		{500, `{"=+!?#$&|":1}`, 2, `answered 500, {"=+!?#$&|":1}. Check`}, {500, "?" + theToken, 2, "answered 500, (not repeated here)"},
		{0, "", 2, "did not answer (EOF). Check BASE_INTERNAL_URL"}, {0, theToken + "\r\n\r\n", 2, "did not answer ((not repeated"},
		{401, "Not authorized: Unauthorized\n" + theToken[:10], 1, "answered 401, Not authorized: Unauthorized. Check WM_TOKEN"},
		{401, "Not authorized: You don't have access", 1, "answered 401, Not authorized: You don't have access" + folder},
		{400, rls, 1, "answered 400, " + rls + folder}, {403, "Permission denied: x", 1, "answered 403, Permission denied: x" + folder},
		{404, "Not found: x", 1, "answered 404, Not found: x. Check Windmill's"}, {404, html, 1, "answered 404, (not repeated here)"},
	} {
		for call := 1; call <= len(coldCalls); call++ {
			method, which, _ := strings.Cut(coldCalls[call-1], " ")
			if test.body == "Not found: x" && method == "GET" {
				continue // there is no such resource
			}
			w := newWorld(t, test, " at call ", call, ", ", coldCalls[call-1])
			w.set(cachePath, map[string]any{"token": "of the Python script", "expires_at": 1.5})
			last := call + test.times - 1
			if test.status == 0 && test.body == "" && call > 1 && method == "GET" {
				last++ // on a kept connection Go itself asks again
			}
			w.windmill.Fault = answers(call, last, test.status, test.body)
			verb := map[string]string{"GET": "read", "POST": "written"}[method]
			fault := fmt.Sprintf("f/ServiceNow/snow_token_%s cannot be %s: Windmill %s", which, verb, test.want)
			asked, failure, fatal := 1, "", test.want != ""
			switch {
			case fatal && call < 5:
				asked, failure = 0, "ServiceNow was not asked: "+fault
			case fatal && call == 5: // after that the token is stored
				failure = fault
			}
			o, l := w.check(bySchedule, asked, failure), w.login()
			w.expect(fatal || o.took >= 1300*time.Millisecond, "took %s; want a second more than the claim", o.took)
			w.expect((l.Outcome == "OK") == (!fatal || call == 6) && l.Refusals == 0, "login = %+v", l)
			w.expect(!fatal || call != 4 || l.Outcome == "Windmill failed after the claim", "the claim is left: %+v", l)
			w.expect(!fatal || call != 5 || strings.HasSuffix(l.Outcome, "cannot be written"), "login = %+v", l)
			w.expect(strings.Contains(o.log, "could not be told what came of this one: "+fault) == (fatal && call == 7), "log = %q", o.log)
			token, _ := w.cache()
			w.expect(o.failure == "" || token == "of the Python script", "a run that failed left the token %q", token)
		}
	}
}

// One login at a time.

func TestAnotherJobsLogin(t *testing.T) {
	ends := func(outcome string) func(*login) { return func(l *login) { l.Outcome = outcome } }
	underWay := func(at int64) login { return login{Job: "other", At: at} }
	failed := func(at int64) login { return login{Job: "other", At: at, Outcome: "answered 503"} }
	// A run finds first, whose time counts from then; every 3 s then changes it. A token is valid for so many seconds from
	// the start. The run takes so many seconds.
	try := func(about string, started []string, first login, valid time.Duration, then func(*login), took, logins int, failure string) {
		w := newWorld(t, about)
		w.run(byHand)
		giveBack := w.hideToken()
		w.clock = w.clock.Add((1800 - valid) * time.Second).Truncate(time.Second)
		first.At += w.clock.Unix()
		w.setLogin(first)
		next := w.clock.Add(3 * time.Second)
		w.onSleep = func() {
			l := w.login()
			if w.clock.Before(next) || l.Job != first.Job || then == nil {
				return
			}
			next = w.clock.Add(3 * time.Second)
			if then(&l); l.Outcome == "OK" {
				giveBack()
			}
			w.setLogin(l)
		}
		o := w.check(started, logins, failure)
		w.expect(int(o.took.Seconds()) == took, "took %s; want %d s", o.took, took)
		w.expect(strings.Contains(o.log, " is logging in") == (took > 0) && !strings.Contains(o.log, "<"), "log = %q", o.log)
	}
	try("brings a token", byHand, underWay(0), 600, ends("OK"), 3, 0, "")
	try("brings a token for its last minute", step, underWay(0), 10, ends("OK"), 3, 0, "")
	try("brings a token that is gone at once", byHand, underWay(0), 3, ends("OK"), 3, 1, "")
	try("fails", byHand, underWay(0), 0, ends("x answered 503"), 3, 0, "job other has just failed, for this run, too: x answered 503. Its log says")
	try("is planted", byHand, login{Job: "<"}, 0, ends("<"), 3, 0, "job (not repeated here) has just failed, for this run, too: (not repeated here)")
	try("is gone", byHand, underWay(0), 0, func(l *login) { *l = login{} }, 3, 1, "")
	try("never ends", byHand, underWay(0), 0, nil, 24, 1, "")
	try("began 4 minutes ago by its clock", step, underWay(-240), 0, nil, 24, 1, "")
	try("begins in 4 minutes by its clock", step, underWay(240), 0, nil, 24, 1, "")
	try("began 299 s ago", step, underWay(-299), 0, nil, 1, 1, "")
	try("begins in 301 s", step, underWay(301), 0, nil, 0, 1, "")
	try("is followed by one that never ends", byHand, underWay(0), 0, func(l *login) { l.Job = "third" }, 27, 1, "")
	try("is followed by others", byHand, underWay(0), 0, func(l *login) { l.At++ }, 30, 0, "all the time, the last of them other")
	try("is followed by planted ones", byHand, login{Job: "<"}, 0, func(l *login) { l.At++ }, 30, 0, "last of them (not repeated")
	try("failed 4 s ago", step, failed(-4), 0, nil, 0, 0, "answered 503")
	try("failed 5 s ago", step, failed(-5), 0, nil, 0, 1, "")
	try("failed in 4 s", step, failed(4), 0, nil, 0, 0, "answered 503")
	try("failed in 5 s", step, failed(5), 0, nil, 0, 1, "")
	try("failed 4 s ago, which is nothing to a person", byHand, failed(-4), 0, nil, 0, 1, "")
	try("was refused, and is planted", bySchedule, login{Outcome: "<", Refusals: 2}, 0, nil, 0, 0, "(not repeated here)), and a few")
	try("was refused, and killed", bySchedule, login{Job: "other", At: -300, Refusals: 2}, 0, nil, 0, 0, "(unknown), and a few")
	try("has no job", byHand, login{}, 0, nil, 0, 1, "")
	try("succeeded an hour ago", step, login{Job: "other", At: -3600, Outcome: "OK"}, 0, nil, 0, 1, "")
}

func TestTokenThatAnotherJobHasJustStored(t *testing.T) {
	for logins, started := range [][]string{step, byHand} {
		w := newWorld(t, started)
		w.run(byHand)
		w.windmill.Fault = during(len(coldCalls)+2, w.hideToken()) // after the run's first read of the cache
		w.check(started, logins, "")
	}
	w := newWorld(t, "which cannot be read")
	w.run(byHand)
	w.hideToken()
	w.windmill.Fault = answers(len(coldCalls)+3, len(coldCalls)+4, 502, "")
	w.check(step, 0, "f/ServiceNow/snow_token_cache cannot be read")
}

func TestClaimThatAnotherJobReplaces(t *testing.T) {
	w := newWorld(t)
	w.run(byHand)
	giveBack := w.hideToken()
	w.onSleep = func() { // after the run's claim, and while it waits
		l := login{Job: "other", At: w.clock.Unix()}
		if w.login().Job == "other" {
			giveBack()
			l.Outcome = "OK"
		}
		w.setLogin(l)
	}
	o := w.check(byHand, 0, "")
	w.expect(strings.Contains(o.log, "Job other is logging in") && strings.Contains(o.log, "Reused the token"), "log = %q", o.log)
}

func TestClaimIsReadAfterTwiceTheTimeThatItTook(t *testing.T) {
	for write, pause := range map[time.Duration]time.Duration{
		time.Millisecond: 300 * time.Millisecond, 2 * time.Second: 4 * time.Second, 20 * time.Second: 10 * time.Second,
	} {
		w := newWorld(t, write)
		w.windmill.Fault = during(3, func() { w.clock = w.clock.Add(write) })
		o := w.check(byHand, 1, "")
		w.expect(o.took == write+pause, "the claim was read %s later; want %s", o.took-write, pause)
	}
}

func TestRunThatWasTakenForDead(t *testing.T) {
	for accepted, want := range map[bool]login{true: {"other", begin, "", 0, 5}, false: {"other", begin, "", 2, begin}} {
		w := newWorld(t, accepted)
		w.accept(w.snow, accepted)
		w.instance.Fault = during(1, func() { w.setLogin(login{"other", begin, "", 1, 5}) })
		o := w.run(byHand)
		token, _ := w.cache()
		w.expect((o.failure == "") == accepted && w.instance.Valid(token) == accepted, "error %q, token %q", o.failure, token)
		w.expect(w.login() == want, "the other job's claim became %+v; want %+v", w.login(), want)
	}
	w := newWorld(t, "all claims are gone")
	w.instance.Fault = during(1, func() { w.windmill.Delete(loginsPath) })
	w.check(byHand, 1, "")
	w.expect(w.login().Job != "" && w.login().Outcome == "OK", "login = %+v", w.login())
}

func TestHeldBack(t *testing.T) {
	for _, test := range []struct {
		refusals int
		started  []string
		after    time.Duration
		held     string // a part of the error; "" if the run asks
	}{
		{1, byHand, 59 * time.Second, "a run by hand may from 2026-03-01T12:01:00Z on"}, {1, byHand, time.Minute, ""},
		{1, bySchedule, 599 * time.Second, "1 in a row, the last at 2026-03-01T12:00:00Z"}, {1, bySchedule, 600 * time.Second, ""},
		{1, step, 599 * time.Second, "do not ask for 10 minutes"}, {1, step, 600 * time.Second, ""},
		{2, byHand, 1199 * time.Second, "a run by hand may from 2026-03-01T12:20:00Z on"}, {2, byHand, 20 * time.Minute, ""},
		{2, bySchedule, 400 * 24 * time.Hour, "do not ask again"}, {9, byHand, 20 * time.Minute, ""},
		{2, step, 29 * 24 * time.Hour, "a run by hand that succeeds, or when " + loginsPath + " is deleted"},
		{9, windmill.ByScheduleWithRetry, 20 * time.Minute, "answered 401 Unauthorized"},
		{2, bySchedule, -6 * time.Minute, "do not ask again"}, {0, step, time.Second, ""},
	} {
		w := newWorld(t, test)
		w.setLogin(login{"other", w.clock.Unix() + 9, "x answered 401 Unauthorized", test.refusals, w.clock.Unix()})
		w.clock = w.clock.Add(test.after)
		w.check(test.started, map[bool]int{true: 1}[test.held == ""], test.held)
	}
}

func TestWhatEndsBeingHeldBack(t *testing.T) {
	w := newWorld(t)
	refuseTwice := func() {
		w.hideToken()
		w.accept(w.snow, false)
		o := w.check(bySchedule, 1, "401")
		w.expect(len(o.calls) == 8, "calls = %q; want 8: whether the refusal stands is looked at twice", o.calls)
		w.check(bySchedule, 0, "ServiceNow was not asked: it refused these credentials, 1 in a row")
		w.clock = w.clock.Add(10 * time.Minute)
		w.check(step, 1, "401")
		w.clock = w.clock.Add(time.Hour)
		w.accept(w.snow, true)
		w.check(bySchedule, 0, "2 in a row")
	}
	refuseTwice()
	w.snow.Username = "other" // other credentials
	w.accept(w.snow, true)
	w.check(bySchedule, 1, "")
	w.snow.Username = "svc user" // whose refusals are not forgotten
	w.check(bySchedule, 0, "2 in a row")
	w.windmill.Delete(loginsPath)
	w.check(bySchedule, 1, "")
	refuseTwice()
	w.check(byHand, 1, "")
	w.check(bySchedule, 1, "")
	w.expect(w.login().Refusals == 0, "after a success: %+v", w.login())
}

func TestNoRefusalIsForgotten(t *testing.T) {
	for name, spoil := range map[string]func(w *world){
		"a read fails":       func(w *world) { w.windmill.Fault = answers(5, 5, 502, "") },
		"reads fail":         func(w *world) { w.windmill.Fault = answers(5, 6, 502, "") },
		"a write fails":      func(w *world) { w.windmill.Fault = answers(6, 6, 502, "") },
		"a look at it fails": func(w *world) { w.windmill.Fault = answers(7, 8, 502, "") },
		"a write undoes it":  func(w *world) { w.windmill.Fault = during(7, func() { w.setLogin(login{}) }) },
		"a late claim does":  func(w *world) { w.windmill.Fault = during(8, func() { w.setLogin(login{Job: "other", At: begin}) }) },
	} {
		w := newWorld(t, name)
		w.setLogin(login{Job: "job-0", Outcome: "401", Refusals: 1})
		w.accept(w.snow, false)
		spoil(w)
		o, got := w.check(byHand, 1, "401"), w.login()
		w.expect(got.Refusals == 2 && got.RefusedAt >= begin && o.took >= 1500*time.Millisecond, "after %s: %+v", o.took, got)
		w.expect((got.Job == "") == (name == "a write undoes it"), "login = %+v", got)
		w.expect((got == login{"other", begin, "", 2, begin}) == (name == "a late claim does"), "login = %+v", got)
	}
}

// TestHerds starts many jobs at once, in a tenth of the time. Without a job's id each has one of its own.
func TestHerds(t *testing.T) {
	for _, test := range []struct{ jobs, slots, status, logins int }{
		{40, 40, 200, 2}, {30, 30, 503, 4}, {60, 12, 503, 4}, {60, 12, 401, 2},
	} {
		w := newWorld(t, test)
		want := "<nil>"
		if test.status != 200 {
			want = fmt.Sprint("answered ", test.status)
			w.instance.Fault = answers(1, test.jobs, test.status, `{"error":"server_error"}`)
		}
		w.run([]string{"WM_JOB_ID=", "WM_WORKSPACE="}) // for the environment
		os.Setenv("WM_WORKSPACE", w.windmill.Name)
		started := time.Now()
		now = func() time.Time { return w.clock.Add(10 * time.Since(started)) }
		sleep = func(d time.Duration) { time.Sleep(d / 10) }
		free, ended := make(chan bool, test.slots), make(chan error, test.jobs)
		for range test.jobs {
			free <- true
			go func() {
				_, err := main(w.snow)
				ended <- err
				<-free
			}()
		}
		for range test.jobs {
			told := fmt.Sprint(<-ended)
			w.expect(strings.Contains(told, want), "a job ended with %q; want %q", told, want)
		}
		took := now().Sub(w.clock)
		w.expect(w.instance.Requests() <= test.logins && took <= 10*time.Second, "%d requests in %s", w.instance.Requests(), took)
	}
}

// Asking ServiceNow.

func TestLoginIsAForm(t *testing.T) {
	w := newWorld(t)
	trimmed := w.snow
	trimmed.Password = " " + thePassword + " "
	w.accept(trimmed, true)
	w.snow = servicenow{" " + w.snow.InstanceURL + "/\n", " client\t", theSecret + " ", "svc user\n", trimmed.Password}
	w.instance.Fault = func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		w.expect(r.Close, "the connection is kept")
		return false
	}
	w.check(byHand, 1, "")
	w.snow.Username, w.snow.Password, trimmed.Username, trimmed.Password = "", "", "", ""
	w.check(byHand, 1, "Check client_id and client_secret; the OAuth application: active")
	w.accept(trimmed, true)
	w.clock = w.clock.Add(time.Minute)
	w.check(byHand, 1, "")
	w.check(step, 0, "")
	password := url.Values{"grant_type": {"password"}, "client_id": {"client"}, "client_secret": {theSecret},
		"username": {"svc user"}, "password": {" " + thePassword + " "}}
	client := url.Values{"grant_type": {"client_credentials"}, "client_id": {"client"}, "client_secret": {theSecret}}
	diff := cmp.Diff([]url.Values{password, client, client}, w.instance.Forms())
	w.expect(diff == "", "forms (-want +got):\n%s", diff)
}

func TestLoginIsMadeOnceAndByHTTP1(t *testing.T) {
	w := newWorld(t)
	var offered [][]string
	server := httptest.NewUnstartedServer(w.instance)
	server.TLS = &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		offered = append(offered, hello.SupportedProtos)
		return nil, nil
	}}
	server.StartTLS()
	defer server.Close()
	w.snow.InstanceURL = server.URL
	w.check(byHand, 0, "certificate signed by unknown authority). Check instance_url")
	w.expect(len(offered) == 1 && !slices.Contains(offered[0], "h2"), "offered the protocols %q; want no h2, once", offered)
}

func TestTokensAndTheirExpiry(t *testing.T) {
	for body, lifetime := range map[string]float64{
		`{"access_token":"abc","expires_in":1799}`: 1799, `{"access_token":"aZ09-._~+/=","expires_in":"120"}`: 120,
		`{"access_token":"abc","expires_in":18e2}`: 1800, ` {"access_token":"abc"} `: 1800, `{"access_token":"abc","error":null}`: 1800,
		`{"access_token":"abc","expires_in":null}`: 1800,
		`{"access_token":"abc","expires_in":1}`:    1, `{"access_token":"abc","expires_in":1e9}`: 1e9,
		`{"access_token":"` + strings.Repeat("a", 1<<20-19) + `"}`: 1800, // the longest answer
	} {
		w := newWorld(t, body)
		w.instance.Fault = func(rw http.ResponseWriter, r *http.Request, n int) bool {
			w.clock = w.clock.Add(15 * time.Second) // the lifetime counts from before the request
			return answers(1, 1, 200, body)(rw, r, n)
		}
		w.check(bySchedule, 1, "")
		token, left := w.cache()
		w.expect(token != "" && left == lifetime-15 && w.login().At == begin+15, "token %.9q for %.0f s, login %+v", token, left, w.login())
	}
}

func TestAnswers(t *testing.T) {
	const html, denied = "<html><body>s3ntinel</body></html>", `{"error_description":"access_denied","error":"server_error"}`
	const busy = `{"error":{"message":"Transaction cancelled","detail":"s3ntinel"},"status":"failure"}`
	const retry = "\r\nRetry-After: 60\r\n\r\n"
	const strange, cutOff = "That is not what a token endpoint answers", "\r\nContent-Length: 99\r\n\r\n" + `{"error":"x","access_token":"abc"}`
	try := func(status int, body string, refused bool, requests int, want string) {
		w := newWorld(t, status, " ", body)
		w.instance.Fault = answers(1, 2, status, body)
		o := w.check(bySchedule, requests, w.snow.InstanceURL+"/oauth_token.do "+want)
		w.expect(o.took >= 300*time.Millisecond+time.Duration(requests-1)*time.Second, "took %s", o.took)
		w.expect((w.login().Refusals == 1) == refused, "login = %+v; counted as a refusal: want %t", w.login(), refused)
		if !refused { // as if nothing had been
			w.instance.Fault = nil
			w.clock = w.clock.Add(5 * time.Second)
			w.check(step, 1, "")
		}
	}
	try(401, denied, true, 1, "answered 401 Unauthorized, error server_error, error_description access_denied. ServiceNow does not say why")
	try(400, `{"error":"invalid_grant"}`, true, 1, "answered 400 Bad Request, error invalid_grant. ServiceNow")
	try(200, `{"error":"x","access_token":"abc"}`, true, 1, "answered 200 OK, error x. ServiceNow")
	try(401, `{"error":"x","error_description":{"a":1}}`, true, 1, "answered 401 Unauthorized, error x. ServiceNow")
	try(401, `{"error":"x","expires_in":"","access_token":5}`, true, 1, "answered 401 Unauthorized, error x. ServiceNow")
	try(0, "HTTP/1.1 401 s3ntinel"+cutOff, true, 1, "answered 401 Unauthorized, error x. ServiceNow")
	try(0, "HTTP/1.1 200 OK"+cutOff, false, 2, "did not answer (unexpected EOF). Check instance_url")
	try(0, "", false, 2, "did not answer (EOF). Check instance_url")
	try(-1, "", false, 2, "did not answer (read tcp ")
	try(504, "", false, 2, "answered 504 Gateway Timeout. The instance")
	try(0, "HTTP/1.1 101 x\r\n\r\n", false, 1, "answered 101 Switching Protocols. "+strange)
	try(200, `<div class="instance-hibernating-page">`, false, 1, "answered 200 OK. It is the page of a hibernating instance: wake it")
	try(0, "HTTP/1.1 307 x\r\nLocation: https://x.example.com\r\n\r\n", false, 1, "answered 307 Temporary Redirect. The redirect was not")
	try(403, `{"error":"s"}`, false, 1, "answered 403 Forbidden, error s. Check the instance's IP address access control")
	try(0, "HTTP/1.1 429 x"+retry+`{"error":"s"}`, false, 1, "answered 429 Too Many Requests, error s, Retry-After 60. Check what else")
	try(500, denied, false, 1, "answered 500 Internal Server Error, error server_error, error_description access_denied. The instance")
	try(502, html, false, 2, "answered 502 Bad Gateway. The instance")
	try(599, "", false, 1, "answered 599 (unknown). The instance")
	try(0, "HTTP/1.1 503 x"+retry+busy, false, 2, "answered 503 Service Unavailable, Retry-After 60. The instance")
	for status, bodies := range map[int][]string{400: {html}, 401: {html, busy, `{"access_token":"abc"}`}, 404: {html}, 200: {
		html, busy, "null", "", `{"access_token":""}`, `{"access_token":"abc"}x`, `{"access_token":"a b"}`, `{"access_token":"$var:f/x/y"}`,
		`{"access_token":"abc","expires_in":0}`, `{"access_token":"abc","expires_in":-1}`, `{"access_token":"abc","expires_in":1000000001}`,
		`{"access_token":"abc","expires_in":1e300}`, `{"access_token":"abc","expires_in":"NaN"}`, `{"access_token":"abc","expires_in":"soon"}`,
		`{"access_token":"abc","expires_in":{}}`, `{"access_token":"abc","expires_in":[]}`, `{"access_token":"abc","expires_in":""}`,
		`{"access_token":"` + strings.Repeat("a", 1<<20-18) + `"}`, // a byte too long
	}} {
		for _, body := range bodies {
			try(status, body, false, 1, fmt.Sprintf("answered %d %s. %s", status, http.StatusText(status), strange))
		}
	}
}

func TestInstanceThatIsAwayForAMoment(t *testing.T) {
	w := newWorld(t)
	w.instance.Fault = answers(1, 1, -1, "")
	o := w.check(byHand, 2, "")
	w.expect(strings.Contains(o.log, "connection reset by peer). Asking once more."), "log = %q", o.log)
	w.snow.InstanceURL = "http://127.0.0.1:1"
	o = w.check(byHand, 0, "connect: connection refused). Check instance_url")
	w.expect(strings.Contains(o.log, "connection refused). Asking once more."), "log = %q", o.log)
}

func TestWhatIsQuoted(t *testing.T) {
	const plain, hidden, blank = "All of .,:;'/()[]-_>*", "(not repeated here)", "\r\n\r\n"
	described := func(text string) string {
		body, _ := json.Marshal(map[string]string{"error": "x", "error_description": text})
		return "401 x" + blank + string(body)
	}
	form, long := url.QueryEscape(thePassword), strings.Repeat("a", 300)
	answer := map[string]string{described(plain): plain, described(long): long, described(long + "a"): hidden,
		described("not " + thePassword + "!"): hidden, described(strings.ToUpper(thePassword)): hidden, described(theSecret): hidden,
		described(form): hidden, described(strings.ToLower(form)): hidden, described(url.PathEscape(thePassword)): hidden,
		described("s&#51;ntinel Pass*word"): hidden, "400 x" + blank + `{"error":"` + thePassword + `"}`: hidden,
		"500 x" + blank + `{"error_description":"` + thePassword + `"}`: hidden, "429 x\r\nRetry-After: " + thePassword + blank: hidden,
		"200 x" + blank + `{"error":"s3ntinel","access_token":"s3ntinel"}`:  hidden, // so may a token
		"200 x" + blank + `{"error":"s3ntinel","refresh_token":"s3ntinel"}`: hidden,
		thePassword + blank: hidden, "200 OK\r\n" + thePassword + blank: hidden}
	for _, special := range "%&+#\"\\?=@<~|$!{}é\n" {
		answer[described(plain+string(special))] = hidden
	}
	for text, want := range answer {
		w := newWorld(t, text)
		w.snow.Password = " " + thePassword + "\n" // an answer may leave out the blanks
		w.instance.Fault = answers(1, 1, 0, "HTTP/1.1 "+text)
		o := w.check(byHand, 1, want) // which looks for secrets
		kept := w.login().Outcome
		w.expect(len(kept) <= 300 && strings.HasPrefix(o.failure, kept), "outcome = %q; want 300 bytes at most of %q", kept, o.failure)
	}
}

// FuzzAnswer: whatever ServiceNow answers, a run ends with OK and a token that it gave, or with an error.
func FuzzAnswer(f *testing.F) {
	f.Add("HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n" + `{"access_token":"abc","expires_in":1799}`)
	f.Add("HTTP/1.1 401 Unauthorized\r\n\r\n" + `{"error_description":"access_denied","error":"server_error"}`)
	f.Add("HTTP/1.1 429 x\r\nRetry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\n\r\n" + `{"error":{"message":"Rate limit exceeded"}}`)
	f.Fuzz(func(t *testing.T, answer string) {
		w := newWorld(t, answer)
		w.instance.Fault = answers(1, 2, 0, answer)
		o := w.run(byHand)
		token, left := w.cache()
		given := token != "" && strings.Contains(answer, "200") && !strings.ContainsAny(token, " $:\"")
		w.expect((o.failure == "") == given && (left > 0 || !given), "error %q and the token %q for %.0f s", o.failure, token, left)
	})
}

// FuzzResources: whatever others write into the two resources, a step neither believes it nor waits for ever.
func FuzzResources(f *testing.F) {
	f.Add(`{"token":"abc","expires_at":99999999999,"instance_url":"x","seal":"y"}`, `{"job":"x","at":1772366400}`)
	f.Add(`null`, `{"job":"x","at":1772366400,"outcome":"x","refusals":-1,"refused_at":99999999999}`)
	f.Add(`[]`, `{"Job":5,"outcome":"OK"}`)
	f.Fuzz(func(t *testing.T, cached, entry string) {
		w := newWorld(t, cached, " ", entry)
		logins := fmt.Sprintf(`{%q:%s}`, w.snow.seal(), entry)
		if !json.Valid([]byte(cached)) || !json.Valid([]byte(logins)) {
			return
		}
		w.set(cachePath, json.RawMessage(cached))
		w.set(loginsPath, json.RawMessage(logins))
		o := w.run(step)
		w.expect((o.failure != "" || o.logins > 0) && o.took <= 31*time.Second, "after %s: %d logins, error %q", o.took, o.logins, o.failure)
	})
}

func TestScriptYAMLAndGoModAgreeWithMainGo(t *testing.T) {
	source, _ := os.ReadFile("main.go")
	metadata, _ := os.ReadFile("script.yaml")
	module, _ := os.ReadFile("go.mod")
	head := regexp.MustCompile(`(?s)^package inner\n.*\n//require (\S+ v\S+)\n.*\nfunc main\(snow servicenow\) \(string, error\) {\n`)
	require := head.FindSubmatch(source)
	if require == nil || !strings.Contains(string(module), "\t"+string(require[1])+"\n") {
		t.Errorf("main.go must begin with its package, require what go.mod does, and have Windmill's main: %q", require)
	}
	for _, want := range []string{"format: resource-servicenow", "`instance_url`", "`client_id`", "`client_secret`", "`username`",
		"`password`", cachePath, loginsPath, "\ntimeout: 90\n"} {
		if !strings.Contains(string(metadata), want) {
			t.Errorf("script.yaml has no %q", want)
		}
	}
}

// TestYear simulates a year, or with -short a week, of a schedule each 15 minutes and flows, with changes of the
// password that are noticed a day late.
func TestYear(t *testing.T) {
	days, changes := 364, 10
	if testing.Short() {
		days, changes = 7, 2
	}
	for _, lockAfter := range []int{5, 3} {
		w := newWorld(t)
		w.instance.LockAfter = lockAfter
		chance, period := rand.New(rand.NewPCG(1, uint64(lockAfter))), days*96/changes
		start := w.clock
		for tick := range days * 96 {
			w.clock = start.Add(time.Duration(tick) * 15 * time.Minute)
			switch tick % period {
			case period / 2: // the password changes in ServiceNow
				w.accept(w.snow, false)
				mended := w.snow
				mended.Password = fmt.Sprint(thePassword, tick)
				w.accept(mended, true)
			case period/2 + 96: // and a day later in Windmill
				refused := w.instance.Refusals("svc user").All
				w.expect(refused <= 2*(tick/period+1), "day %d: %d refused logins", tick/96, refused)
				w.snow.Password = fmt.Sprint(thePassword, tick-96)
			}
			w.run(bySchedule)
			for chance.IntN(2) == 0 { // a hundred a day
				w.clock = w.clock.Add(time.Duration(chance.IntN(200)) * time.Second)
				w.run(step)
			}
		}
		token, _ := w.cache()
		locked := !w.instance.Refusals("svc user").LockedUntil.IsZero()
		w.expect(w.instance.Valid(token) && !locked, "locked: %t; token: %q", locked, token)
	}
}
