package inner

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"servicenow-token/simulator"
	sn "servicenow-token/simulator/servicenow"
	"servicenow-token/simulator/windmill"
)

// The tests call main in this process, in a simulated world with a clock of its own. They check what the two servers
// were asked, what the resources hold afterwards, and what was printed. They stand in the order of main.go.

// noon is when the clock of a world starts.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// The calls of a cold run, in short.
var coldCalls = []string{
	"GET cache", "GET queue", "GET cache", "GET failures", "POST failures", "POST cache", "GET failures",
}

// world is a simulated world in which main runs.
type world struct {
	*simulator.World
	t       testing.TB
	clock   time.Time
	onSleep func() // what happens while a run sleeps
	snow    servicenow
	stdout  *os.File
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, clock: noon, onSleep: func() {}}
	w.World = simulator.New(func() time.Time { return w.clock }, t.TempDir(), 1)
	w.snow = servicenow{
		InstanceURL:  w.InstanceURL,
		ClientID:     simulator.Account.ClientID,
		ClientSecret: simulator.Account.ClientSecret,
		Username:     simulator.Account.Username,
		Password:     simulator.Account.Password,
	}
	stdout, err := os.Create(t.TempDir() + "/stdout")
	if err != nil {
		t.Fatal(err)
	}
	realNow, realSleep, realStdout := now, sleep, os.Stdout
	t.Cleanup(func() {
		w.Close()
		stdout.Close()
		now, sleep, os.Stdout = realNow, realSleep, realStdout
		log.SetOutput(os.Stderr)
	})
	w.stdout = stdout
	os.Stdout = stdout
	now = func() time.Time { return w.clock }
	sleep = func(d time.Duration) {
		w.clock = w.clock.Add(d)
		w.onSleep()
	}
	return w
}

// accept makes the instance accept a login, or refuse it.
func (w *world) accept(snow servicenow, isAccepted bool) {
	w.ServiceNow.Accounts[sn.Account{
		ClientID:     snow.ClientID,
		ClientSecret: snow.ClientSecret,
		Username:     snow.Username,
		Password:     snow.Password,
	}] = isAccepted
}

// outcome is what came of a run.
type outcome struct {
	err    string
	log    string
	calls  []string // of Windmill, in short
	logins int      // requests to ServiceNow
	took   time.Duration
}

var short = strings.NewReplacer(
	"resources/get_value/f/ServiceNow/snow_token_", "",
	"resources/create/f/ServiceNow/snow_token_", "",
	"jobs/queue/list", "queue",
)

// run runs main as a job, and searches for secrets in everything that the run leaves behind.
func (w *world) run(startedBy []string) outcome {
	w.t.Helper()
	return w.runJob(simulator.Job(startedBy))
}

func (w *world) runJob(job windmill.Job) outcome {
	w.t.Helper()
	for _, setting := range w.Worker.Environment(job) {
		name, value, _ := strings.Cut(setting, "=")
		os.Setenv(name, value)
	}
	remove := w.Worker.Enqueue(job)
	defer remove()
	calls, logins, began := len(w.Windmill.Calls()), w.Logins(), w.clock
	w.stdout.Truncate(0)
	w.stdout.Seek(0, io.SeekStart)
	log.SetOutput(w.stdout)
	result, err := main(w.snow)
	log.Print(simulator.Sentinel + ": what net/http might log")
	printed, _ := os.ReadFile(w.stdout.Name())
	got := outcome{log: string(printed), logins: w.Logins() - logins, took: w.clock.Sub(began)}
	if err != nil {
		got.err = err.Error()
	}
	if (result == "OK") != (err == nil) {
		w.t.Errorf("result = %q, error = %q; want OK or an error", result, got.err)
	}
	for _, call := range w.Windmill.Calls()[calls:] {
		got.calls = append(got.calls, short.Replace(call))
	}
	left := got.log + got.err + string(w.Windmill.Get(failuresPath))
	left += strings.ReplaceAll(string(w.Windmill.Get(cachePath)), fmt.Sprintf("%q", w.Token()), "")
	if secret := w.SecretIn(left); secret != "" {
		w.t.Errorf("the run left the secret %q in:\n%s", secret, left)
	}
	return got
}

// check runs main and compares the number of logins and a part of the error, which is empty for success.
func (w *world) check(startedBy []string, logins int, err string) outcome {
	w.t.Helper()
	got := w.run(startedBy)
	if got.logins != logins {
		w.t.Errorf("logins = %d; want %d\ncalls: %q\nlog: %s\nerror: %s", got.logins, logins, got.calls, got.log, got.err)
	}
	if !strings.Contains(got.err, err) || (err == "") != (got.err == "") {
		w.t.Errorf("error = %q; want %q\nlog: %s", got.err, err, got.log)
	}
	return got
}

// cached is the record in the cache.
func (w *world) cached() cachedToken {
	var cached cachedToken
	w.Get(cachePath, &cached)
	return cached
}

// failures is the content of the failures resource.
func (w *world) failures() map[string]failure {
	failures := make(map[string]failure)
	w.Get(failuresPath, &failures)
	return failures
}

// store puts a token for these credentials into the cache, as job would.
func (w *world) store(token string, lifetime time.Duration, job string) {
	expiresAt := w.clock.Add(lifetime).Unix()
	w.Set(cachePath, w.snow.sealed(cachedToken{Token: token, ExpiresAt: expiresAt, Job: job}))
}

// fail records a failed login with these credentials.
func (w *world) fail(f failure) { w.Set(failuresPath, map[string]failure{w.snow.seal(): f}) }

// wantEqual compares two values with go-cmp.
func wantEqual(t testing.TB, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// answers answers the requests from the nth on, one after the other, and leaves later ones to the simulator. An answer
// is a status and a body, such as "401 no". Anything else is sent as it is, before the connection ends.
func answers(n int, all ...string) func(http.ResponseWriter, *http.Request, int) bool {
	return func(rw http.ResponseWriter, _ *http.Request, request int) bool {
		if request < n || request >= n+len(all) {
			return false
		}
		answer := all[request-n]
		status, body, _ := strings.Cut(answer, " ")
		if code, err := strconv.Atoi(status); err == nil {
			rw.WriteHeader(code)
			io.WriteString(rw, body)
			return true
		}
		connection, _, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			panic(err)
		}
		io.WriteString(connection, answer)
		connection.Close()
		return true
	}
}

// before does something when the nth request arrives.
func before(n int, do func()) func(http.ResponseWriter, *http.Request, int) bool {
	return func(_ http.ResponseWriter, _ *http.Request, request int) bool {
		if request == n {
			do()
		}
		return false
	}
}

// many is an answer for more requests than a run sends.
func many(answer string) []string {
	return strings.Split(strings.Repeat(answer+"\x00", 200), "\x00")[:200]
}

// The three uses.

func TestColdRun(t *testing.T) {
	w := newWorld(t)
	job := simulator.Job(windmill.ByHand)
	got := w.runJob(job)
	wantEqual(t, "calls", got.calls, coldCalls)
	wantEqual(t, "log", got.log, "Requesting a token from "+w.InstanceURL+".\n"+
		"Received a token that is valid for 30m0s.\nStored the token in "+cachePath+".\n")
	if got.logins != 1 || got.took != 0 || got.err != "" {
		t.Errorf("%d logins in %s, error %q; want one login without a pause", got.logins, got.took, got.err)
	}
	if !w.ServiceNow.IsValid(w.Token()) {
		t.Error("the cache holds no valid token")
	}
	wantEqual(t, "the failures", string(w.Windmill.Get(failuresPath)), "{}")

	// Other scripts read this record, so its names, types and seal are pinned here.
	text := fmt.Sprintf(`[%q,%d,%q,{"instance_url":%q,"client_id":"client","client_secret":%q,"username":"svc user",`+
		`"password":%q}]`, w.Token(), noon.Unix()+1800, job.ID, w.InstanceURL, w.snow.ClientSecret, w.snow.Password)
	mac := hmac.New(sha256.New, []byte(w.snow.ClientSecret))
	mac.Write([]byte(text))
	var record map[string]any
	w.Get(cachePath, &record)
	wantEqual(t, "the record", record, map[string]any{
		"token":        w.Token(),
		"expires_at":   float64(noon.Unix() + 1800),
		"instance_url": w.InstanceURL,
		"job":          job.ID,
		"seal":         hex.EncodeToString(mac.Sum(nil)),
	})
}

func TestWarmStep(t *testing.T) {
	for _, test := range []struct {
		name   string
		left   time.Duration
		logins int
	}{
		{"61 s left", 61 * time.Second, 0},
		{"60 s left", 60 * time.Second, 1},
		{"expired", -time.Second, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.store("abc", test.left, "job-0")
			got := w.check(windmill.StepOfFlow, test.logins, "")
			if test.logins > 0 {
				return
			}
			wantEqual(t, "calls", got.calls, []string{"GET cache"})
			wantEqual(t, "log", got.log,
				"Reusing the token in "+cachePath+". It is valid for another 1m1s at "+w.InstanceURL+".\n")
		})
	}
}

func TestWhatStartedIt(t *testing.T) {
	for _, test := range []struct {
		name      string
		startedBy []string
		logins    int
	}{
		{"by hand", windmill.ByHand, 1},
		{"schedule", windmill.BySchedule, 1},
		{"schedule with retries", windmill.ByScheduleWithRetry, 1},
		{"step of a flow", windmill.StepOfFlow, 0},
		{"step of a scheduled flow", windmill.StepOfScheduledFlow, 0},
		{"called by a script", windmill.ByScript, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.store("abc", 10*time.Minute, "job-0")
			if got := w.check(test.startedBy, test.logins, ""); got.took > 0 {
				t.Errorf("the run waited for %s", got.took)
			}
		})
	}
}

func TestOutsideWindmill(t *testing.T) {
	outside := []string{"WM_TOKEN=", "WM_WORKSPACE=", "BASE_INTERNAL_URL="}
	t.Run("accepted", func(t *testing.T) {
		w := newWorld(t)
		got := w.check(outside, 1, "")
		if len(got.calls) > 0 || !strings.HasPrefix(got.log, "Not running in Windmill, so the token will not be stored.\n") {
			t.Errorf("calls: %q, log: %s", got.calls, got.log)
		}
	})
	t.Run("refused", func(t *testing.T) {
		w := newWorld(t)
		w.accept(w.snow, false)
		w.check(outside, 1, "answered 401 Unauthorized")
	})
	for i, set := range outside {
		t.Run("only "+set, func(t *testing.T) {
			others := append(outside[:i:i], outside[i+1:]...)
			newWorld(t).check(others, 0, "did not log in to ServiceNow: could not read "+cachePath+": Windmill ")
		})
	}
}

func TestCallsOnTheWire(t *testing.T) {
	w := newWorld(t)
	type request struct {
		Method, Path, ContentType, Authorization string
		Query                                    url.Values
		Body                                     any
	}
	var got []request
	w.Windmill.Intercept = func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		var body any
		_ = json.NewDecoder(r.Body).Decode(&body) // A GET has none.
		got = append(got, request{
			Method: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.Query(), Body: body,
			ContentType: r.Header.Get("Content-Type"), Authorization: r.Header.Get("Authorization"),
		})
		return false
	}
	w.run(windmill.ByHand)
	got[5].Body.(map[string]any)["value"] = "a record, which another test pins"
	const base = "/api/w/acme%20&%20co/"
	read := func(name string) request {
		return request{
			Method: "GET", Path: base + "resources/get_value/f%2FServiceNow%2Fsnow_token_" + name, Query: url.Values{},
			Authorization: "Bearer " + simulator.JobToken,
		}
	}
	write := func(path string, value any) request {
		return request{
			Method: "POST", Path: base + "resources/create", Query: url.Values{"update_if_exists": {"true"}},
			ContentType: "application/json", Authorization: "Bearer " + simulator.JobToken,
			Body: map[string]any{"path": path, "resource_type": "state", "value": value},
		}
	}
	queue := request{
		Method: "GET", Path: base + "jobs/queue/list", Authorization: "Bearer " + simulator.JobToken,
		Query: url.Values{"script_path_exact": {simulator.ScriptPath}, "running": {"true"}},
	}
	wantEqual(t, "requests", got, []request{
		read("cache"), queue, read("cache"), read("failures"), write(failuresPath, map[string]any{}),
		write(cachePath, "a record, which another test pins"), read("failures"),
	})
}

// The input.

func TestBadInputSendsNothing(t *testing.T) {
	const required = `pass the servicenow resource as "$res:" followed by its path`
	const both = "set both username and password"
	for _, test := range []struct{ name, change, want string }{
		{"no instance_url", `{"instance_url": "  "}`, required},
		{"no client_id", `{"client_id": ""}`, required},
		{"no client_secret", `{"client_secret": " \n"}`, required},
		{"no password", `{"password": ""}`, both},
		{"a line break as password", `{"password": "\r\n"}`, both},
		{"no username", `{"username": " "}`, both},
		{"a password as address", `{"instance_url": "u:` + simulator.Sentinel + `@x"}`, "instance_url must be an address"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			_ = json.Unmarshal([]byte(test.change), &w.snow)
			got := w.check(windmill.ByHand, 0, test.want)
			wantEqual(t, "calls", got.calls, []string(nil))
		})
	}
	t.Run("an object in place of the resource", func(t *testing.T) {
		w := newWorld(t)
		w.snow = servicenow{}
		w.check(windmill.ByHand, 0, required)
	})
}

var addresses = []struct{ name, given, want string }{
	{"a URL", "https://dev12345.service-now.com", "https://dev12345.service-now.com"},
	{"slashes at the end", "https://dev12345.service-now.com//", "https://dev12345.service-now.com"},
	{"capitals", "HTTPS://DEV12345.Service-Now.com", "https://dev12345.service-now.com"},
	{"a host", "dev12345.service-now.com", "https://dev12345.service-now.com"},
	{"a name", "dev12345", "https://dev12345.service-now.com"},
	{"a name and a slash", "acme-dev/", "https://acme-dev.service-now.com"},
	{"a page", "https://dev12345.service-now.com/nav_to.do?uri=home.do#x", "https://dev12345.service-now.com"},
	{"a page without scheme", "dev12345.service-now.com/now/nav/ui/home", "https://dev12345.service-now.com"},
	{"any path at ServiceNow", "https://agency.servicenowservices.com/a/b", "https://agency.servicenowservices.com"},
	{"a page of a custom domain", "https://it.example.com/nav_to.do?uri=home.do", "https://it.example.com"},
	{"a new page of a custom domain", "https://it.example.com/now/nav/ui/home", "https://it.example.com"},
	{"a similar domain", "https://xservice-now.com/snow", "https://xservice-now.com/snow"},
	{"a gateway", "https://gw.example.com/snow/?", "https://gw.example.com/snow"},
	{"a gateway without a domain", "https://gateway/snow", "https://gateway/snow"},
	{"a gateway's endpoint", "https://gw.example.com/snow/oauth_token.do", "https://gw.example.com/snow"},
	{"a gateway's endpoint and a slash", "https://gw.example.com/snow/oauth_token.do/", "https://gw.example.com/snow"},
	{"a gateway's endpoint, a slash and a query", "https://gw.example.com/snow/oauth_token.do/?x", "https://gw.example.com/snow"},
	{"an empty part of a path", "https://gw.example.com/snow//oauth_token.do", "https://gw.example.com/snow"},
	{"an endpoint below a page", "https://it.example.com/now/oauth_token.do", "https://it.example.com"},
	{"an instance's endpoint", "https://it.example.com/oauth_token.do", "https://it.example.com"},
	{"an escaped path", "gw.example.com:8443/a%2Fb", "https://gw.example.com:8443/a%2Fb"},
	{"a port", "https://gateway:8443", "https://gateway:8443"},
	{"an IP address", "https://192.0.2.1", "https://192.0.2.1"},
	{"an IPv6 address", "https://[2001:db8::1]:8443/x", "https://[2001:db8::1]:8443/x"},
	{"HTTP on loopback", "http://127.0.0.1:8080", "http://127.0.0.1:8080"},
	{"HTTP on localhost", "http://LOCALHOST:8080", "http://localhost:8080"},

	{"only a slash", "/", ""},
	{"no host", "https://:443", ""},
	{"no name", ".service-now.com", ""},
	{"only hyphens", "---", ""},
	{"one slash", "https:/dev1.example.com", ""},
	{"no colon", "https//dev12345", ""},
	{"no slashes", "https:dev12345", ""},
	{"a port that is no number", "https://dev12345.service-now.com:https", ""},
	{"a backslash", `https://dev12345.service-now.com\.example.com`, ""},
	{"a name and a port", "gateway:8443", ""},
	{"a name and a path", "gateway/snow", ""},
	{"HTTP", "http://dev12345.service-now.com", ""},
	{"HTTP on a similar host", "http://localhost.example.com", ""},
	{"another scheme", "ftp://localhost", ""},
	{"a user", "https://admin:x@dev12345.service-now.com", ""},
	{"a user without scheme", "admin:x@dev12345", ""},
	{"an @ in a path", "https://gw.example.com/a@b", ""},
	{"a password with a slash", "https://admin:12/34@dev1.example.com", ""},
	{"a line break", "https://dev\n12345", ""},
	{"an escaped host", "https://dev%2e12345", ""},
	{"a Kelvin sign", "https://des\u212a.service-now.com", ""},
	{"an IPv6 zone", "https://[fe80::1%25eth0]", ""},
	{"a broken escape", "https://gw.example.com/a%4", ""},
}

func TestInstanceAddress(t *testing.T) {
	for _, test := range addresses {
		t.Run(test.name, func(t *testing.T) {
			got, ok := instanceAddress(test.given)
			if got != test.want || ok != (test.want != "") {
				t.Errorf("instanceAddress(%q) = %q, %t; want %q", test.given, got, ok, test.want)
			}
		})
	}
}

// FuzzInstanceAddress: an address is safe, names a host that was given, and stays as it is.
func FuzzInstanceAddress(f *testing.F) {
	for _, test := range addresses {
		f.Add(test.given)
	}
	safe := regexp.MustCompile(`^(https://|http://(localhost|127\.0\.0\.1)(:|/|$))[^@?#]*$`)
	f.Fuzz(func(t *testing.T, given string) {
		address, ok := instanceAddress(given)
		if !ok {
			return
		}
		again, _ := instanceAddress(address)
		parsed, err := url.Parse(address + "/oauth_token.do")
		if err != nil || !safe.MatchString(address) || again != address {
			t.Fatalf("instanceAddress(%q) = %q, which becomes %q: %v", given, address, again, err)
		}
		if !strings.Contains(strings.ToLower(given), strings.TrimSuffix(parsed.Hostname(), ".service-now.com")) {
			t.Errorf("instanceAddress(%q) = %q, a host that nobody named", given, address)
		}
	})
}

// The cache.

func TestWhoseTokenIsReused(t *testing.T) {
	for _, test := range []struct {
		name       string
		snow       string // a change of the credentials
		record     string // a change of the record
		isReusable bool
	}{
		{"the same credentials", `{}`, `{}`, true},
		{"the same instance, written otherwise", `{"instance_url": " SAME/ "}`, `{}`, true},
		{"another password", `{"password": "x"}`, `{}`, false},
		{"another user", `{"username": "x"}`, `{}`, false},
		{"another client", `{"client_id": "x"}`, `{}`, false},
		{"another secret", `{"client_secret": "x"}`, `{}`, false},
		{"no user", `{"username": "", "password": ""}`, `{}`, false},
		{"a letter moved between fields", `{"client_id": "clients", "username": "vc user"}`, `{}`, false},
		{"another instance", `{"instance_url": "OTHER"}`, `{}`, false},
		{"another instance in both", `{"instance_url": "OTHER"}`, `{"instance_url": "OTHER"}`, false},
		{"another instance in the record", `{}`, `{"instance_url": "OTHER"}`, false},
		{"another token", `{}`, `{"token": "planted"}`, false},
		{"a secret variable", `{}`, `{"token": "$var:f/x/y"}`, false},
		{"a token that is no text", `{}`, `{"token": {}}`, false},
		{"another token, and the real one under a similar name", `{}`, `{"token": "planted", "to\u212aen": "abc"}`, false},
		{"a later expiry", `{}`, `{"expires_at": 1772371800}`, false},
		{"another job", `{}`, `{"job": "x"}`, false},
		{"no job", `{}`, `{"job": null}`, false},
		{"another seal", `{}`, `{"seal": "` + strings.Repeat("0", 64) + `"}`, false},
		{"a seal that is no text", `{}`, `{"seal": 5}`, false},
		{"the Python script's record", `{}`, `{"seal": null, "job": null, "instance_url": null}`, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.store("abc", 10*time.Minute, "job-0")
			actual := strings.NewReplacer("OTHER", w.Serve(w.ServiceNow), "SAME", strings.ToUpper(w.InstanceURL))
			record := map[string]any{}
			w.Get(cachePath, &record)
			_ = json.Unmarshal([]byte(actual.Replace(test.record)), &record)
			w.Set(cachePath, record)
			_ = json.Unmarshal([]byte(actual.Replace(test.snow)), &w.snow)
			w.accept(w.snow, true)
			if test.isReusable {
				w.check(windmill.StepOfFlow, 0, "")
				return
			}
			w.check(windmill.StepOfFlow, 1, "")
			if w.cached().Token == "abc" {
				t.Error("the cache was not replaced")
			}
		})
	}
}

// The failures.

func TestHeldBack(t *testing.T) {
	refused := func(refusals int) failure {
		return failure{Job: "job-0", Outcome: "HOST answered 401", At: noon.Unix(), Hold: 600, Refusals: refusals}
	}
	failed := failure{Job: "job-0", Outcome: "HOST answered 503", At: noon.Unix(), Hold: 5}
	told := failure{Job: "job-0", Outcome: "HOST answered 429", At: noon.Unix(), Hold: 60}
	planted := failure{Job: "<#>", Outcome: "100 %", At: noon.Unix(), Hold: 1 << 60}
	after503 := failure{Job: "job-1", Outcome: "HOST answered 503", At: noon.Unix(), Hold: 5, Refusals: 2}
	const hand, schedule, step = "hand", "schedule", "step"
	const hidden = "(hidden: it may contain a secret)"
	const job0 = "job job-0 failed at 2026-03-01T12:00:00Z: HOST answered "
	const locked = "ServiceNow has refused these credentials 2 times and may lock the user. Flows and schedules will not log in"
	for _, test := range []struct {
		name      string
		last      failure
		startedBy string
		after     time.Duration
		want      string // a part of the error, or nothing if the run logs in
	}{
		{"failed", failed, step, 4 * time.Second, job0 + "503. Run again after 2026-03-01T12:00:05Z"},
		{"failed, later", failed, step, 5 * time.Second, ""},
		{"failed, schedule", failed, schedule, 4 * time.Second, job0 + "503"},
		{"failed, by hand", failed, hand, 4 * time.Second, job0 + "503"},
		{"failed, by hand, later", failed, hand, 5 * time.Second, ""},
		{"told to wait", told, step, 59 * time.Second, job0 + "429. Run again after 2026-03-01T12:01:00Z"},
		{"told to wait, later", told, step, time.Minute, ""},
		{"refused once", refused(1), step, 599 * time.Second, job0 + "401. Run again after 2026-03-01T12:10:00Z"},
		{"refused once, later", refused(1), step, 600 * time.Second, ""},
		{"refused once, schedule", refused(1), schedule, 599 * time.Second, job0 + "401"},
		{"refused once, schedule, later", refused(1), schedule, 600 * time.Second, ""},
		{"refused once, by hand", refused(1), hand, 59 * time.Second, "Run again after 2026-03-01T12:01:00Z"},
		{"refused once, by hand, later", refused(1), hand, time.Minute, ""},
		{"refused twice", refused(2), step, 400 * 24 * time.Hour, job0 + "401. " + locked},
		{"refused twice, schedule", refused(2), schedule, time.Hour, job0 + "401. " + locked},
		{"refused twice, by hand", refused(2), hand, 59 * time.Second, "Run again after 2026-03-01T12:01:00Z"},
		{"refused twice, by hand, later", refused(2), hand, time.Minute, ""},
		{"refused twice, then failed", after503, schedule, time.Hour, locked},
		{"the other clock is ahead by less than the hold", refused(1), step, -599 * time.Second, job0 + "401"},
		{"the other clock is ahead by the hold", refused(1), step, -600 * time.Second, ""},
		{"planted", planted, step, 599 * time.Second, "job " + hidden + " failed at 2026-03-01T12:00:00Z: " + hidden},
		{"planted, later", planted, step, 600 * time.Second, ""},
		{"nothing", failure{}, step, 0, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.fail(test.last)
			recorded := string(w.Windmill.Get(failuresPath))
			w.clock = noon.Add(test.after)
			startedBy := map[string][]string{hand: nil, schedule: windmill.BySchedule, step: windmill.StepOfFlow}
			if test.want == "" {
				w.check(startedBy[test.startedBy], 1, "")
				return
			}
			got := w.check(startedBy[test.startedBy], 0, test.want)
			if len(got.err) > 600 {
				t.Errorf("a failed job's result shows 600 characters, and the error has %d", len(got.err))
			}
			wantEqual(t, "the failures", string(w.Windmill.Get(failuresPath)), recorded)
		})
	}
}

// A row is a run and what it leaves on record. The rows follow one another.
func TestRefusals(t *testing.T) {
	w := newWorld(t)
	wrong := w.snow
	wrong.Password = simulator.Sentinel + "wrong"
	right := w.snow
	for _, test := range []struct {
		name      string
		after     time.Duration // since the run before
		snow      servicenow
		startedBy []string
		logins    int
		err       string
		refusals  int
	}{
		{"the first refusal", 0, wrong, windmill.BySchedule, 1, "answered 401", 1},
		{"held back", 599 * time.Second, wrong, windmill.StepOfFlow, 0, "Run again after", 1},
		{"the second refusal", time.Second, wrong, windmill.StepOfFlow, 1, "answered 401", 2},
		{"held back for good", 24 * time.Hour, wrong, windmill.BySchedule, 0, "may lock the user", 2},
		{"the right credentials", 0, right, windmill.BySchedule, 1, "", 2},
		{"the wrong ones are not forgotten", 0, wrong, windmill.BySchedule, 0, "may lock the user", 2},
		{"by hand", 0, wrong, windmill.ByHand, 1, "answered 401", 3},
		{"by hand, too early", 59 * time.Second, wrong, windmill.ByHand, 0, "Run again after", 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.t = t
			w.clock = w.clock.Add(test.after)
			w.snow = test.snow
			w.check(test.startedBy, test.logins, test.err)
			if got := w.failures()[wrong.seal()].Refusals; got != test.refusals {
				t.Errorf("refusals on record = %d; want %d", got, test.refusals)
			}
		})
	}
	t.Run("repaired in ServiceNow and run by hand", func(t *testing.T) {
		w.t = t
		w.clock = w.clock.Add(time.Second)
		w.accept(wrong, true)
		w.check(windmill.ByHand, 1, "")
		wantEqual(t, "the failures", w.failures(), map[string]failure{})
		w.check(windmill.BySchedule, 1, "")
	})
	t.Run("the record is deleted", func(t *testing.T) {
		w := newWorld(t)
		w.fail(failure{Job: "job-0", Outcome: "401", At: noon.Unix(), Hold: 600, Refusals: 2})
		w.check(windmill.BySchedule, 0, "may lock the user")
		w.Windmill.Delete(failuresPath)
		w.check(windmill.BySchedule, 1, "")
	})
}

func TestClientCredentialsAreNeverHeldBackForGood(t *testing.T) {
	w := newWorld(t)
	w.snow.Username, w.snow.Password = "", ""
	for range 4 {
		got := w.check(windmill.BySchedule, 1, "glide.oauth.inbound.client.credential.grant_type.enabled")
		got.err += w.check(windmill.BySchedule, 0, "Run again after").err
		if strings.Contains(got.err, "lock") {
			t.Errorf("the error speaks of locking: %s", got.err)
		}
		w.clock = w.clock.Add(10 * time.Minute)
	}
}

func TestOtherFailuresAreKept(t *testing.T) {
	other := failure{Job: "job-9", Outcome: "x", At: 1, Hold: 5, Refusals: 1}
	for _, isAccepted := range []bool{true, false} {
		t.Run(fmt.Sprint("accepted ", isAccepted), func(t *testing.T) {
			w := newWorld(t)
			w.accept(w.snow, isAccepted)
			w.Set(failuresPath, map[string]failure{"other": other, w.snow.seal(): {Refusals: 1, Hold: 5}})
			w.run(windmill.ByHand)
			wantEqual(t, "the other failure", w.failures()["other"], other)
		})
	}
}

func TestTokenThatCannotBeStoredIsAFailure(t *testing.T) {
	w := newWorld(t)
	w.Windmill.Intercept = answers(6, "502 x", "502 x")
	const want = "could not write " + cachePath + ": Windmill answered 502 Bad Gateway, x"
	w.check(windmill.StepOfFlow, 1, want)
	w.check(windmill.StepOfFlow, 0, want)
	w.clock = w.clock.Add(5 * time.Second)
	w.check(windmill.StepOfFlow, 1, "")
}

// The queue.

func TestTurn(t *testing.T) {
	const own = "job-5"
	type event struct {
		at time.Duration // after the run began
		do func(w *world)
	}
	// The run starts at noon, as a job of the kind script.
	job := func(id, kind string, startedAt time.Time) windmill.QueuedJob {
		return windmill.QueuedJob{ID: id, Kind: kind, ScriptPath: simulator.ScriptPath, StartedAt: startedAt}
	}
	earlier := job("job-1", "script", noon.Add(-time.Microsecond))
	stores := func(token string, lifetime time.Duration) func(w *world) {
		return func(w *world) { w.store(token, lifetime, "job-1") }
	}
	fails := func(w *world) {
		w.fail(failure{Job: "job-1", Outcome: "HOST answered 503", At: w.clock.Unix(), Hold: 5})
	}
	for _, test := range []struct {
		name     string
		queue    []windmill.QueuedJob
		leaves   time.Duration // when the jobs leave the queue; 0: never
		then     event
		took     time.Duration
		logins   int
		err      string
		waitsFor string // the first job that the run waits for; empty for any
	}{
		{name: "alone", logins: 1},
		{name: "an earlier job stores a token", queue: []windmill.QueuedJob{earlier},
			then: event{3 * time.Second, stores("abc", time.Hour)}, took: 3 * time.Second},
		{name: "an earlier job stores a token that is valid for a second", queue: []windmill.QueuedJob{earlier},
			then: event{3 * time.Second, stores("abc", time.Second)}, took: 3 * time.Second},
		{name: "ServiceNow repeats the token and its expiry", queue: []windmill.QueuedJob{earlier},
			then: event{3 * time.Second, stores("old", 30*time.Second)}, took: 3 * time.Second},
		{name: "an earlier job stores a token that has expired", queue: []windmill.QueuedJob{earlier},
			leaves: 3 * time.Second, then: event{3 * time.Second, stores("abc", 0)}, took: 3 * time.Second, logins: 1},
		{name: "an earlier job fails", queue: []windmill.QueuedJob{earlier}, then: event{3 * time.Second, fails},
			took: 3 * time.Second, err: "did not log in to ServiceNow: job job-1 failed at 2026-03-01T12:00:03Z: HOST"},
		{name: "an earlier job is killed", queue: []windmill.QueuedJob{earlier}, leaves: 3 * time.Second,
			took: 3 * time.Second, logins: 1},
		{name: "an earlier job is stuck", queue: []windmill.QueuedJob{earlier}, took: 24500 * time.Millisecond, logins: 1},
		{name: "two earlier jobs are stuck", took: 30 * time.Second, err: "other jobs of this script took longer than 30s",
			queue: []windmill.QueuedJob{earlier, job("job-2", "script", noon.Add(-time.Microsecond))}},
		{name: "a later job", queue: []windmill.QueuedJob{job("job-1", "script", noon.Add(time.Microsecond))}, logins: 1},
		{name: "a job that waits for a worker", queue: []windmill.QueuedJob{job("job-1", "script", time.Time{})}, logins: 1},
		{name: "a tie, and its ID is smaller", queue: []windmill.QueuedJob{job("job-4", "script", noon)},
			leaves: 3 * time.Second, took: 3 * time.Second, logins: 1},
		{name: "a tie, and its ID is larger", queue: []windmill.QueuedJob{job("job-6", "script", noon)}, logins: 1},
		{name: "a job that started 54 s earlier", queue: []windmill.QueuedJob{job("job-1", "script", noon.Add(-runLimit))},
			leaves: 3 * time.Second, took: 3 * time.Second, logins: 1},
		{name: "a job that started longer ago", logins: 1,
			queue: []windmill.QueuedJob{job("job-1", "script", noon.Add(-runLimit-time.Microsecond))}},
		{name: "a deployment", queue: []windmill.QueuedJob{job("job-1", "dependencies", noon.Add(-time.Second))}, logins: 1},
		{name: "a test in the editor", queue: []windmill.QueuedJob{job("job-1", "preview", noon.Add(-time.Second))}, logins: 1},
		{name: "another script", logins: 1, queue: []windmill.QueuedJob{
			{ID: "job-1", Kind: "script", ScriptPath: "f/ServiceNow/other", StartedAt: noon.Add(-time.Second)}}},
		{name: "three jobs, one after the other", queue: []windmill.QueuedJob{
			job("job-2", "script", noon.Add(-2*time.Second)), job("job-3", "script", noon.Add(-3*time.Second)), earlier},
			then: event{20 * time.Second, stores("abc", time.Hour)}, took: 20 * time.Second, waitsFor: "job-3"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.store("old", 30*time.Second, "job-0")
			w.onSleep = func() {
				if test.then.do != nil && w.clock.Sub(noon) == test.then.at {
					test.then.do(w)
				}
				if test.leaves > 0 && w.clock.Sub(noon) == test.leaves {
					for _, queued := range test.queue {
						w.Windmill.Enqueue(windmill.QueuedJob{ID: queued.ID})() // removes every job of this ID
					}
				}
			}
			for _, queued := range test.queue {
				w.Windmill.Enqueue(queued)
			}
			ownJob := simulator.Job(windmill.StepOfFlow)
			ownJob.ID = own
			got := w.runJob(ownJob)
			if got.took != test.took || got.logins != test.logins {
				t.Errorf("%d logins after %s; want %d after %s", got.logins, got.took, test.logins, test.took)
			}
			if !strings.Contains(got.err, test.err) || (test.err == "") != (got.err == "") {
				t.Errorf("error = %q; want %q", got.err, test.err)
			}
			isAnnounced := strings.HasPrefix(got.log, "Waiting for job "+test.waitsFor)
			if isAnnounced != (test.took > 0) {
				t.Errorf("log = %s", got.log)
			}
		})
	}
}

func TestRunThatIsMissingFromTheQueue(t *testing.T) {
	w := newWorld(t)
	w.Windmill.Enqueue(windmill.QueuedJob{
		ID: "job-1", Kind: "script", ScriptPath: simulator.ScriptPath, StartedAt: noon.Add(-time.Second),
	})
	w.check([]string{"WM_JOB_ID=cancelled"}, 1, "")
}

// A job that leaves the queue has stored its outcome, so a run that sees it leave must see the outcome, too.
func TestOutcomeStoredDuringALook(t *testing.T) {
	t.Run("a token, before the queue is read", func(t *testing.T) {
		w := newWorld(t)
		w.Windmill.Intercept = before(2, func() { w.store("abc", time.Hour, "job-1") })
		w.check(windmill.ByHand, 0, "")
	})
	t.Run("a token, after the queue is read", func(t *testing.T) {
		w := newWorld(t)
		w.Windmill.Intercept = before(3, func() { w.store("abc", time.Hour, "job-1") })
		w.check(windmill.ByHand, 0, "")
	})
	t.Run("a failure, after the cache is read", func(t *testing.T) {
		w := newWorld(t)
		last := failure{Job: "job-1", Outcome: "x", At: noon.Unix(), Hold: 5}
		w.Windmill.Intercept = before(4, func() { w.fail(last) })
		w.check(windmill.ByHand, 0, "job job-1 failed")
	})
}

// Windmill's API.

func TestFaultsOfWindmill(t *testing.T) {
	const html = "<html>\nbusy</html>"
	const folder = ". Check that the folder f/ServiceNow exists and that u/user may read and write in it"
	const server = ". Check BASE_INTERNAL_URL and Windmill's server log"
	const denied = `SqlErr: error returned from database: new row violates row-level security policy for table "resource"`
	const clients = "SqlErr: error returned from database: sorry, too many clients already"
	for _, test := range []struct {
		name     string
		answer   string
		isFor    int    // so many requests
		want     string // a part of the error, or nothing if a second request helps
		isRead   bool   // only for calls that read
		isNoRead bool   // only for calls that write
	}{
		{name: "502 once", answer: "502 " + html, isFor: 1},
		{name: "500 once", answer: "500 busy", isFor: 1},
		{name: "the connection ends once", answer: "", isFor: 1},
		{name: "too many clients once", answer: "400 " + clients, isFor: 1},
		{name: "too many clients once, in 2024's words", answer: "400 Sql error: too many clients", isFor: 1},
		{name: "502", answer: "502 " + html, isFor: 9, want: "answered 502 Bad Gateway, <html>" + server},
		{name: "an unknown status", answer: "599 x", isFor: 9, want: "answered 599, x" + server},
		{name: "too many clients", answer: "400 " + clients, isFor: 9, want: "Bad Request, " + clients + server},
		{name: "a secret in the answer", answer: "500 " + simulator.JobToken, isFor: 9, want: "(hidden"},
		{name: "the connection ends", answer: "", isFor: 99, want: "did not answer: EOF. Check BASE_INTERNAL_URL"},
		{name: "no HTTP", answer: simulator.JobToken + "\r\n\r\n", isFor: 99, want: "transport connection broken: malformed HTTP response. Check"},
		{name: "101", answer: "HTTP/1.1 101 x\r\n\r\n", isFor: 1, want: "answered 101 Switching Protocols, (empty)" + server},
		{name: "200 with a page", answer: "200 " + html, isFor: 1, want: "answered 200 OK, not the expected JSON" + server},
		{name: "200 with half a record", answer: `200 {"token":"abc`, isFor: 1, want: "200 OK, not the expected JSON" + server},
		{name: "an invalid token", answer: "401 Not authorized: Unauthorized\n" + simulator.JobToken[:9], isFor: 1,
			want: "answered 401 Unauthorized, Not authorized: Unauthorized. Windmill has rejected WM_TOKEN. Run the job again"},
		{name: "an invalid token, in 2025's words", answer: "401 Unauthorized", isFor: 1, want: ". Windmill has rejected WM_TOKEN"},
		{name: "no right to read", answer: "401 Not authorized: You don't have access to it:\nperms", isFor: 1,
			want: "answered 401 Unauthorized, Not authorized: You don't have access to it" + folder},
		{name: "no right to write", answer: "400 " + denied, isFor: 1, want: denied + folder},
		{name: "a protection rule", answer: "403 Permission denied: x", isFor: 1, want: "Permission denied: x" + folder},
		{name: "404 of a gateway", answer: "404 " + html, isFor: 1, want: "answered 404 Not Found, <html>" + server},
		{name: "another success", answer: "202 []", isFor: 1, want: "answered 202 Accepted, not the expected JSON" + server},
		{name: "400 in the words of a 404", answer: "400 Not found: Resource x", isFor: 1,
			want: "answered 400 Bad Request, Not found: Resource x" + folder},
		{name: "404 for a write", answer: "404 Not found: Resource x", isFor: 1, isNoRead: true,
			want: "answered 404 Not Found, Not found: Resource x" + server},
		{name: "200 for a write", answer: "200 {}", isFor: 1, isNoRead: true, want: "answered 200 OK, not the expected JSON"},
	} {
		for i, call := range coldCalls {
			isWrite := strings.HasPrefix(call, "POST")
			if test.isNoRead && !isWrite {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d %s", test.name, i+1, call), func(t *testing.T) {
				w := newWorld(t)
				w.Set(cachePath, json.RawMessage(`{"token": "of the Python script", "expires_at": 1.5}`))
				w.Windmill.Intercept = answers(i+1, many(test.answer)[:test.isFor]...)
				verb := map[bool]string{true: "write ", false: "read "}[isWrite]
				path := map[string]string{"cache": cachePath, "failures": failuresPath, "queue": "the job queue"}
				_, object, _ := strings.Cut(call, " ")
				fault := "could not " + verb + path[object] + ": Windmill "
				if test.want == "" {
					w.check(windmill.BySchedule, 1, "")
					return
				}
				switch {
				case i < 5:
					got := w.check(windmill.BySchedule, 0, "did not log in to ServiceNow: "+fault)
					wantIn(t, got.err, test.want)
				case i == 5:
					wantIn(t, w.check(windmill.BySchedule, 1, fault).err, test.want)
				default: // The token is stored.
					wantIn(t, w.check(windmill.BySchedule, 1, "").log, "Later runs will not know how this login ended: "+fault)
					return
				}
				wantEqual(t, "the token", w.Token(), "of the Python script")
			})
		}
	}
}

// wantIn checks that text contains a part.
func wantIn(t testing.TB, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Errorf("%q does not contain %q", text, part)
	}
}

func TestRights(t *testing.T) {
	for _, test := range []struct {
		name    string
		folders map[string]bool
		want    string
	}{
		{"may only read", map[string]bool{"f/ServiceNow": false}, "could not write " + failuresPath},
		{"may do nothing", nil, "could not read " + cachePath},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.store("abc", time.Minute, "job-0")
			w.Windmill.Users[simulator.JobToken] = windmill.User{Name: "u/user", Folders: test.folders}
			wantIn(t, w.check(windmill.StepOfFlow, 0, test.want).err, "u/user may read and write in it")
		})
	}
}

// ServiceNow's token endpoint.

func TestLoginOnTheWire(t *testing.T) {
	w := newWorld(t)
	trimmed := w.snow
	trimmed.Password = " " + w.snow.Password + " "
	w.accept(trimmed, true)
	w.snow = servicenow{
		InstanceURL:  " " + w.InstanceURL + "/\n",
		ClientID:     " client\t",
		ClientSecret: trimmed.ClientSecret + " ",
		Username:     "svc user\n",
		Password:     trimmed.Password + "\r\n",
	}
	type request struct{ Method, URL, ContentType, Accept, Authorization string }
	var got request
	w.ServiceNow.Intercept = func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		got = request{r.Method, r.RequestURI, r.Header.Get("Content-Type"), r.Header.Get("Accept"), r.Header.Get("Authorization")}
		return false
	}
	w.check(windmill.ByHand, 1, "")
	want := request{"POST", "/oauth_token.do", "application/x-www-form-urlencoded", "application/json", ""}
	wantEqual(t, "the request", got, want)
	w.snow.Username, w.snow.Password, trimmed.Username, trimmed.Password = " ", "", "", ""
	w.accept(trimmed, true)
	w.check(windmill.ByHand, 1, "")
	wantEqual(t, "the forms", w.ServiceNow.Forms(), []url.Values{{
		"grant_type": {"password"}, "client_id": {"client"}, "client_secret": {trimmed.ClientSecret},
		"username": {"svc user"}, "password": {" " + simulator.Account.Password + " "},
	}, {
		"grant_type": {"client_credentials"}, "client_id": {"client"}, "client_secret": {trimmed.ClientSecret},
	}})
}

func TestTokens(t *testing.T) {
	for _, test := range []struct {
		name, answer string
		lifetime     int64 // from before the request, which takes 15 s
	}{
		{"a number", `{"access_token":"abc","expires_in":1799}`, 1799},
		{"a quoted number", `{"access_token":"abc","expires_in":"120"}`, 120},
		{"an exponent", `{"access_token":"abc","expires_in":18e2}`, 1800},
		{"a fraction", `{"access_token":"abc","expires_in":99.9}`, 99},
		{"no expires_in", ` {"access_token":"abc"} `, 1800},
		{"expires_in null", `{"access_token":"abc","expires_in":null}`, 1800},
		{"a very long time", `{"access_token":"abc","expires_in":1e300}`, 1e9},
		{"a second more than the request took", `{"access_token":"abc","expires_in":16}`, 16},
		{"all signs", `{"access_token":"aZ09-._~+/="}`, 1800},
		{"an empty error", `{"access_token":"abc","error":""}`, 1800},
		{"an error that is null", `{"access_token":"abc","error":null}`, 1800},
		{"an error object", `{"access_token":"abc","error":{"message":"x"}}`, 1800},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.ServiceNow.Intercept = func(rw http.ResponseWriter, r *http.Request, n int) bool {
				w.clock = w.clock.Add(15 * time.Second)
				return answers(1, "200 "+test.answer)(rw, r, n)
			}
			got := w.check(windmill.BySchedule, 1, "")
			wantIn(t, got.log, fmt.Sprintf("Received a token that is valid for %s.", time.Duration(test.lifetime-15)*time.Second))
			if got := w.cached().ExpiresAt - noon.Unix(); got != test.lifetime {
				t.Errorf("the token expires after %d s; want %d", got, test.lifetime)
			}
		})
	}
}

const (
	denied  = `{"error_description":"access_denied","error":"server_error"}`
	limited = `{"error":{"message":"Rate limit exceeded"},"status":"failure"}`
	token   = `{"access_token":"abc","expires_in":1799}`
	// The two kinds of advice for a refusal, and the advice for what is no OAuth answer.
	checkUser = ". Check client_id, client_secret, username and password. The user must be active"
	checkURL  = ". This is not a token endpoint's response. Check instance_url, the credentials, and any gateway"
	busy      = ". The instance, or a gateway in between, is busy or failing"
	away      = ". Check instance_url, and this worker's network, DNS, certificates and proxy"
)

func TestAnswers(t *testing.T) {
	for _, test := range []struct {
		name     string
		answers  []string
		refusals int
		hold     int64
		want     string // a part of the error, or nothing for success
	}{
		{"refused", []string{"401 " + denied}, 1, 600,
			"answered 401 Unauthorized, error server_error, error_description access_denied" + checkUser},
		{"401 of a proxy", []string{"401 <html>no</html>"}, 1, 600, "answered 401 Unauthorized" + checkURL},
		{"401 with nothing", []string{"401"}, 1, 600, "answered 401 Unauthorized" + checkURL},
		{"401 with a rate limit's body", []string{"401 " + limited}, 1, 600, "answered 401 Unauthorized" + checkURL},
		{"401 with a token", []string{"401 " + token}, 1, 600, "answered 401 Unauthorized" + checkURL},
		{"401 that breaks off", []string{"HTTP/1.1 401 x\r\nContent-Length: 99\r\n\r\n{"}, 1, 600, "answered 401 Unauthorized"},
		{"400 with an error", []string{`400 {"error":"invalid_grant"}`}, 1, 600, "400 Bad Request, error invalid_grant" + checkUser},
		{"200 with an error", []string{`200 {"error":"x","access_token":"abc"}`}, 1, 600, "answered 200 OK, error x" + checkUser},
		{"fields of another type", []string{`401 {"error":"x","error_description":{},"expires_in":[],"access_token":5}`}, 1, 600,
			"answered 401 Unauthorized, error x" + checkUser},
		{"400 of a gateway", []string{"400 <html>"}, 0, 5, "answered 400 Bad Request" + checkURL},
		{"403", []string{`403 {"error":"x"}`}, 0, 5, "answered 403 Forbidden, error x. Check the instance's IP address access control"},
		{"404", []string{"404 <html>"}, 0, 5, "answered 404 Not Found" + checkURL},
		{"429", []string{"429 " + limited}, 0, 5, "answered 429 Too Many Requests" + busy},
		{"429 that says how long", []string{retryAfter("429 x", "60")}, 0, 60, "Too Many Requests, Retry-After 60" + busy},
		{"429 that says very long", []string{retryAfter("429 x", "99999")}, 0, 99999, "Retry-After 99999" + busy},
		{"503 that says how long", []string{retryAfter("503 x", "60")}, 0, 60, "503 Service Unavailable, Retry-After 60" + busy},
		{"a date", []string{retryAfter("429 x", "Sun, 01 Mar 2026 12:05:00 GMT")}, 0, 5, "Retry-After Sun, 01 Mar"},
		{"a secret in a header", []string{retryAfter("429 x", simulator.Account.Password)}, 0, 5, "Retry-After (hidden"},
		{"500", []string{"500 " + denied}, 0, 5, "500 Internal Server Error, error server_error, error_description access_denied" + busy},
		{"505", []string{"505 x"}, 0, 5, "answered 505 HTTP Version Not Supported" + busy},
		{"an unknown status", []string{"599 x"}, 0, 5, "answered 599" + busy},
		{"a redirect to nowhere", []string{"HTTP/1.1 302 x\r\nLocation: http://[\r\n\r\n"}, 0, 5, "302 Found. The redirect"},
		{"a redirect", []string{"HTTP/1.1 307 x\r\nLocation: https://x.example.com\r\n\r\n"}, 0, 5,
			"answered 307 Temporary Redirect. The redirect was not followed. Set instance_url"},
		{"101", []string{"HTTP/1.1 101 x\r\n\r\n"}, 0, 5, "answered 101 Switching Protocols" + checkURL},
		{"hibernating", []string{`200 <div class="instance-hibernating-page">`}, 0, 5, "200 OK. The instance is hibernating. Wake it"},
		{"200 with a page", []string{"200 <html>"}, 0, 5, "answered 200 OK" + checkURL},
		{"200 with nothing", []string{"200"}, 0, 5, "answered 200 OK" + checkURL},
		{"200 with null", []string{"200 null"}, 0, 5, "answered 200 OK" + checkURL},
		{"200 with a rate limit's body", []string{"200 " + limited}, 0, 5, "answered 200 OK" + checkURL},
		{"an empty token", []string{`200 {"access_token":""}`}, 0, 5, "answered 200 OK" + checkURL},
		{"a token with a blank", []string{`200 {"access_token":"a b"}`}, 0, 5, "answered 200 OK" + checkURL},
		{"a token that names a variable", []string{`200 {"access_token":"$var:f/x/y"}`}, 0, 5, "answered 200 OK" + checkURL},
		{"more than JSON", []string{"200 " + token + "x"}, 0, 5, "answered 200 OK" + checkURL},
		{"a body without end", []string{`200 {"access_token":"` + strings.Repeat("a", maxBody) + `"}`}, 0, 5, "200 OK" + checkURL},

		// These may pass, so the run tries twice.
		{"502, then a token", []string{"502", "200 " + token}, 0, 0, ""},
		{"503, then a token", []string{"503", "200 " + token}, 0, 0, ""},
		{"504, then a token", []string{"504", "200 " + token}, 0, 0, ""},
		{"no answer, then a token", []string{"", "200 " + token}, 0, 0, ""},
		{"half an answer, then a token", []string{"HTTP/1.1 200 x\r\nContent-Length: 99\r\n\r\n" + token, "200 " + token}, 0, 0, ""},
		{"an expired token, then a token", []string{`200 {"access_token":"abc","expires_in":0}`, "200 " + token}, 0, 0, ""},
		{"503 twice", []string{"503", "503"}, 0, 5, "answered 503 Service Unavailable" + busy},
		{"503, then refused", []string{"503", "401 " + denied}, 1, 600, "answered 401 Unauthorized, error server_error"},
		{"no answer", []string{"", ""}, 0, 5, "did not answer: EOF" + away},
		{"no HTTP", many(simulator.Account.Password + "\r\n\r\n")[:2], 0, 5, "malformed HTTP status code" + away},
		{"an expired token", many(`200 {"access_token":"abc","expires_in":0}`)[:2], 0, 5,
			"sent a token that has already expired, expires_in 0. Run again"},
		{"a negative lifetime", many(`200 {"access_token":"abc","expires_in":-5}`)[:2], 0, 5, "already expired"},
		{"a lifetime that is text", many(`200 {"access_token":"abc","expires_in":"soon"}`)[:2], 0, 5, "already expired"},
		{"a lifetime that is no number", many(`200 {"access_token":"abc","expires_in":"NaN"}`)[:2], 0, 5, "already expired"},
		{"a lifetime that is an object", many(`200 {"access_token":"abc","expires_in":{}}`)[:2], 0, 5, "already expired"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.ServiceNow.Intercept = answers(1, test.answers...)
			const python = `{"token": "of the Python script", "expires_at": 1772366400.5}`
			w.Windmill.Set(cachePath, json.RawMessage(python))
			got := w.check(windmill.BySchedule, len(test.answers), test.want)
			pause := time.Duration(len(test.answers)-1) * time.Second
			if got.took != pause || strings.Count(got.log, ". Trying once more.\n") != len(test.answers)-1 {
				t.Errorf("took %s; want %s\nlog: %s", got.took, pause, got.log)
			}
			if test.want == "" {
				wantEqual(t, "the token", w.Token(), "abc")
				return
			}
			wantEqual(t, "the cache", string(w.Windmill.Get(cachePath)), python)
			recorded := w.failures()[w.snow.seal()]
			if recorded.Refusals != test.refusals || recorded.Hold != test.hold || recorded.At != w.clock.Unix() {
				t.Errorf("recorded %+v; want %d refusals and a hold of %d s", recorded, test.refusals, test.hold)
			}
			if !strings.HasPrefix(got.err, recorded.Outcome+". ") || !strings.HasPrefix(got.err, w.InstanceURL) {
				t.Errorf("recorded %q for the error %q; both must begin with who was asked", recorded.Outcome, got.err)
			}
		})
	}
}

// retryAfter is an answer with this header.
func retryAfter(status, value string) string {
	return "HTTP/1.1 " + status + "\r\nRetry-After: " + value + "\r\nContent-Length: 0\r\n\r\n"
}

// Go may repeat an HTTP/2 request by itself, so the run must not offer HTTP/2.
func TestHTTP2IsNotOffered(t *testing.T) {
	w := newWorld(t)
	var offered [][]string
	server := httptest.NewUnstartedServer(w.ServiceNow)
	server.TLS = &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		offered = append(offered, hello.SupportedProtos)
		return nil, nil
	}}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	w.snow.InstanceURL = server.URL
	w.check(windmill.ByHand, 0, "certificate signed by unknown authority"+away)
	wantEqual(t, "the offered protocols", offered, [][]string{nil, nil})
}

func TestInstanceThatIsNotThere(t *testing.T) {
	w := newWorld(t)
	w.snow.InstanceURL = "http://127.0.0.1:1"
	got := w.check(windmill.ByHand, 0, "connect: connection refused"+away)
	wantIn(t, got.log, "connection refused. Trying once more.\n")
}

func TestQuotes(t *testing.T) {
	const hidden = "(hidden: it may contain a secret)"
	password, secret := simulator.Account.Password, simulator.Account.ClientSecret
	long := strings.Repeat("a", maxQuote)
	describe := func(text string) string {
		body, _ := json.Marshal(map[string]string{"error": "x", "error_description": text})
		return "401 " + string(body)
	}
	for _, test := range []struct{ name, answer, want string }{
		{"plain signs", describe("All of .,:;'/()[]-_>*"), "All of .,:;'/()[]-_>*"},
		{"French", describe("Accès refusé à l'utilisateur"), "Accès refusé à l'utilisateur"},
		{"Japanese", describe("アクセス拒否。"), "アクセス拒否。"},
		{"Hindi", describe("प्रवेश निषेध"), "प्रवेश निषेध"},
		{"typographic quotes", describe("„svc“ – verrouillé"), "„svc“ – verrouillé"},
		{"an invisible character", describe("s3ntinel\u200b Pass*word"), hidden},
		{"as long as may be", describe(long), long},
		{"too long", describe(long + "a"), hidden},
		{"the password", describe("not " + password + "!"), hidden},
		{"in capitals", describe(strings.ToUpper(password)), hidden},
		{"the client secret", describe(secret), hidden},
		{"Windmill's token", describe(simulator.JobToken), hidden},
		{"as in a form", describe(url.QueryEscape(password)), hidden},
		{"as in a path", describe(url.PathEscape(password)), hidden},
		{"as in HTML", describe("s&#51;ntinel Pass*word"), hidden},
		{"a percent sign", describe("100 %"), hidden},
		{"an ampersand", describe("a&b"), hidden},
		{"a plus sign", describe("a+b"), hidden},
		{"a backslash", describe(`a\b`), hidden},
		{"a brace", describe("{"), hidden},
		{"a line break", describe("a\nb"), hidden},
		{"in the error", `400 {"error":"` + password + `"}`, hidden},
		{"the cached token", describe("not s3ntinelCached!"), hidden},
		{"the new access token", `200 {"error":"s3ntinelX","access_token":"s3ntinelX"}`, hidden},
		{"the new refresh token", `200 {"error":"s3ntinelX","refresh_token":"s3ntinelX"}`, hidden},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.snow.Password = " " + password + " " // An answer may leave out the blanks.
			w.store("s3ntinelCached", time.Hour, "job-0")
			w.ServiceNow.Intercept = answers(1, test.answer)
			w.check(windmill.ByHand, 1, test.want)
		})
	}
}

// Whatever others send or write, a run ends with OK and a token, or with an error, and repeats no secret.

func FuzzAnswer(f *testing.F) {
	f.Add("HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n" + token)
	f.Add("HTTP/1.1 401 Unauthorized\r\n\r\n" + denied)
	f.Add("HTTP/1.1 429 x\r\nRetry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\n\r\n" + limited)
	f.Fuzz(func(t *testing.T, answer string) {
		w := newWorld(t)
		w.ServiceNow.Intercept = func(rw http.ResponseWriter, r *http.Request, n int) bool {
			return answers(1, "", answer)(rw, r, 2)
		}
		got := w.run(windmill.ByHand)
		isGiven := w.Token() != "" && strings.Contains(answer, "200") && !strings.ContainsAny(w.Token(), " $:\"")
		if (got.err == "") != isGiven || (isGiven && w.cached().lifetime() <= 0) {
			t.Errorf("error %q, token %q for %s", got.err, w.Token(), w.cached().lifetime())
		}
	})
}

func FuzzResources(f *testing.F) {
	f.Add(`{"token":"abc","expires_at":99999999999,"instance_url":"x","job":"y","seal":"z"}`, `{"KEY":{"at":"x"}}`)
	f.Add(`{"token":{},"expires_at":"x"}`, `{"KEY":{"job":"x","refusals":-1,"hold":99999999999,"at":1772366400}}`)
	for _, content := range []string{`null`, `5`, `"$var:f/x/y"`, `[]`, `{}`, `{"KEY":null}`} {
		f.Add(content, content)
	}
	f.Fuzz(func(t *testing.T, cached, failures string) {
		for _, isAccepted := range []bool{true, false} {
			w := newWorld(t)
			w.accept(w.snow, isAccepted)
			failures := strings.ReplaceAll(failures, "KEY", w.snow.seal())
			if !json.Valid([]byte(cached)) || !json.Valid([]byte(failures)) {
				return
			}
			w.Windmill.Set(cachePath, json.RawMessage(cached))
			w.Windmill.Set(failuresPath, json.RawMessage(failures))
			got := w.run(windmill.StepOfFlow)
			if got.err == "" && got.logins == 0 {
				t.Errorf("the run believed %s", cached)
			}
			if _, isRecorded := w.failures()[w.snow.seal()]; got.logins > 0 && isRecorded == isAccepted {
				t.Errorf("accepted: %t, and recorded as a failure: %t", isAccepted, isRecorded)
			}
		}
	})
}

func FuzzQueue(f *testing.F) {
	f.Add(`[{"id":"job-1","job_kind":"script","started_at":"2026-03-01T11:59:59.000001Z"}]`)
	f.Add(`[{"id":"job-1","job_kind":"script","started_at":null},null,{}]`)
	f.Add(`{"id":5}`)
	f.Fuzz(func(t *testing.T, queue string) {
		w := newWorld(t)
		w.Windmill.Intercept = func(rw http.ResponseWriter, r *http.Request, n int) bool {
			return strings.HasSuffix(r.URL.Path, "queue/list") && answers(n, "200 "+queue)(rw, r, n)
		}
		got := w.run(windmill.StepOfFlow)
		if got.took > turnLimit || (got.err == "") != (got.logins == 1) {
			t.Errorf("%d logins after %s, error %q", got.logins, got.took, got.err)
		}
	})
}

// The repository, and a year.

func TestFilesAgreeWithMainGo(t *testing.T) {
	read := func(name string) string {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	head := regexp.MustCompile(`(?s)^package inner\n.*\n//require (\S+ v\S+)\n.*\nfunc main\(snow servicenow\) \(string, error\) {\n`)
	require := head.FindStringSubmatch(read("main.go"))
	if require == nil {
		t.Fatal("main.go must begin with its package, require the client, and have Windmill's main")
	}
	wantIn(t, read("go.mod"), "\t"+require[1]+"\n")
	for _, want := range []string{
		"format: resource-servicenow", "`instance_url`", "`client_id`", "`client_secret`", "`username`", "`password`",
		cachePath, failuresPath, "\ntimeout: 90\n",
	} {
		wantIn(t, read("script.yaml"), want)
	}
}

// TestYear simulates a week, or as many days as SIMULATED_DAYS says: a schedule every 15 minutes, a hundred steps a
// day, and passwords that change in ServiceNow a day before they change in Windmill.
func TestYear(t *testing.T) {
	days, _ := strconv.Atoi(os.Getenv("SIMULATED_DAYS"))
	days = max(days, 7)
	period := 96 * max(days/10, 3) // in quarters of an hour
	for _, lockAfter := range []int{5, 3} {
		t.Run(fmt.Sprintf("%d refusals lock", lockAfter), func(t *testing.T) {
			w := newWorld(t)
			w.ServiceNow.LockAfter = lockAfter
			chance := rand.New(rand.NewPCG(1, uint64(lockAfter)))
			changes := 0
			for tick := range days * 96 {
				w.clock = noon.Add(time.Duration(tick) * 15 * time.Minute)
				next := w.snow
				next.Password = fmt.Sprint(simulator.Sentinel, changes)
				switch tick % period {
				case period / 3: // The password changes in ServiceNow,
					w.accept(w.snow, false)
					w.accept(next, true)
				case period/3 + 96: // and a day later in Windmill.
					w.snow = next
					changes++
				}
				w.run(windmill.BySchedule)
				for chance.IntN(2) == 0 {
					w.clock = w.clock.Add(time.Duration(chance.IntN(200)) * time.Second)
					w.run(windmill.StepOfFlow)
				}
			}
			refusals := w.ServiceNow.Refusals("svc user")
			if changes == 0 || refusals.All != 2*changes || !refusals.LockedUntil.IsZero() {
				t.Errorf("%d changes of the password: %+v; want two refusals each and no lock", changes, refusals)
			}
			if !w.ServiceNow.IsValid(w.Token()) {
				t.Error("the cache holds no valid token")
			}
		})
	}
}
