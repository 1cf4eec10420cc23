package inner

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"html"
	"io"
	"log"
	"math"
	"math/big"
	mathrand "math/rand"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	wmill "github.com/windmill-labs/windmill-go-client"

	snowserver "servicenow-token/local/servicenow"
	"servicenow-token/local/windmill"
	"servicenow-token/local/wire"
)

// inProcess makes every test that would run the built job call main in the test's
// own process, without pauses: for coverage and for mutation testing.
var inProcess = os.Getenv("IN_PROCESS") != ""

// jobs is the folder of the built job and of its runs.
var jobs string

func TestMain(m *testing.M) {
	if inProcess {
		after = func(time.Duration) <-chan time.Time { return time.After(0) }
	}
	var err error
	if jobs, err = os.MkdirTemp("", "jobs"); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	status := m.Run()
	os.RemoveAll(jobs)
	os.Exit(status)
}

// builtJob is main.go, built once as a worker does.
var builtJob = sync.OnceValues(func() (string, error) {
	worker := &windmill.Worker{Dir: jobs}
	return worker.Build(context.Background(), "main.go", ".")
})

// world is a Windmill and a ServiceNow of a test's own, and a resource for the job.
type world struct {
	instance  *snowserver.Instance
	workspace *windmill.Workspace
	worker    *windmill.Worker
	account   snowserver.Account
	snow      servicenow // the job's argument
	token     string     // the job's workspace token
	secrets   []string   // what no run may print, besides what the world itself knows
}

// The secrets have characters that forms, URLs, HTML and JSON escape, and begin
// like nothing else that is printed.
const (
	password     = "Zq7!päss wörd+\"<&>%41\\end"
	clientSecret = "Kx9/secret=&?#'%Kx9"
	jobToken     = "Wm5-workspace-token"
)

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{
		instance:  &snowserver.Instance{},
		workspace: &windmill.Workspace{Name: "test workspace"},
		account: snowserver.Account{
			ClientID: "client&id", ClientSecret: clientSecret, Username: "svc user", Password: password,
		},
		token: jobToken,
	}
	w.instance.SetAccount(w.account, true)
	w.workspace.AddFolder("f/ServiceNow")
	w.workspace.AddToken(w.token, windmill.Rights{Read: true, Write: true})
	w.snow = servicenow{
		InstanceURL: serve(t, w.instance), ClientID: w.account.ClientID, ClientSecret: w.account.ClientSecret,
		Username: w.account.Username, Password: w.account.Password,
	}
	w.worker = &windmill.Worker{Workspace: w.workspace, BaseURL: serve(t, w.workspace), Dir: jobs}
	return w
}

// serve serves handler until the test ends.
func serve(t testing.TB, handler http.Handler) (address string) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server.URL
}

// ran is what a run of the job came to, and which calls it made.
type ran struct {
	result   string // JSON; "" if the job failed
	log      string // with the error of a job that failed
	windmill []wire.Call
	logins   []wire.Call
	took     time.Duration
}

const scheduled = "WM_SCHEDULE_PATH=f/ServiceNow/warm_token"

// run runs the job with additions to its environment, and sees to it that nothing
// secret was printed.
func (w *world) run(t testing.TB, env ...string) ran {
	t.Helper()
	w.instance.TakeCalls()
	w.workspace.TakeCalls()
	r := w.start(t, env...)
	r.windmill, r.logins = w.workspace.TakeCalls(), w.instance.TakeCalls()
	w.checkSecrets(t, r.result+r.log)
	return r
}

// start runs the job and leaves the recorded calls to the caller, as is right for
// jobs that run at the same time.
func (w *world) start(t testing.TB, env ...string) ran {
	t.Helper()
	if inProcess {
		return w.callMain(t, env)
	}
	binary, err := builtJob()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	done, err := w.worker.Run(ctx, windmill.Job{Binary: binary, Args: map[string]any{"snow": w.snow}, Token: w.token, Env: env})
	if err != nil {
		t.Fatal(err)
	}
	return ran{result: string(done.Result), log: done.Log, took: done.Took}
}

// process guards what a test's process has one of: environment and standard output.
var process sync.Mutex

func (w *world) callMain(t testing.TB, env []string) ran {
	t.Helper()
	process.Lock()
	defer process.Unlock()
	for _, setting := range append(w.worker.Environment(w.token), env...) {
		if name, value, _ := strings.Cut(setting, "="); strings.HasPrefix(name, "WM_") || name == "BASE_INTERNAL_URL" {
			os.Setenv(name, value)
		}
	}
	var r ran
	started := time.Now()
	r.log = printed(t, func() {
		result, err := main(w.snow)
		if err != nil {
			fmt.Println(err)
			return
		}
		encoded, err := json.Marshal(result)
		if err != nil {
			t.Error(err)
		}
		r.result = string(encoded)
	})
	r.took = time.Since(started)
	return r
}

// setenv makes the test's process, until the test ends, a job of the world's.
func (w *world) setenv(t testing.TB) {
	t.Helper()
	for _, setting := range w.worker.Environment(w.token) {
		name, value, _ := strings.Cut(setting, "=")
		t.Setenv(name, value)
	}
}

// setClock makes main.go's functions, until the test ends, take the time from clock.
func setClock(t testing.TB, clock func() time.Time) {
	t.Helper()
	realClock := now
	t.Cleanup(func() { now = realClock })
	now = clock
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

// checkSecrets fails the test if text has a secret in it, in whatever guise, or
// the beginning of one.
func (w *world) checkSecrets(t testing.TB, text string) {
	t.Helper()
	secrets := append([]string{password, clientSecret, jobToken}, w.secrets...)
	for _, secret := range append(secrets, w.instance.Issued()...) {
		for _, guise := range []string{
			secret, secret[:6], url.QueryEscape(secret), url.PathEscape(secret), html.EscapeString(secret),
			strconv.Quote(secret), base64.StdEncoding.EncodeToString([]byte(secret)), hex.EncodeToString([]byte(secret)),
		} {
			if strings.Contains(strings.ToLower(text), strings.ToLower(guise)) {
				t.Errorf("printed the secret %q as %q:\n%s", secret, guise, text)
			}
		}
	}
}

// checkLines fails the test unless log has as many lines as there are patterns,
// each matching its own.
func checkLines(t testing.TB, log string, patterns ...string) {
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

// checkWords fails the test unless text has all words in it.
func checkWords(t testing.TB, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("no %q in:\n%s", word, text)
		}
	}
}

// names lists calls as method, action and status.
func names(calls []wire.Call) []string {
	var list []string
	for _, call := range calls {
		path := strings.TrimPrefix(call.Path, "/api/w/test%20workspace/resources/")
		list = append(list, fmt.Sprintf("%s %s %d", call.Method, path, call.Status))
	}
	return list
}

// The calls of a run to Windmill, by name.
const (
	escapedPath = "f%2FServiceNow%2Fsnow_token_cache"
	readFound   = "GET get_value_interpolated/" + escapedPath + " 200"
	readNothing = "GET get_value_interpolated/" + escapedPath + " 404"
	created     = "POST create?update_if_exists=true 201"
	updated     = "POST update_value/" + escapedPath + " 200"
)

// checkCalls fails the test unless the run called Windmill like that, and
// ServiceNow as often.
func checkCalls(t testing.TB, r ran, logins int, calls ...string) {
	t.Helper()
	if diff := cmp.Diff(calls, names(r.windmill)); diff != "" {
		t.Errorf("calls to Windmill mismatch (-want +got):\n%s", diff)
	}
	if len(r.logins) != logins {
		t.Errorf("%d logins; want %d: %v", len(r.logins), logins, names(r.logins))
	}
}

// plant puts a value into the cache.
func (w *world) plant(t testing.TB, value any) {
	t.Helper()
	encoded, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	w.workspace.SetResource(cachePath, windmill.Resource{Type: cacheType, Value: encoded})
}

// sealed returns a record for the world's credentials.
func (w *world) sealed(t testing.TB, token string, lifetime time.Duration) record {
	t.Helper()
	return w.seal(t, token, time.Now().Add(lifetime).Unix())
}

// seal returns the record of a token and its expiry in Unix seconds.
func (w *world) seal(t testing.TB, token string, expiresAt int64) record {
	t.Helper()
	snow := w.snow
	if err := snow.check(); err != nil {
		t.Fatal(err)
	}
	return record{token, expiresAt, snow.seal(token, expiresAt)}
}

// cached returns what the cache holds, by the fields that it must have and no others.
func (w *world) cached(t testing.TB) (cached record, found bool) {
	t.Helper()
	resource, found := w.workspace.Resource(cachePath)
	if !found {
		return record{}, false
	}
	decoder := json.NewDecoder(strings.NewReader(string(resource.Value)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&cached); err != nil {
		t.Fatalf("the cache holds %s: %v", resource.Value, err)
	}
	return cached, true
}

// checkCached fails the test unless the cache holds a sealed record of a token
// that ServiceNow accepts, for half an hour, and that the Python script would use.
func (w *world) checkCached(t testing.TB) record {
	t.Helper()
	cached, found := w.cached(t)
	if !found {
		t.Fatal("nothing cached")
	}
	if !w.instance.Valid(cached.Token) {
		t.Errorf("ServiceNow does not accept the cached token")
	}
	if lasts := time.Until(time.Unix(cached.ExpiresAt, 0)); lasts < 29*time.Minute || lasts > 30*time.Minute {
		t.Errorf("the cached token lasts %s; want half an hour", lasts)
	}
	if diff := cmp.Diff(w.seal(t, cached.Token, cached.ExpiresAt), cached); diff != "" {
		t.Errorf("cached record mismatch (-want +got):\n%s", diff)
	}
	// As the Python script reads it: cache["token"] if cache["expires_at"] > time.time() + 60.
	resource, _ := w.workspace.Resource(cachePath)
	var python map[string]any
	if err := json.Unmarshal(resource.Value, &python); err != nil {
		t.Fatal(err)
	}
	expiresAt, number := python["expires_at"].(float64)
	if python["token"] != cached.Token || !number || expiresAt <= float64(time.Now().UnixNano())/1e9+60 || expiresAt != math.Trunc(expiresAt) {
		t.Errorf("the Python script would not use this record: %s", resource.Value)
	}
	return cached
}

const (
	lineNone   = `No usable token in f/ServiceNow/snow_token_cache: .+\.`
	lineLogin  = `http://127\.0\.0\.1:\d+ accepted the login of "svc user" and gave a token valid for (30m0s|29m5\ds)\.`
	lineStored = `Stored it in f/ServiceNow/snow_token_cache\.`
	lineFound  = `Found a token in f/ServiceNow/snow_token_cache, valid for another \d.+\.`
	lineReused = `Reused it: ServiceNow was not asked\.`
)

func TestTheThreeUses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)

	r := w.run(t)
	if r.result != `"OK"` {
		t.Fatalf("standalone: result = %s; want \"OK\"\n%s", r.result, r.log)
	}
	checkLines(t, r.log, lineNone, lineLogin, lineStored)
	checkCalls(t, r, 1, readNothing, readNothing, created, readFound)
	first := w.checkCached(t)
	if resource, _ := w.workspace.Resource(cachePath); resource.Type != "state" {
		t.Errorf("the cache's resource type is %q; want state", resource.Type)
	}

	r = w.run(t, "WM_FLOW_PATH=f/ServiceNow/flow", "WM_FLOW_STEP_ID=a")
	if r.result != `"OK"` {
		t.Errorf("flow step: result = %s; want \"OK\"", r.result)
	}
	checkLines(t, r.log, lineFound, lineReused)
	checkCalls(t, r, 0, readFound)
	if second := w.checkCached(t); second != first {
		t.Error("the flow step changed the record")
	}

	r = w.run(t, scheduled)
	if r.result != `"OK"` {
		t.Errorf("schedule: result = %s; want \"OK\"", r.result)
	}
	checkLines(t, r.log, lineLogin, lineStored)
	checkCalls(t, r, 1, readFound, updated, readFound)
	w.checkCached(t)
}

func TestOutsideWindmillItVerifiesTheCredentialsOnly(t *testing.T) {
	t.Parallel()
	for name, env := range map[string][]string{
		"no address":          {"BASE_INTERNAL_URL="},
		"no token":            {"WM_TOKEN="},
		"neither":             {"BASE_INTERNAL_URL=", "WM_TOKEN="},
		"neither, a schedule": {"BASE_INTERNAL_URL=", "WM_TOKEN=", scheduled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			r := w.run(t, env...)
			if r.result != `"OK"` {
				t.Errorf("result = %s; want \"OK\"", r.result)
			}
			checkLines(t, r.log, lineLogin, "Nothing was cached: .+")
			checkCalls(t, r, 1)
		})
	}
}

func TestTheLoginIsAFormInTheBodyAndNothingElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.instance.SetFault(func(n int, rw http.ResponseWriter, _ *http.Request) bool {
		rw.Header().Set("Set-Cookie", "JSESSIONID=1; Path=/") // a session that must not be carried on
		if n == 1 {
			rw.WriteHeader(http.StatusServiceUnavailable)
		}
		return n == 1
	})
	r := w.run(t)
	if len(r.logins) != 2 {
		t.Fatalf("%d logins; want 2\n%s", len(r.logins), r.log)
	}
	for _, login := range r.logins {
		if login.Method != "POST" || login.Path != "/oauth_token.do" {
			t.Errorf("asked %s %s; want POST /oauth_token.do", login.Method, login.Path)
		}
		form, err := url.ParseQuery(login.Body)
		if err != nil {
			t.Error(err)
		}
		want := url.Values{
			"grant_type": {"password"}, "client_id": {"client&id"}, "client_secret": {clientSecret},
			"username": {"svc user"}, "password": {password},
		}
		if diff := cmp.Diff(want, form); diff != "" {
			t.Errorf("form mismatch (-want +got):\n%s", diff)
		}
		for header, want := range map[string]string{
			"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json", "Authorization": "", "Cookie": "",
		} {
			if got := login.Header.Get(header); got != want {
				t.Errorf("%s = %q; want %q", header, got, want)
			}
		}
	}
}

func TestEveryEmptyFieldIsNamedAndNothingIsSent(t *testing.T) {
	t.Parallel()
	all := []string{"instance_url", "client_id", "client_secret", "username", "password"}
	for name, empty := range map[string][]string{
		"all":                 all,
		"the password":        {"password"},
		"the URL":             {"instance_url"},
		"the application's":   {"client_id", "client_secret"},
		"the user and secret": {"client_secret", "username"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			fields := map[string]*string{
				"instance_url": &w.snow.InstanceURL, "client_id": &w.snow.ClientID, "client_secret": &w.snow.ClientSecret,
				"username": &w.snow.Username, "password": &w.snow.Password,
			}
			for i, field := range empty {
				*fields[field] = strings.Repeat(" \t", i) // blanks are nothing, too
			}
			r := w.run(t)
			if r.result != "" {
				t.Errorf("result = %s; want a failure", r.result)
			}
			checkLines(t, r.log, "the servicenow resource has nothing in "+strings.Join(empty, ", ")+": fill in every field")
			checkCalls(t, r, 0)
		})
	}
}

func TestABadAddressIsAnErrorAndNothingIsSent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.snow.InstanceURL = "https://admin:Us3rInf0@dev12345.service-now.com"
	w.secrets = []string{"admin:Us3rInf0", "Us3rInf0"}
	r := w.run(t)
	if r.result != "" {
		t.Errorf("result = %s; want a failure", r.result)
	}
	checkWords(t, r.log, "instance_url", "https://dev12345.service-now.com")
	checkCalls(t, r, 0)
}

func TestInstanceAddress(t *testing.T) {
	for _, test := range []struct{ name, given, want string }{
		{"a URL", "https://dev12345.service-now.com", "https://dev12345.service-now.com"},
		{"a URL with a slash", "https://dev12345.service-now.com/", "https://dev12345.service-now.com"},
		{"a URL with blanks and slashes", " \t/https://dev12345.service-now.com// \n", "https://dev12345.service-now.com"},
		{"a URL after a no-break space", "\u00a0https://dev12345.service-now.com", "https://dev12345.service-now.com"},
		{"a URL in capitals", "HTTPS://DEV12345.Service-Now.com", "https://dev12345.service-now.com"},
		{"a bare host", "dev12345.service-now.com", "https://dev12345.service-now.com"},
		{"a bare host with a slash", "dev12345.service-now.com/", "https://dev12345.service-now.com"},
		{"a bare host with a port", "snow.example.com:8443", "https://snow.example.com:8443"},
		{"a bare name", "dev12345", "https://dev12345.service-now.com"},
		{"a bare name with a slash", "dev12345/", "https://dev12345.service-now.com"},
		{"a bare name with a hyphen", "acme-dev", "https://acme-dev.service-now.com"},
		{"a government domain", "https://agency.servicenowservices.com", "https://agency.servicenowservices.com"},
		{"a custom domain", "https://it.example.com", "https://it.example.com"},
		{"an intranet host", "https://gateway", "https://gateway"},
		{"a gateway with a path", "https://gw.example.com/snow/prod/", "https://gw.example.com/snow/prod"},
		{"a bare gateway with a path", "gw.example.com/snow", "https://gw.example.com/snow"},
		{"a bare intranet gateway with a path", "gateway/snow", "https://gateway/snow"},
		{"a path with an escape", "https://gw.example.com/a%2Fb", "https://gw.example.com/a%2Fb"},
		{"an IPv4 address", "https://192.0.2.1", "https://192.0.2.1"},
		{"an IPv6 address", "https://[2001:db8::1]:8443/x", "https://[2001:db8::1]:8443/x"},
		{"http to loopback", "http://127.0.0.1:8080", "http://127.0.0.1:8080"},
		{"http to loopback of IPv6", "http://[::1]:8080", "http://[::1]:8080"},
		{"http to localhost", "http://localhost:8080", "http://localhost:8080"},
		{"http to localhost in capitals", "http://LOCALHOST:8080", "http://localhost:8080"},
		{"http to any loopback", "http://127.9.9.9", "http://127.9.9.9"},
		{"localhost by its name", "localhost", "https://localhost"},

		{"nothing but slashes", " // ", ""},
		{"http to an instance", "http://dev12345.service-now.com", ""},
		{"http to a name like localhost", "http://localhost.example.com", ""},
		{"http to a name like loopback", "http://127.0.0.1.example.com", ""},
		{"http to every address", "http://0.0.0.0", ""},
		{"another scheme", "ftp://dev12345.service-now.com", ""},
		{"a query", "https://dev12345.service-now.com?sysparm=1", ""},
		{"an empty query", "https://dev12345.service-now.com/?", ""},
		{"a fragment", "https://dev12345.service-now.com/#top", ""},
		{"a page copied from the browser", "https://dev12345.service-now.com/nav_to.do?uri=home.do", ""},
		{"a page without a query", "https://dev12345.service-now.com/nav_to.do", ""},
		{"the token endpoint itself", "https://dev12345.service-now.com/oauth_token.do", ""},
		{"a user", "https://admin@dev12345.service-now.com", ""},
		{"a user and password", "https://admin:secret@dev12345.service-now.com", ""},
		{"a bare host with a user", "admin:secret@dev12345.service-now.com", ""},
		{"an escaped at sign in a path", "https://gw.example.com/%40", ""},
		{"a password with a slash", "https://admin:12/34@dev12345.service-now.com", ""},
		{"no host", "https://", ""},
		{"no host but a port", "https://:443", ""},
		{"no host but a path", "https:///snow", ""},
		{"a colon with no port", "https://dev12345.service-now.com:", ""},
		{"one slash after the scheme", "https:/dev12345.service-now.com", ""},
		{"no slash after the scheme", "https:dev12345", ""},
		{"a port that is no number", "https://dev12345.service-now.com:https", ""},
		{"a control character", "https://dev12345\x00.service-now.com", ""},
		{"a line break in the host", "https://dev12345\n.service-now.com", ""},
		{"a line break in the path", "https://dev12345.service-now.com/a\r\nb", ""},
		{"a control character beyond ASCII in the path", "https://dev12345.service-now.com/a\u0085b", ""},
		{"a blank in the host", "dev 12345", ""},
		{"a backslash", `https://dev12345.service-now.com\.example.com`, ""},
		{"an escape in the host", "https://dev%2e12345.service-now.com", ""},
		{"a letter that looks like another", "https://d\u0435v12345.service-now.com", ""},
		{"a Kelvin sign for a k", "https://des\u212a.service-now.com", ""},
		{"a zero-width space", "https://dev12345\u200b.service-now.com", ""},
		{"a leading dot", ".service-now.com", ""},
		{"a zone", "https://[fe80::1%25eth0]", ""},
		{"what is no address", "see the wiki", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, ok := instanceAddress(test.given)
			if !ok {
				got = ""
			}
			if got != test.want {
				t.Errorf("instanceAddress(%q) = %q; want %q", test.given, got, test.want)
			}
		})
	}
}

func TestAPathPrefixIsKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	gateway := serve(t, http.StripPrefix("/snow/prod", w.instance))
	w.snow.InstanceURL = " " + gateway + "/snow/prod/ "
	if r := w.run(t); r.result != `"OK"` {
		t.Errorf("result = %s; want \"OK\"\n%s", r.result, r.log)
	}
	w.checkCached(t)
}

func TestARecordThatIsNotForTheseCredentialsIsAMiss(t *testing.T) {
	t.Parallel()
	const hour = time.Hour
	// of returns a good record for the credentials as change makes them.
	of := func(change func(*servicenow)) func(*testing.T, *world) any {
		return func(t *testing.T, w *world) any {
			other := *w
			change(&other.snow)
			return other.sealed(t, "other", hour)
		}
	}
	for _, test := range []struct {
		name  string
		plant func(t *testing.T, w *world) any
	}{
		{"of another instance", of(func(snow *servicenow) { snow.InstanceURL = "https://other.service-now.com" })},
		{"of another application", of(func(snow *servicenow) { snow.ClientID = "other" })},
		{"of another client secret", of(func(snow *servicenow) { snow.ClientSecret = "other" })},
		{"of another user", of(func(snow *servicenow) { snow.Username = "other" })},
		{"of another password", of(func(snow *servicenow) { snow.Password = "other" })},
		{"whose fields flow into each other", of(func(snow *servicenow) {
			snow.Username, snow.Password = snow.Username+snow.Password[:1], snow.Password[1:]
		})},
		{"whose expiry was stretched", func(t *testing.T, w *world) any {
			r := w.sealed(t, "stretched", time.Minute)
			r.ExpiresAt += 3600
			return r
		}},
		{"whose token was planted", func(t *testing.T, w *world) any {
			r := w.sealed(t, "sealed", hour)
			r.Token = "planted"
			return r
		}},
		{"whose seal was cut", func(t *testing.T, w *world) any {
			r := w.sealed(t, "sealed", hour)
			r.Seal = r.Seal[:32]
			return r
		}},
		{"by the Python script", func(t *testing.T, w *world) any {
			return map[string]any{"token": "by-python", "expires_at": float64(time.Now().Unix()) + 1799.25}
		}},
		{"that has expired", func(t *testing.T, w *world) any { return w.sealed(t, "expired", -time.Minute) }},
		{"that is about to expire", func(t *testing.T, w *world) any { return w.sealed(t, "expiring", 59*time.Second) }},
		{"null", func(*testing.T, *world) any { return nil }},
		{"a string", func(*testing.T, *world) any { return "token" }},
		{"a list", func(*testing.T, *world) any { return []int{1} }},
		{"an empty object", func(*testing.T, *world) any { return struct{}{} }},
		{"of wrong types", func(*testing.T, *world) any {
			return map[string]any{"token": 1, "expires_at": "never", "seal": true}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.plant(t, test.plant(t, w))
			r := w.run(t)
			if r.result != `"OK"` {
				t.Errorf("result = %s; want \"OK\"", r.result)
			}
			checkLines(t, r.log, lineNone, lineLogin, lineStored)
			checkCalls(t, r, 1, readFound, readFound, updated, readFound)
			w.checkCached(t)
		})
	}
}

func TestARecordIsUsableUntilAMinuteBeforeItsExpiry(t *testing.T) {
	expiry := time.Unix(1_800_000_000, 0)
	for _, test := range []struct {
		left time.Duration
		want bool
	}{
		{time.Hour, true},
		{61 * time.Second, true},
		{60*time.Second + time.Nanosecond, true},
		{60 * time.Second, false},
		{59 * time.Second, false},
		{0, false},
		{-time.Hour, false},
	} {
		r := record{ExpiresAt: expiry.Unix()}
		if got := r.usable(expiry.Add(-test.left)); got != test.want {
			t.Errorf("usable with %s left = %t; want %t", test.left, got, test.want)
		}
		// The Python script's condition: expires_at > time.time() + 60, a float.
		python := float64(r.ExpiresAt) > float64(expiry.Add(-test.left).UnixNano())/1e9+60
		if test.left%time.Second == 0 && python != test.want {
			t.Errorf("the Python script would say %t with %s left; want %t", python, test.left, test.want)
		}
	}
}

func TestTheBoundaryToTheSecondOnTheWire(t *testing.T) {
	w := newWorld(t)
	planted := w.sealed(t, "planted-token", time.Hour)
	for left, logins := range map[int64]int{61: 0, 60: 1} {
		w.plant(t, planted)
		setClock(t, func() time.Time { return time.Unix(planted.ExpiresAt-left, 999_999_999-999_999_999*(left%2)) })
		w.instance.TakeCalls()
		w.callMain(t, nil)
		if got := len(w.instance.TakeCalls()); got != logins {
			t.Errorf("%d logins with %d s left; want %d", got, left, logins)
		}
	}
}

func TestAScheduledRunAsksThoughTheCacheIsGood(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// A revoked token, which nothing in the record shows.
	w.plant(t, w.sealed(t, "revoked-token", 20*time.Minute))
	r := w.run(t, scheduled)
	if r.result != `"OK"` {
		t.Errorf("result = %s; want \"OK\"", r.result)
	}
	checkCalls(t, r, 1, readFound, updated, readFound)
	w.checkCached(t)

	// A changed password is noticed at once, and the record stays as it was.
	before := w.checkCached(t)
	w.instance.SetAccount(w.account, false)
	r = w.run(t, scheduled)
	if r.result != "" || !strings.Contains(r.log, "answered 401") {
		t.Errorf("result = %s; want a failure with 401\n%s", r.result, r.log)
	}
	checkCalls(t, r, 1)
	if cached, _ := w.cached(t); cached != before {
		t.Error("the refused login changed the record")
	}
}

func TestALifetimeCountsFromBeforeTheRequest(t *testing.T) {
	w := newWorld(t)
	clock := time.Unix(1_800_000_000, 999_999_999)
	setClock(t, func() time.Time { return clock })
	w.instance.SetFault(func(int, http.ResponseWriter, *http.Request) bool {
		clock = clock.Add(10 * time.Second) // a slow answer
		return false
	})
	w.callMain(t, nil)
	if cached, _ := w.cached(t); cached.ExpiresAt != 1_800_001_800 {
		t.Errorf("expires_at = %d; want 1800 s after the request was sent, 1800001800", cached.ExpiresAt)
	}
}

func TestAWindmillThatCannotBeReadIsAMiss(t *testing.T) {
	t.Parallel()
	text := func(status int, body string) wire.Fault { return reply(status, "text/plain", body) }
	for _, test := range []struct {
		name  string
		fault wire.Fault
		word  string
	}{
		{"not authorized", text(401, "Not authorized: sentinel-body"), `got "Not authorized" from Windmill`},
		{"forbidden", text(403, "Permission denied: sentinel-body"), `got "Permission denied" from Windmill`},
		{"failing", text(500, "SqlErr: sentinel-body"), `got "SqlErr" from Windmill`},
		{"failing without a word", text(500, ""), "could not understand Windmill's answer"},
		{"failing in its own words", text(500, "sentinel-body"), "could not understand Windmill's answer"},
		{"HTML with 200", reply(200, "text/html", "<html>sentinel-body</html>"), "could not understand Windmill's answer"},
		{"nothing with 200", reply(200, "", ""), "could not understand Windmill's answer"},
		{"no content", reply(204, "application/json", ""), "could not understand Windmill's answer"},
		{"garbage with 200", reply(200, "application/json", `{"token": sentinel-body`), "could not understand Windmill's answer"},
		{"a redirect", reply(302, "text/html", "sentinel-body"), "could not understand Windmill's answer"},
		{"a connection reset", reset, "could not reach Windmill"},
		{"half an answer", half, "could not understand Windmill's answer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.secrets = []string{"sentinel-body"}
			w.workspace.SetFault(func(n int, rw http.ResponseWriter, r *http.Request) bool {
				return n == 1 && test.fault(n, rw, r)
			})
			r := w.run(t)
			if r.result != `"OK"` {
				t.Errorf("result = %s; want \"OK\"", r.result)
			}
			checkLines(t, r.log, regexp.QuoteMeta("No usable token in "+cachePath+": "+test.word+"."), lineLogin, lineStored)
			w.checkCached(t)
		})
	}
}

func TestATokenThatCannotBeStoredFailsTheRun(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, w *world)
		words []string
	}{
		{"no folder", func(t *testing.T, w *world) {
			w.workspace = &windmill.Workspace{Name: w.workspace.Name}
			w.workspace.AddToken(w.token, windmill.Rights{Read: true, Write: true})
			w.worker.Workspace, w.worker.BaseURL = w.workspace, serve(t, w.workspace)
		}, []string{`"Not authorized"`}},
		{"no right to write, nothing there", func(t *testing.T, w *world) {
			w.workspace.AddToken(w.token, windmill.Rights{Read: true})
		}, []string{`"Not authorized"`}},
		{"no right to write, an old record there", func(t *testing.T, w *world) {
			w.workspace.AddToken(w.token, windmill.Rights{Read: true})
			w.plant(t, w.sealed(t, "old-token", 15*time.Minute))
		}, []string{`"Not found"`}},
		{"an old server that stores nothing, an old record there", func(t *testing.T, w *world) {
			w.workspace.AddToken(w.token, windmill.Rights{Read: true})
			w.workspace.Old = true
			w.plant(t, w.sealed(t, "old-token", 15*time.Minute))
		}, []string{"older record"}},
		{"an old server that stores nothing, an expired record there", func(t *testing.T, w *world) {
			w.workspace.AddToken(w.token, windmill.Rights{Read: true})
			w.workspace.Old = true
			w.plant(t, w.sealed(t, "old-token", -time.Minute))
		}, []string{"older record"}},
		{"an old server that stores nothing, the Python script's record there", func(t *testing.T, w *world) {
			w.workspace.AddToken(w.token, windmill.Rights{Read: true})
			w.workspace.Old = true
			w.plant(t, map[string]any{"token": "by-python", "expires_at": time.Now().Unix() + 1800})
		}, []string{"no record from this script"}},
		{"an unknown workspace token", func(t *testing.T, w *world) { w.token = "Wm5-workspace-token-gone" }, []string{`"Unauthorized"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			test.spoil(t, w)
			before, _ := w.workspace.Resource(cachePath)
			r := w.run(t, scheduled)
			if r.result != "" {
				t.Errorf("result = %s; want a failure", r.result)
			}
			if len(r.logins) != 1 {
				t.Errorf("%d logins; want 1", len(r.logins))
			}
			checkWords(t, r.log, append(test.words, cachePath, "folder f/ServiceNow exists", "schedule", "may write")...)
			after, _ := w.workspace.Resource(cachePath)
			if diff := cmp.Diff(string(before.Value), string(after.Value)); diff != "" {
				t.Errorf("record mismatch (-before +after):\n%s", diff)
			}
		})
	}
}

func TestARecordOfAJobAtTheSameTimeIsAsGood(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		later   int64 // seconds by which the other's record expires after ours
		ok      bool
		someone string // whose the other record is
	}{
		{"stored a moment after", 5, true, ""},
		{"stored a moment before", -5, true, ""},
		{"stored almost a run's length before", -57, true, ""},
		{"from before the run", -58, false, ""},
		{"of another user", 5, false, "somebody else"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.workspace.SetFault(func(n int, _ http.ResponseWriter, _ *http.Request) bool {
				if n == 4 { // the read back
					ours, _ := w.cached(t)
					other := *w
					if test.someone != "" {
						other.snow.Username = test.someone
					}
					w.plant(t, other.seal(t, "other-token", ours.ExpiresAt+test.later))
				}
				return false
			})
			r := w.run(t)
			if ok := r.result == `"OK"`; ok != test.ok {
				t.Errorf("result = %s; want success %t\n%s", r.result, test.ok, r.log)
			}
		})
	}
}

func TestAskingLeavesTimeForStoring(t *testing.T) {
	w := newWorld(t)
	w.instance.SetFault(hang(""))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second+300*time.Millisecond)
	defer cancel()
	process.Lock()
	defer process.Unlock()
	printed(t, func() {
		if _, err := askServiceNow(ctx, w.snow); err == nil || !strings.Contains(err.Error(), "did not answer in time") {
			t.Errorf("askServiceNow = %v; want a timeout", err)
		}
	})
	if end, _ := ctx.Deadline(); time.Until(end) < 9*time.Second {
		t.Errorf("%s left for storing; want 10 s", time.Until(end))
	}
}

func TestATokenWithAShortLifeIsStoredAllTheSame(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.instance.Lifetime = 30 * time.Second
	r := w.run(t)
	if r.result != `"OK"` {
		t.Errorf("result = %s; want \"OK\"\n%s", r.result, r.log)
	}
	if cached, _ := w.cached(t); !w.instance.Valid(cached.Token) {
		t.Error("the token is not cached")
	}
	if r = w.run(t); len(r.logins) != 1 {
		t.Errorf("%d logins of the next run; want 1", len(r.logins))
	}
}

func TestAnotherSpellingOfTheInstanceSharesTheCache(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run(t)
	w.snow.InstanceURL = " " + strings.ToUpper(w.snow.InstanceURL) + "/"
	checkCalls(t, w.run(t), 0, readFound)
}

func TestGetToken(t *testing.T) {
	w := newWorld(t)
	get := func() (token, log string, err error) {
		w.setenv(t)
		process.Lock()
		defer process.Unlock()
		log = printed(t, func() { token, err = GetToken(w.snow) })
		w.checkSecrets(t, log)
		return token, log, err
	}

	token, log, err := get()
	if err != nil || !w.instance.Valid(token) {
		t.Errorf("GetToken = a token that is valid: %t, %v; want a valid one", w.instance.Valid(token), err)
	}
	checkLines(t, log, lineNone, lineLogin, lineStored)

	again, log, err := get()
	if err != nil || again != token {
		t.Errorf("GetToken with a warm cache = the same token: %t, %v; want the same", again == token, err)
	}
	checkLines(t, log, lineFound, lineReused)

	w.workspace.AddToken(w.token, windmill.Rights{})
	token, log, err = get()
	if err != nil || !w.instance.Valid(token) {
		t.Errorf("GetToken without a cache = a token that is valid: %t, %v; want a valid one", w.instance.Valid(token), err)
	}
	checkLines(t, log, lineNone, lineLogin, "Warning: the token is not stored in .+")

	w.instance.SetAccount(w.account, false)
	token, _, err = get()
	if err == nil || token != "" {
		t.Errorf("GetToken with a refused login = %q, %v; want an error", token, err)
	}

	w.snow.Password = ""
	token, _, err = get()
	if err == nil || token != "" {
		t.Errorf("GetToken without a password = %q, %v; want an error", token, err)
	}
}

func TestRetryPause(t *testing.T) {
	clock := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, test := range []struct {
		name    string
		attempt int
		failed  fault
		jitter  float64
		pause   time.Duration
		again   bool
	}{
		{"a rate limit", 1, fault{status: 429}, 0, 500 * time.Millisecond, true},
		{"a bad gateway", 1, fault{status: 502}, 0, 500 * time.Millisecond, true},
		{"an unavailable instance", 1, fault{status: 503}, 0, 500 * time.Millisecond, true},
		{"a gateway's timeout", 1, fault{status: 504}, 0, 500 * time.Millisecond, true},
		{"jitter", 1, fault{status: 503}, 0.5, 750 * time.Millisecond, true},
		{"a second pause", 2, fault{status: 503}, 0, time.Second, true},
		{"a second pause with jitter", 2, fault{status: 503}, 0.5, 1500 * time.Millisecond, true},
		{"no third", 3, fault{status: 503}, 0, 0, false},
		{"a deadline", 1, fault{cause: context.DeadlineExceeded}, 0, 500 * time.Millisecond, true},
		{"a refused connection", 1, fault{cause: dialError(t)}, 0, 500 * time.Millisecond, true},
		{"a Retry-After of seconds", 1, fault{status: 429, retryAfter: "3"}, 0, 3 * time.Second, true},
		{"a Retry-After below the pause", 2, fault{status: 429, retryAfter: "1"}, 0.9, 1900 * time.Millisecond, true},
		{"a Retry-After too long to wait", 1, fault{status: 429, retryAfter: "3600"}, 0, 5 * time.Second, true},
		{"a Retry-After of a date", 1, fault{status: 503, retryAfter: "Fri, 02 Jan 2026 03:04:09 GMT"}, 0, 4 * time.Second, true},
		{"a Retry-After of a far date", 1, fault{status: 503, retryAfter: "Fri, 02 Jan 2099 03:04:09 GMT"}, 0, 5 * time.Second, true},
		{"a Retry-After of a past date", 1, fault{status: 503, retryAfter: "Fri, 02 Jan 2015 03:04:09 GMT"}, 0, 500 * time.Millisecond, true},
		{"a Retry-After that is none", 1, fault{status: 503, retryAfter: "-1"}, 0, 500 * time.Millisecond, true},
		{"a refusal", 1, fault{status: 401}, 0, 0, false},
		{"a refusal with Retry-After", 1, fault{status: 401, retryAfter: "1"}, 0, 0, false},
		{"a block", 1, fault{status: 403}, 0, 0, false},
		{"an error of the instance", 1, fault{status: 500}, 0, 0, false},
		{"a redirect", 1, fault{status: 307}, 0, 0, false},
		{"a malformed answer", 1, fault{status: 200}, 0, 0, false},
		{"anything unknown", 1, fault{cause: errors.New("x")}, 0, 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			pause, again := retryPause(test.attempt, &test.failed, test.jitter, clock)
			if pause != test.pause || again != test.again {
				t.Errorf("retryPause = %s, %t; want %s, %t", pause, again, test.pause, test.again)
			}
		})
	}
}

// dialError is the error of a connection to a port on which nobody listens.
func dialError(t *testing.T) error {
	t.Helper()
	server := httptest.NewServer(nil)
	server.Close()
	_, err := post(context.Background(), server.URL, nil)
	if err == nil {
		t.Fatal("somebody listens")
	}
	return err
}

func TestTheAnswerToALogin(t *testing.T) {
	const token = `"access_token":"abc"`
	year := strconv.Itoa(365 * 24 * 3600)
	for _, test := range []struct {
		name, body string
		lifetime   string // "" for an error
	}{
		{"as ServiceNow sends it", `{"access_token":"abc","refresh_token":"def","scope":"useraccount","token_type":"Bearer","expires_in":1799}`, "1799"},
		{"with blanks around it", " \r\n{" + token + ",\"expires_in\":1799}\n ", "1799"},
		{"with a quoted lifetime", `{` + token + `,"expires_in":"1799"}`, "1799"},
		{"with a broken lifetime", `{` + token + `,"expires_in":1799.9}`, "1799"},
		{"with a lifetime in another notation", `{` + token + `,"expires_in":18e2}`, "1800"},
		{"without a lifetime", `{` + token + `}`, "1800"},
		{"with a null lifetime", `{` + token + `,"expires_in":null}`, "1800"},
		{"with a lifetime of a year", `{` + token + `,"expires_in":` + year + `}`, year},
		{"with a lifetime of over a year", `{` + token + `,"expires_in":` + year + `0}`, year},
		{"with a lifetime out of range", `{` + token + `,"expires_in":1e999}`, year},
		{"with a null error", `{` + token + `,"error":null}`, "1800"},
		{"a token with all its characters", `{"access_token":"aZ09-._~+/="}`, "1800"},

		{"with a lifetime of nothing", `{` + token + `,"expires_in":0}`, ""},
		{"with a lifetime below nothing", `{` + token + `,"expires_in":-1}`, ""},
		{"with a lifetime of words", `{` + token + `,"expires_in":"soon"}`, ""},
		{"with an empty lifetime", `{` + token + `,"expires_in":""}`, ""},
		{"with a quoted null for a lifetime", `{` + token + `,"expires_in":"null"}`, ""},
		{"with a lifetime in hexadecimal", `{` + token + `,"expires_in":"0x10"}`, ""},
		{"with an infinite lifetime", `{` + token + `,"expires_in":"Inf"}`, ""},
		{"with a true lifetime", `{` + token + `,"expires_in":true}`, ""},
		{"with a list for a lifetime", `{` + token + `,"expires_in":[1]}`, ""},
		{"with an error", `{` + token + `,"error":"server_error"}`, ""},
		{"with an empty error", `{` + token + `,"error":""}`, ""},
		{"with an error object", `{` + token + `,"error":{}}`, ""},
		{"without a token", `{"expires_in":1799}`, ""},
		{"with a null token", `{"access_token":null}`, ""},
		{"with an empty token", `{"access_token":""}`, ""},
		{"with padding for a token", `{"access_token":"=="}`, ""},
		{"with padding inside the token", `{"access_token":"a=b"}`, ""},
		{"with a number for a token", `{"access_token":1}`, ""},
		{"with a token of another spelling", `{"Access_Token":"abc"}`, ""},
		{"with a blank in the token", `{"access_token":"a b"}`, ""},
		{"with a line break in the token", `{"access_token":"a\r\nX-Evil: 1"}`, ""},
		{"with a reference for a token", `{"access_token":"$var:f/secret"}`, ""},
		{"with a letter beyond ASCII in the token", `{"access_token":"ä"}`, ""},
		{"with a broken letter in the token", "{\"access_token\":\"\xff\"}", ""},
		{"nothing", ``, ""},
		{"blanks", ` `, ""},
		{"null", `null`, ""},
		{"a list", `[{` + token + `}]`, ""},
		{"a string", `"abc"`, ""},
		{"two objects", `{` + token + `}{` + token + `}`, ""},
		{"an object and a word", `{` + token + `} x`, ""},
		{"half an object", `{` + token, ""},
		{"HTML", `<html></html>`, ""},
		{"too much", `{` + token + `}` + strings.Repeat(" ", longestAnswer), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, lifetime, err := answer{status: 200, body: []byte(test.body)}.token()
			got := ""
			if err == nil {
				got = strconv.FormatInt(lifetime, 10)
			}
			if got != test.lifetime {
				t.Errorf("lifetime = %q, %v; want %q", got, err, test.lifetime)
			}
		})
	}
	exact := `{` + token + `}`
	exact += strings.Repeat(" ", longestAnswer-len(exact))
	if got, _, err := (answer{status: 200, body: []byte(exact)}).token(); got != "abc" {
		t.Errorf("token of an answer of 1 MiB = %q, %v; want abc", got, err)
	}
}

func TestQuoteWithholdsWhatRepeatsASecret(t *testing.T) {
	const withheld = "(withheld, it may repeat a secret)"
	for _, test := range []struct{ name, text, want string }{
		{"plain words", "access_denied", `"access_denied"`},
		{"the secret", "hunter2 secret", withheld},
		{"the secret in words", "not hunter2 secret!", withheld},
		{"the secret in capitals", "HUNTER2 SECRET", withheld},
		{"the secret of a form", "hunter2+secret", withheld},
		{"the secret of a URL", "hunter2%20secret", withheld},
		{"the secret of a page", "&#104;unter2", withheld},
		{"the secret of JSON", `\u0068unter2`, withheld},
		{"a part of the secret", "hunter2", `"hunter2"`},
		{"quotes and line breaks", "a\n\"b\"", `"a\n\"b\""`},
		{"many letters", strings.Repeat("ä", 200), `"` + strings.Repeat("ä", 100) + `"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := quote(test.text, []string{"", " hunter2 secret "}); got != test.want {
				t.Errorf("quote(%q) = %s; want %s", test.text, got, test.want)
			}
		})
	}
}

func TestTheClientOnTheWire(t *testing.T) {
	w := newWorld(t)
	w.setenv(t)
	const path = cachePath
	calls := func() []wire.Call {
		calls := w.workspace.TakeCalls()
		for i, call := range calls {
			calls[i].Header = http.Header{"Authorization": call.Header["Authorization"]}
			if kind := call.Header["Content-Type"]; kind != nil {
				calls[i].Header["Content-Type"] = kind
			}
		}
		return calls
	}
	bearer := http.Header{"Authorization": {"Bearer " + w.token}}
	bearerJSON := http.Header{"Authorization": {"Bearer " + w.token}, "Content-Type": {"application/json"}}
	const resources = "/api/w/test%20workspace/resources/"
	read := wire.Call{Method: "GET", Path: resources + "get_value_interpolated/" + escapedPath, Header: bearer, Status: 404}

	_, err := wmill.GetResource(path)
	if err == nil || err.Error() != "Not found: Resource "+path+" not found" {
		t.Errorf("GetResource of nothing = %v; want the bare body as an error", err)
	}
	if diff := cmp.Diff([]wire.Call{read}, calls()); diff != "" {
		t.Errorf("GetResource mismatch (-want +got):\n%s", diff)
	}

	if err := wmill.SetResource(path, map[string]any{"a": 1}); err != nil {
		t.Error(err)
	}
	create := wire.Call{Method: "POST", Path: resources + "create?update_if_exists=true", Header: bearerJSON, Status: 201}
	got := calls()
	if len(got) == 2 {
		var body any
		if err := json.Unmarshal([]byte(got[1].Body), &body); err != nil {
			t.Error(err)
		}
		want := map[string]any{"path": path, "value": map[string]any{"a": 1.0}, "resource_type": "any"}
		if diff := cmp.Diff(want, body); diff != "" {
			t.Errorf("body of create mismatch (-want +got):\n%s", diff)
		}
		got[1].Body = ""
	}
	if diff := cmp.Diff([]wire.Call{read, create}, got); diff != "" {
		t.Errorf("SetResource of nothing mismatch (-want +got):\n%s", diff)
	}

	// Any answer but 404 leads to an update, which leaves the type alone.
	for _, status := range []int{200, 401, 500} {
		w.workspace.SetFault(func(n int, rw http.ResponseWriter, r *http.Request) bool {
			return n == 1 && status != 200 && reply(status, "text/plain", "x")(n, rw, r)
		})
		if err := wmill.SetResource(path, 2, "state"); err != nil {
			t.Error(err)
		}
		read.Status = status
		update := wire.Call{Method: "POST", Path: resources + "update_value/" + escapedPath, Header: bearerJSON, Body: `{"value":2}`, Status: 200}
		got := calls()
		for i := range got {
			got[i].Body = strings.TrimSpace(got[i].Body)
		}
		if diff := cmp.Diff([]wire.Call{read, update}, got); diff != "" {
			t.Errorf("SetResource after %d mismatch (-want +got):\n%s", status, diff)
		}
	}
	if resource, _ := w.workspace.Resource(path); resource.Type != "any" || string(resource.Value) != "2" {
		t.Errorf("resource = %s %s; want any 2", resource.Type, resource.Value)
	}

	// The hazards: the script is written around each.
	w.workspace.SetFault(reply(500, "text/html", "<html>"))
	if err := wmill.SetResource(path, 2); err == nil || err.Error() != "<html>" {
		t.Errorf("SetResource with 500 = %v; want the bare body", err)
	}
	w.workspace.SetFault(reply(200, "text/html", "<html>"))
	func() {
		defer func() {
			if recover() == nil {
				t.Error("GetResource did not panic on a 200 that is not JSON")
			}
		}()
		_, _ = wmill.GetResource(path)
	}()
	w.workspace.SetFault(nil)
	w.plant(t, nil)
	if value, err := wmill.GetResource(path); value != nil || err != nil {
		t.Errorf("GetResource of null = %v, %v; want nil, nil", value, err)
	}
	t.Setenv("BASE_INTERNAL_URL", "")
	if _, err := wmill.GetResource(path); err == nil || !strings.Contains(err.Error(), "unsupported protocol scheme") {
		t.Errorf("GetResource without BASE_INTERNAL_URL = %v; want an unsupported protocol scheme", err)
	}
}

// script.yaml is what Windmill makes the form of, for it cannot infer it from a Go
// type; go.mod and the require line must pin the same client.
func TestScriptYAMLAndGoModAgreeWithMainGo(t *testing.T) {
	read := func(name string) string {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	source, metadata, module := read("main.go"), read("script.yaml"), read("go.mod")

	signature := regexp.MustCompile(`(?m)^func main\((\w+) (\w+)\) \(string, error\) \{$`).FindStringSubmatch(source)
	if signature == nil {
		t.Fatal("main.go has no main of the form that Windmill parses")
	}
	argument, kind := signature[1], signature[2]
	for _, want := range []string{
		"\nkind: script\n",
		"\nschema:\n",
		"\n  order:\n    - " + argument + "\n",
		"\n  required:\n    - " + argument + "\n",
		"\n  properties:\n    " + argument + ":\n      type: object\n      format: resource-" + kind + "\n",
		"resource of type `" + kind + "`",
		"`" + cachePath + "`",
		"summary: Obtain and cache a ServiceNow OAuth2 access token\n",
	} {
		if !strings.Contains(metadata, want) {
			t.Errorf("script.yaml lacks %q", want)
		}
	}
	fields := reflect.TypeOf(servicenow{})
	for i := 0; i < fields.NumField(); i++ {
		if name := fields.Field(i).Tag.Get("json"); !strings.Contains(metadata, "`"+name+"`") {
			t.Errorf("script.yaml does not describe the field %s", name)
		}
	}
	timeout, err := strconv.Atoi(regexp.MustCompile(`(?m)^timeout: (\d+)$`).FindStringSubmatch(metadata + "\ntimeout: 0")[1])
	if err != nil || time.Duration(timeout)*time.Second <= runLimit {
		t.Errorf("timeout = %d s, %v; want more than the run's own %s, for its error to be seen", timeout, err, runLimit)
	}

	// The worker's expression, with no blank after the slashes.
	pins := regexp.MustCompile(`//require (.*)\n`).FindAllStringSubmatch(source, -1)
	if len(pins) != 1 {
		t.Fatalf("%d require lines; want 1", len(pins))
	}
	if !strings.Contains(module, "\t"+pins[0][1]+"\n") {
		t.Errorf("go.mod does not require %s", pins[0][1])
	}
	if beforeFirst, _, _ := strings.Cut(source, "func "); !strings.Contains(beforeFirst, `wmill "github.com/windmill-labs/windmill-go-client"`) {
		t.Error("the imports do not stand before the first function, where Windmill looks for them")
	}
}

// reply is an answer in place of the server's own; headers are pairs of name and value.
func reply(status int, contentType, body string, headers ...string) wire.Fault {
	return func(_ int, w http.ResponseWriter, _ *http.Request) bool {
		w.Header()["Content-Type"] = nil
		if contentType != "" {
			w.Header().Set("Content-Type", contentType)
		}
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
		return true
	}
}

// reset breaks the connection before an answer.
func reset(_ int, w http.ResponseWriter, _ *http.Request) bool {
	connection, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	if tcp, ok := connection.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // a reset rather than an orderly end
	}
	_ = connection.Close()
	return true
}

// half breaks the connection in the middle of a 200 with JSON.
func half(_ int, w http.ResponseWriter, _ *http.Request) bool {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", "100")
	_, _ = w.Write([]byte(`{"access_token":"abc`))
	return true
}

// raw writes text to the bare connection, and holds it open while hold says so.
func raw(text string, hold bool) wire.Fault {
	return func(_ int, w http.ResponseWriter, _ *http.Request) bool {
		connection, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer connection.Close()
		_, _ = io.WriteString(connection, text)
		if hold {
			_, _ = io.Copy(io.Discard, connection) // until the job ends it
		}
		return true
	}
}

// echo answers 401 with the password in a field, in the guise that encode gives it.
func echo(format string, encode func(string) string) wire.Fault {
	return func(n int, w http.ResponseWriter, r *http.Request) bool {
		encoded, err := json.Marshal(fmt.Sprintf(format, encode(r.PostFormValue("password"))))
		if err != nil {
			panic(err)
		}
		body := fmt.Sprintf(`{"error":"server_error","error_description":%s}`, encoded)
		return reply(http.StatusUnauthorized, "application/json", body)(n, w, r)
	}
}

// endless sends beginning, then text again and again until the job has enough.
func endless(beginning, text string) wire.Fault {
	return func(_ int, w http.ResponseWriter, _ *http.Request) bool {
		_, err := io.WriteString(w, beginning)
		for err == nil {
			_, err = io.WriteString(w, text)
		}
		return true
	}
}

// bomb sends a gibibyte of blanks as a mebibyte of gzip.
func bomb(_ int, w http.ResponseWriter, _ *http.Request) bool {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Encoding", "gzip")
	zip := gzip.NewWriter(w)
	blanks := bytes.Repeat([]byte(" "), 1<<20)
	for i := 0; i < 1<<10; i++ {
		if _, err := zip.Write(blanks); err != nil {
			return true
		}
	}
	_ = zip.Close()
	return true
}

// hang answers nothing, after beginning, until the job ends the connection.
func hang(beginning string) wire.Fault {
	return func(_ int, w http.ResponseWriter, r *http.Request) bool {
		if beginning != "" {
			_, _ = io.WriteString(w, beginning)
			_ = http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
		return true
	}
}

// drip sends a byte of text each tenth of a second.
func drip(text string) wire.Fault {
	return func(_ int, w http.ResponseWriter, _ *http.Request) bool {
		for i := range text {
			if _, err := io.WriteString(w, text[i:i+1]); err != nil {
				return true
			}
			_ = http.NewResponseController(w).Flush()
			time.Sleep(100 * time.Millisecond)
		}
		return true
	}
}

// The answers of ServiceNow's documentation and of captures.
const (
	accessDenied = `{"error_description":"access_denied","error":"server_error"}`
	rateLimit    = `{"error":{"message":"Rate limit exceeded","detail":"Too many requests"},"status":"failure"}`
	hibernating  = `<html><head><title>Instance Hibernating page</title></head><body class="instance-hibernating-page"></body></html>`
	someToken    = `"access_token":"S3nt1nel-access-token"`
)

// hostile is an answer that gives no token, and what the run must make of it.
type hostile struct {
	name   string
	fault  wire.Fault
	logins int      // 1, or 3 where asking again may help
	words  []string // in the error
}

var hostileAnswers = []hostile{
	{"a refused login", reply(401, "application/json;charset=utf-8", accessDenied), 1, []string{
		`answered 401 (error "server_error", error_description "access_denied")`, "does not tell why", "client_id", "client_secret",
		"username", "password", "user is active", "locked out", "password reset", "Web service access only", "application is active", "scope",
		"glide.oauth.inbound.ropc.grant_type.disabled", "Exception on token flow"}},
	{"a refused login by RFC 6749", reply(400, "application/json", `{"error":"invalid_grant"}`), 1, []string{`answered 400 (error "invalid_grant")`, "username"}},
	{"a refused login without a word", reply(401, "", ""), 1, []string{"answered 401.", "client_id"}},
	{"a refused login with half a body", func(_ int, w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Length", "1000")
		w.WriteHeader(401)
		_, _ = io.WriteString(w, accessDenied)
		return true
	}, 1, []string{"answered 401"}},
	{"a refused login with HTML", reply(401, "text/html", "<html>S3ntinel-body</html>"), 1, []string{"answered 401"}},
	{"a refused login with another object", reply(401, "application/json", `{"error":{"message":"User Not Authenticated","detail":"Required to provide Auth information"},"status":"failure"}`), 1,
		[]string{`message "User Not Authenticated", detail "Required to provide Auth information"`}},
	{"a refused login with a long text", reply(401, "application/json", `{"error":"server_error","error_description":"`+strings.Repeat("x", 5000)+`"}`), 1, []string{`xxx"`}},
	{"a payment due", reply(402, "", ""), 1, []string{"answered 402", "instance_url"}},
	{"a blocked address", reply(403, "text/html", "<html>S3ntinel-body</html>"), 1, []string{"answered 403", "IP address"}},
	{"no such page", reply(404, "text/html", "<html>S3ntinel-body</html>"), 1, []string{"answered 404", "instance_url"}},
	{"a method that is not allowed", reply(405, "", ""), 1, []string{"answered 405"}},
	{"a proxy that wants a login", reply(407, "", ""), 1, []string{"answered 407", "proxy"}},
	{"a rate limit", reply(429, "application/json", rateLimit, "Retry-After", "1"), 3, []string{`answered 429 (message "Rate limit exceeded", detail "Too many requests")`}},
	{"a rate limit without a word", reply(429, "", ""), 3, []string{"answered 429"}},
	{"an error of the instance", reply(500, "text/html", "<html>S3ntinel-body</html>"), 1, []string{"answered 500", "run again later"}},
	{"a bad gateway", reply(502, "text/html", "<html>S3ntinel-body</html>"), 3, []string{"answered 502", "run again later"}},
	{"an unavailable instance", reply(503, "text/html", "<html>S3ntinel-body</html>", "Retry-After", "Thu, 01 Jan 1970 00:00:00 GMT"), 3, []string{"answered 503"}},
	{"a gateway's timeout", reply(504, "", ""), 3, []string{"answered 504"}},
	{"a hibernating instance", reply(200, "text/html", hibernating), 1, []string{"hibernating", "Wake"}},
	{"a hibernating instance behind a gateway", reply(404, "text/html", "\r\n "+hibernating), 1, []string{"hibernating", "Wake"}},
	{"a login page", reply(200, "text/html", "<!DOCTYPE html><html>S3ntinel-body</html>"), 1, []string{"answered 200 with an HTML page", "token endpoint", "instance_url"}},
	{"created", reply(201, "application/json", "{"+someToken+"}"), 1, []string{"answered 201"}},
	{"no content", reply(204, "", ""), 1, []string{"answered 204"}},
	{"a part", reply(206, "application/json", "{"+someToken+"}"), 1, []string{"answered 206"}},
	{"another protocol, and then silence", raw("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", true), 1, []string{"answered 101"}},

	{"nothing", reply(200, "application/json", ""), 1, []string{"answered 200 with something other than one JSON object", "token endpoint"}},
	{"null", reply(200, "application/json", "null"), 1, []string{"something other than one JSON object"}},
	{"a list", reply(200, "application/json", "[{"+someToken+"}]"), 1, []string{"something other than one JSON object"}},
	{"the answer twice", reply(200, "application/json", "{"+someToken+"}{"+someToken+"}"), 1, []string{"something other than one JSON object"}},
	{"the answer and garbage", reply(200, "application/json", "{"+someToken+"}\x00"), 1, []string{"something other than one JSON object"}},
	{"the answer cut", reply(200, "application/json", "{"+someToken), 1, []string{"something other than one JSON object"}},
	{"plain text", reply(200, "text/plain", "S3ntinel-body"), 1, []string{"something other than one JSON object"}},
	{"the answer as a form", reply(200, "application/x-www-form-urlencoded", "access_token=S3nt1nel-access-token&expires_in=1799"), 1, []string{"something other than one JSON object"}},
	{"no token", reply(200, "application/json", `{"expires_in":1799}`), 1, []string{"no well-formed access_token"}},
	{"a header in the token", reply(200, "application/json", `{"access_token":"S3nt1nel-access-token\r\nX-Evil: 1"}`), 1, []string{"no well-formed access_token"}},
	{"a reference to a secret in the token", reply(200, "application/json", `{"access_token":"$var:u/admin/secret"}`), 1, []string{"no well-formed access_token"}},
	{"a lifetime of nothing", reply(200, "application/json", `{`+someToken+`,"expires_in":0}`), 1, []string{"expires_in"}},
	{"a lifetime of words", reply(200, "application/json", `{`+someToken+`,"expires_in":"S3ntinel-body"}`), 1, []string{"expires_in"}},
	{"an error beside the token", reply(200, "application/json", `{`+someToken+`,"error":"invalid_client"}`), 1, []string{`answered 200 with an error (error "invalid_client")`}},
	{"a rate limit with 200", reply(200, "application/json", rateLimit), 1, []string{`answered 200 with an error (message "Rate limit exceeded"`}},
	{"too much", reply(200, "application/json", "{"+someToken+"}"+strings.Repeat(" ", 1<<20)), 1, []string{"more than 1 MiB"}},
	{"an answer without end", endless(`{"access_token":"`, strings.Repeat("a", 1<<16)), 1, []string{"more than 1 MiB"}},
	{"an error without end", func(n int, w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(401)
		return endless(`{"error":"`, strings.Repeat("a", 1<<16))(n, w, r)
	}, 1, []string{"answered 401"}},
	{"a gzip bomb", bomb, 1, []string{"more than 1 MiB"}},
	{"gzip that is none", reply(200, "application/json", "{"+someToken+"}", "Content-Encoding", "gzip"), 1, []string{"did not answer as an HTTPS server does"}},
	{"deep nesting", reply(200, "application/json", `{`+someToken+`,"a":`+strings.Repeat("[", 100_000)), 1, []string{"something other than one JSON object"}},

	{"the password echoed", echo("user x with %s is unknown", func(s string) string { return s }), 1, []string{`error "server_error", error_description (withheld`}},
	{"the password echoed in capitals", echo("%s", strings.ToUpper), 1, []string{"withheld"}},
	{"the password echoed as in a form", echo("password=%s&x=1", url.QueryEscape), 1, []string{"withheld"}},
	{"the password echoed as in a URL", echo("/%s", url.PathEscape), 1, []string{"withheld"}},
	{"the password echoed as in HTML", echo("<b>%s</b>", html.EscapeString), 1, []string{"withheld"}},
	{"the password echoed as in Go", echo("%s", strconv.Quote), 1, []string{"withheld"}},
	{"the password echoed after a long text", echo(strings.Repeat("x", 99)+"%s", func(s string) string { return s }), 1, []string{"withheld"}},
	{"the client secret echoed as the error", reply(401, "application/json", `{"error":"Kx9/secret=&?#'%Kx9"}`), 1, []string{"error (withheld"}},
	{"the client secret echoed in an object", reply(429, "application/json", `{"error":{"message":"Kx9/secret=&?#'%Kx9","detail":{"a":1}}}`), 3, []string{"message (withheld"}},
	{"a token echoed", reply(200, "application/json", `{`+someToken+`,"refresh_token":"S3nt1nel-refresh-token","error":"S3nt1nel-access-token","error_description":"for s3nt1nel-REFRESH-token"}`), 1,
		[]string{"error (withheld", "error_description (withheld"}},
	{"the password in the status line", raw("HTTP/1.1 401 "+password+"\r\nContent-Length: 0\r\n\r\n", false), 1, []string{"answered 401"}},
	{"the password in headers", reply(401, "application/json", accessDenied, "X-Echo", "Zq7", "Www-Authenticate", `Basic realm="`+clientSecret+`"`), 1, []string{"answered 401"}},
	{"the password for an answer", raw(password+"\r\n\r\n", false), 1, []string{"did not answer as an HTTPS server does"}},

	{"a redirect without a place", reply(302, "", ""), 1, []string{"answered 302", "instance_url must be the instance's own address"}},
	{"a redirect to nonsense", reply(302, "", "", "Location", "http://[S3ntinel-body"), 1, []string{"answered 302", "own address"}},
	{"a redirect with the password as its host", reply(302, "", "", "Location", "https://Kx9/secret=&?#'%Kx9"), 1, []string{"answered 302", "own address"}},
	{"not modified", reply(304, "", ""), 1, []string{"answered 304"}},

	{"a reset before the headers", reset, 3, []string{"broke the connection off"}},
	{"an end before the headers", raw("", false), 3, []string{"broke the connection off"}},
	{"an end in the headers", raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n", false), 3, []string{"broke the connection off"}},
	{"an end in the body", half, 3, []string{"broke the connection off"}},
	{"an end in a chunk", raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n60\r\n{"+someToken, false), 3, []string{"broke the connection off"}},
	{"chunks that are none", raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", false), 1, []string{"did not answer as an HTTPS server does"}},
	{"headers without end", raw("HTTP/1.1 200 OK\r\n"+strings.Repeat("X-A: "+strings.Repeat("a", 1000)+"\r\n", 12_000), false), 1, []string{"did not answer as an HTTPS server does"}},
	{"no HTTP", raw("SSH-2.0-OpenSSH_9.6\r\n", false), 1, []string{"did not answer as an HTTPS server does"}},
}

// checkHostile runs the job, on a cold cache, against an answer without a token,
// and fails the test unless the run fails within limit as h says, caching nothing.
func (w *world) checkHostile(t *testing.T, h hostile, limit time.Duration, env ...string) {
	t.Helper()
	w.secrets = append(w.secrets, "S3nt1nel-access-token", "S3nt1nel-refresh-token", "S3ntinel-body")
	w.instance.SetFault(h.fault)
	r := w.run(t, env...)
	if r.result != "" {
		t.Errorf("result = %s; want a failure", r.result)
	}
	if len(r.logins) != h.logins {
		t.Errorf("%d logins; want %d\n%s", len(r.logins), h.logins, r.log)
	}
	if len(r.windmill) != 1 {
		t.Errorf("calls to Windmill: %v; want the read alone", names(r.windmill))
	}
	if r.took > limit {
		t.Errorf("took %s; want at most %s", r.took, limit)
	}
	lines := strings.Split(strings.TrimSpace(r.log), "\n")
	if want := 1 + max(1, h.logins); len(lines) != want {
		t.Errorf("%d lines; want %d:\n%s", len(lines), want, r.log)
	}
	message := lines[len(lines)-1]
	checkWords(t, message, append(h.words, "/oauth_token.do")...)
	if shown := (windmill.Done{Log: r.log}).FailureText(); !strings.Contains(shown, message) {
		t.Errorf("Windmill would show only a part of the error as the result: %s", shown)
	}
	if _, found := w.cached(t); found {
		t.Error("something was cached")
	}
}

func TestHostileServiceNow(t *testing.T) {
	t.Parallel()
	if len(hostileAnswers) < 40 {
		t.Errorf("%d answers; want at least 40", len(hostileAnswers))
	}
	for _, h := range hostileAnswers {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			newWorld(t).checkHostile(t, h, 14*time.Second)
		})
	}
}

func TestNoRedirectIsFollowed(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 302, 303, 307, 308} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			t.Parallel()
			var strayed atomic.Int32
			elsewhere := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { strayed.Add(1) }))
			host := strings.TrimPrefix(elsewhere, "http://")
			w := newWorld(t)
			w.checkHostile(t, hostile{
				fault: reply(status, "", "", "Location", "http://user:S3ntinel-body@"+host+"/login.do?a=S3ntinel-body"), logins: 1,
				words: []string{fmt.Sprintf("answered %d (redirect to %q)", status, host), "instance_url must be the instance's own address"},
			}, 10*time.Second)
			w.checkHostile(t, hostile{
				fault: reply(status, "", "", "Location", "/S3ntinel-body"), logins: 1,
				words: []string{
					fmt.Sprintf("answered %d (redirect to %q)", status, strings.TrimPrefix(w.snow.InstanceURL, "http://")),
					"instance_url must be the instance's own address",
				},
			}, 10*time.Second)
			if n := strayed.Load(); n != 0 {
				t.Errorf("the other host was asked %d times; want never", n)
			}
		})
	}
}

func TestARefusedConnectionIsTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.snow.InstanceURL = "http://127.0.0.1:1"
	r := w.run(t)
	const again = `http://127\.0\.0\.1:1/oauth_token\.do refused the connection; asking again in (\d00ms|\d(\.\d)?s)\.`
	checkLines(t, r.log, lineNone, again, again, "http://127.0.0.1:1/oauth_token.do refused the connection. .+instance_url.+")
}

func TestAnUnknownHostIsNot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.snow.InstanceURL = "https://no-such-instance.invalid"
	r := w.run(t)
	checkLines(t, r.log, lineNone, `https://no-such-instance\.invalid/oauth_token\.do is on a host that DNS does not know\. .+instance_url.+`)
}

// certificate returns a certificate for names that ca signed; a nil ca signs itself.
func certificate(t *testing.T, ca *tls.Certificate, from time.Time, names ...string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: from, NotAfter: from.Add(time.Hour),
		DNSNames: names, BasicConstraintsValid: true, IsCA: ca == nil,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	parent, signer := template, key
	if ca != nil {
		parent, signer = ca.Leaf, ca.PrivateKey.(*ecdsa.PrivateKey)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	if inProcess {
		t.Skip("a process reads SSL_CERT_FILE once")
	}
	now := time.Now().Add(-time.Minute)
	ca := certificate(t, nil, now)
	authorities := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(authorities, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate[0]}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name        string
		certificate *tls.Certificate
		words       []string // nil for a success
	}{
		{"good", certificate(t, ca, now, "localhost"), nil},
		{"expired", certificate(t, ca, now.Add(-24*time.Hour), "localhost"), []string{"untrusted certificate", "expired"}},
		{"not yet valid", certificate(t, ca, now.Add(24*time.Hour), "localhost"), []string{"untrusted certificate", "not yet valid"}},
		{"for another name", certificate(t, ca, now, "other.example.com"), []string{"untrusted certificate", "other.example.com"}},
		{"self-signed", certificate(t, nil, now, "localhost"), []string{"untrusted certificate", "unknown authority"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			server := httptest.NewUnstartedServer(w.instance)
			server.TLS = &tls.Config{Certificates: []tls.Certificate{*test.certificate}}
			server.EnableHTTP2 = true
			server.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that must fail
			server.StartTLS()
			t.Cleanup(server.Close)
			w.snow.InstanceURL = strings.Replace(server.URL, "127.0.0.1", "localhost", 1)
			env := "SSL_CERT_FILE=" + authorities
			if test.words != nil {
				w.checkHostile(t, hostile{words: test.words}, 10*time.Second, env)
				return
			}
			if r := w.run(t, env); r.result != `"OK"` {
				t.Errorf("result = %s; want \"OK\"\n%s", r.result, r.log)
			}
			w.checkCached(t)
			for _, h := range []hostile{
				{"a refused login", reply(401, "application/json", accessDenied), 1, []string{"answered 401"}},
				{"a bad gateway", reply(502, "", ""), 3, []string{"answered 502"}},
				{"an answer without end", endless(`{"access_token":"`, strings.Repeat("a", 1<<16)), 1, []string{"more than 1 MiB"}},
				{"an end before the headers", func(int, http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }, 3,
					[]string{"broke the connection off"}},
			} {
				w.workspace.DeleteResource(cachePath)
				w.checkHostile(t, h, 14*time.Second, env)
			}
		})
	}
	t.Run("HTTP for HTTPS", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.snow.InstanceURL = strings.Replace(w.snow.InstanceURL, "http://", "https://", 1)
		w.checkHostile(t, hostile{words: []string{"did not answer as an HTTPS server does"}}, 10*time.Second)
	})
}

func TestProxyVariables(t *testing.T) {
	t.Parallel()
	if inProcess {
		t.Skip("a process reads its proxy variables once")
	}
	asked := make(chan string, 10)
	proxy := serve(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.Host
		rw.WriteHeader(http.StatusForbidden)
	}))
	w := newWorld(t)
	w.snow.InstanceURL = "dev12345"
	w.secrets = []string{"Pr0xy-password"}
	r := w.run(t, "HTTPS_PROXY="+strings.Replace(proxy, "http://", "http://user:Pr0xy-password@", 1))
	if r.result != "" {
		t.Errorf("result = %s; want a failure", r.result)
	}
	checkWords(t, r.log, "https://dev12345.service-now.com/oauth_token.do", "proxy variables")
	if got, want := <-asked, "CONNECT dev12345.service-now.com:443"; got != want {
		t.Errorf("the proxy was asked %q; want %q", got, want)
	}
	r = w.run(t, "HTTPS_PROXY=http://user:Pr0xy-password@[")
	checkWords(t, r.log, "https://dev12345.service-now.com/oauth_token.do", "proxy variables")
}

func TestNothingHangs(t *testing.T) {
	t.Parallel()
	if testing.Short() || inProcess {
		t.Skip("takes most of a minute")
	}
	for _, h := range []hostile{
		{"no answer", hang(""), 3, []string{"did not answer in time"}},
		{"slow headers", raw("HTTP/1.1 200 OK\r\n", true), 3, []string{"did not answer in time"}},
		{"half a body, then silence", hang(`{"access_token":`), 3, []string{"did not answer in time"}},
		{"a body by drips", drip(strings.Repeat(" ", 1000)), 3, []string{"did not answer in time"}},
		{"informational answers, then silence", raw(strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 4), true), 3, []string{"did not answer in time"}},
	} {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			newWorld(t).checkHostile(t, h, 60*time.Second)
		})
	}
	t.Run("a refused login by drips is asked once", func(t *testing.T) {
		t.Parallel()
		newWorld(t).checkHostile(t, hostile{fault: func(n int, w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(401)
			return drip(strings.Repeat(" ", 1000))(n, w, r)
		}, logins: 1, words: []string{"answered 401"}}, 20*time.Second)
	})
	t.Run("a Windmill that never answers, and a ServiceNow that hardly does", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.workspace.SetFault(hang(""))
		w.instance.SetFault(func(n int, _ http.ResponseWriter, r *http.Request) bool {
			if n < 3 {
				<-r.Context().Done()
			}
			return n < 3
		})
		r := w.run(t)
		if r.result != "" || r.took > time.Minute {
			t.Errorf("result = %s after %s; want a failure within a minute\n%s", r.result, r.took, r.log)
		}
	})
	t.Run("a Windmill that does not answer the read", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.workspace.SetFault(func(n int, rw http.ResponseWriter, r *http.Request) bool { return n == 1 && hang("")(n, rw, r) })
		r := w.run(t)
		if r.result != `"OK"` || r.took < 10*time.Second || r.took > 15*time.Second {
			t.Errorf("result = %s after %s; want \"OK\" after 10 s", r.result, r.took)
		}
		checkLines(t, r.log, `No usable token in `+cachePath+`: got no answer from Windmill in time\.`, lineLogin, lineStored)
		w.checkCached(t)
	})
}

// refuse makes the workspace's server refuse connections from its nth call on.
func (w *world) refuse(t *testing.T, n int) {
	server := httptest.NewServer(w.workspace)
	t.Cleanup(server.Close)
	w.worker.BaseURL = server.URL
	if n == 1 {
		server.Close()
		return
	}
	w.workspace.SetFault(func(call int, rw http.ResponseWriter, _ *http.Request) bool {
		if call == n-1 {
			rw.Header().Set("Connection", "close")
			_ = server.Listener.Close()
		}
		return false
	})
}

func TestFaultyWindmillAtEachCall(t *testing.T) {
	t.Parallel()
	const (
		read       = 1
		readToSet  = 2 // by the client, to choose between creating and updating
		write      = 3
		readBack   = 4
		plain      = "text/plain"
		jsonAnswer = "application/json"
	)
	large := `{"token":"` + strings.Repeat("a", 5<<20) + `","expires_at":9999999999,"seal":"00"}`
	for _, fault := range []struct {
		name  string
		fault wire.Fault // nil for a refused connection
		// setGoesOn says that the client writes after this answer to its own read.
		setGoesOn bool
	}{
		{"refused", nil, false},
		{"reset", reset, false},
		{"hanging", hang(""), false},
		{"401", reply(401, plain, "Not authorized: S3ntinel-body"), true},
		{"403", reply(403, plain, "Permission denied: S3ntinel-body"), true},
		{"404", reply(404, plain, "Not found: S3ntinel-body"), true},
		{"500", reply(500, plain, "Internal: S3ntinel-body"), true},
		{"HTML with 200", reply(200, "text/html", "<html>S3ntinel-body</html>"), true},
		{"null", reply(200, jsonAnswer, "null"), true},
		{"garbage", reply(200, jsonAnswer, `{"S3ntinel-body`), false},
		{"a value of 5 MB", reply(200, jsonAnswer, large), true},
	} {
		for call, name := range map[int]string{read: "read", readToSet: "read before the write", write: "write", readBack: "read back"} {
			t.Run(name+", "+fault.name, func(t *testing.T) {
				t.Parallel()
				if fault.name == "hanging" && (testing.Short() || inProcess) {
					t.Skip("takes 10 s")
				}
				w := newWorld(t)
				w.secrets = []string{"S3ntinel-body"}
				old := w.sealed(t, "old-token", 30*time.Second)
				w.plant(t, old)
				if fault.fault == nil {
					w.refuse(t, call)
				} else {
					w.workspace.SetFault(func(n int, rw http.ResponseWriter, r *http.Request) bool {
						return n == call && fault.fault(n, rw, r)
					})
				}
				r := w.run(t)

				// A server gone for good fails every run; any other fault of the first
				// call is a miss. A GET on a connection that is reset after an earlier
				// call is sent again by Go's own transport.
				sentAgain := fault.name == "reset" && (call == readToSet || call == readBack)
				good := call == read && fault.fault != nil || call == readToSet && fault.setGoesOn || sentAgain
				if ok := r.result == `"OK"`; ok != good {
					t.Errorf("result = %s; want success %t\n%s", r.result, good, r.log)
				}
				if !good {
					checkWords(t, r.log, "the token is not stored in "+cachePath, "may write in it")
				}
				if len(r.logins) != 1 {
					t.Errorf("%d logins; want 1", len(r.logins))
				}
				if r.took > 30*time.Second {
					t.Errorf("took %s", r.took)
				}
				if written := good || call == readBack; written {
					w.checkCached(t)
				} else if cached, _ := w.cached(t); cached != old {
					t.Errorf("the record is neither the old one nor a new one: %+v", cached)
				}
			})
		}
	}
}

func TestAJobKilledAtAnyMomentLeavesAWholeRecord(t *testing.T) {
	t.Parallel()
	if inProcess {
		t.Skip("a process cannot be killed in itself")
	}
	binary, err := builtJob()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.plant(t, w.sealed(t, "first-token", time.Hour))
	job := windmill.Job{Binary: binary, Args: map[string]any{"snow": w.snow}, Token: w.token}
	warming := job
	warming.Env = []string{scheduled}

	const enough = 100
	runs, killed, renewed := 0, 0, 0
	for ; killed < enough && runs < 10*enough; runs++ {
		before, _ := w.cached(t)
		w.instance.Revoke() // so that a new record has a new token
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(mathrand.Int63n(int64(8*time.Millisecond))))
		reader := make(chan ran)
		go func() {
			done, err := w.worker.Run(context.Background(), job)
			if err != nil {
				t.Error(err)
			}
			reader <- ran{result: string(done.Result), log: done.Log}
		}()
		if _, err := w.worker.Run(ctx, warming); err != nil {
			killed++
		}
		cancel()
		if r := <-reader; r.result != `"OK"` || !strings.Contains(r.log, "Reused it") {
			t.Errorf("the job that reads: result = %s; want \"OK\" and no login\n%s", r.result, r.log)
		}
		after, found := w.cached(t)
		if !found {
			t.Fatal("the record is gone")
		}
		if after != before {
			renewed++
			if after != w.seal(t, after.Token, after.ExpiresAt) || !w.instance.Valid(after.Token) {
				t.Errorf("the record is neither the old one nor a new one: %+v", after)
			}
		}
	}
	if killed < enough {
		t.Errorf("%d of %d jobs killed; want %d", killed, runs, enough)
	}
	t.Logf("%d of %d jobs killed, %d records renewed", killed, runs, renewed)
}

// TestHerd starts 50 jobs at once. The figures of its log stand in the README.
func TestHerd(t *testing.T) {
	if inProcess {
		t.Skip("a process has one standard output")
	}
	const jobs = 50
	for _, test := range []struct {
		name      string
		plant     func(w *world) // nil leaves the cache cold
		scheduled int            // how many of the jobs a schedule starts
		mostLogin int
	}{
		{"a cold cache", nil, 0, jobs},
		{"a warm cache", func(w *world) { w.plant(t, w.sealed(t, "a-good-token", 20*time.Minute)) }, 0, 0},
		{"a cache about to expire", func(w *world) { w.plant(t, w.sealed(t, "an-old-token", 59*time.Second)) }, 0, jobs},
		{"a warm cache, with schedules among the flows", func(w *world) { w.plant(t, w.sealed(t, "a-good-token", 20*time.Minute)) }, 5, 5},
		{"a cold cache, with schedules among the flows", nil, 5, jobs},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			if test.plant != nil {
				test.plant(w)
			}
			runs := make([]ran, jobs)
			var group sync.WaitGroup
			for i := range runs {
				group.Add(1)
				go func() {
					defer group.Done()
					env := "WM_FLOW_PATH=f/ServiceNow/flow"
					if i%10 == 0 && i/10 < test.scheduled {
						env = scheduled
					}
					runs[i] = w.start(t, env)
				}()
			}
			group.Wait()
			for _, r := range runs {
				if r.result != `"OK"` {
					t.Errorf("result = %s; want \"OK\"\n%s", r.result, r.log)
				}
				w.checkSecrets(t, r.log)
			}
			logins := len(w.instance.TakeCalls())
			if logins > test.mostLogin || logins < test.scheduled {
				t.Errorf("%d logins; want at most %d", logins, test.mostLogin)
			}
			cached, _ := w.cached(t)
			if cached != w.seal(t, cached.Token, cached.ExpiresAt) || !cached.usable(time.Now()) {
				t.Errorf("the record is not valid: %+v", cached)
			}
			if logins > 0 {
				w.checkCached(t)
			}
			t.Logf("%d jobs, %d logins", jobs, logins)
		})
	}
}

func FuzzTokenAnswer(f *testing.F) {
	for _, body := range []string{
		`{"access_token":"abc-._~+/=","refresh_token":"d","scope":"useraccount","token_type":"Bearer","expires_in":1799}`,
		`{"access_token":"abc","expires_in":"1e3"}`, `{"access_token":"abc","expires_in":1e999}`, `{"access_token":"a\u0000"}`,
		`{"error":"server_error","error_description":"` + "Zq7sentinel" + `"}`, `{"error":{"message":"%5aq7sentinel"}}`,
		`{"error":{"message":{"a":[]}},"access_token":"Zq7sentinel"}`, rateLimit, accessDenied, hibernating, `[]`, `null`, ``,
	} {
		f.Add(200, body, "1", "elsewhere.example.com")
		f.Add(401, body, "", "Zq7sentinel")
	}
	snow := servicenow{InstanceURL: "https://dev12345.service-now.com", ClientID: "id", ClientSecret: "Kx9sentinel", Username: "user", Password: "Zq7sentinel"}
	f.Fuzz(func(t *testing.T, status int, body, retryAfter, location string) {
		a := answer{status, location, retryAfter, []byte(body)}
		token, lifetime, err := a.token()
		if err == nil {
			if status != http.StatusOK || !regexp.MustCompile(`^[A-Za-z0-9._~+/-]+=*$`).MatchString(token) {
				t.Errorf("accepted the token %q with status %d", token, status)
			}
			if lifetime < 0 || lifetime > 365*24*3600 {
				t.Errorf("lifetime = %d", lifetime)
			}
			return
		}
		failed := a.describe("https://dev12345.service-now.com/oauth_token.do", err, snow)
		text := failed.Error()
		for _, secret := range []string{snow.Password, snow.ClientSecret} {
			if strings.Contains(strings.ToLower(text), strings.ToLower(secret)) {
				t.Errorf("the error repeats %q: %s", secret, text)
			}
		}
		if !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
			t.Errorf("the error would not print in a line: %q", text)
		}
		if pause, again := retryPause(1, failed, 0.5, time.Unix(1_800_000_000, 0)); again && (pause <= 0 || pause > longestRetryAfter) {
			t.Errorf("pause = %s", pause)
		}
	})
}

func FuzzCachedRecord(f *testing.F) {
	snow := servicenow{InstanceURL: "https://dev12345.service-now.com", ClientID: "id", ClientSecret: "secret", Username: "user", Password: "password"}
	made := map[string]int64{"abc": 1_800_000_000, "a=": 1, "": 0}
	for token, expiresAt := range made {
		encoded, err := json.Marshal(record{token, expiresAt, snow.seal(token, expiresAt)})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(encoded))
	}
	for _, value := range []string{`null`, `{}`, `[]`, `"x"`, `{"token":"abc","expires_at":1e300,"seal":""}`, `{"token":1,"expires_at":"1","seal":null}`} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, encoded string) {
		var value any
		if json.Unmarshal([]byte(encoded), &value) != nil {
			return
		}
		cached, ok := snow.sealed(value)
		// Nobody can forge a seal, so what is accepted is one of those made here.
		if expiresAt, mine := made[cached.Token]; ok && (!mine || expiresAt != cached.ExpiresAt) {
			t.Errorf("accepted %s", encoded)
		}
	})
}

func FuzzInstanceAddress(f *testing.F) {
	for _, value := range []string{
		"https://dev12345.service-now.com", " dev12345/ ", "gw.example.com:8443/snow", "http://[::1]:80/x", "http://127.0.0.1", "localhost",
		"https://a@b", "https://h?q#f", "https:/x", "https://h:", "//x//", "https://h/%2e%2e/", "https://h/a b", "nav_to.do", "h\u00e9llo", "[::1]", "\u212a.com",
		`0/%40"`, // found: its escape was undone, so that the address had an @
	} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		address, ok := instanceAddress(value)
		if !ok {
			return
		}
		u, err := url.Parse(address)
		if err != nil {
			t.Fatalf("accepted %q as %q: %v", value, address, err)
		}
		host := u.Hostname()
		loopback := host == "localhost" || net.ParseIP(host).IsLoopback()
		if u.Scheme != "https" && !(u.Scheme == "http" && loopback) {
			t.Errorf("accepted %q as %q, which is neither https nor loopback", value, address)
		}
		written := strings.TrimSuffix(host, ".service-now.com")
		if host == "" || written == "" || !strings.Contains(asciiLower(value), written) {
			t.Errorf("accepted %q as %q, a host that was not written", value, address)
		}
		if u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" || strings.HasSuffix(address, "/") {
			t.Errorf("accepted %q as %q, which is more than scheme, host and path", value, address)
		}
		if again, ok := instanceAddress(address); again != address || !ok {
			t.Errorf("accepted %q as %q, but that as %q, %t", value, address, again, ok)
		}
		request, err := http.NewRequest(http.MethodPost, address+"/oauth_token.do", nil)
		if err != nil || request.URL.Hostname() != host || !strings.HasSuffix(request.URL.Path, "/oauth_token.do") {
			t.Errorf("a request to %q goes to %v, %v", address, request, err)
		}
	})
}

// asciiLower lowers ASCII letters only: strings.ToLower would make a k of a Kelvin sign.
func asciiLower(text string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, text)
}

func FuzzRetryAfter(f *testing.F) {
	for _, header := range []string{"", "0", "3", "-1", "+1", "1e3", "99999999999999999999", "4294967295", "Fri, 02 Jan 2026 03:04:09 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 01 Jan 0001 00:00:00 GMT"} {
		f.Add(header, int64(1_767_323_045))
	}
	f.Fuzz(func(t *testing.T, header string, now int64) {
		if pause := retryAfter(header, time.Unix(now, 0)); pause < 0 || pause > longestRetryAfter {
			t.Errorf("retryAfter(%q) = %s; want from 0 to %s", header, pause, longestRetryAfter)
		}
	})
}

// TestASimulatedYear lives through a workspace's year (a week, if short) by an
// injected clock. The figures of its log stand in the README.
func TestASimulatedYear(t *testing.T) {
	for _, test := range []struct {
		name      string
		remaining bool
	}{{"with renewed expiry", false}, {"with remaining lifetime", true}} {
		t.Run(test.name, func(t *testing.T) { simulate(t, test.remaining) })
	}
}

// simulate runs the schedule every 15 minutes and 1 to 4 jobs between, each as a
// call of the script's own functions over HTTP. Now and then a token is revoked,
// the password is changed, or the instance hibernates overnight.
func simulate(t *testing.T, remaining bool) {
	const period = 15 * time.Minute
	days := 365
	if testing.Short() || inProcess {
		days = 7
	}
	process.Lock()
	defer process.Unlock()
	chance := mathrand.New(mathrand.NewSource(1))
	start := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	clock := start

	w := newWorld(t)
	w.instance.Now = func() time.Time { return clock }
	w.instance.Remaining = remaining
	setClock(t, w.instance.Now)
	stdout := os.Stdout
	defer func() { os.Stdout = stdout }()
	var err error
	if os.Stdout, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	}
	defer os.Stdout.Close()
	w.setenv(t)

	// What the instance is like at the moment.
	var (
		hibernatingUntil time.Time // zero when awake
		passwordChanged  time.Time // when the old one ended; zero when the resource has the right one
		revokedAt        time.Time // zero when the cache is good again
	)
	jobs, schedules, loginsInHealth, unsound := 0, 0, 0, 0
	healthy := false // the last scheduled run succeeded, with the resource as it is
	fail := func(format string, args ...any) {
		t.Helper()
		if unsound++; unsound < 10 {
			t.Errorf(clock.Format(time.RFC3339)+": "+format, args...)
		}
	}

	// attempt makes one run and returns how many logins it made.
	attempt := func(byEnv string) (token string, logins int, err error) {
		os.Setenv("WM_SCHEDULE_PATH", byEnv)
		token, err = obtain(w.snow)
		logins = len(w.instance.TakeCalls())
		w.workspace.TakeCalls()
		if logins > 1 {
			fail("%d logins in one run", logins)
		}
		return token, logins, err
	}
	loginsRefused := func() bool { return clock.Before(hibernatingUntil) || !passwordChanged.IsZero() }

	job := func() {
		token, logins, err := attempt("")
		jobs++
		if err != nil {
			if !loginsRefused() || logins != 1 {
				fail("a job failed after %d logins: %v", logins, err)
			}
			return
		}
		if cached, _ := w.cached(t); !cached.usable(clock) && (logins == 0 || !remaining) {
			fail("a job was handed a token with %d s left", cached.ExpiresAt-clock.Unix())
		}
		// What the instance itself says; it ends a revoked token at once, of which
		// nobody can know.
		if left := w.instance.Remains(token); revokedAt.IsZero() && left <= time.Minute && (logins == 0 || !remaining) {
			fail("a job was handed a token that lives for another %s", left)
		}
		if !healthy || logins == 0 {
			return
		}
		loginsInHealth++
		// With the remaining lifetime, no schedule can get a token that lasts: the
		// jobs of its last minute, and the first after it, ask for themselves.
		if left := w.instance.Remains(token); !remaining || left > 62*time.Second && left < 30*time.Minute {
			fail("a job logged in, though the schedule is healthy; its token lives for %s", left)
		}
	}

	schedule := func() {
		token, logins, err := attempt("f/ServiceNow/warm_token")
		schedules++
		if logins != 1 {
			fail("the schedule made %d logins; want 1", logins)
		}
		healthy = err == nil
		if err != nil {
			if !loginsRefused() {
				fail("the schedule failed: %v", err)
			}
			if !revokedAt.IsZero() {
				revokedAt = clock // no login can heal the cache before the next one
			}
			return
		}
		cached, _ := w.cached(t)
		if cached.Token != token || !w.instance.Valid(token) {
			fail("after the schedule, the cache is not good")
		}
		if !revokedAt.IsZero() && clock.Sub(revokedAt) > period {
			fail("the cache is good again only %s after the revocation", clock.Sub(revokedAt))
		}
		revokedAt = time.Time{}
	}

	changes := make(map[string]int)
	for next := start; next.Before(start.Add(time.Duration(days) * 24 * time.Hour)); next = next.Add(period) {
		// A schedule starts a few seconds late, now more, now less.
		clock = next.Add(time.Duration(chance.Intn(5000)) * time.Millisecond)
		schedule()

		for _, at := range moments(chance, clock, next.Add(period), 1+chance.Intn(4)) {
			clock = at
			awake := hibernatingUntil.Before(clock)
			switch {
			case !passwordChanged.IsZero() && clock.Sub(passwordChanged) > 45*time.Minute:
				w.snow.Password, passwordChanged = w.account.Password, time.Time{} // somebody mends the resource
				healthy = false
				changes["resource mended"]++
			case awake && chance.Intn(500) == 0:
				w.instance.Revoke()
				revokedAt = clock
				changes["token revoked"]++
			case awake && passwordChanged.IsZero() && chance.Intn(2000) == 0:
				w.instance.SetAccount(w.account, false)
				w.account.Password += "+"
				w.instance.SetAccount(w.account, true)
				passwordChanged = clock
				changes["password changed"]++
			case awake && clock.Hour() == 22 && chance.Intn(60) == 0:
				hibernatingUntil = clock.Add(8 * time.Hour)
				w.instance.SetFault(func(n int, rw http.ResponseWriter, r *http.Request) bool {
					return clock.Before(hibernatingUntil) && reply(200, "text/html", hibernating)(n, rw, r)
				})
				changes["hibernated overnight"]++
			}
			job()
		}
	}
	t.Logf("%d hours: %d runs of the schedule, %d jobs, of which %d logged in while the schedule was healthy; %v",
		days*24, schedules, jobs, loginsInHealth, changes)
}

// moments returns n moments between from and to, in their order.
func moments(chance *mathrand.Rand, from, to time.Time, n int) []time.Time {
	list := make([]time.Time, n)
	for i := range list {
		list[i] = from.Add(time.Duration(chance.Int63n(int64(to.Sub(from)))))
	}
	slices.SortFunc(list, time.Time.Compare)
	return list
}

// The benchmarks tell what the script adds to a job, as ratios to what a job costs
// anyway. `make bench` makes a table of what they report.

// floorSource is the least that a job with the same effect can be: one GET to
// Windmill, and the result written.
const floorSource = `package main

import (
	"io"
	"net/http"
	"os"
)

func main() {
	request, err := http.NewRequest("GET", os.Getenv("BASE_INTERNAL_URL")+"/api/w/test%20workspace/resources/get_value_interpolated/` + escapedPath + `", nil)
	if err != nil {
		panic(err)
	}
	request.Header.Set("Authorization", "Bearer "+os.Getenv("WM_TOKEN"))
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		panic(err)
	}
	if _, err := io.ReadAll(response.Body); err != nil || response.StatusCode != 200 {
		panic(response.Status)
	}
	if err := os.WriteFile("result.json", []byte("\"OK\""), 0o600); err != nil {
		panic(err)
	}
}
`

// builtFloor is floorSource, built once.
var builtFloor = sync.OnceValues(func() (string, error) {
	source := filepath.Join(jobs, "floor.go")
	if err := os.WriteFile(source, []byte(floorSource), 0o600); err != nil {
		return "", err
	}
	binary := filepath.Join(jobs, "floor")
	output, err := exec.Command("go", "build", "-o", binary, source).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, output)
	}
	return binary, nil
})

// warmWorld is a world with a good record in the cache, and what to run in it.
func warmWorld(b *testing.B) (w *world, job, floor windmill.Job) {
	b.Helper()
	w = newWorld(b)
	w.plant(b, w.sealed(b, strings.Repeat("t", 86), time.Hour))
	binary, err := builtJob()
	if err != nil {
		b.Fatal(err)
	}
	bare, err := builtFloor()
	if err != nil {
		b.Fatal(err)
	}
	args := map[string]any{"snow": w.snow}
	return w, windmill.Job{Binary: binary, Args: args, Token: w.token}, windmill.Job{Binary: bare, Args: args, Token: w.token}
}

// took runs a job and returns the time from its start to its exit.
func (w *world) took(b *testing.B, job windmill.Job) time.Duration {
	b.Helper()
	done, err := w.worker.Run(context.Background(), job)
	if err != nil || string(done.Result) != `"OK"` {
		b.Fatalf("result = %s, %v\n%s", done.Result, err, done.Log)
	}
	return done.Took
}

// median returns the middle of durations, in milliseconds.
func median(durations []time.Duration) float64 {
	slices.Sort(durations)
	return durations[len(durations)/2].Seconds() * 1000
}

// A warm job and the floor, in turn, so that what else the machine does meets both.
func BenchmarkWarmJob(b *testing.B) {
	w, job, floor := warmWorld(b)
	w.took(b, job)
	w.took(b, floor)
	var jobs, floors []time.Duration
	var ratios []float64
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		if i%2 == 0 { // neither always comes first
			jobs, floors = append(jobs, w.took(b, job)), append(floors, w.took(b, floor))
		} else {
			floors, jobs = append(floors, w.took(b, floor)), append(jobs, w.took(b, job))
		}
		ratios = append(ratios, jobs[i].Seconds()/floors[i].Seconds())
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "ratio")
	b.ReportMetric(median(jobs), "job-ms")
	b.ReportMetric(median(floors), "floor-ms")
}

// A cold job, and in turn what it consists of: a warm job (start, check, read), a
// login, a write and a read back, the last three from this process.
func BenchmarkColdJob(b *testing.B) {
	w, job, _ := warmWorld(b)
	w.setenv(b)
	snow := w.snow
	if err := snow.check(); err != nil {
		b.Fatal(err)
	}
	var colds, parts []time.Duration
	calls := 0
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		w.workspace.DeleteResource(cachePath)
		w.workspace.TakeCalls()
		w.instance.TakeCalls()
		colds = append(colds, w.took(b, job))
		calls = len(w.workspace.TakeCalls()) + len(w.instance.TakeCalls())
		warm := w.took(b, job)
		started := time.Now()
		fresh, failed := logIn(context.Background(), snow)
		if failed != nil {
			b.Fatal(failed)
		}
		if err := writeCache(context.Background(), snow, fresh); err != nil {
			b.Fatal(err)
		}
		parts = append(parts, warm+time.Since(started))
	}
	b.ReportMetric(median(colds)/median(parts), "ratio")
	b.ReportMetric(median(colds), "job-ms")
	b.ReportMetric(median(parts), "parts-ms")
	b.ReportMetric(float64(calls), "calls")
}

// Warm jobs at once: how many end in a second, and how long the slowest takes.
func BenchmarkJobsAtOnce(b *testing.B) {
	for _, crowd := range []int{1, 8, 64} {
		b.Run(strconv.Itoa(crowd), func(b *testing.B) {
			w, job, _ := warmWorld(b)
			var slowest []time.Duration
			b.ResetTimer()
			for i := 0; i < b.N; i++ {
				durations := make([]time.Duration, crowd)
				var group sync.WaitGroup
				for j := range durations {
					group.Add(1)
					go func() {
						defer group.Done()
						done, err := w.worker.Run(context.Background(), job)
						if err != nil || string(done.Result) != `"OK"` {
							b.Errorf("result = %s, %v\n%s", done.Result, err, done.Log)
						}
						durations[j] = done.Took
					}()
				}
				group.Wait()
				slowest = append(slowest, slices.Max(durations))
			}
			b.ReportMetric(float64(crowd*b.N)/b.Elapsed().Seconds(), "jobs/s")
			b.ReportMetric(median(slowest), "slowest-ms")
		})
	}
}

// clientOnlySource is the least that a script which uses the client can be.
const clientOnlySource = `package inner

//require github.com/windmill-labs/windmill-go-client v1.501.4

import wmill "github.com/windmill-labs/windmill-go-client"

func main(path string) (interface{}, error) { return wmill.GetResource(path) }
`

// What a worker pays once for a script: `go build` with an empty cache, and again
// with a cache that has all but the script.
func BenchmarkBuild(b *testing.B) {
	clientOnly := filepath.Join(b.TempDir(), "client_only.go")
	if err := os.WriteFile(clientOnly, []byte(clientOnlySource), 0o600); err != nil {
		b.Fatal(err)
	}
	for _, script := range []struct{ name, file string }{{"script", "main.go"}, {"client-only", clientOnly}} {
		b.Run(script.name, func(b *testing.B) {
			source, err := os.ReadFile(script.file)
			if err != nil {
				b.Fatal(err)
			}
			worker := &windmill.Worker{Dir: b.TempDir()}
			binary, err := worker.Build(context.Background(), script.file, ".")
			if err != nil {
				b.Fatal(err)
			}
			var first, next time.Duration
			var memory int64
			b.ResetTimer()
			for i := 0; i < b.N; i++ {
				cache := "GOCACHE=" + b.TempDir()
				for _, duration := range []*time.Duration{&first, &next} {
					// Nothing has compiled or linked this source yet.
					inner := filepath.Join(filepath.Dir(binary), "inner", "inner_main.go")
					if err := os.WriteFile(inner, fmt.Appendf(source, "\nfunc Built%d() {}\n", time.Now().UnixNano()), 0o600); err != nil {
						b.Fatal(err)
					}
					build := exec.Command("go", "build", "-o", binary, "main.go")
					build.Dir = filepath.Dir(binary)
					build.Env = append(os.Environ(), cache, "GOWORK=off", "GOFLAGS=")
					started := time.Now()
					if output, err := build.CombinedOutput(); err != nil {
						b.Fatalf("%v\n%s", err, output)
					}
					*duration += time.Since(started)
					if usage, ok := build.ProcessState.SysUsage().(*syscall.Rusage); ok {
						memory = max(memory, usage.Maxrss)
					}
				}
			}
			info, err := os.Stat(binary)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(first.Seconds()/float64(b.N), "first-s")
			b.ReportMetric(next.Seconds()/float64(b.N), "next-s")
			b.ReportMetric(float64(memory)/1024, "peak-MB") // of the largest of its processes; Linux counts in KiB
			b.ReportMetric(float64(info.Size())/1e6, "binary-MB")
		})
	}
}

func BenchmarkInputCheck(b *testing.B) {
	b.ReportAllocs()
	for i := 0; i < b.N; i++ {
		snow := servicenow{InstanceURL: " https://dev12345.service-now.com/ ", ClientID: "id", ClientSecret: clientSecret, Username: "user", Password: password}
		if err := snow.check(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRecordCheck(b *testing.B) {
	snow := servicenow{InstanceURL: "https://dev12345.service-now.com", ClientID: "id", ClientSecret: clientSecret, Username: "user", Password: password}
	token := strings.Repeat("t", 86)
	value := map[string]any{"token": token, "expires_at": 1_800_000_000.0, "seal": snow.seal(token, 1_800_000_000)}
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		if cached, ok := snow.sealed(value); !ok || cached.usable(time.Unix(1_900_000_000, 0)) {
			b.Fatal("the record is not what it is")
		}
	}
}
