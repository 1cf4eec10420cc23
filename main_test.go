package inner

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
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

// world is a Windmill and a ServiceNow for the runs of one test, with a clock of their own.
type world struct {
	t        testing.TB
	windmill *windmill.Workspace
	worker   *windmill.Worker
	instance *sn.Instance
	snow     servicenow
	clock    time.Time
	onSleep  func() // what happens while a run pauses
	stdout   *os.File
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, clock: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), onSleep: func() {}}
	w.instance = &sn.Instance{Now: func() time.Time { return now() }}
	w.windmill = &windmill.Workspace{Name: "acme & co"}
	w.windmill.AddFolder("f/ServiceNow")
	w.windmill.AddUser(theToken, windmill.Rights{"f/ServiceNow": windmill.Write})
	w.worker = &windmill.Worker{Workspace: w.windmill, BaseURL: w.serve(w.windmill)}
	w.snow = servicenow{w.serve(w.instance), "client", theSecret, "svc user", thePassword}
	w.accept(w.snow, true)
	var err error
	if w.stdout, err = os.CreateTemp(t.TempDir(), "log"); err != nil {
		t.Fatal(err)
	}
	realNow, realSleep, realStdout := now, sleep, os.Stdout
	t.Cleanup(func() { now, sleep, os.Stdout = realNow, realSleep, realStdout })
	now = func() time.Time { return w.clock }
	sleep = func(d time.Duration) { w.clock = w.clock.Add(d); w.onSleep() }
	os.Stdout = w.stdout
	for _, setting := range w.worker.Environment(windmill.Job{}) {
		name, value, _ := strings.Cut(setting, "=")
		t.Setenv(name, value) // what it was comes back after the test
	}
	return w
}

func (w *world) serve(handler http.Handler) string {
	server := httptest.NewServer(handler)
	w.t.Cleanup(server.Close)
	return server.URL
}

// accept makes the instance accept the login of snow, or not.
func (w *world) accept(snow servicenow, accepted bool) {
	w.instance.SetAccount(sn.Account{ClientID: snow.ClientID, ClientSecret: snow.ClientSecret,
		Username: snow.Username, Password: snow.Password}, accepted)
}

// outcome is what came of a run.
type outcome struct {
	result, failure, log string
	calls                []string // of Windmill, such as "GET cache" or "POST logins 400"
	logins               int      // requests to ServiceNow
}

// run runs main as the job of whoever startedBy says, and looks for secrets in all that it left.
func (w *world) run(startedBy []string, more ...string) outcome {
	w.t.Helper()
	job := windmill.Job{Token: theToken, Path: "f/ServiceNow/get_token", Env: append(slices.Clone(startedBy), more...)}
	for _, setting := range w.worker.Environment(job) {
		name, value, _ := strings.Cut(setting, "=")
		os.Setenv(name, value)
	}
	calls, logins := len(w.windmill.Calls()), w.instance.Requests()
	w.stdout.Truncate(0)
	w.stdout.Seek(0, io.SeekStart)
	result, err := main(w.snow)
	log, _ := os.ReadFile(w.stdout.Name())
	o := outcome{result: result, log: string(log), logins: w.instance.Requests() - logins}
	if err != nil {
		o.failure = err.Error()
	}
	for _, call := range w.windmill.Calls()[calls:] {
		name := call.Method + strings.Replace(call.Path, "f/ServiceNow/snow_token_", " ", 1)
		if call.Status/100 != 2 && call.Status != 404 {
			name += fmt.Sprint(" ", call.Status)
		}
		o.calls = append(o.calls, name)
	}
	cached, _ := w.windmill.Get(cachePath)
	kept, _ := w.windmill.Get(loginsPath)
	said := o.log + o.failure + string(kept.Value)
	for _, token := range w.instance.Issued() {
		if strings.Contains(said, token) {
			w.t.Errorf("a token of ServiceNow's is repeated in %q", said)
		}
	}
	if said += string(cached.Value); strings.Contains(strings.ToLower(said), "s3ntinel") {
		w.t.Errorf("a secret is repeated in %q", said)
	}
	if (o.result == "OK") == (o.failure != "") {
		w.t.Errorf("result = %q, error = %q; want OK or an error", o.result, o.failure)
	}
	return o
}

// check compares what came of a run: the number of logins, and a part of its error ("" for none).
func (w *world) check(o outcome, logins int, failure string) {
	w.t.Helper()
	if o.logins != logins || !strings.Contains(o.failure, failure) || (failure == "") != (o.failure == "") {
		w.t.Errorf("%d requests to ServiceNow, error %q; want %d, %q\ncalls: %q\nlog: %s", o.logins, o.failure, logins, failure, o.calls, o.log)
	}
}

// cache returns the record as other scripts read it.
func (w *world) cache() (r struct {
	Token       string  `json:"token"`
	ExpiresAt   float64 `json:"expires_at"`
	InstanceURL string  `json:"instance_url"`
}) {
	resource, _ := w.windmill.Get(cachePath)
	_ = json.Unmarshal(resource.Value, &r)
	return r
}

func (w *world) set(path string, value any) {
	encoded, err := json.Marshal(value)
	if err != nil {
		w.t.Fatal(err)
	}
	w.windmill.Set(path, windmill.Resource{Type: "state", Value: encoded})
}

// key is that of these credentials in the logins.
func (w *world) key() string {
	snow, err := checked(w.snow)
	if err != nil {
		w.t.Fatal(err)
	}
	return snow.seal()
}

func (w *world) logins() (logins map[string]login) {
	resource, _ := w.windmill.Get(loginsPath)
	_ = json.Unmarshal(resource.Value, &logins)
	return logins
}

func (w *world) setLogin(l login) { w.set(loginsPath, map[string]login{w.key(): l}) }

// answer makes ServiceNow answer each request like this.
func (w *world) answer(status int, header http.Header, body string) {
	w.instance.Fault = func(rw http.ResponseWriter, r *http.Request, _ int) bool {
		maps.Copy(rw.Header(), header)
		rw.WriteHeader(status)
		io.WriteString(rw, body)
		return true
	}
}

// raw answers with these bytes, and ends the connection.
func raw(rw http.ResponseWriter, text string) {
	connection, _, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		panic(err)
	}
	io.WriteString(connection, text)
	connection.Close()
}

var coldCalls = []string{"GET cache", "GET logins", "POST logins", "GET logins", "POST cache", "GET logins", "POST logins"}

// main.

func TestThreeUses(t *testing.T) {
	w := newWorld(t)
	o := w.run(windmill.ByHand)
	w.check(o, 1, "")
	if diff := cmp.Diff(coldCalls, o.calls); diff != "" {
		t.Errorf("calls of a cold run (-want +got):\n%s", diff)
	}
	first := w.cache()
	if !w.instance.Valid(first.Token) || first.InstanceURL != w.snow.InstanceURL || first.ExpiresAt != float64(w.clock.Unix()+1800) {
		t.Errorf("record = %+v; want a valid token of %s for 30 minutes", first, w.snow.InstanceURL)
	}
	for _, path := range []string{cachePath, loginsPath} {
		if resource, _ := w.windmill.Get(path); resource.Type != "state" {
			t.Errorf("type of %s = %q; want state", path, resource.Type)
		}
	}
	w.clock = w.clock.Add(10 * time.Minute)
	o = w.run(windmill.StepOfFlow)
	w.check(o, 0, "")
	if len(o.calls) != 1 || !strings.Contains(o.log, "valid for another 20m0s") {
		t.Errorf("a warm step made the calls %q and printed %q", o.calls, o.log)
	}
	w.check(w.run(windmill.BySchedule), 1, "")
	if w.cache().ExpiresAt != float64(w.clock.Unix()+1800) {
		t.Error("a scheduled run did not renew the token")
	}
	got := w.logins()[w.key()]
	if got.Outcome != "OK" || got.Refusals != 0 || got.At != w.clock.Unix() || got.Job == "" {
		t.Errorf("login = %+v; want a success, now", got)
	}
}

func TestWhoStartedIt(t *testing.T) {
	for _, test := range []struct {
		name    string
		started []string
		logins  int
	}{
		{"by hand", windmill.ByHand, 1},
		{"by schedule", windmill.BySchedule, 1},
		{"by schedule with a retry", windmill.ByScheduleWithRetry, 1},
		{"step of a scheduled flow", windmill.StepOfScheduledFlow, 0},
		{"step of a flow", windmill.StepOfFlow, 0},
		{"by a script", windmill.ByScript, 0},
		{"without a job's id", []string{"WM_JOB_ID="}, 0},
		{"on an agent worker", []string{"WM_FLOW_JOB_ID=1", "WM_FLOW_STEP_ID=a", "WM_SCHEDULE_PATH=f/x/y", "WM_FLOW_PATH="}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.run(windmill.ByHand)
			w.check(w.run(test.started), test.logins, "")
		})
	}
}

func TestOutsideWindmill(t *testing.T) {
	outside := []string{"WM_TOKEN=", "WM_JOB_ID=", "WM_WORKSPACE=", "BASE_INTERNAL_URL="}
	w := newWorld(t)
	o := w.run(outside)
	w.check(o, 1, "")
	if len(o.calls) != 0 || !strings.Contains(o.log, "nothing will be cached") {
		t.Errorf("calls = %q, log = %q; want no calls, and a word on it", o.calls, o.log)
	}
	w.accept(w.snow, false)
	w.check(w.run(outside), 1, "401 Unauthorized")
	w.check(w.run(outside[:3]), 0, "WM_TOKEN, WM_WORKSPACE, which is empty")
	w.check(w.run([]string{"WM_TOKEN="}), 0, "WM_TOKEN, which is empty")
	w.check(w.run([]string{"WM_TOKEN=", "WM_WORKSPACE=", "BASE_INTERNAL_URL="}), 0, "WM_TOKEN, WM_WORKSPACE, BASE_INTERNAL_URL")
}

// The input.

func TestBadInputSendsNothing(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(*servicenow)
		want  string
	}{
		{"no address", func(s *servicenow) { s.InstanceURL = "  " }, "must have instance_url"},
		{"no client id", func(s *servicenow) { s.ClientID = "" }, "must have instance_url, client_id"},
		{"no client secret", func(s *servicenow) { s.ClientSecret = " \n" }, "client_secret"},
		{"a user without a password", func(s *servicenow) { s.Password = "" }, "username and password, or neither"},
		{"a password without a user", func(s *servicenow) { s.Username = " " }, "username and password, or neither"},
		{"a password for an address", func(s *servicenow) { s.InstanceURL = "https://u:" + thePassword + "@x" }, "instance_url is not"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			test.spoil(&w.snow)
			o := w.run(windmill.ByHand)
			w.check(o, 0, test.want)
			if len(o.calls) != 0 {
				t.Errorf("calls = %q; want none", o.calls)
			}
		})
	}
}

var addresses = []struct{ given, want string }{
	{"https://dev12345.service-now.com", "https://dev12345.service-now.com"},
	{"https://dev12345.service-now.com//", "https://dev12345.service-now.com"},
	{"HTTPS://DEV12345.Service-Now.com", "https://dev12345.service-now.com"},
	{"dev12345.service-now.com", "https://dev12345.service-now.com"},
	{"dev12345.service-now.com/now/nav/ui/home", "https://dev12345.service-now.com"},
	{"dev12345", "https://dev12345.service-now.com"},
	{"acme-dev/", "https://acme-dev.service-now.com"},
	{"https://dev12345.service-now.com/nav_to.do?uri=home.do#x", "https://dev12345.service-now.com"},
	{"https://dev12345.service-now.com:443/nav_to.do", "https://dev12345.service-now.com:443"},
	{"https://agency.servicenowservices.com/any/path", "https://agency.servicenowservices.com"},
	{"https://it.example.com/nav_to.do?uri=home.do", "https://it.example.com"},
	{"https://gw.example.com/snow/prod/", "https://gw.example.com/snow/prod"},
	{"gw.example.com:8443/a%2Fb", "https://gw.example.com:8443/a%2Fb"},
	{"https://gateway/snow", "https://gateway/snow"},
	{"https://192.0.2.1", "https://192.0.2.1"},
	{"https://[2001:db8::1]:8443/x", "https://[2001:db8::1]:8443/x"},
	{"http://127.0.0.1:8080", "http://127.0.0.1:8080"},
	{"http://[::1]:8080", "http://[::1]:8080"},
	{"http://LOCALHOST:8080", "http://localhost:8080"},
	{"localhost", "https://localhost"},

	{"https://", ""}, {"/", ""}, {"https:", ""}, {"https://:443", ""}, {"https:///snow", ""}, {".service-now.com", ""}, {"---", ""},
	{"https:/dev12345.service-now.com", ""}, {"https:dev12345", ""}, {"https://dev12345.service-now.com:", ""},
	{"http://dev12345.service-now.com", ""}, {"http://localhost.example.com", ""}, {"http://127.0.0.1.example.com", ""},
	{"ftp://dev12345.service-now.com", ""}, {"https://gw.example.com/snow?x=1", ""}, {"https://gw.example.com/#top", ""},
	{"https://admin@dev12345.service-now.com", ""}, {"https://admin:12/34@dev12345.service-now.com", ""}, {"admin:x@dev12345", ""},
	{"https://dev12345.service-now.com:https", ""}, {"https://dev\n12345", ""}, {"dev 12345", ""}, {"https://gw.example.com/a%4", ""},
	{`https://dev12345.service-now.com\.example.com`, ""}, {"https://dev%2e12345", ""}, {"https://des\u212a.service-now.com", ""},
	{"https://[fe80::1%25eth0]", ""}, {"see the wiki", ""},
}

func TestInstanceAddress(t *testing.T) {
	for _, test := range addresses {
		if got, ok := instanceAddress(test.given); ok != (test.want != "") || ok && got != test.want {
			t.Errorf("instanceAddress(%q) = %q, %t; want %q", test.given, got, ok, test.want)
		}
	}
}

func FuzzInstanceAddress(f *testing.F) {
	for _, test := range addresses {
		f.Add(test.given)
	}
	f.Fuzz(func(t *testing.T, given string) {
		address, ok := instanceAddress(given)
		if !ok {
			return
		}
		parsed, err := url.Parse(address + "/oauth_token.do")
		if err != nil || parsed.User != nil || parsed.RawQuery+parsed.Fragment != "" || parsed.Host == "" || strings.Contains(address, "@") {
			t.Errorf("instanceAddress(%q) = %q, which is no address: %v", given, address, err)
		}
		host := parsed.Hostname()
		if loopback := slices.Contains([]string{"localhost", "127.0.0.1", "::1"}, host); parsed.Scheme != "https" && !loopback {
			t.Errorf("instanceAddress(%q) = %q, which is not safe", given, address)
		}
		ascii := strings.Map(func(r rune) rune { // strings.ToLower makes a k of a Kelvin sign
			if r >= 'A' && r <= 'Z' {
				return r + 'a' - 'A'
			}
			return r
		}, given)
		if !strings.Contains(ascii, strings.TrimSuffix(host, ".service-now.com")) {
			t.Errorf("instanceAddress(%q) = %q, a host that nobody named", given, address)
		}
		if again, ok := instanceAddress(address); again != address || !ok {
			t.Errorf("instanceAddress(%q) = %q, of which it makes %q", given, address, again)
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
	w.run(windmill.ByHand, "WM_JOB_ID=job-1")
	cached, _ := w.windmill.Get(cachePath)
	read := request{"GET", "/api/w/acme%20&%20co/resources/get_value/f%2FServiceNow%2Fsnow_token_cache", "", "Bearer " + theToken, ""}
	write := request{"POST", "/api/w/acme%20&%20co/resources/create?update_if_exists=true", "application/json", "Bearer " + theToken,
		`{"path":"f/ServiceNow/snow_token_cache","resource_type":"state","value":` + string(cached.Value) + `}`}
	if diff := cmp.Diff([]request{read, write}, []request{got[0], got[4]}); diff != "" {
		t.Errorf("reading and writing the cache (-want +got):\n%s", diff)
	}
	claim := fmt.Sprintf(`{"%s":{"job":"job-1","at":%d,"outcome":"","refusals":0,"refused_at":0}}`, w.key(), w.clock.Unix())
	if !strings.HasSuffix(got[2].Body, `"value":`+claim+"}") {
		t.Errorf("a claim is %s; want %s", got[2].Body, claim)
	}
}

func TestCachedRecord(t *testing.T) {
	for _, test := range []struct {
		name   string
		after  time.Duration
		change func(w *world, record map[string]any)
		logins int
	}{
		{"61 s before its expiry", 1800*time.Second - 61*time.Second, nil, 0},
		{"60 s before its expiry", 1800*time.Second - 60*time.Second, nil, 1},
		{"of another password", 0, func(w *world, _ map[string]any) { w.snow.Password += "2" }, 1},
		{"of another user", 0, func(w *world, _ map[string]any) { w.snow.Username += "2" }, 1},
		{"of another client", 0, func(w *world, _ map[string]any) { w.snow.ClientID += "2" }, 1},
		{"of another client secret", 0, func(w *world, _ map[string]any) { w.snow.ClientSecret += "2" }, 1},
		{"of another instance", 0, func(w *world, _ map[string]any) { w.snow.InstanceURL = w.serve(w.instance) }, 1},
		{"of the same instance, written otherwise", 0, func(w *world, _ map[string]any) { w.snow.InstanceURL = " HTTP" + w.snow.InstanceURL[4:] + "/ " }, 0},
		{"with another token", 0, func(_ *world, r map[string]any) { r["token"] = "planted" }, 1},
		{"stretched", 0, func(_ *world, r map[string]any) { r["expires_at"] = r["expires_at"].(float64) + 3600 }, 1},
		{"with a broken expiry", 0, func(_ *world, r map[string]any) { r["expires_at"] = r["expires_at"].(float64) + 0.5 }, 1},
		{"with another instance's address", 0, func(_ *world, r map[string]any) { r["instance_url"] = "https://evil.example.com" }, 1},
		{"with another seal", 0, func(_ *world, r map[string]any) { r["seal"] = strings.Repeat("0", 64) }, 1},
		{"of the Python script", 0, func(_ *world, r map[string]any) { delete(r, "seal"); delete(r, "instance_url") }, 1},
		{"with a planted reference", 0, func(_ *world, r map[string]any) { r["token"] = "$var:f/x/y" }, 1},
		{"with a seal of another type", 0, func(_ *world, r map[string]any) { r["seal"] = 5 }, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.run(windmill.ByHand)
			w.windmill.Delete(loginsPath)
			w.clock = w.clock.Add(test.after)
			if test.change != nil {
				value := map[string]any{}
				resource, _ := w.windmill.Get(cachePath)
				if err := json.Unmarshal(resource.Value, &value); err != nil {
					t.Fatal(err)
				}
				test.change(w, value)
				w.set(cachePath, value)
				w.accept(w.snow, true)
			}
			w.check(w.run(windmill.StepOfFlow), test.logins, "")
		})
	}
	for _, planted := range []string{"null", "5", `"$var:f/x/y"`, "[]", `{"token":{}}`} {
		w := newWorld(t)
		w.windmill.Set(cachePath, windmill.Resource{Type: "any", Value: json.RawMessage(planted)})
		w.windmill.Set(loginsPath, windmill.Resource{Type: "any", Value: json.RawMessage(planted)})
		w.check(w.run(windmill.StepOfFlow), 1, "")
	}
}

func TestExpiryCountsFromBeforeTheRequest(t *testing.T) {
	w := newWorld(t)
	asked := w.clock
	w.onSleep = func() { asked = w.clock }
	w.instance.Fault = func(http.ResponseWriter, *http.Request, int) bool {
		w.clock = w.clock.Add(15 * time.Second)
		return false
	}
	w.check(w.run(windmill.ByHand), 1, "")
	if got, want := w.cache().ExpiresAt, float64(asked.Unix()+1800); got != want {
		t.Errorf("expires_at = %.0f; want %.0f", got, want)
	}
}

func TestOldLoginsAreForgotten(t *testing.T) {
	w := newWorld(t)
	const day = 24 * 3600
	at := w.clock.Unix()
	w.set(loginsPath, map[string]login{"old": {At: at - 31*day}, "young": {At: at - 29*day}, w.key(): {At: at - 99*day, Refusals: 1}})
	w.accept(w.snow, false)
	w.check(w.run(windmill.ByHand), 1, "401")
	logins := w.logins()
	if _, young := logins["young"]; !young || len(logins) != 2 || logins[w.key()].Refusals != 2 {
		t.Errorf("logins = %v; want the young one, and the own with its refusals", logins)
	}
}

func TestFaultsOfWindmill(t *testing.T) {
	const html, unauthorized = "<html>\nbusy</html>", "Not authorized: Unauthorized"
	const rls = `SqlErr: error returned from database: new row violates row-level security policy for table "resource" @resources.rs:872:5`
	for _, test := range []struct {
		name   string
		status int // 0: the connection breaks off
		body   string
		times  int // 2 is once more than a run asks again
		want   string
	}{
		{"one 502", 502, html, 1, ""},
		{"one broken connection", 0, "", 1, ""},
		{"502", 502, html, 2, "Windmill answered 502, (not repeated here). Check Windmill's server log"},
		{"no connection", 0, "", 2, "Windmill did not answer (EOF). Check BASE_INTERNAL_URL"},
		{"a 200 that is not JSON", 200, html, 1, "Windmill answered 200"},
		{"an invalid token", 401, unauthorized + "\ntoken prefix " + theToken[:10], 1, "401, Not authorized: Unauthorized. Check WM_TOKEN"},
		{"no rights", 400, rls, 1, rls + ". Check that the folder f/ServiceNow exists, and that u/user may read and write in it"},
		{"a protection rule", 403, "Permission denied: Cannot directly deploy", 1, "Permission denied: Cannot directly deploy. Check that the folder"},
		{"an echo", 500, "what is " + theToken + "?", 2, "(not repeated here)"},
	} {
		for call := 1; call <= len(coldCalls); call++ {
			t.Run(fmt.Sprint(test.name, "/", call, " ", coldCalls[call-1]), func(t *testing.T) {
				w := newWorld(t)
				w.set(cachePath, map[string]any{"token": "of the Python script", "expires_at": 1.5})
				before, _ := w.windmill.Get(cachePath)
				times := test.times
				if keptConnection := call > 1 && strings.HasPrefix(coldCalls[call-1], "GET"); keptConnection && test.status == 0 {
					times++ // Go itself asks again
				}
				w.windmill.Fault = func(rw http.ResponseWriter, r *http.Request, n int) bool {
					if n < call || n >= call+times {
						return false
					}
					if test.status == 0 {
						raw(rw, "")
					} else {
						rw.WriteHeader(test.status)
						io.WriteString(rw, test.body)
					}
					return true
				}
				o := w.run(windmill.BySchedule)
				switch {
				case test.want == "" || call > 5: // the token is stored by then
					w.check(o, 1, "")
					if told := strings.Contains(o.log, "could not be told"); call == 6 && told || call == 7 && told != (test.want != "") {
						t.Errorf("log = %q", o.log)
					}
				case call == 5:
					w.check(o, 1, test.want)
					if l := w.logins()[w.key()]; !strings.Contains(l.Outcome, "cannot be written") || l.Refusals != 0 {
						t.Errorf("login = %+v; want a failure that is no refusal", l)
					}
				default:
					w.check(o, 0, test.want)
				}
				after, _ := w.windmill.Get(cachePath)
				if o.failure != "" && cmp.Diff(before, after) != "" {
					t.Errorf("the cache became %s", after.Value)
				}
			})
		}
	}
}

func TestNobodyAsksWhoMayNotStore(t *testing.T) {
	for name, rights := range map[string]windmill.Rights{"reader": {"f/ServiceNow": windmill.Read}, "nobody": nil} {
		for started, env := range map[string][]string{"by hand": windmill.ByHand, "by schedule": windmill.BySchedule, "in a flow": windmill.StepOfFlow} {
			t.Run(name+" "+started, func(t *testing.T) {
				w := newWorld(t)
				w.run(windmill.ByHand)
				w.clock = w.clock.Add(time.Hour)
				w.windmill.AddUser(theToken, rights)
				w.check(w.run(env), 0, "Check that the folder f/ServiceNow exists")
			})
		}
	}
}

// One login at a time.

func TestAnotherJobsLogin(t *testing.T) {
	const other = "0198-other"
	ends := func(outcome string) func(login) login { return func(l login) login { l.Outcome = outcome; return l } }
	underWay := func(at int64) login { return login{Job: other, At: at} }
	failed := func(at int64) login { return login{Job: other, At: at, Outcome: "answered 503"} }
	for _, test := range []struct {
		name     string
		started  []string
		first    login               // what stands there at first; its time counts from the run's start
		left     time.Duration       // of the token that the other job gets
		then     func(l login) login // what becomes of it after 3 s, or nil
		logins   int
		failure  string
		from, to time.Duration // how long the run may take, in seconds
	}{
		{"brings a token", windmill.ByHand, underWay(0), 600, ends("OK"), 0, "", 3, 4},
		{"brings a step a token", windmill.StepOfFlow, underWay(0), 600, ends("OK"), 0, "", 3, 4},
		{"brings a token for its last minute", windmill.StepOfFlow, underWay(0), 10, ends("OK"), 0, "", 3, 4},
		{"brings a token that is gone at once", windmill.ByHand, underWay(0), 2, ends("OK"), 1, "", 3, 5},
		{"fails", windmill.ByHand, underWay(0), 0, ends("https://x answered 503"), 0, "job 0198-other did so for this run, too: https://x answered 503", 3, 4},
		{"fails a step", windmill.StepOfFlow, underWay(0), 0, ends("answered 401"), 0, "job 0198-other did so for this run, too: answered 401", 3, 4},
		{"is gone", windmill.ByHand, underWay(0), 0, func(login) login { return login{} }, 1, "", 3, 5},
		{"never ends", windmill.ByHand, underWay(0), 0, nil, 1, "", 24, 25},
		{"began 4 minutes ago by its clock", windmill.StepOfFlow, underWay(-240), 0, nil, 1, "", 24, 25},
		{"begins in 4 minutes by its clock", windmill.StepOfFlow, underWay(240), 0, nil, 1, "", 24, 25},
		{"began 5 minutes ago", windmill.StepOfFlow, underWay(-300), 0, nil, 1, "", 0, 1},
		{"begins in more than 5 minutes", windmill.StepOfFlow, underWay(301), 0, nil, 1, "", 0, 1},
		{"is followed by others without end", windmill.ByHand, underWay(0), 0, func(l login) login { l.At++; return l }, 0,
			"other jobs have been logging in all the time, the last of them 0198-other", 30, 31},
		{"failed 4 s ago", windmill.StepOfFlow, failed(-4), 0, nil, 0, "answered 503", 0, 1},
		{"failed in 4 s by its clock", windmill.StepOfFlow, failed(4), 0, nil, 0, "answered 503", 0, 1},
		{"failed 5 s ago", windmill.StepOfFlow, failed(-5), 0, nil, 1, "", 0, 1},
		{"failed 4 s ago, which is nothing to a person", windmill.ByHand, failed(-4), 0, nil, 1, "", 0, 1},
		{"succeeded an hour ago", windmill.StepOfFlow, login{Job: other, At: -3600, Outcome: "OK"}, 0, nil, 1, "", 0, 1},
		{"has an outcome that somebody planted", windmill.ByHand, underWay(0), 0, ends("<b>\"x\""), 0, "too: (not repeated here)", 3, 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.run(windmill.ByHand)
			record, _ := w.windmill.Get(cachePath)
			w.windmill.Delete(cachePath)
			w.clock = w.clock.Add(1800*time.Second - test.left*time.Second)
			begun := w.clock
			test.first.At += begun.Unix()
			w.setLogin(test.first)
			next := begun.Add(3 * time.Second)
			w.onSleep = func() {
				l := w.logins()[w.key()]
				if w.clock.Before(next) || l.Job != other || test.then == nil {
					return
				}
				next = w.clock.Add(3 * time.Second)
				if l = test.then(l); l.Outcome == "OK" {
					w.windmill.Set(cachePath, record)
				}
				w.setLogin(l)
			}
			w.check(w.run(test.started), test.logins, test.failure)
			if took := w.clock.Sub(begun); took < test.from*time.Second || took > test.to*time.Second {
				t.Errorf("took %s; want %d to %d s", took, test.from, test.to)
			}
		})
	}
}

// meanwhile lets something happen at each request to ServiceNow, before its answer.
func (w *world) meanwhile(do func()) {
	w.instance.Fault = func(http.ResponseWriter, *http.Request, int) bool { do(); return false }
}

func TestTokenThatAnotherJobHasJustStored(t *testing.T) {
	w := newWorld(t)
	w.run(windmill.ByHand)
	record, _ := w.windmill.Get(cachePath)
	w.windmill.Delete(cachePath)
	begun := len(w.windmill.Calls())
	w.windmill.Fault = func(_ http.ResponseWriter, _ *http.Request, n int) bool {
		if n == begun+2 { // between the run's first read of the cache and that of the logins
			w.windmill.Set(cachePath, record)
		}
		return false
	}
	w.check(w.run(windmill.StepOfFlow), 0, "")
}

func TestClaimThatAnotherJobReplaces(t *testing.T) {
	w := newWorld(t)
	w.run(windmill.ByHand)
	record, _ := w.windmill.Get(cachePath)
	w.windmill.Delete(cachePath)
	pauses := 0
	w.onSleep = func() {
		switch pauses++; pauses {
		case 1: // that after the run's claim
			w.setLogin(login{Job: "other", At: w.clock.Unix()})
		case 2:
			w.windmill.Set(cachePath, record)
			w.setLogin(login{Job: "other", At: w.clock.Unix(), Outcome: "OK"})
		}
	}
	o := w.run(windmill.ByHand)
	w.check(o, 0, "")
	if !strings.Contains(o.log, "Job other is logging in") || !strings.Contains(o.log, "Reused the token") {
		t.Errorf("log = %q", o.log)
	}
}

func TestClaimIsReadAfterTwiceTheTimeThatItTook(t *testing.T) {
	for _, test := range []struct{ write, pause time.Duration }{
		{time.Millisecond, 300 * time.Millisecond}, {2 * time.Second, 4 * time.Second}, {20 * time.Second, 10 * time.Second},
	} {
		w := newWorld(t)
		var written, read time.Time
		w.windmill.Fault = func(_ http.ResponseWriter, _ *http.Request, n int) bool {
			switch n {
			case 3:
				w.clock = w.clock.Add(test.write)
				written = w.clock
			case 4:
				read = w.clock
			}
			return false
		}
		w.check(w.run(windmill.ByHand), 1, "")
		if got := read.Sub(written); got != test.pause {
			t.Errorf("after a write of %s the claim was read %s later; want %s", test.write, got, test.pause)
		}
	}
}

func TestRunThatWasTakenForDead(t *testing.T) {
	for _, accepted := range []bool{true, false} {
		w := newWorld(t)
		w.accept(w.snow, accepted)
		others := login{Job: "other", At: w.clock.Unix(), Refusals: 1, RefusedAt: 5}
		w.meanwhile(func() { w.setLogin(others) })
		o := w.run(windmill.ByHand)
		got, want := w.logins()[w.key()], others
		if accepted {
			want.Refusals = 0
		} else {
			want.Refusals, want.RefusedAt = 2, w.clock.Unix()
		}
		if diff := cmp.Diff(want, got); diff != "" || (o.failure == "") != accepted {
			t.Errorf("accepted = %t: error %q, and the other job's claim (-want +got):\n%s", accepted, o.failure, diff)
		}
		if accepted != w.instance.Valid(w.cache().Token) {
			t.Errorf("accepted = %t, token = %q", accepted, w.cache().Token)
		}
	}
}

func TestHeldBack(t *testing.T) {
	const ended = "a run by hand that succeeds"
	for _, test := range []struct {
		refusals int
		started  []string
		after    time.Duration
		held     string // a part of the error; "" if the run asks
	}{
		{1, windmill.ByHand, 59 * time.Second, "a run by hand may from 2026-03-01T12:01:00Z on"},
		{1, windmill.ByHand, time.Minute, ""},
		{1, windmill.BySchedule, 10*time.Minute - time.Second, "1 in a row, the last at 2026-03-01T12:00:00Z"},
		{1, windmill.StepOfFlow, 10*time.Minute - time.Second, "do not ask for 10 minutes"},
		{1, windmill.BySchedule, 10 * time.Minute, ""},
		{1, windmill.StepOfFlow, 10 * time.Minute, ""},
		{2, windmill.ByHand, 20*time.Minute - time.Second, ended},
		{2, windmill.ByHand, 20 * time.Minute, ""},
		{2, windmill.BySchedule, 400 * 24 * time.Hour, "do not ask again"},
		{2, windmill.StepOfFlow, 29 * 24 * time.Hour, loginsPath + " is deleted"},
		{9, windmill.ByHand, 20 * time.Minute, ""},
		{9, windmill.ByScheduleWithRetry, 20 * time.Minute, "answered 401 Unauthorized"},
		{2, windmill.BySchedule, -6 * time.Minute, "do not ask again"}, // by a clock that is ahead
	} {
		w := newWorld(t)
		w.set(loginsPath, map[string]login{w.key(): {"other", w.clock.Unix(), "x answered 401 Unauthorized", test.refusals, w.clock.Unix()}})
		w.clock = w.clock.Add(test.after)
		logins := 0
		if test.held == "" {
			logins = 1
		}
		w.check(w.run(test.started), logins, test.held)
	}
}

func TestWhatEndsBeingHeldBack(t *testing.T) {
	for name, end := range map[string]func(*world){
		"other credentials": func(w *world) { w.snow.Password += "2" },
		"a login by hand": func(w *world) {
			w.clock = w.clock.Add(20 * time.Minute)
			w.accept(w.snow, true)
			w.check(w.run(windmill.ByHand), 1, "")
		},
		"deleting the logins": func(w *world) { w.windmill.Delete(loginsPath) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.accept(w.snow, false)
			w.check(w.run(windmill.BySchedule), 1, "401")
			w.check(w.run(windmill.BySchedule), 0, "ServiceNow was not asked: it refused these credentials")
			w.clock = w.clock.Add(10 * time.Minute)
			w.check(w.run(windmill.StepOfFlow), 1, "401")
			w.clock = w.clock.Add(time.Hour)
			w.check(w.run(windmill.BySchedule), 0, "2 in a row")
			end(w)
			w.accept(w.snow, true)
			w.check(w.run(windmill.BySchedule), 1, "")
			if got := w.logins()[w.key()].Refusals; got != 0 {
				t.Errorf("%d refusals after a success", got)
			}
		})
	}
}

func TestEachSetOfCredentialsHasRefusalsOfItsOwn(t *testing.T) {
	w := newWorld(t)
	good := w.snow
	wrong1, wrong2 := good, good
	wrong1.Username, wrong2.Username = "wrong1", "wrong2"
	for round := range 5 {
		for _, w.snow = range []servicenow{wrong1, wrong2, good} {
			o := w.run(windmill.StepOfFlow)
			if (w.snow == good) != (o.failure == "") {
				t.Errorf("round %d of %s: %q", round, w.snow.Username, o.failure)
			}
		}
		w.set(cachePath, map[string]any{"token": "of the Python script", "expires_at": 1.5})
		w.clock = w.clock.Add(time.Minute)
	}
	if got := [2]int{w.instance.Refused("wrong1"), w.instance.Refused("wrong2")}; got != [2]int{1, 1} {
		t.Errorf("refused logins = %v; want one each in 10 minutes", got)
	}
}

func TestRefusalIsCountedThoughWindmillFails(t *testing.T) {
	for name, failing := range map[string][]int{"one read": {6}, "all reads": {6, 7}, "one write": {6, 8}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.set(loginsPath, map[string]login{w.key(): {Job: "other", Outcome: "401", Refusals: 1}})
			w.accept(w.snow, false)
			w.windmill.Fault = func(rw http.ResponseWriter, _ *http.Request, n int) bool {
				if slices.Contains(failing, n+1) {
					rw.WriteHeader(502)
				}
				return slices.Contains(failing, n+1)
			}
			w.check(w.run(windmill.ByHand), 1, "401")
			if got := w.logins()[w.key()].Refusals; got != 2 {
				t.Errorf("%d refusals; want 2", got)
			}
		})
	}
}

// herd runs main n times, so many at once, in a tenth of the time. Without a job's id each has one of its own.
func (w *world) herd(n, slots int) (failures []string) {
	w.run([]string{"WM_TOKEN="}) // for the environment
	for _, name := range []string{"WM_JOB_ID", "WM_TOKEN"} {
		os.Setenv(name, map[string]string{"WM_TOKEN": theToken}[name])
	}
	base, started := w.clock, time.Now()
	now = func() time.Time { return base.Add(10 * time.Since(started)) }
	sleep = func(d time.Duration) { time.Sleep(d / 10) }
	var wait sync.WaitGroup
	var mu sync.Mutex
	free := make(chan bool, slots)
	for range n {
		wait.Add(1)
		free <- true
		go func() {
			defer wait.Done()
			_, err := main(w.snow)
			<-free
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failures = append(failures, err.Error())
			}
		}()
	}
	wait.Wait()
	w.clock = now()
	return failures
}

func TestHerds(t *testing.T) {
	for _, test := range []struct {
		name           string
		jobs, slots    int
		status         int
		failed, logins int
		within         time.Duration
	}{
		{"40 cold jobs", 40, 40, 200, 0, 2, 10 * time.Second},
		{"30 jobs on a 503", 30, 30, 503, 30, 4, 10 * time.Second},
		{"60 jobs on 12 workers and a 503", 60, 12, 503, 60, 4, 10 * time.Second},
		{"60 jobs on 12 workers and a 401", 60, 12, 401, 60, 2, 10 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			if test.status != 200 {
				w.answer(test.status, nil, `{"error":"server_error"}`)
			}
			begun := w.clock
			failures := w.herd(test.jobs, test.slots)
			if len(failures) != test.failed || w.instance.Requests() > test.logins {
				t.Errorf("%d jobs failed after %d requests; want %d, at most %d: %.5q", len(failures), w.instance.Requests(), test.failed, test.logins, failures)
			}
			for _, failure := range failures {
				if !strings.Contains(failure, fmt.Sprint("answered ", test.status)) {
					t.Errorf("a job was told %q", failure)
				}
			}
			if took := w.clock.Sub(begun); took > test.within {
				t.Errorf("took %s", took)
			}
		})
	}
}

// Asking ServiceNow.

func TestLoginIsAForm(t *testing.T) {
	w := newWorld(t)
	w.snow = servicenow{" " + w.snow.InstanceURL + "/\n", " client\t", theSecret + " ", "svc user\n", " " + thePassword + " "}
	spaced := w.snow
	spaced.ClientID, spaced.ClientSecret, spaced.Username = "client", theSecret, "svc user"
	w.accept(spaced, true)
	w.check(w.run(windmill.ByHand), 1, "")
	w.snow.Username, w.snow.Password = "", ""
	spaced.Username, spaced.Password = "", ""
	w.accept(spaced, true)
	w.check(w.run(windmill.ByHand), 1, "")
	w.check(w.run(windmill.StepOfFlow), 0, "")
	want := []url.Values{
		{"grant_type": {"password"}, "client_id": {"client"}, "client_secret": {theSecret}, "username": {"svc user"}, "password": {" " + thePassword + " "}},
		{"grant_type": {"client_credentials"}, "client_id": {"client"}, "client_secret": {theSecret}},
	}
	if diff := cmp.Diff(want, w.instance.Forms()); diff != "" {
		t.Errorf("forms (-want +got):\n%s", diff)
	}
}

func TestAnswers(t *testing.T) {
	const html, denied = "<html><body>s3ntinel</body></html>", `{"error_description":"access_denied","error":"server_error"}`
	const busy = `{"error":{"message":"Transaction cancelled","detail":"s3ntinel"},"status":"failure"}`
	const strange = "That is not what a token endpoint answers"
	for _, test := range []struct {
		status   int
		header   http.Header
		body     string
		refused  bool
		requests int
		want     string // "" for a token
	}{
		{401, nil, denied, true, 1, "401 Unauthorized, error server_error, error_description access_denied. ServiceNow does not say why. Check client_id"},
		{400, nil, `{"error":"invalid_grant"}`, true, 1, "400 Bad Request, error invalid_grant. ServiceNow"},
		{200, nil, `{"error":"server_error"}`, true, 1, "200 OK, error server_error. ServiceNow"},
		{401, nil, `{"error":"x","error_description":{"a":1}}`, true, 1, "error x. ServiceNow"},
		{401, nil, `{"error":"x","expires_in":"","access_token":5}`, true, 1, "error x. ServiceNow"},
		{400, nil, `{"error":"unauthorized_client","error_description":"integration user is not configured for OAuth:ab12"}`, true, 1, "not configured for OAuth:ab12"},
		{400, nil, html, false, 1, "400 Bad Request. " + strange},
		{401, nil, html, false, 1, "401 Unauthorized. " + strange},
		{401, nil, busy, false, 1, strange},
		{200, nil, busy, false, 1, "200 OK. " + strange},
		{200, nil, html, false, 1, strange},
		{200, nil, `<div class="instance-hibernating-page">`, false, 1, "wake it at developer.servicenow.com"},
		{307, http.Header{"Location": {"https://evil.example.com"}}, "", false, 1, "The redirect was not followed"},
		{403, nil, `{"error":"s"}`, false, 1, "IP address access control"},
		{404, nil, html, false, 1, "404 Not Found. " + strange},
		{429, http.Header{"Retry-After": {"3600"}}, busy, false, 1, "429 Too Many Requests, Retry-After 3600. Check what else"},
		{500, nil, denied, false, 1, "500 Internal Server Error, error server_error, error_description access_denied. The instance or a gateway"},
		{502, nil, html, false, 2, "502 Bad Gateway. The instance or a gateway"},
		{503, http.Header{"Retry-After": {"5"}}, "", false, 2, "503 Service Unavailable, Retry-After 5"},
		{504, nil, "", false, 2, "504 Gateway Timeout"},
		{599, nil, "", false, 1, "answered 599"},
		{200, nil, `{"access_token":"abc","expires_in":1799}`, false, 1, ""},
		{200, nil, `{"access_token":"aZ09-._~+/=","expires_in":"1799"}`, false, 1, ""},
		{200, nil, ` {"access_token":"abc"}` + "\n", false, 1, ""},
		{200, nil, `{"access_token":"abc","expires_in":18e2,"error":null}`, false, 1, ""},
		{200, nil, `{"access_token":"abc","expires_in":0}`, false, 1, strange},
		{200, nil, `{"access_token":"abc","expires_in":-1}`, false, 1, strange},
		{200, nil, `{"access_token":"abc","expires_in":1e300}`, false, 1, strange},
		{200, nil, `{"access_token":"abc","expires_in":"NaN"}`, false, 1, strange},
		{200, nil, `{"access_token":"abc","expires_in":"soon"}`, false, 1, strange},
		{200, nil, `{"access_token":"$var:f/x/y"}`, false, 1, strange},
		{200, nil, `{"access_token":"a b"}`, false, 1, strange},
		{200, nil, `{"access_token":""}`, false, 1, strange},
		{200, nil, `{"access_token":"abc"}x`, false, 1, strange},
		{200, nil, `{"access_token":"abc"}` + strings.Repeat(" ", longestAnswer), false, 1, ""},
		{200, nil, `{"access_token":"` + strings.Repeat("a", longestAnswer) + `"}`, false, 1, strange},
		{200, nil, `null`, false, 1, strange},
		{200, nil, ``, false, 1, strange},
	} {
		t.Run(fmt.Sprintf("%d %.60s", test.status, test.body), func(t *testing.T) {
			w := newWorld(t)
			w.answer(test.status, test.header, test.body)
			w.check(w.run(windmill.BySchedule), test.requests, test.want)
			if got := w.logins()[w.key()]; (got.Refusals == 1) != test.refused {
				t.Errorf("login = %+v; counted as a refusal: want %t", got, test.refused)
			}
			if test.want != "" && !test.refused { // as if nothing had been
				w.instance.Fault = nil
				w.clock = w.clock.Add(5 * time.Second)
				w.check(w.run(windmill.StepOfFlow), 1, "")
			}
		})
	}
}

func TestNothingThatTheFormHeldComesBack(t *testing.T) {
	json := func(status int, field string) func(http.ResponseWriter, url.Values) {
		return func(rw http.ResponseWriter, form url.Values) {
			rw.WriteHeader(status)
			fmt.Fprintf(rw, `{"error":"x","%s":%q}`, field, "not "+form.Get("password")+"!")
		}
	}
	escaped := func(escape func(string) string) func(http.ResponseWriter, url.Values) {
		return func(rw http.ResponseWriter, form url.Values) {
			rw.WriteHeader(401)
			fmt.Fprintf(rw, `{"error":"x","error_description":%q}`, escape(form.Get("password")))
		}
	}
	for name, answer := range map[string]func(http.ResponseWriter, url.Values){
		"error_description": json(401, "error_description"),
		"error code":        json(400, "error"),
		"of a 500":          json(500, "error_description"),
		"client secret": func(rw http.ResponseWriter, form url.Values) {
			rw.WriteHeader(401)
			fmt.Fprintf(rw, `{"error":%q}`, form.Get("client_secret"))
		},
		"in capitals":          escaped(strings.ToUpper),
		"of a form":            escaped(url.QueryEscape),
		"of a URL":             escaped(url.PathEscape),
		"of a URL, lower case": escaped(func(s string) string { return strings.ToLower(url.QueryEscape(s)) }),
		"with %20":             escaped(func(s string) string { return strings.ReplaceAll(s, " ", "%20") }),
		"of a page":            escaped(func(s string) string { return strings.ReplaceAll(s, "3", "&#51;") }),
		"Retry-After": func(rw http.ResponseWriter, form url.Values) {
			rw.Header().Set("Retry-After", form.Get("password"))
			rw.WriteHeader(429)
		},
		"reason phrase": func(rw http.ResponseWriter, form url.Values) {
			raw(rw, "HTTP/1.1 503 "+form.Get("password")+"\r\n\r\n")
		},
		"malformed status line": func(rw http.ResponseWriter, form url.Values) { raw(rw, "HTTP/1.1 "+form.Get("password")+"\r\n\r\n") },
		"malformed version":     func(rw http.ResponseWriter, form url.Values) { raw(rw, form.Get("password")+" 200 OK\r\n\r\n") },
		"malformed header": func(rw http.ResponseWriter, form url.Values) {
			raw(rw, "HTTP/1.1 200 OK\r\n"+form.Get("password")+"\r\n\r\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.instance.Fault = func(rw http.ResponseWriter, r *http.Request, _ int) bool { answer(rw, r.PostForm); return true }
			o := w.run(windmill.ByHand) // which looks for secrets
			hidden := strings.Contains(o.failure, "(not repeated here)")
			if o.failure == "" || strings.Contains(o.failure, "&#51;") || hidden == (name == "reason phrase") {
				t.Errorf("error = %q", o.failure)
			}
		})
	}
}

func TestConnectionThatBreaksOff(t *testing.T) {
	for name, part := range map[string]string{"at once": "", "in the answer": "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"} {
		w := newWorld(t)
		w.instance.Fault = func(rw http.ResponseWriter, _ *http.Request, n int) bool {
			if n < 4 {
				raw(rw, part)
			}
			return n < 4
		}
		w.check(w.run(windmill.ByHand), 2, "did not answer (")
		o := w.run(windmill.ByHand)
		w.check(o, 2, "")
		if !strings.Contains(o.log, "EOF). Asking once more.") {
			t.Errorf("%s: log = %q", name, o.log)
		}
	}
	w := newWorld(t)
	w.snow.InstanceURL = "http://127.0.0.1:1"
	w.check(w.run(windmill.ByHand), 0, "connect: connection refused). Check instance_url")
}

// FuzzAnswer: whatever ServiceNow answers, a run ends with OK and a token that it gave, or with an error.
func FuzzAnswer(f *testing.F) {
	f.Add(200, `{"access_token":"abc","expires_in":1799}`, "5")
	f.Add(401, `{"error_description":"access_denied","error":"server_error"}`, "")
	f.Add(429, `{"error":{"message":"Rate limit exceeded"}}`, "Wed, 21 Oct 2026 07:28:00 GMT")
	f.Fuzz(func(t *testing.T, status int, body, retryAfter string) {
		if status < 200 || status > 599 {
			return
		}
		w := newWorld(t)
		w.answer(status, http.Header{"Retry-After": {strings.ReplaceAll(strings.ReplaceAll(retryAfter, "\r", ""), "\n", "")}}, body)
		o := w.run(windmill.ByHand)
		r := w.cache()
		given := status == 200 && r.Token != "" && strings.Contains(body, "access_token") && !strings.ContainsAny(r.Token, " $:\"")
		if (o.failure == "") != given || given && r.ExpiresAt <= float64(w.clock.Unix()) {
			t.Errorf("error %q and the record %+v of an answer %d %q", o.failure, r, status, body)
		}
	})
}

// FuzzResources: whatever others write into the two resources, a step neither believes it nor waits for ever.
func FuzzResources(f *testing.F) {
	f.Add(`{"token":"abc","expires_at":99999999999,"instance_url":"x","seal":"y"}`, `{"job":"x","at":1772366400}`)
	f.Add(`null`, `{"job":"x","at":1772366400,"outcome":"x","refusals":-1,"refused_at":99999999999}`)
	f.Add(`[]`, `{"Job":5,"outcome":"OK"}`)
	f.Fuzz(func(t *testing.T, cached, entry string) {
		w := newWorld(t)
		logins := fmt.Sprintf(`{%q:%s}`, w.key(), entry)
		if !json.Valid([]byte(cached)) || !json.Valid([]byte(logins)) {
			return
		}
		w.windmill.Set(cachePath, windmill.Resource{Type: "state", Value: json.RawMessage(cached)})
		w.windmill.Set(loginsPath, windmill.Resource{Type: "state", Value: json.RawMessage(logins)})
		begun := w.clock
		o := w.run(windmill.StepOfFlow)
		believed := o.failure == "" && o.logins == 0
		if took := w.clock.Sub(begun); believed || took > 31*time.Second {
			t.Errorf("after %s: %d logins, error %q\n%s", took, o.logins, o.failure, o.log)
		}
	})
}

func TestScriptYAMLAndGoModAgreeWithMainGo(t *testing.T) {
	source, metadata, module := read(t, "main.go"), read(t, "script.yaml"), read(t, "go.mod")
	if !strings.HasPrefix(source, "package inner\n") || !strings.Contains(source, "\nfunc main(snow servicenow) (string, error) {") {
		t.Error("main.go must begin with its package and have Windmill's main")
	}
	require := regexp.MustCompile(`(?m)^//require (\S+ v\S+)$`).FindStringSubmatch(source)
	if require == nil || !strings.Contains(module, "\t"+require[1]+"\n") {
		t.Errorf("go.mod does not require %q", require)
	}
	for _, want := range []string{"format: resource-servicenow", "`instance_url`", "`client_id`", "`client_secret`", "`username`", "`password`", cachePath, loginsPath, "\ntimeout: 90\n"} {
		if !strings.Contains(metadata, want) {
			t.Errorf("script.yaml has no %q", want)
		}
	}
}

func read(t *testing.T, name string) string {
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// TestYear simulates a year, or with -short a week, of a schedule each 15 minutes and flows, with changes of the
// password that are noticed a day late.
func TestYear(t *testing.T) {
	days, changes := 364, 10
	if testing.Short() {
		days, changes = 7, 2
	}
	for _, lockAfter := range []int{5, 3} {
		t.Run(fmt.Sprint("locks at ", lockAfter), func(t *testing.T) {
			w := newWorld(t)
			w.instance.LockAfter = lockAfter
			chance := rand.New(rand.NewSource(int64(lockAfter)))
			flows := 0
			for tick := range days * 96 {
				w.clock = w.clock.Add(15 * time.Minute)
				between := w.clock
				period := days * 96 / changes
				switch tick % period {
				case period / 2: // the password changes in ServiceNow
					w.accept(w.snow, false)
					mended := w.snow
					mended.Password = fmt.Sprint(thePassword, tick)
					w.accept(mended, true)
				case period/2 + 96: // and a day later in Windmill
					if w.instance.Refused("svc user") > 2*(tick/period+1) {
						t.Fatalf("day %d: %d refused logins", tick/96, w.instance.Refused("svc user"))
					}
					w.snow.Password = fmt.Sprint(thePassword, tick-96)
				}
				w.run(windmill.BySchedule)
				for chance.Intn(2) == 0 { // a hundred a day
					flows++
					w.clock = w.clock.Add(time.Duration(chance.Intn(200)) * time.Second)
					w.run(windmill.StepOfFlow)
				}
				w.clock = between
			}
			if w.instance.EverLocked("svc user") || !w.instance.Valid(w.cache().Token) {
				t.Errorf("locked: %t; token: %+v", w.instance.EverLocked("svc user"), w.cache())
			}
			t.Logf("%d scheduled runs, %d steps, %d requests, %d refused", days*96, flows, w.instance.Requests(), w.instance.Refused("svc user"))
		})
	}
}
