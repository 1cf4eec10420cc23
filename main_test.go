package inner

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	wmill "github.com/windmill-labs/windmill-go-client"

	"servicenow-token/local/lab"
	"servicenow-token/local/windmill"
	"servicenow-token/local/wire"
)

// The tests stand in the order of what they test in main.go, under its headings.
// Most run the built job as a process; IN_PROCESS=1 makes them call main instead, for
// coverage and mutation testing. What needs nothing of main.go's insides is in
// local/proof.

func TestMain(m *testing.M) {
	if lab.InProcess {
		fastForward()
	}
	lab.CallMain = func(args []byte) (any, error) {
		slept.Store(0)
		var snow servicenow
		if err := json.Unmarshal(args, &snow); err != nil {
			return nil, err
		}
		return main(snow)
	}
	os.Exit(lab.RunTests(m))
}

// slept is what main.go's clock is ahead of the real one, in nanoseconds.
var slept atomic.Int64

// fastForward makes main.go's pauses end at once, with the clock moved on.
func fastForward() {
	now = func() time.Time { return time.Now().Add(time.Duration(slept.Load())) }
	sleep = func(pause time.Duration) { slept.Add(int64(pause)) }
}

// setClock makes main.go take the time from clock, until the test ends, and its
// pauses end at once.
func setClock(t testing.TB, clock func() time.Time) {
	t.Helper()
	realNow, realSleep := now, sleep
	t.Cleanup(func() { now, sleep = realNow, realSleep })
	now = clock
	sleep = func(time.Duration) {}
}

// snowOf is the world's argument as main.go has it after its check.
func snowOf(t testing.TB, w *lab.World) servicenow {
	t.Helper()
	snow, err := checked(servicenow(w.Snow))
	if err != nil {
		t.Fatal(err)
	}
	return snow
}

// The lines that runs print.
const (
	lineOwn     = `Run on its own, by (a schedule|hand or webhook): asking ServiceNow, whatever is cached\.`
	lineNothing = `Nothing cached yet in f/ServiceNow/snow_token_cache: logging in\.`
	lineExpired = `The token in f/ServiceNow/snow_token_cache has expired or is about to: logging in\.`
	lineOthers  = `The record in f/ServiceNow/snow_token_cache is of another instance or user, or from another script: replacing it\. .+`
	lineLogin   = `http://127\.0\.0\.1:\d+ accepted the login of "svc user" and gave a token valid for (30m0s|29m5\ds)\.`
	lineStored  = `Stored it in f/ServiceNow/snow_token_cache\.`
	lineReused  = `Reused the token of "svc user" at http://127\.0\.0\.1:\d+: f/ServiceNow/snow_token_cache has it, valid for another \d.+\.`
	lineWaits   = `(Job ".+"|Another job) is logging in: waiting for it\.`
)

// main, and who started it.

func TestMainServesItsThreeUses(t *testing.T) {
	t.Parallel()
	w := lab.New(t)

	r := w.Run(t, lab.ByHand)
	if !r.OK() {
		t.Fatalf("by hand: result = %s; want \"OK\"\n%s", r.Result, r.Log)
	}
	lab.CheckLines(t, r.Log, lineOwn, lineLogin, lineStored)
	lab.CheckCalls(t, r, 1, lab.ReadNothing, lab.ReadNothing, lab.Created, lab.ReadFound, lab.ReadFound, lab.Updated)
	first := w.CheckCached(t)
	if resource, _ := w.Workspace.Resource(cachePath); resource.Type != "state" {
		t.Errorf("the cache's resource type is %q; want state", resource.Type)
	}

	r = w.Run(t, lab.FlowStep)
	if !r.OK() {
		t.Errorf("flow step: result = %s; want \"OK\"", r.Result)
	}
	lab.CheckLines(t, r.Log, lineReused)
	lab.CheckCalls(t, r, 0, lab.ReadFound)
	if second := w.CheckCached(t); second != first {
		t.Error("the flow step changed the record")
	}

	r = w.Run(t, lab.Schedule)
	if !r.OK() {
		t.Errorf("schedule: result = %s; want \"OK\"", r.Result)
	}
	lab.CheckLines(t, r.Log, lineOwn, lineLogin, lineStored)
	lab.CheckCalls(t, r, 1, lab.LoginCalls...)
	w.CheckCached(t)
}

func TestMainReusesTheTokenIfAJobCalledIt(t *testing.T) {
	t.Parallel()
	const flow = lab.FlowPath
	for _, test := range []struct {
		name   string
		origin []string
		own    string // who started the run; "" where it must reuse the token
	}{
		{"by hand", windmill.ByHand(), "hand or webhook"},
		{"by the test of a step in the flow editor", windmill.ByFlowEditor(flow), "hand or webhook"},
		{"by a schedule", windmill.BySchedule(lab.SchedulePath), "a schedule"},
		{"by a schedule with a retry", windmill.ByWrappedSchedule(lab.SchedulePath, lab.ScriptPath), "a schedule"},
		{"as a step of a flow", windmill.StepOfFlow(flow, "a"), ""},
		{"as a step of a scheduled flow", windmill.StepOfScheduledFlow(flow, "a", "f/ServiceNow/nightly"), ""},
		{"as a step on an agent worker, which knows no flow's path", append(windmill.StepOfFlow(flow, "a"), "WM_FLOW_PATH="), ""},
		{"by another script", windmill.ByScript("f/other/script"), ""},
		{"where the environment does not say", []string{"WM_JOB_ID="}, ""},
		{"by a schedule, where the environment does not say", append(windmill.BySchedule(lab.SchedulePath), "WM_JOB_ID="), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := lab.New(t)
			// A revoked token, which nothing in the record shows.
			w.Plant(t, w.Sealed("revoked-token", 20*time.Minute))
			r := w.Run(t, test.origin)
			if !r.OK() {
				t.Errorf("result = %s; want \"OK\"\n%s", r.Result, r.Log)
			}
			if test.own == "" {
				lab.CheckLines(t, r.Log, lineReused)
				lab.CheckCalls(t, r, 0, lab.ReadFound)
				return
			}
			lab.CheckLines(t, r.Log, "Run on its own, by "+test.own+": .+", lineLogin, lineStored)
			lab.CheckCalls(t, r, 1, lab.LoginCalls...)
			w.CheckCached(t)
		})
	}
}

func TestMainOutsideWindmillVerifiesTheCredentialsOnly(t *testing.T) {
	t.Parallel()
	for name, env := range map[string][]string{
		"no address":          {"BASE_INTERNAL_URL="},
		"no token":            {"WM_TOKEN="},
		"neither":             {"BASE_INTERNAL_URL=", "WM_TOKEN="},
		"neither, a schedule": {"BASE_INTERNAL_URL=", "WM_TOKEN=", "WM_SCHEDULE_PATH=f/ServiceNow/warm_token"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := lab.New(t)
			r := w.Run(t, lab.ByHand, env...)
			if !r.OK() {
				t.Errorf("result = %s; want \"OK\"", r.Result)
			}
			lab.CheckLines(t, r.Log, lineLogin, "Nothing was cached: .+")
			lab.CheckCalls(t, r, 1)

			w.Instance.SetAccount(w.Account, false)
			r = w.Run(t, lab.ByHand, env...)
			if r.Result != "" || !strings.Contains(r.Log, "answered 401") {
				t.Errorf("refused: result = %s; want a failure with 401\n%s", r.Result, r.Log)
			}
		})
	}
}

// The input.

func TestInputNamesEveryEmptyFieldAndSendsNothing(t *testing.T) {
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
			w := lab.New(t)
			fields := map[string]*string{
				"instance_url": &w.Snow.InstanceURL, "client_id": &w.Snow.ClientID, "client_secret": &w.Snow.ClientSecret,
				"username": &w.Snow.Username, "password": &w.Snow.Password,
			}
			for i, field := range empty {
				*fields[field] = strings.Repeat(" \t", i) // blanks are nothing, too
			}
			r := w.Run(t, lab.FlowStep)
			if r.Result != "" {
				t.Errorf("result = %s; want a failure", r.Result)
			}
			lab.CheckLines(t, r.Log, "the servicenow resource has nothing in "+strings.Join(empty, ", ")+": fill in every field")
			lab.CheckCalls(t, r, 0)
		})
	}
}

func TestInputWithABadAddressSendsNothing(t *testing.T) {
	t.Parallel()
	w := lab.New(t)
	w.Snow.InstanceURL = "https://admin:Us3rInf0@dev12345.service-now.com"
	w.Secrets = []string{"admin:Us3rInf0", "Us3rInf0"}
	r := w.Run(t, lab.FlowStep)
	if r.Result != "" {
		t.Errorf("result = %s; want a failure", r.Result)
	}
	lab.CheckWords(t, r.Log, "instance_url", "https://dev12345.service-now.com", "without any path")
	lab.CheckCalls(t, r, 0)
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
		{"a page of today's", "https://dev12345.service-now.com/now/nav/ui/home", ""},
		{"a page without a scheme", "DEV12345.service-now.com/now/nav/ui/home", ""},
		{"a path at an instance", "https://dev12345.service-now.com/snow", ""},
		{"a page of a custom domain", "https://it.example.com/nav_to.do", ""},
		{"the token endpoint itself", "https://dev12345.service-now.com/oauth_token.do", ""},
		{"a user", "https://admin@dev12345.service-now.com", ""},
		{"a user and password", "https://admin:secret@dev12345.service-now.com", ""},
		{"a bare host with a user", "admin:secret@dev12345.service-now.com", ""},
		{"an at sign in a path", "https://gw.example.com/@", ""},
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
		{"a line break in the path", "https://gw.example.com/a\r\nb", ""},
		{"a control character beyond ASCII in the path", "https://gw.example.com/a\u0085b", ""},
		{"a broken escape in the path", "https://gw.example.com/a%4", ""},
		{"brackets around no address", "https://[1:2]", ""},
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

func TestInstanceAddressKeepsAPathPrefix(t *testing.T) {
	t.Parallel()
	w := lab.New(t)
	gateway := lab.Serve(t, http.StripPrefix("/snow/prod", w.Instance))
	w.Snow.InstanceURL = " " + gateway + "/snow/prod/ "
	if r := w.Run(t, lab.FlowStep); !r.OK() {
		t.Errorf("result = %s; want \"OK\"\n%s", r.Result, r.Log)
	}
	w.CheckCached(t)
}

func TestInstanceAddressInAnotherSpellingSharesTheCache(t *testing.T) {
	t.Parallel()
	w := lab.New(t)
	w.Run(t, lab.FlowStep)
	w.Snow.InstanceURL = " " + strings.ToUpper(w.Snow.InstanceURL) + "/"
	lab.CheckCalls(t, w.Run(t, lab.FlowStep), 0, lab.ReadFound)
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

// The cache.

func TestRecordThatIsNotForTheseCredentialsIsReplaced(t *testing.T) {
	t.Parallel()
	const hour = time.Hour
	// of returns a good record for the credentials as change makes them.
	of := func(change func(*lab.ServiceNow)) func(*testing.T, *lab.World) any {
		return func(t *testing.T, w *lab.World) any {
			other := *w
			change(&other.Snow)
			return other.Sealed("other", hour)
		}
	}
	for _, test := range []struct {
		name  string
		plant func(t *testing.T, w *lab.World) any
	}{
		{"of another instance", of(func(snow *lab.ServiceNow) { snow.InstanceURL = "https://other.service-now.com" })},
		{"of another application", of(func(snow *lab.ServiceNow) { snow.ClientID = "other" })},
		{"of another client secret", of(func(snow *lab.ServiceNow) { snow.ClientSecret = "other" })},
		{"of another user", of(func(snow *lab.ServiceNow) { snow.Username = "other" })},
		{"of another password", of(func(snow *lab.ServiceNow) { snow.Password = "other" })},
		{"whose fields flow into each other", of(func(snow *lab.ServiceNow) {
			snow.Username, snow.Password = snow.Username+snow.Password[:1], snow.Password[1:]
		})},
		{"whose expiry was stretched", func(t *testing.T, w *lab.World) any {
			r := w.Sealed("stretched", time.Minute)
			r.ExpiresAt += 3600
			return r
		}},
		{"whose token was planted", func(t *testing.T, w *lab.World) any {
			r := w.Sealed("sealed", hour)
			r.Token = "planted"
			return r
		}},
		{"whose seal was cut", func(t *testing.T, w *lab.World) any {
			r := w.Sealed("sealed", hour)
			r.Seal = r.Seal[:32]
			return r
		}},
		{"whose expiry has a fraction, added to it", func(t *testing.T, w *lab.World) any {
			sealed := w.Sealed("sealed", hour)
			return withField(t, sealed, "expires_at", float64(sealed.ExpiresAt)+0.9)
		}},
		{"that names another instance beside the right seal", func(t *testing.T, w *lab.World) any {
			return withField(t, w.Sealed("sealed", hour), "instance_url", "https://other.service-now.com")
		}},
		{"that names no instance", func(t *testing.T, w *lab.World) any {
			return withField(t, w.Sealed("sealed", hour), "instance_url", nil)
		}},
		{"whose token has a second name that other readers do not know", func(t *testing.T, w *lab.World) any {
			sealed := w.Sealed("sealed", hour)
			return withField(t, lab.Record{Token: "planted", ExpiresAt: sealed.ExpiresAt, InstanceURL: sealed.InstanceURL,
				Seal: sealed.Seal}, "to\u212aen", sealed.Token)
		}},
		{"whose expiry has a second name that other readers do not know", func(t *testing.T, w *lab.World) any {
			sealed := w.Sealed("sealed", hour)
			fields := withField(t, sealed, "EXPIRES_AT", sealed.ExpiresAt)
			fields["expires_at"] = nil
			return fields
		}},
		{"by the Python script", func(t *testing.T, w *lab.World) any {
			return map[string]any{"token": "by-python", "expires_at": float64(time.Now().Unix()) + 1799.25}
		}},
		{"that has expired", func(t *testing.T, w *lab.World) any { return w.Sealed("expired", -time.Minute) }},
		{"that is about to expire", func(t *testing.T, w *lab.World) any { return w.Sealed("expiring", 59*time.Second) }},
		{"null", func(*testing.T, *lab.World) any { return nil }},
		{"a string", func(*testing.T, *lab.World) any { return "token" }},
		{"a list", func(*testing.T, *lab.World) any { return []int{1} }},
		{"an empty object", func(*testing.T, *lab.World) any { return struct{}{} }},
		{"of wrong types", func(*testing.T, *lab.World) any {
			return map[string]any{"token": 1, "expires_at": "never", "seal": true}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := lab.New(t)
			w.Plant(t, test.plant(t, w))
			r := w.Run(t, lab.FlowStep)
			if !r.OK() {
				t.Errorf("result = %s; want \"OK\"", r.Result)
			}
			why := lineOthers
			switch test.name {
			case "that has expired", "that is about to expire":
				why = lineExpired
			case "null", "a string", "a list":
				why = lineNothing
			}
			lab.CheckLines(t, r.Log, why, lineLogin, lineStored)
			lab.CheckCalls(t, r, 1, lab.LoginCalls...)
			w.CheckCached(t)
		})
	}
}

// withField returns r with one field as value, or without it if that is nil.
func withField(t *testing.T, r lab.Record, name string, value any) map[string]any {
	t.Helper()
	encoded, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(encoded, &fields); err != nil {
		t.Fatal(err)
	}
	fields[name] = value
	if value == nil {
		delete(fields, name)
	}
	return fields
}

func TestRecordIsUsableUntilAMinuteBeforeItsExpiry(t *testing.T) {
	w := lab.New(t)
	planted := w.Sealed("planted-token", time.Hour)
	minuteBefore := time.Unix(planted.ExpiresAt-60, 0)
	for logins, at := range []time.Time{minuteBefore.Add(-1), minuteBefore} {
		w.Plant(t, planted)
		setClock(t, func() time.Time { return at })
		if r := w.RunInProcess(t, lab.FlowStep); len(r.Logins) != logins {
			t.Errorf("%d logins at %s; want %d\n%s", len(r.Logins), at, logins, r.Log)
		}
	}
}

func TestRecordExpiresByTheTimeBeforeTheRequest(t *testing.T) {
	w := lab.New(t)
	clock := time.Unix(1_800_000_000, 999_999_999)
	setClock(t, func() time.Time { return clock })
	w.Instance.SetFault(func(int, http.ResponseWriter, *http.Request) bool {
		clock = clock.Add(10 * time.Second) // a slow answer
		return false
	})
	w.RunInProcess(t, lab.FlowStep)
	if cached, _ := w.Cached(t); cached.ExpiresAt != 1_800_001_800 {
		t.Errorf("expires_at = %d; want 1800 s after the request was sent, 1800001800", cached.ExpiresAt)
	}
}

func TestRecordWithAShortLifeIsStoredWithAWord(t *testing.T) {
	t.Parallel()
	w := lab.New(t)
	w.Instance.Lifetime = 30 * time.Second
	r := w.Run(t, lab.FlowStep)
	if !r.OK() {
		t.Errorf("result = %s; want \"OK\"\n%s", r.Result, r.Log)
	}
	lab.CheckLines(t, r.Log, lineNothing, `.+ gave a token valid for (30|29)s\.`, `.+ later steps may find it expired\.`, lineStored)
	if cached, _ := w.Cached(t); !w.Instance.Valid(cached.Token) {
		t.Error("the token is not cached")
	}
	if r = w.Run(t, lab.FlowStep); len(r.Logins) != 1 {
		t.Errorf("%d logins of the next run; want 1", len(r.Logins))
	}
}

// The kinds of a cache that cannot be read or written: what a run says of each.
func TestCacheThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	readOnly := func(t *testing.T, w *lab.World) {
		w.Workspace.AddToken(w.Token, windmill.Rights{"f/ServiceNow": windmill.Read})
	}
	const rights = `Check that the folder f/ServiceNow exists and that this run's user "u/user" may read and write in it.`
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, w *lab.World)
		words []string
	}{
		{"no folder", func(t *testing.T, w *lab.World) {
			w.Workspace = &windmill.Workspace{Name: w.Workspace.Name}
			w.Workspace.AddToken(w.Token, windmill.Rights{"f/ServiceNow": windmill.Write})
			w.Worker.Workspace, w.Worker.BaseURL = w.Workspace, lab.Serve(t, w.Workspace)
		}, []string{"cannot be written", `"Not authorized"`, rights}},
		{"no right to write, nothing there", readOnly, []string{"cannot be written", `"Not authorized"`, rights}},
		{"no right to write, nothing there, on an old server", func(t *testing.T, w *lab.World) {
			readOnly(t, w)
			w.Workspace.OldCreate = true
		}, []string{"cannot be written", `"SqlErr"`, rights}},
		{"no right to write, an expired record there", func(t *testing.T, w *lab.World) {
			readOnly(t, w)
			w.Plant(t, w.Sealed("old-token", -time.Minute))
		}, []string{"cannot be written", `"Not found"`, rights}},
		{"no right to write, an expired record there, on an old server", func(t *testing.T, w *lab.World) {
			readOnly(t, w)
			w.Workspace.OldUpdate = true
			w.Plant(t, w.Sealed("old-token", -time.Minute))
		}, []string{"cannot be written", "reported success, but it is not there", rights}},
		{"no right to write, a record in its last minute there, on an old server, a schedule's", func(t *testing.T, w *lab.World) {
			readOnly(t, w)
			w.Workspace.OldUpdate = true
			w.Plant(t, w.Sealed("old-token", 50*time.Second))
		}, []string{"cannot be written", "reported success, but it is not there", rights}},
		{"no right to write, an old failure there, on an old server", func(t *testing.T, w *lab.World) {
			readOnly(t, w)
			w.Workspace.OldUpdate = true
			r := w.Sealed("old-token", -time.Minute)
			r.Login = w.SealLogin(lab.Login{At: 1, Outcome: "they were answered 503"})
			w.Plant(t, r)
		}, []string{"cannot be written", "reported success, but it is not there", rights}},
		{"no right to write, the Python script's record there, on an old server", func(t *testing.T, w *lab.World) {
			readOnly(t, w)
			w.Workspace.OldUpdate = true
			w.Plant(t, map[string]any{"token": "by-python", "expires_at": float64(time.Now().Unix()) + 1799.25})
		}, []string{"cannot be written", "reported success, but it is not there", rights}},
		{"no right to read", func(t *testing.T, w *lab.World) {
			w.Plant(t, w.Sealed("good-token", time.Hour))
			w.Workspace.AddToken(w.Token, windmill.Rights{})
		}, []string{"cannot be read", `"Not authorized"`, rights}},
		{"a protection rule", func(t *testing.T, w *lab.World) { w.Workspace.Protected = true },
			[]string{"cannot be written", `"Permission denied"`, `Make this run's user "u/user" an admin`, "bypass list"}},
		{"a token of the job's that Windmill does not know", func(t *testing.T, w *lab.World) { w.Token = "Wm5-workspace-token-gone" },
			[]string{"cannot be read", `"Unauthorized"`, "WM_TOKEN"}},
		{"no Windmill", func(t *testing.T, w *lab.World) { w.Worker.BaseURL = "http://127.0.0.1:1" },
			[]string{"cannot be read", "Windmill was not reached", "BASE_INTERNAL_URL"}},
	} {
		for who, origin := range map[string][]string{"a step": lab.FlowStep, "a schedule": lab.Schedule} {
			if strings.HasSuffix(test.name, "a schedule's") && who == "a step" {
				continue // it reuses the token
			}
			t.Run(test.name+", "+who, func(t *testing.T) {
				t.Parallel()
				w := lab.New(t)
				test.spoil(t, w)
				before, _ := w.Workspace.Resource(cachePath)
				r := w.Run(t, origin)
				if r.Result != "" {
					t.Errorf("result = %s; want a failure", r.Result)
				}
				// A run of its own verifies the credentials all the same.
				logins, said := 0, "ServiceNow was not asked"
				if who == "a schedule" {
					logins, said = 1, "Asking ServiceNow all the same"
				}
				if len(r.Logins) != logins {
					t.Errorf("%d logins; want %d\n%s", len(r.Logins), logins, r.Log)
				}
				lab.CheckWords(t, r.Log, append(test.words, cachePath, said)...)
				after, _ := w.Workspace.Resource(cachePath)
				if diff := cmp.Diff(string(before.Value), string(after.Value)); diff != "" {
					t.Errorf("record mismatch (-before +after):\n%s", diff)
				}
			})
		}
	}
}

func TestCacheThatAnswersNonsenseIsDescribedInOurOwnWords(t *testing.T) {
	t.Parallel()
	text := func(status int, body string) wire.Fault { return wire.Reply(status, "text/plain", body) }
	const nonsense = "Windmill's answer was not understood"
	for _, test := range []struct {
		name  string
		fault wire.Fault
		words string
	}{
		{"failing", text(500, "Internal: sentinel-body"), `"Internal"`},
		{"a database's fault", text(500, "SqlErr: sentinel-body"), `"SqlErr"`},
		{"a bad request", text(400, "Bad request: sentinel-body"), `"Bad request"`},
		{"failing without a word", text(500, ""), nonsense},
		{"failing in words that are not Windmill's", text(500, "sentinel-body: row-level security"), nonsense},
		{"failing in its own words", text(500, "sentinel-body"), nonsense},
		{"HTML with 200", wire.Reply(200, "text/html", "<html>sentinel-body</html>"), nonsense},
		{"nothing with 200", wire.Reply(200, "", ""), nonsense},
		{"no content", wire.Reply(204, "application/json", ""), nonsense},
		{"garbage with 200", wire.Reply(200, "application/json", `{"token": sentinel-body`), nonsense},
		{"a redirect", wire.Reply(302, "text/html", "sentinel-body"), nonsense},
		{"half an answer", wire.Half, nonsense},
		{"a reset", wire.Reset, "Windmill was not reached"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := lab.New(t)
			w.Secrets = []string{"sentinel-body"}
			w.Workspace.SetFault(test.fault)
			r := w.Run(t, lab.FlowStep)
			lab.CheckCalls(t, r, 0, lab.Names(r.Windmill)...)
			lab.CheckWords(t, r.Log, cachePath+" cannot be read: ", test.words)

			// The first of the two tries alone.
			w.Plant(t, w.Sealed("good-token", time.Hour))
			w.Workspace.SetFault(wire.Nth(1, test.fault))
			if r := w.Run(t, lab.FlowStep); !r.OK() || len(r.Logins) != 0 {
				t.Errorf("result = %s with %d logins; want \"OK\" and none\n%s", r.Result, len(r.Logins), r.Log)
			}
		})
	}
}

func TestClientOnTheWire(t *testing.T) {
	w := lab.New(t)
	w.Setenv(t)
	const path = cachePath
	calls := func() []wire.Call {
		calls := w.Workspace.TakeCalls()
		for i, call := range calls {
			calls[i].Header = http.Header{"Authorization": call.Header["Authorization"]}
			if kind := call.Header["Content-Type"]; kind != nil {
				calls[i].Header["Content-Type"] = kind
			}
		}
		return calls
	}
	bearer := http.Header{"Authorization": {"Bearer " + w.Token}}
	bearerJSON := http.Header{"Authorization": {"Bearer " + w.Token}, "Content-Type": {"application/json"}}
	const resources = "/api/w/test%20workspace/resources/"
	read := wire.Call{Method: "GET", Path: resources + "get_value_interpolated/" + lab.EscapedPath, Header: bearer, Status: 404}

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
		w.Workspace.SetFault(func(n int, rw http.ResponseWriter, r *http.Request) bool {
			return n == 1 && status != 200 && wire.Reply(status, "text/plain", "x")(n, rw, r)
		})
		if err := wmill.SetResource(path, 2, "state"); err != nil {
			t.Error(err)
		}
		read.Status = status
		update := wire.Call{Method: "POST", Path: resources + "update_value/" + lab.EscapedPath, Header: bearerJSON, Body: `{"value":2}`, Status: 200}
		got := calls()
		for i := range got {
			got[i].Body = strings.TrimSpace(got[i].Body)
		}
		if diff := cmp.Diff([]wire.Call{read, update}, got); diff != "" {
			t.Errorf("SetResource after %d mismatch (-want +got):\n%s", status, diff)
		}
	}
	if resource, _ := w.Workspace.Resource(path); resource.Type != "any" || string(resource.Value) != "2" {
		t.Errorf("resource = %s %s; want any 2", resource.Type, resource.Value)
	}

	// The hazards: the script is written around each.
	w.Workspace.SetFault(wire.Reply(500, "text/html", "<html>"))
	if err := wmill.SetResource(path, 2); err == nil || err.Error() != "<html>" {
		t.Errorf("SetResource with 500 = %v; want the bare body", err)
	}
	w.Workspace.SetFault(wire.Reply(200, "text/html", "<html>"))
	func() {
		defer func() {
			if recover() == nil {
				t.Error("GetResource did not panic on a 200 that is not JSON")
			}
		}()
		_, _ = wmill.GetResource(path)
	}()
	w.Workspace.SetFault(nil)
	w.Plant(t, nil)
	if value, err := wmill.GetResource(path); value != nil || err != nil {
		t.Errorf("GetResource of null = %v, %v; want nil, nil", value, err)
	}
	t.Setenv("BASE_INTERNAL_URL", "")
	if _, err := wmill.GetResource(path); err == nil || !strings.Contains(err.Error(), "unsupported protocol scheme") {
		t.Errorf("GetResource without BASE_INTERNAL_URL = %v; want an unsupported protocol scheme", err)
	}
}

func TestCacheIsReadBackWhereNoClaimShowedThatItCanBeWritten(t *testing.T) {
	w := lab.New(t)
	w.Setenv(t)
	snow := snowOf(t, w)
	fresh := record{Token: "fresh-token", ExpiresAt: time.Now().Add(time.Hour).Unix(), InstanceURL: snow.InstanceURL}
	fresh.Seal = snow.seal(fresh)
	for _, test := range []struct {
		name  string
		there func() // what stands there when it is read back
		ok    bool
	}{
		{"the record itself", func() {}, true},
		{"nothing", func() { w.Workspace.DeleteResource(cachePath) }, false},
		{"another token", func() { w.Plant(t, w.Seal("other-token", fresh.ExpiresAt)) }, false},
		{"the same token by a login a moment later", func() { w.Plant(t, w.Seal("fresh-token", fresh.ExpiresAt+1)) }, true},
		{"the same token by a login a moment before", func() { w.Plant(t, w.Seal("fresh-token", fresh.ExpiresAt-59)) }, true},
		{"the same token as it was before it was renewed", func() { w.Plant(t, w.Seal("fresh-token", fresh.ExpiresAt-60)) }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.Workspace.SetFault(func(n int, _ http.ResponseWriter, _ *http.Request) bool {
				if n == 3 {
					test.there()
				}
				return false
			})
			err := store(snow, fresh, true)
			if (err == nil) != test.ok || err != nil && !strings.Contains(err.Error(), "reported success, but it is not there") {
				t.Errorf("store = %v; want success %t", err, test.ok)
			}
		})
	}
}

// ServiceNow gives the same token again, so that a record that looks like the new one
// may be older.
func TestCacheThatRefusesARecordHasItOnlyIfTheClaimIsGone(t *testing.T) {
	w := lab.New(t)
	w.Setenv(t)
	fastClock(t)
	snow := snowOf(t, w)
	fresh := record{Token: "same-token", ExpiresAt: now().Add(time.Hour).Unix(), InstanceURL: snow.InstanceURL}
	fresh.Seal = snow.seal(fresh)
	claimed := snow.withLogin(map[string]any{"token": fresh.Token, "expires_at": fresh.ExpiresAt,
		"instance_url": fresh.InstanceURL, "seal": fresh.Seal}, login{By: "this job", At: now().Unix()})
	w.Workspace.SetFault(func(n int, rw http.ResponseWriter, r *http.Request) bool {
		return r.Method == http.MethodPost && wire.Reply(404, "text/plain", "Not found: x")(n, rw, r)
	})
	for _, test := range []struct {
		name      string
		there     any
		unclaimed bool
		ok        bool
	}{
		{"the claim stands there", claimed, false, false},
		{"the claim has gone", fresh, false, true},
		{"there was no claim", fresh, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.Plant(t, test.there)
			err := store(snow, fresh, test.unclaimed)
			if (err == nil) != test.ok || err != nil && !strings.Contains(err.Error(), `answered "Not found"`) {
				t.Errorf("store = %v; want success %t", err, test.ok)
			}
		})
	}
}

// net/http logs what comes beyond an answer's length.
func TestCacheThatAnswersTooMuchIsNotPrinted(t *testing.T) {
	t.Parallel()
	w := lab.New(t)
	w.Secrets = []string{"S3ntinel-body"}
	record, err := json.Marshal(w.Sealed("good-token", time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	w.Workspace.SetFault(wire.Raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%sS3ntinel-body",
		len(record), record), true))
	lab.CheckLines(t, w.Run(t, lab.FlowStep).Log, lineReused)
}

func TestCacheThatDoesNotAnswerIsGivenUp(t *testing.T) {
	err := callWindmill(context.Background(), time.Millisecond, func() error { select {} })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("callWindmill = %v; want the end of its time", err)
	}
}

func TestCacheFaultAtEachCall(t *testing.T) {
	t.Parallel()
	const (
		read      = 1
		findClaim = 2 // the client's own read, to choose between creating and updating
		claim     = 3
		readClaim = 4
		find      = 5 // likewise
		store     = 6

		plain      = "text/plain"
		jsonAnswer = "application/json"
	)
	calls := []string{read: "read", findClaim: "read before the claim", claim: "claim", readClaim: "read of the claim",
		find: "read before storing", store: "storing"}
	large := `{"token":"` + strings.Repeat("a", 5<<20) + `","expires_at":9999999999,"seal":"00"}`
	for _, fault := range []struct {
		name  string
		fault wire.Fault // nil for a server that is gone from then on
	}{
		{"gone", nil},
		{"reset", wire.Reset},
		{"hanging", wire.Hang("")},
		{"401", wire.Reply(401, plain, "Not authorized: S3ntinel-body")},
		{"403", wire.Reply(403, plain, "Permission denied: S3ntinel-body")},
		{"404", wire.Reply(404, plain, "Not found: S3ntinel-body")},
		{"500", wire.Reply(500, plain, "Internal: S3ntinel-body")},
		{"HTML with 200", wire.Reply(200, "text/html", "<html>S3ntinel-body</html>")},
		{"null", wire.Reply(200, jsonAnswer, "null")},
		{"garbage", wire.Reply(200, jsonAnswer, `{"S3ntinel-body`)},
		{"a value of 5 MB", wire.Reply(200, jsonAnswer, large)},
	} {
		for call := read; call <= store; call++ {
			for who, origin := range map[string][]string{"a step": lab.FlowStep, "a schedule": lab.Schedule} {
				t.Run(fmt.Sprintf("%s, %s, %s", calls[call], fault.name, who), func(t *testing.T) {
					t.Parallel()
					gone, hanging := fault.fault == nil, fault.name == "hanging"
					if hanging && (testing.Short() || lab.InProcess) {
						t.Skip("takes seconds")
					}
					w := lab.New(t)
					w.Secrets = []string{"S3ntinel-body"}
					old := w.Sealed("old-token", 30*time.Second)
					w.Plant(t, old)
					w.Workspace.SetFault(func(n int, rw http.ResponseWriter, r *http.Request) bool {
						if gone {
							return n >= call && wire.Reset(n, rw, r)
						}
						return n == call && fault.fault(n, rw, r)
					})
					r := w.Run(t, origin)

					// A read is tried twice, and so is a write. The client's own read before a write
					// passes over any status; Go's transport sends it again after a reset. A claim
					// that is answered with 200 and not stored looks like that of a job whose login
					// brought the same record again: a step uses that, a schedule claims again.
					lost := call == claim && strings.Contains("HTML with 200, null, garbage, a value of 5 MB", fault.name)
					unclaimed := gone && call <= readClaim || hanging && (call == findClaim || call == claim)
					reused := lost && who == "a step"
					asked := !unclaimed && !reused || who == "a schedule"
					ok := reused || asked && !gone && !(call >= find && hanging)
					if r.OK() != ok {
						t.Errorf("result = %s; want success %t\n%s", r.Result, ok, r.Log)
					}
					if (len(r.Logins) == 1) != asked || len(r.Logins) > 1 {
						t.Errorf("%d logins; want one: %t\n%s", len(r.Logins), asked, r.Log)
					}
					if !ok {
						lab.CheckWords(t, r.Log, cachePath+" cannot be ")
					}
					if r.Took > 30*time.Second {
						t.Errorf("took %s", r.Took)
					}
					switch cached, _ := w.Cached(t); {
					case cached.Login != nil: // a claim that this run could not replace
						cached.Login = nil
						if call < readClaim || cached != old {
							t.Errorf("the record beside the claim is not the old one: %+v", cached)
						}
					case ok && !reused:
						w.CheckCached(t)
					case cached != old:
						t.Errorf("the record is neither the old one nor a new one: %+v", cached)
					}
				})
			}
		}
	}
}

func FuzzCachedRecord(f *testing.F) {
	snow := servicenow{InstanceURL: "https://dev12345.service-now.com", ClientID: "id", ClientSecret: "secret", Username: "user", Password: "password"}
	made := make(map[record]bool)
	logins := make(map[login]bool)
	for token, expiresAt := range map[string]int64{"abc": 1_800_000_000, "a=": 1, "": 0} {
		r := record{Token: token, ExpiresAt: expiresAt, InstanceURL: snow.InstanceURL}
		r.Seal = snow.seal(r)
		made[r] = true
		l := login{By: token, At: expiresAt, Refusals: 1, RefusedAt: expiresAt, Outcome: "answered 401"}
		l.Seal = snow.loginSeal(l)
		logins[l] = true
		for _, value := range []any{r, snow.withLogin(map[string]any{"token": token, "x": 1.5}, l)} {
			encoded, err := json.Marshal(value)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(string(encoded))
		}
	}
	for _, value := range []string{
		`null`, `{}`, `[]`, `"x"`, `{"token":"abc","expires_at":1e300,"seal":""}`, `{"token":1,"expires_at":"1","seal":null}`,
		`{"login":1}`, `{"login":{"by":"x","at":1e18}}`, `{"login":{"by":1}}`, `{"token":"abc","login":null}`,
	} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, encoded string) {
		var value any
		if json.Unmarshal([]byte(encoded), &value) != nil {
			return
		}
		found := snow.understand(value)
		// Nobody can forge a seal, so what is believed is one of those made here.
		if found.record != (record{}) && !made[found.record] {
			t.Errorf("believed the record of %s", encoded)
		}
		if found.trusted != (login{}) && !logins[found.trusted] {
			t.Errorf("believed the login of %s", encoded)
		}
		found.login.underWay(time.Unix(1_800_000_000, 0))
		heldUntil(found.login, byCaller, time.Unix(1_800_000_000, 0))
		_ = whyNotReused(found)

		// A claim leaves all else as it was.
		claim := login{By: "job"}
		claim.Seal = snow.loginSeal(claim)
		claimed := snow.withLogin(value, claim)
		if snow.understand(claimed).trusted != claim {
			t.Errorf("a claim in %s is not believed", encoded)
		}
		if fields, isObject := value.(map[string]any); isObject && !snow.repeatedIn(value) {
			delete(claimed, "login")
			before := maps.Clone(fields)
			delete(before, "login")
			if diff := cmp.Diff(before, claimed); diff != "" {
				t.Errorf("a claim changes more than the login (-before +after):\n%s", diff)
			}
		}
	})
}

// One login at a time.

// fastClock is a clock that main.go's pauses move on, from now.
func fastClock(t *testing.T) (clock *time.Time) {
	t.Helper()
	at := time.Now()
	setClock(t, func() time.Time { return at })
	sleep = func(pause time.Duration) {
		at = at.Add(pause)
	}
	return &at
}

// recordPauses notes what the run sleeps, on the clock that the test has set.
func recordPauses(pauses *[]time.Duration) {
	moveOn := sleep
	sleep = func(pause time.Duration) {
		*pauses = append(*pauses, pause)
		moveOn(pause)
	}
}

func TestLoginIsUnderWayForTwentySeconds(t *testing.T) {
	const clock = 1_800_000_000
	for _, test := range []struct {
		name string
		by   string
		age  int64 // seconds
		want bool
	}{
		{"just begun", "job", 0, true},
		{"almost too old", "job", 19, true},
		{"too old", "job", 20, false},
		{"an hour ahead", "job", -3600, true},
		{"further ahead", "job", -3601, false},
		{"ended", "", 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := (login{By: test.by, At: clock - test.age}).underWay(time.Unix(clock, 0)); got != test.want {
				t.Errorf("underWay = %t; want %t", got, test.want)
			}
		})
	}
}

func TestLoginOfAnotherJobIsLookedAtAgainSoonAndThenEachSecond(t *testing.T) {
	w := lab.New(t)
	clock := fastClock(t)
	var pauses []time.Duration
	recordPauses(&pauses)
	w.Plant(t, map[string]any{"token": "", "expires_at": 0, "login": lab.Login{By: "job-1", At: clock.Unix()}})
	r := w.RunInProcess(t, lab.FlowStep)
	lab.CheckLines(t, r.Log, lineNothing, lineWaits, "It has not ended in time: no longer waiting for it.", lineLogin, lineStored)
	if len(pauses) < 3 || pauses[0] < 300*time.Millisecond || pauses[0] > 600*time.Millisecond || pauses[1] != time.Second {
		t.Errorf("pauses = %v; want 300 to 600 ms, and then a second each", pauses)
	}
	first := pauses[0]
	for range 3 {
		pauses = nil
		w.Plant(t, map[string]any{"token": "", "expires_at": 0, "login": lab.Login{By: "job-1", At: clock.Unix()}})
		w.RunInProcess(t, lab.FlowStep)
		if pauses[0] != first {
			first = 0
		}
	}
	if first != 0 {
		t.Errorf("the first pause is %s each time; want some jitter", first)
	}
	if last := pauses[len(pauses)-1]; last != claimPause {
		t.Errorf("the pause after the claim = %s; want %s, for the write took no time", last, claimPause)
	}
}

func TestHeldUntil(t *testing.T) {
	const clock = 1_800_000_000
	const never = untilMended
	for _, test := range []struct {
		name     string
		refusals int
		ahead    int64 // seconds by which the refusal's time is ahead of the clock
		started  origin
		want     time.Duration // from the refusal on; 0 for not at all
	}{
		{"no refusal", 0, 0, byCaller, 0},
		{"a step after the first", 1, 0, byCaller, 10 * time.Minute},
		{"a schedule after the first", 1, 0, bySchedule, 10 * time.Minute},
		{"a step after the second", 2, 0, byCaller, 6 * time.Hour},
		{"a schedule after the second", 2, 0, bySchedule, 6 * time.Hour},
		{"a step after the third", 3, 0, byCaller, never},
		{"a schedule after the hundredth", 100, 0, bySchedule, never},
		{"by hand after the first", 1, 0, byHand, time.Minute},
		{"by hand after the third", 3, 0, byHand, time.Minute},
		{"by a clock that is an hour ahead", 3, 3600, byCaller, never},
		{"by a clock that is further ahead", 3, 3601, byCaller, 0},
		{"below nothing", -1, 0, byCaller, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			refused := time.Unix(clock+test.ahead, 0)
			want := time.Time{}
			if test.want != 0 {
				want = refused.Add(test.want)
			}
			got := heldUntil(login{Refusals: test.refusals, RefusedAt: refused.Unix()}, test.started, time.Unix(clock, 0))
			if !got.Equal(want) {
				t.Errorf("heldUntil = %s; want %s", got, want)
			}
		})
	}
}

// A login under way, and what comes of it: what a run does that finds it.
func TestLoginOfAnotherJobIsWaitedFor(t *testing.T) {
	const failedWith = "https://dev12345.service-now.com/oauth_token.do answered 503"
	under := func(w *lab.World, at time.Time) *lab.Login { return w.SealLogin(lab.Login{By: "job-1", At: at.Unix()}) }
	others := func(w *lab.World) *lab.World {
		other := *w
		other.Snow.Username = "somebody else"
		return &other
	}
	success := func(lifetime time.Duration) func(t *testing.T, w *lab.World, at time.Time) {
		return func(t *testing.T, w *lab.World, at time.Time) {
			w.Plant(t, w.Seal("their-token", at.Add(lifetime).Unix()))
		}
	}
	fails := func(t *testing.T, w *lab.World, at time.Time) {
		cached, _ := w.Cached(t)
		cached.Login = w.SealLogin(lab.Login{At: at.Unix(), Outcome: failedWith})
		w.Plant(t, cached)
	}
	for _, test := range []struct {
		name   string
		origin []string
		plant  func(t *testing.T, w *lab.World, at time.Time) // what the run finds
		ends   func(t *testing.T, w *lab.World, at time.Time) // what has come of it by the third read; nil for nothing
		result string                                         // OK, or a word of the error
		logins int
		least  time.Duration // how long the run waits at least
	}{
		{"a step takes its token", lab.FlowStep, nil, success(time.Hour), "OK", 0, time.Second},
		{"a schedule takes its token", lab.Schedule, nil, success(time.Hour), "OK", 0, time.Second},
		{"a run by hand takes its token", lab.ByHand, nil, success(time.Hour), "OK", 0, time.Second},
		{"a step takes its token even in its last minute", lab.FlowStep, nil, success(20 * time.Second), "OK", 0, time.Second},
		{"a step does not take a token that has expired", lab.FlowStep, nil, success(-time.Second), "OK", 1, time.Second},
		{"a step does not take a token that expires now", lab.FlowStep, nil, success(0), "OK", 1, time.Second},
		{"a schedule takes its token even if it is the very record that was there before", lab.Schedule, func(t *testing.T, w *lab.World, at time.Time) {
			r := w.Seal("their-token", at.Add(20*time.Minute).Unix())
			r.Login = under(w, at)
			w.Plant(t, r)
		}, func(t *testing.T, w *lab.World, _ time.Time) {
			cached, _ := w.Cached(t)
			cached.Login = nil
			w.Plant(t, cached)
		}, "OK", 0, time.Second},
		{"a step takes its failure", lab.FlowStep, nil, fails, failedWith, 0, time.Second},
		{"a schedule takes its failure", lab.Schedule, nil, fails, failedWith, 0, time.Second},
		{"a step logs in for itself if it never ends", lab.FlowStep, nil, nil, "OK", 1, 20 * time.Second},
		{"a step does not wait beside a usable token", lab.FlowStep, func(t *testing.T, w *lab.World, at time.Time) {
			r := w.Sealed("good-token", time.Hour)
			r.Login = under(w, at)
			w.Plant(t, r)
		}, nil, "OK", 0, 0},
		{"a schedule waits beside a usable token", lab.Schedule, func(t *testing.T, w *lab.World, at time.Time) {
			r := w.Sealed("good-token", time.Hour)
			r.Login = under(w, at)
			w.Plant(t, r)
		}, fails, failedWith, 0, time.Second},
		{"one with other credentials is waited for, and its token not taken", lab.FlowStep, func(t *testing.T, w *lab.World, at time.Time) {
			w.Plant(t, map[string]any{"token": "", "expires_at": 0, "login": under(others(w), at)})
		}, func(t *testing.T, w *lab.World, at time.Time) { success(time.Hour)(t, others(w), at) }, "OK", 1, time.Second},
		{"a step takes its token beside a later failure of other credentials", lab.FlowStep, nil, func(t *testing.T, w *lab.World, at time.Time) {
			success(time.Hour)(t, w, at)
			fails(t, others(w), at)
		}, "OK", 0, time.Second},
		{"a schedule does not take an older token beside a failure of other credentials", lab.Schedule, func(t *testing.T, w *lab.World, at time.Time) {
			r := w.Sealed("older-token", 20*time.Minute)
			r.Login = under(others(w), at)
			w.Plant(t, r)
		}, func(t *testing.T, w *lab.World, at time.Time) { fails(t, others(w), at) }, "OK", 1, time.Second},
		{"one with other credentials is waited for, and its failure not taken", lab.FlowStep, func(t *testing.T, w *lab.World, at time.Time) {
			w.Plant(t, map[string]any{"token": "", "expires_at": 0, "login": under(others(w), at)})
		}, func(t *testing.T, w *lab.World, at time.Time) { fails(t, others(w), at) }, "OK", 1, time.Second},
		{"one without a seal is waited for", lab.FlowStep, func(t *testing.T, w *lab.World, at time.Time) {
			w.Plant(t, map[string]any{"token": "", "expires_at": 0, "login": lab.Login{By: "planted", At: at.Unix()}})
		}, nil, "OK", 1, 20 * time.Second},
		{"one that began 19 s ago is waited for", lab.FlowStep, func(t *testing.T, w *lab.World, at time.Time) {
			w.Plant(t, map[string]any{"token": "", "expires_at": 0, "login": under(w, at.Add(-19*time.Second))})
		}, nil, "OK", 1, 300 * time.Millisecond},
		{"one that began 21 s ago is dead", lab.FlowStep, func(t *testing.T, w *lab.World, at time.Time) {
			w.Plant(t, map[string]any{"token": "", "expires_at": 0, "login": under(w, at.Add(-21*time.Second))})
		}, nil, "OK", 1, 0},
		{"one by a clock that is five minutes behind is dead", lab.FlowStep, func(t *testing.T, w *lab.World, at time.Time) {
			w.Plant(t, map[string]any{"token": "", "expires_at": 0, "login": under(w, at.Add(-5*time.Minute))})
		}, nil, "OK", 1, 0},
		{"one by a clock that is five minutes ahead is waited for", lab.FlowStep, func(t *testing.T, w *lab.World, at time.Time) {
			w.Plant(t, map[string]any{"token": "", "expires_at": 0, "login": under(w, at.Add(5*time.Minute))})
		}, nil, "OK", 1, 20 * time.Second},
		{"one more than an hour ahead says nothing", lab.FlowStep, func(t *testing.T, w *lab.World, at time.Time) {
			w.Plant(t, map[string]any{"token": "", "expires_at": 0, "login": under(w, at.Add(61*time.Minute))})
		}, nil, "OK", 1, 0},
		{"one that is no login says nothing", lab.FlowStep, func(t *testing.T, w *lab.World, at time.Time) {
			w.Plant(t, map[string]any{"token": "", "expires_at": 0, "login": "soon"})
		}, nil, "OK", 1, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := lab.New(t)
			clock := fastClock(t)
			began := *clock
			if test.plant != nil {
				test.plant(t, w, began)
			} else {
				w.Plant(t, map[string]any{"token": "", "expires_at": 0, "instance_url": "", "seal": "", "login": under(w, began)})
			}
			w.Workspace.SetFault(func(n int, _ http.ResponseWriter, _ *http.Request) bool {
				if n == 3 && test.ends != nil {
					test.ends(t, w, *clock)
				}
				return false
			})
			r := w.RunInProcess(t, test.origin)
			if len(r.Logins) != test.logins {
				t.Errorf("%d logins; want %d", len(r.Logins), test.logins)
			}
			if ok := test.result == "OK"; r.OK() != ok || !ok && !strings.Contains(r.Log, test.result) {
				t.Errorf("result = %s; want %s\n%s", r.Result, test.result, r.Log)
			}
			waited := clock.Sub(began)
			if test.logins > 0 {
				waited -= claimPause
			}
			if waited < test.least-time.Second || waited > test.least+2*time.Second {
				t.Errorf("waited %s; want %s\n%s", waited, test.least, r.Log)
			}
			if inVain := test.least == 20*time.Second || strings.Contains(test.name, "19 s ago"); strings.Contains(r.Log, "It has not ended in time") != inVain {
				t.Errorf("the log tells that it waited in vain: %t; want %t\n%s", !inVain, inVain, r.Log)
			}
			if told := regexp.MustCompile(lineWaits).FindAllString(r.Log, -1); (len(told) == 1) != (test.least > 0) || len(told) > 1 {
				t.Errorf("the log tells %d times that the run waits:\n%s", len(told), r.Log)
			}
			if cached, _ := w.Cached(t); test.logins == 1 && (cached.Login != nil || !w.Instance.Valid(cached.Token)) {
				t.Errorf("the record is %+v; want a token of ServiceNow's and no login", cached)
			}
		})
	}
}

func TestLoginOfASecondJobIsWaitedForUntilTheRunIs35SecondsOld(t *testing.T) {
	w := lab.New(t)
	clock := fastClock(t)
	began := *clock
	plant := func(job string, at time.Time) {
		w.Plant(t, map[string]any{"token": "", "expires_at": 0, "login": w.SealLogin(lab.Login{By: job, At: at.Unix()})})
	}
	plant("job-1", began)
	second := false
	w.Workspace.SetFault(func(int, http.ResponseWriter, *http.Request) bool {
		if !second && clock.Sub(began) >= 17*time.Second {
			second = true
			plant("job-2", clock.Add(5*time.Minute)) // by a clock that is ahead
		}
		return false
	})
	r := w.RunInProcess(t, lab.FlowStep)
	lab.CheckWords(t, r.Log, `Job "job-1" is logging in`, `Job "job-2" is logging in`, "It has not ended in time", "other jobs have been logging in")
	if took := clock.Sub(began); len(r.Logins) != 0 || took < 34*time.Second || took > 36*time.Second {
		t.Errorf("gave up after %s with %d logins; want 35 s and none\n%s", took, len(r.Logins), r.Log)
	}
}

// A Windmill that restarts is no reason to ask beside the job that is logging in.
func TestLoginOfAnotherJobIsWaitedForIfALookFails(t *testing.T) {
	for who, origin := range map[string][]string{"a step": lab.FlowStep, "a run by hand": lab.ByHand} {
		for _, forGood := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, for good: %t", who, forGood), func(t *testing.T) {
				w := lab.New(t)
				clock := fastClock(t)
				began := *clock
				w.Plant(t, map[string]any{"token": "", "expires_at": 0, "login": w.SealLogin(lab.Login{By: "job-1", At: began.Unix()})})
				w.Workspace.SetFault(func(n int, rw http.ResponseWriter, r *http.Request) bool {
					if n == 6 {
						w.Plant(t, w.Seal("their-token", began.Add(time.Hour).Unix()))
					}
					return n > 1 && (n < 6 || forGood) && wire.Reply(502, "text/plain", "")(n, rw, r)
				})
				r := w.RunInProcess(t, origin)
				asks := forGood && who == "a run by hand"
				if r.OK() == forGood || (len(r.Logins) == 1) != asks {
					t.Errorf("result = %s with %d logins; want success: %t, a login: %t\n%s", r.Result, len(r.Logins), !forGood, asks, r.Log)
				}
				if waited := clock.Sub(began); forGood && (waited < 18*time.Second || waited > 25*time.Second) {
					t.Errorf("waited %s; want the 20 s of a login", waited)
				}
				if forGood {
					lab.CheckWords(t, r.Log, "cannot be ", "Job \"job-1\" is logging in: waiting for it.")
				}
			})
		}
	}
}

func TestClaimThatFailsBecauseAnotherJobIsThereIsAWait(t *testing.T) {
	for who, origin := range map[string][]string{"a step": lab.FlowStep, "a schedule": lab.Schedule} {
		t.Run(who, func(t *testing.T) {
			w := lab.New(t)
			clock := fastClock(t)
			w.Workspace.SetFault(func(n int, rw http.ResponseWriter, r *http.Request) bool {
				switch n {
				case 3: // the claim
					w.Plant(t, map[string]any{"token": "", "expires_at": 0, "login": w.SealLogin(lab.Login{By: "job-1", At: clock.Unix()})})
					return wire.Reply(500, "text/plain", "Internal: x")(n, rw, r)
				case 6:
					w.Plant(t, w.Seal("their-token", clock.Add(time.Hour).Unix()))
				}
				return false
			})
			if r := w.RunInProcess(t, origin); !r.OK() || len(r.Logins) != 0 {
				t.Errorf("result = %s with %d logins; want the other job's token\n%s", r.Result, len(r.Logins), r.Log)
			}
		})
	}
}

func TestClaimThatAnotherJobReplaced(t *testing.T) {
	for _, test := range []struct {
		name   string
		by     func(t *testing.T, w *lab.World, at time.Time) // stands there when the run reads its claim
		logins int
		result string
	}{
		{"by its own claim, and then by its token", func(t *testing.T, w *lab.World, at time.Time) {
			w.Plant(t, map[string]any{"token": "", "expires_at": 0, "login": w.SealLogin(lab.Login{By: "job-1", At: at.Unix()})})
			w.Workspace.SetFault(wire.Nth(2, func(int, http.ResponseWriter, *http.Request) bool {
				w.Plant(t, w.Seal("their-token", at.Add(time.Hour).Unix()))
				return false
			}))
		}, 0, "OK"},
		{"by its token", func(t *testing.T, w *lab.World, at time.Time) {
			w.Plant(t, w.Seal("their-token", at.Add(time.Hour).Unix()))
		}, 0, "OK"},
		{"by its failure", func(t *testing.T, w *lab.World, at time.Time) {
			w.Plant(t, map[string]any{"token": "", "expires_at": 0,
				"login": w.SealLogin(lab.Login{At: at.Unix(), Outcome: "they were answered 503"})})
		}, 0, "they were answered 503"},
		{"by the Python script's record", func(t *testing.T, w *lab.World, at time.Time) {
			w.Plant(t, map[string]any{"token": "by-python", "expires_at": 1767225600.25})
		}, 1, "OK"},
		{"by the very record that was there, as by the same token with the same expiry", func(t *testing.T, w *lab.World, at time.Time) {
			w.Plant(t, w.Seal("dying-token", at.Add(30*time.Second).Unix()))
		}, 0, "OK"},
		{"by nobody, but it is gone", func(t *testing.T, w *lab.World, at time.Time) {
			w.Workspace.DeleteResource(cachePath)
		}, 1, "OK"},
	} {
		for who, origin := range map[string][]string{"a step": lab.FlowStep, "a schedule": lab.Schedule} {
			t.Run(test.name+", "+who, func(t *testing.T) {
				w := lab.New(t)
				clock := fastClock(t)
				w.Plant(t, map[string]any{"token": "", "expires_at": 0})
				began, logins := *clock, test.logins
				if strings.Contains(test.name, "the very record") {
					test.by(t, w, began)
					if who == "a schedule" {
						logins = 1 // it asks, whatever is cached
					}
				}
				w.Workspace.SetFault(func(n int, _ http.ResponseWriter, _ *http.Request) bool {
					if n == 4 {
						test.by(t, w, began)
					}
					return false
				})
				r := w.RunInProcess(t, origin)
				if len(r.Logins) != logins {
					t.Errorf("%d logins; want %d\n%s", len(r.Logins), logins, r.Log)
				}
				if ok := test.result == "OK"; r.OK() != ok || !ok && !strings.Contains(r.Log, test.result) {
					t.Errorf("result = %s; want %s\n%s", r.Result, test.result, r.Log)
				}
				if waits := strings.HasPrefix(test.name, "by its own claim"); strings.Contains(r.Log, `Job "job-1" is logging in`) != waits {
					t.Errorf("the log tells that the run waits: %t; want %t\n%s", !waits, waits, r.Log)
				}
			})
		}
	}
}

func TestLoginsOfOthersWithoutEndAreGivenUp(t *testing.T) {
	w := lab.New(t)
	clock := fastClock(t)
	began := *clock
	reads := 0
	w.Workspace.SetFault(func(_ int, _ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet { // each read finds another job
			reads++
			w.Plant(t, map[string]any{"token": "", "expires_at": 0,
				"login": w.SealLogin(lab.Login{By: fmt.Sprintf("job-%d", reads), At: clock.Unix()})})
		}
		return false
	})
	r := w.RunInProcess(t, lab.FlowStep)
	if took := clock.Sub(began); r.Result != "" || len(r.Logins) != 0 || took > 55*time.Second {
		t.Errorf("result = %s after %s with %d logins; want a failure within the minute, and none", r.Result, took, len(r.Logins))
	}
	lab.CheckWords(t, r.Log, "other jobs have been logging in")
	if strings.Contains(r.Log, "It has not ended in time") {
		t.Errorf("the log tells that it waited for one that it did not wait for:\n%s", r.Log)
	}
}

// However long a run of its own has waited, there is time to verify the credentials
// where the cache cannot be used after that.
func TestClaimThatFailsAfterAWaitLeavesTimeToAsk(t *testing.T) {
	broken := wire.Reply(500, "text/plain", "Internal: x")
	for _, test := range []struct {
		name  string
		fails time.Duration // when calls to Windmill begin to fail, from the run's start
		fault wire.Fault
	}{
		{"the claim fails", 20 * time.Second, func(n int, rw http.ResponseWriter, r *http.Request) bool {
			return r.Method == http.MethodPost && broken(n, rw, r)
		}},
		{"the cache can no longer be read", 34 * time.Second, broken},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := lab.New(t)
			clock := fastClock(t)
			began := *clock
			w.Workspace.SetFault(func(n int, rw http.ResponseWriter, r *http.Request) bool {
				waited := clock.Sub(began)
				if waited >= test.fails {
					w.Plant(t, map[string]any{"token": "", "expires_at": 0})
					return test.fault(n, rw, r)
				}
				// The login of one job, and then of another.
				by := fmt.Sprint("job-", int(waited.Seconds())/19)
				w.Plant(t, map[string]any{"token": "", "expires_at": 0, "login": w.SealLogin(lab.Login{By: by, At: clock.Unix()})})
				return false
			})
			w.Setenv(t)
			if _, until, err := awaitTurn(snowOf(t, w), bySchedule); err == nil || until.Sub(began) > 50*time.Second {
				t.Errorf("awaitTurn = until %s, %v; want 50 s at most, and an error", until.Sub(began), err)
			}

			*clock = began
			w.Instance.SetFault(func(int, http.ResponseWriter, *http.Request) bool {
				*clock = clock.Add(8 * time.Second)
				return false
			})
			r := w.RunInProcess(t, lab.Schedule)
			if r.Result != "" || len(r.Logins) != 1 || !strings.Contains(r.Log, "accepted the login") {
				t.Errorf("result = %s with %d logins; want one that is accepted, and a failure to store it\n%s", r.Result, len(r.Logins), r.Log)
			}
			if took := clock.Sub(began); took < test.fails || took > time.Minute {
				t.Errorf("took %s; want at most a minute", took)
			}
		})
	}
}

func TestClaimIsMadeUnderARandomNameWhereTheJobHasNoID(t *testing.T) {
	t.Parallel()
	w := lab.New(t)
	var by string
	w.Instance.SetFault(func(int, http.ResponseWriter, *http.Request) bool {
		cached, _ := w.Cached(t)
		by = cached.Login.By
		return false
	})
	if r := w.Run(t, lab.ByHand, "WM_JOB_ID="); !r.OK() || !regexp.MustCompile(`^[0-9a-f]{16}$`).MatchString(by) {
		t.Errorf("result = %s, claimed by %q; want \"OK\" and 16 hexadecimal digits\n%s", r.Result, by, r.Log)
	}
}

func TestClaimIsReadAfterAsLongAsItTook(t *testing.T) {
	for _, test := range []struct{ took, want time.Duration }{
		{0, claimPause}, {200 * time.Millisecond, claimPause}, {2 * time.Second, 2 * time.Second},
		{5 * time.Second, 2500 * time.Millisecond}, // so that there is time to read it
	} {
		w := lab.New(t)
		clock := fastClock(t)
		var pauses []time.Duration
		recordPauses(&pauses)
		w.Workspace.SetFault(func(n int, _ http.ResponseWriter, _ *http.Request) bool {
			if n == 3 { // the claim is written
				*clock = clock.Add(test.took)
			}
			return false
		})
		w.RunInProcess(t, lab.FlowStep)
		if diff := cmp.Diff([]time.Duration{test.want}, pauses); diff != "" {
			t.Errorf("pauses after a claim that took %s mismatch (-want +got):\n%s", test.took, diff)
		}
	}
}

func TestClaimTakesItsTimeFromThatOfTheLogin(t *testing.T) {
	w := lab.New(t)
	clock := fastClock(t)
	w.Workspace.SetFault(func(n int, _ http.ResponseWriter, _ *http.Request) bool {
		if n == 4 { // the claim is read
			*clock = clock.Add(askLimit - time.Second)
		}
		return false
	})
	w.Instance.SetFault(wire.Hang(""))
	r := w.RunInProcess(t, lab.FlowStep)
	lab.CheckWords(t, r.Log, "did not answer in time")
	if len(r.Logins) != 1 || r.Took > 5*time.Second {
		t.Errorf("%d logins, given up after %s; want one, and the second that the claim left", len(r.Logins), r.Took)
	}
}

// lost is a fault of the nth request: it is served, but its answer is lost.
func lost(w *lab.World, nth int) wire.Fault {
	return wire.Nth(nth, func(n int, rw http.ResponseWriter, r *http.Request) bool {
		w.Workspace.ServeHTTP(httptest.NewRecorder(), r)
		return wire.Reset(n, rw, r)
	})
}

func TestClaimWhoseAnswerIsLostIsOneAllTheSame(t *testing.T) {
	t.Parallel()
	w := lab.New(t)
	w.Workspace.SetFault(lost(w, 3))
	if r := w.Run(t, lab.FlowStep); !r.OK() || len(r.Logins) != 1 {
		t.Errorf("result = %s with %d logins; want \"OK\" and one\n%s", r.Result, len(r.Logins), r.Log)
	}
	w.CheckCached(t)
}

func TestStoreWhoseAnswerIsLostIsOneAllTheSame(t *testing.T) {
	t.Parallel()
	w := lab.New(t)
	posts := 0
	w.Workspace.SetFault(func(n int, rw http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost || r.Header.Get("X-Served") != "" {
			return false
		}
		if posts++; posts == 1 { // the claim
			return false
		}
		r.Header.Set("X-Served", "yes")
		w.Workspace.ServeHTTP(httptest.NewRecorder(), r)
		return wire.Reset(n, rw, r)
	})
	if r := w.Run(t, lab.FlowStep); !r.OK() || posts != 3 {
		t.Errorf("result = %s after %d writes; want \"OK\" after a claim and two\n%s", r.Result, posts, r.Log)
	}
	w.CheckCached(t)
}

// A Windmill that restarts is away for longer than two calls take.
func TestCallThatFailsIsTriedAgainAfterAPause(t *testing.T) {
	for call, name := range map[int]string{1: "the first read", 6: "storing"} {
		w := lab.New(t)
		fastClock(t)
		var pauses []time.Duration
		recordPauses(&pauses)
		w.Workspace.SetFault(wire.Nth(call, wire.Reply(500, "text/plain", "Internal: x")))
		if r := w.RunInProcess(t, lab.FlowStep); !r.OK() || !slices.Contains(pauses, tryPause) {
			t.Errorf("%s: result = %s, pauses %v; want \"OK\" and %s among them\n%s", name, r.Result, pauses, tryPause, r.Log)
		}
	}
}

// A job that Windmill started again has the id of the one that was killed.
func TestClaimOfAnEarlierRunWithTheSameIDIsNotItsOwn(t *testing.T) {
	w := lab.New(t)
	clock := fastClock(t)
	w.Workspace.AddToken(w.Token, windmill.Rights{"f/ServiceNow": windmill.Read})
	w.Workspace.OldUpdate = true
	w.Plant(t, map[string]any{"token": "", "expires_at": 0, "login": w.SealLogin(lab.Login{By: "job-1", At: clock.Unix() - 60})})
	r := w.RunInProcess(t, lab.FlowStep, "WM_JOB_ID=job-1")
	if r.Result != "" || len(r.Logins) != 0 {
		t.Errorf("result = %s with %d logins; want a failure and none\n%s", r.Result, len(r.Logins), r.Log)
	}
	lab.CheckWords(t, r.Log, "reported success, but it is not there")
}

func TestRefusalIsCountedOnceIfTheAnswerToStoringItIsLost(t *testing.T) {
	t.Parallel()
	w := lab.New(t)
	w.Instance.SetAccount(w.Account, false)
	w.Workspace.SetFault(lost(w, 7))
	r := w.Run(t, lab.FlowStep)
	lab.CheckWords(t, r.Log, "answered 401")
	if cached, _ := w.Cached(t); cached.Login == nil || cached.Login.Refusals != 1 || strings.Contains(r.Log, "could not be told") {
		t.Errorf("the login is %+v; want one refusal, and no word of trouble\n%s", cached.Login, r.Log)
	}
}

// The Python script writes its record whole, over a claim, too.
func TestRefusalIsCountedWhereTheClaimIsGone(t *testing.T) {
	t.Parallel()
	w := lab.New(t)
	w.Instance.SetFault(func(n int, rw http.ResponseWriter, r *http.Request) bool {
		w.Plant(t, map[string]any{"token": "by-python", "expires_at": 1})
		return wire.Reply(401, "application/json", accessDenied)(n, rw, r)
	})
	w.Run(t, lab.FlowStep)
	if cached, _ := w.Cached(t); cached.Token != "by-python" || cached.Login == nil || cached.Login.Refusals != 1 {
		t.Errorf("the record is %+v; want the Python script's with one refusal", cached)
	}
}

// Windmill replaces "$var:…" on reading, so that what somebody planted may be a secret.
func TestLoginThatSomebodyPlantedIsNotNamed(t *testing.T) {
	w := lab.New(t)
	clock := fastClock(t)
	w.Secrets = []string{"S3ntinel-planted"}
	w.Plant(t, map[string]any{"token": "", "expires_at": 0, "login": lab.Login{By: "S3ntinel-planted", At: clock.Unix(), Outcome: "S3ntinel-planted"}})
	cleared := false
	w.Workspace.SetFault(func(n int, _ http.ResponseWriter, _ *http.Request) bool {
		if n == 2 && !cleared { // so that the check of what is cached finds none
			cleared = true
			w.Plant(t, map[string]any{"token": "", "expires_at": 0})
		}
		return false
	})
	r := w.RunInProcess(t, lab.FlowStep)
	lab.CheckLines(t, r.Log, lineNothing, "Another job is logging in: waiting for it.", lineLogin, lineStored)
}

// What a failed login leaves: read, and a read and a write by the client.
func TestFailureIsToldToOthersAgainIfThatFails(t *testing.T) {
	t.Parallel()
	for call, name := range map[int]string{5: "both tries of the read", 6: "read before the write", 7: "write"} {
		for _, forGood := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, for good: %t", name, forGood), func(t *testing.T) {
				t.Parallel()
				w := lab.New(t)
				w.Instance.SetAccount(w.Account, false)
				w.Workspace.SetFault(func(n int, rw http.ResponseWriter, r *http.Request) bool {
					fails := n == call || n > call && forGood || call == 5 && n == 6
					return fails && wire.Reply(500, "application/json", "{")(n, rw, r)
				})
				r := w.Run(t, lab.FlowStep)
				lab.CheckWords(t, r.Log, "answered 401")
				cached, _ := w.Cached(t)
				told := cached.Login != nil && cached.Login.By == "" && cached.Login.Refusals == 1
				if silent := strings.Contains(r.Log, "Other runs could not be told"); told == silent || told == forGood {
					t.Errorf("told: %t, and the log says that it could not be told: %t\n%s", told, silent, r.Log)
				}
			})
		}
	}
}

func TestClaimTouchesNothingButTheLogin(t *testing.T) {
	t.Parallel()
	const python = `{"token":"by-python","expires_at":1767225600.123456,"of others":{"a":[1,2.5,null]}}`
	for _, test := range []struct {
		name, before, after string
	}{
		{"beside the Python script's record", python, python},
		{"where there is nothing", "", `{"token":"","expires_at":0}`},
		{"where there is null", "null", `{"token":"","expires_at":0}`},
		{"where there is no object", `["x"]`, `{"token":"","expires_at":0}`},
		{"in an empty object", `{}`, `{}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := lab.New(t)
			w.Instance.SetAccount(w.Account, false)
			if test.before != "" {
				w.Workspace.SetResource(cachePath, windmill.Resource{Type: cacheType, Value: json.RawMessage(test.before)})
			}
			want := windmill.Resource{Value: json.RawMessage(test.after)}
			claims := 0
			w.Instance.SetFault(func(int, http.ResponseWriter, *http.Request) bool {
				w.CheckUnchanged(t, want) // with the claim in it
				claims++
				return false
			})
			if r := w.Run(t, lab.FlowStep); r.Result != "" || claims != 1 {
				t.Errorf("result = %s after %d logins; want a refusal\n%s", r.Result, claims, r.Log)
			}
			w.CheckUnchanged(t, want) // with the refusal in it
		})
	}
}

// Windmill replaces "$var:…" when it hands a value out, under the rights of the job.
func TestClaimDoesNotWriteBackASecretThatSomebodyPlanted(t *testing.T) {
	t.Parallel()
	for _, planted := range []string{`{"token":"$var:f/x/password","expires_at":0}`, `{"token":"","x":{"y":["$res:f/x/login"]}}`} {
		w := lab.New(t)
		w.Workspace.AddToken(w.Token, windmill.Rights{"f/ServiceNow": windmill.Write, "f/x": windmill.Read})
		w.Workspace.SetVariable("f/x/password", lab.Password)
		w.Workspace.SetResource("f/x/login", windmill.Resource{Type: "any", Value: json.RawMessage(`{"secret":"$var:f/x/secret"}`)})
		w.Workspace.SetVariable("f/x/secret", lab.ClientSecret)
		w.Workspace.SetResource(cachePath, windmill.Resource{Type: cacheType, Value: json.RawMessage(planted)})
		w.Instance.SetFault(wire.Reply(503, "", ""))
		w.Run(t, lab.FlowStep)
		after, _ := w.Workspace.Resource(cachePath)
		w.CheckSecrets(t, string(after.Value))
	}
}

func TestRefusalHoldsOthersBack(t *testing.T) {
	ago := func(w *lab.World, clock time.Time, refusals int, age time.Duration) *lab.Login {
		return w.SealLogin(lab.Login{Refusals: refusals, RefusedAt: clock.Add(-age).Unix(), Outcome: "they were answered 401"})
	}
	for _, test := range []struct {
		name     string
		origin   []string
		refusals int
		age      time.Duration
		held     bool
	}{
		{"a step for 10 minutes after the first", lab.FlowStep, 1, 10*time.Minute - time.Second, true},
		{"a step no longer", lab.FlowStep, 1, 10*time.Minute + time.Second, false},
		{"a schedule for 10 minutes after the first", lab.Schedule, 1, 10*time.Minute - time.Second, true},
		{"a schedule no longer", lab.Schedule, 1, 10*time.Minute + time.Second, false},
		{"a step for 6 hours after the second", lab.FlowStep, 2, 6*time.Hour - time.Second, true},
		{"a step no longer than 6 hours", lab.FlowStep, 2, 6*time.Hour + time.Second, false},
		{"a schedule for ever after the third", lab.Schedule, 3, 365 * 24 * time.Hour, true},
		{"a run by hand for a minute", lab.ByHand, 3, 59 * time.Second, true},
		{"a run by hand no longer", lab.ByHand, 3, 61 * time.Second, false},
		{"nobody if it was more than an hour ahead", lab.FlowStep, 3, -61 * time.Minute, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := lab.New(t)
			clock := fastClock(t)
			r := w.Sealed("old-token", -time.Minute)
			r.Login = ago(w, *clock, test.refusals, test.age)
			w.Plant(t, r)
			ran := w.RunInProcess(t, test.origin)
			if ran.OK() == test.held || (len(ran.Logins) == 0) != test.held {
				t.Errorf("result = %s with %d logins; want held back: %t\n%s", ran.Result, len(ran.Logins), test.held, ran.Log)
			}
			if test.held {
				lab.CheckCalls(t, ran, 0, lab.ReadFound)
				lab.CheckWords(t, ran.Log, "ServiceNow was not asked", fmt.Sprintf("in a row: %d", test.refusals), "they were answered 401",
					time.Unix(r.Login.RefusedAt, 0).UTC().Format(time.RFC3339), "credentials in the resource change")
				byHand := slices.Equal(test.origin, lab.ByHand)
				forEver := test.refusals == 3 && !byHand
				who, advice := "No flow or schedule", "run this script by hand"
				if byHand {
					who, advice = "No run by hand", "run this script again after that"
				}
				lab.CheckWords(t, ran.Log, advice)
				if strings.Contains(ran.Log, who+" asks again, unless") != forEver || strings.Contains(ran.Log, who+" asks before 20") == forEver {
					t.Errorf("until when nobody asks is not told right; for ever: %t\n%s", forEver, ran.Log)
				}
			} else {
				w.CheckCached(t) // and no login in it
			}
		})
	}

	for name, change := range map[string]func(t *testing.T, w *lab.World, r *lab.Record){
		"of other credentials": func(t *testing.T, w *lab.World, r *lab.Record) {
			other := *w
			other.Snow.Password = "old"
			r.Login = ago(&other, time.Now(), 3, time.Second)
		},
		"without a seal":                   func(t *testing.T, w *lab.World, r *lab.Record) { r.Login.Seal = "" },
		"with one refusal more":            func(t *testing.T, w *lab.World, r *lab.Record) { r.Login.Refusals++ },
		"with another time":                func(t *testing.T, w *lab.World, r *lab.Record) { r.Login.RefusedAt++ },
		"with another outcome":             func(t *testing.T, w *lab.World, r *lab.Record) { r.Login.Outcome = "x" },
		"with the record's seal":           func(t *testing.T, w *lab.World, r *lab.Record) { r.Login.Seal = r.Seal },
		"with another job's name":          func(t *testing.T, w *lab.World, r *lab.Record) { r.Login.By, r.Login.At = "x", 1 },
		"where the resource was mended":    func(t *testing.T, w *lab.World, r *lab.Record) { mend(w) },
		"where the client secret was, too": func(t *testing.T, w *lab.World, r *lab.Record) { w.Account.ClientSecret = "Kx9-new"; mend(w) },
	} {
		t.Run("nobody "+name, func(t *testing.T) {
			w := lab.New(t)
			r := w.Sealed("old-token", -time.Minute)
			r.Login = ago(w, time.Now(), 3, time.Second)
			change(t, w, &r)
			w.Plant(t, r)
			if ran := w.Run(t, lab.FlowStep); !ran.OK() || len(ran.Logins) != 1 {
				t.Errorf("result = %s with %d logins; want \"OK\" and one\n%s", ran.Result, len(ran.Logins), ran.Log)
			}
			w.CheckCached(t)
		})
	}

	t.Run("nobody from a usable token", func(t *testing.T) {
		w := lab.New(t)
		r := w.Sealed("good-token", time.Hour)
		r.Login = ago(w, time.Now(), 3, time.Second)
		w.Plant(t, r)
		ran := w.Run(t, lab.FlowStep)
		lab.CheckLines(t, ran.Log, lineReused)
		lab.CheckCalls(t, ran, 0, lab.ReadFound)
	})
}

// mend changes the password on the instance and in the resource.
func mend(w *lab.World) {
	w.Account.Password = "Zq7-new-password"
	w.Instance.SetAccount(w.Account, true)
	w.Snow.Password, w.Snow.ClientSecret = w.Account.Password, w.Account.ClientSecret
}

func TestRefusalsInARowAreCountedUntilALoginSucceeds(t *testing.T) {
	w := lab.New(t)
	clock := fastClock(t)
	w.Instance.SetAccount(w.Account, false)
	for i, test := range []struct {
		pause  time.Duration
		origin []string
		logins int
		count  int // of refusals afterwards
	}{
		{0, lab.Schedule, 1, 1},
		{9 * time.Minute, lab.Schedule, 0, 1},
		{2 * time.Minute, lab.FlowStep, 1, 2},
		{time.Hour, lab.Schedule, 0, 2},
		{5 * time.Hour, lab.Schedule, 1, 3},
		{90 * 24 * time.Hour, lab.Schedule, 0, 3},
		{0, lab.ByHand, 1, 4},
		{30 * time.Second, lab.ByHand, 0, 4},
	} {
		*clock = clock.Add(test.pause)
		r := w.RunInProcess(t, test.origin)
		cached, _ := w.Cached(t)
		if r.Result != "" || len(r.Logins) != test.logins || cached.Login == nil || cached.Login.Refusals != test.count {
			t.Errorf("run %d: %d logins, then the login %+v; want %d, then %d refusals\n%s",
				i+1, len(r.Logins), cached.Login, test.logins, test.count, r.Log)
		}
	}

	// Another failure is no refusal, and does not end the row either.
	*clock = clock.Add(time.Minute)
	w.Instance.SetFault(wire.Reply(503, "", ""))
	w.RunInProcess(t, lab.ByHand)
	if cached, _ := w.Cached(t); cached.Login == nil || cached.Login.Refusals != 4 || !strings.Contains(cached.Login.Outcome, "503") {
		t.Errorf("after a 503 the login is %+v; want 4 refusals", cached.Login)
	}

	if r := w.RunInProcess(t, lab.Schedule); !strings.Contains(r.Log, "What came back last: ") || strings.Contains(r.Log, "Z: http") {
		t.Errorf("the error takes a 503 for a refusal:\n%s", r.Log)
	}

	w.Instance.SetFault(nil)
	w.Instance.SetAccount(w.Account, true)
	if r := w.RunInProcess(t, lab.ByHand); !r.OK() {
		t.Errorf("by hand: result = %s; want \"OK\"\n%s", r.Result, r.Log)
	}
	if cached, _ := w.Cached(t); cached.Login != nil || !w.Instance.Valid(cached.Token) {
		t.Errorf("after a success the record is %+v; want a good token and no login", cached)
	}
}

// Asking ServiceNow.

func TestLoginIsAFormInTheBodyAndNothingElse(t *testing.T) {
	t.Parallel()
	w := lab.New(t)
	w.Instance.SetFault(func(n int, rw http.ResponseWriter, _ *http.Request) bool {
		rw.Header().Set("Set-Cookie", "JSESSIONID=1; Path=/") // a session that must not be carried on
		if n == 1 {
			rw.WriteHeader(http.StatusServiceUnavailable)
		}
		return n == 1
	})
	r := w.Run(t, lab.FlowStep)
	if len(r.Logins) != 2 {
		t.Fatalf("%d logins; want 2\n%s", len(r.Logins), r.Log)
	}
	for _, login := range r.Logins {
		if login.Method != "POST" || login.Path != "/oauth_token.do" {
			t.Errorf("asked %s %s; want POST /oauth_token.do", login.Method, login.Path)
		}
		form, err := url.ParseQuery(login.Body)
		if err != nil {
			t.Error(err)
		}
		want := url.Values{
			"grant_type": {"password"}, "client_id": {"client&id"}, "client_secret": {lab.ClientSecret},
			"username": {"svc user"}, "password": {lab.Password},
		}
		if diff := cmp.Diff(want, form); diff != "" {
			t.Errorf("form mismatch (-want +got):\n%s", diff)
		}
		for header, want := range map[string]string{
			"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json", "Authorization": "", "Cookie": "",
			"Connection": "close", // each attempt has a connection of its own
		} {
			if got := login.Header.Get(header); got != want {
				t.Errorf("%s = %q; want %q", header, got, want)
			}
		}
	}
}

func TestJudgeSaysWhetherAskingAgainMayHelp(t *testing.T) {
	refused := dialError(t)
	for _, test := range []struct {
		name   string
		status int
		err    error
		again  bool
		words  string
	}{
		{"a hibernating instance", 503, errAsleep, false, "Wake it"},
		{"a refusal", 401, errors.New("x"), false, "does not say why it refused the login"},
		{"a bad request", 400, errors.New("x"), false, "does not say why it refused the login"},
		{"a success that is none", 200, errors.New("an HTML page"), false, "answered 200 with an HTML page"},
		{"a redirect", 307, errors.New("x"), false, "not followed"},
		{"not modified", 304, errors.New("x"), false, "not followed"},
		{"a block", 403, errors.New("x"), false, "IP address"},
		{"no such page", 404, errors.New("x"), false, "not what a token endpoint answers"},
		{"a rate limit", 429, errors.New("x"), true, "what else asks"},
		{"an error of the instance", 500, errors.New("x"), false, "run again later"},
		{"not implemented", 501, errors.New("x"), false, "run again later"},
		{"a bad gateway", 502, errors.New("x"), true, "run again later"},
		{"an unavailable instance", 503, errors.New("x"), true, "run again later"},
		{"a gateway's timeout", 504, errors.New("x"), true, "run again later"},
		{"a deadline", 0, context.DeadlineExceeded, false, "did not answer in time"},
		{"a network's timeout", 0, &net.OpError{Err: os.ErrDeadlineExceeded}, false, "did not answer in time"},
		{"an unknown host", 0, &net.DNSError{IsNotFound: true}, false, "DNS gave no address"},
		{"an untrusted certificate", 0, &tls.CertificateVerificationError{Err: errors.New("expired")}, false, `has an untrusted certificate ("expired")`},
		{"no route to the network", 0, &net.OpError{Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}, false, "no route"},
		{"no route to the host", 0, &net.OpError{Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}, false, "no route"},
		{"a refused connection", 0, refused, true, "the connection was refused"},
		{"a reset", 0, &net.OpError{Err: os.NewSyscallError("read", syscall.ECONNRESET)}, true, "broke the connection off"},
		{"a broken pipe", 0, &net.OpError{Err: os.NewSyscallError("write", syscall.EPIPE)}, true, "broke the connection off"},
		{"an end", 0, io.EOF, true, "broke the connection off"},
		{"an end in the body", 0, io.ErrUnexpectedEOF, true, "broke the connection off"},
		{"anything else", 0, errors.New("S3ntinel-body"), false, "did not answer as an HTTPS server does"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := judge(test.status, test.err)
			if got.mayHelp != test.again {
				t.Errorf("asking again may help: %t; want %t", got.mayHelp, test.again)
			}
			lab.CheckWords(t, got.Error(), test.words)
			if strings.Contains(got.Error(), "S3ntinel") {
				t.Errorf("Go's own text is shown: %+v", got)
			}
		})
	}
}

// dialError is the error of a connection to a port on which nobody listens.
func dialError(t *testing.T) error {
	t.Helper()
	_, err := post(context.Background(), "http://127.0.0.1:1", nil)
	if err == nil {
		t.Fatal("somebody listens")
	}
	return err
}

func TestAskingAgainPausesLongerEachTime(t *testing.T) {
	w := lab.New(t)
	for _, test := range []struct {
		name  string
		fault wire.Fault
		least []time.Duration // the pauses' least
		most  []time.Duration
	}{
		{"without a word, with some jitter", wire.Reply(503, "", ""), []time.Duration{500*time.Millisecond + 1, time.Second + 1}, []time.Duration{time.Second, 2 * time.Second}},
		{"with Retry-After", wire.Reply(429, "", "", "Retry-After", "3"), []time.Duration{3 * time.Second, 3 * time.Second}, []time.Duration{3 * time.Second, 3 * time.Second}},
		{"with Retry-After below the pause", wire.Reply(429, "", "", "Retry-After", "1"), []time.Duration{time.Second, time.Second}, []time.Duration{time.Second, 2 * time.Second}},
		{"with Retry-After too long to wait", wire.Reply(429, "", "", "Retry-After", "3600"), []time.Duration{5 * time.Second, 5 * time.Second}, []time.Duration{5 * time.Second, 5 * time.Second}},
		{"a refusal", wire.Reply(401, "", "", "Retry-After", "1"), nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var pauses []time.Duration
			setClock(t, time.Now)
			recordPauses(&pauses)
			w.Instance.SetFault(test.fault)
			r := w.RunInProcess(t, lab.ByHand, "WM_TOKEN=")
			if len(r.Logins) != len(test.least)+1 || len(pauses) != len(test.least) {
				t.Fatalf("%d logins with the pauses %v; want %d\n%s", len(r.Logins), pauses, len(test.least)+1, r.Log)
			}
			for i, pause := range pauses {
				if pause < test.least[i] || pause > test.most[i] {
					t.Errorf("pause %d = %s; want from %s to %s", i+1, pause, test.least[i], test.most[i])
				}
			}
		})
	}
}

func TestAskingAgainEndsWithTheTimeForIt(t *testing.T) {
	w := lab.New(t)
	clock := fastClock(t)
	w.Instance.SetFault(wire.Reply(503, "", "", "Retry-After", "5"))
	_, failed := askServiceNow(snowOf(t, w), clock.Add(6900*time.Millisecond))
	if failed == nil || !strings.Contains(failed.Error(), "answered 503") || len(w.Instance.TakeCalls()) != 1 {
		t.Errorf("askServiceNow = %v; want the one answer that came in time", failed)
	}
}

func TestAskingAgainIsNoHelpWhereTheAnswerDidNotEndInTime(t *testing.T) {
	address := lab.Serve(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.WriteHeader(http.StatusServiceUnavailable)
		wire.Hang("<html>")(1, rw, r)
	}))
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	got, err := post(ctx, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = got.decode()
	if failed := failure(servicenow{}, got, tokenAnswer{}, err); failed.mayHelp || !strings.Contains(failed.Error(), "answered 503") {
		t.Errorf("failure = %+v; want a 503 that is not asked again", failed)
	}
}

func TestRetryAfter(t *testing.T) {
	clock := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, test := range []struct {
		name, header string
		want         time.Duration
	}{
		{"nothing", "", 0},
		{"seconds", "3", 3 * time.Second},
		{"more than the longest", "6", 5 * time.Second},
		{"more than a number holds", "99999999999999999999", 5 * time.Second},
		{"below nothing", "-1", 0},
		{"a date", "Fri, 02 Jan 2026 03:04:09 GMT", 4 * time.Second},
		{"a far date", "Fri, 02 Jan 2099 03:04:09 GMT", 5 * time.Second},
		{"a past date", "Fri, 02 Jan 2015 03:04:09 GMT", 0},
		{"words", "soon", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := retryAfter(test.header, clock); got != test.want {
				t.Errorf("retryAfter(%q) = %s; want %s", test.header, got, test.want)
			}
		})
	}
}

func TestAnswerToALogin(t *testing.T) {
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
		{"with a lifetime of less than a second", `{` + token + `,"expires_in":0.9}`, ""},
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
			_, lifetime, err := answer{status: 200, body: []byte(test.body)}.decode()
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
	if got, _, err := (answer{status: 200, body: []byte(exact)}).decode(); got.AccessToken != "abc" || err != nil {
		t.Errorf("token of an answer of 1 MiB = %q, %v; want abc", got.AccessToken, err)
	}
}

func TestQuoteWithholdsWhatRepeatsASecret(t *testing.T) {
	const withheld = "(withheld, it may repeat a secret)"
	for _, test := range []struct{ name, text, want string }{
		{"plain words", "access_denied", `"access_denied"`},
		{"the secret", "hunter2 secret", withheld},
		{"the secret in words", "not hunter2 secret!", withheld},
		{"the secret with other blanks", "h u\tn t e r", withheld},
		{"the secret with letters that do not print", "h\u200bu\u200bn\u200bt\u200be\u200br", withheld},
		{"the secret in capitals", "HUNTER2 SECRET", withheld},
		{"the secret of a form", "hunter2+secret", withheld},
		{"the secret of a URL", "hunter2%20secret", withheld},
		{"the secret of a page", "&#104;unter2", withheld},
		{"the secret of JSON", `\u0068unter2`, withheld},
		{"a part of the secret", "a hunter", withheld},
		{"the last part of the secret", "my secret", withheld},
		{"a part too short to tell", "a hunt", `"a hunt"`},
		{"quotes and line breaks", "a\n\"b\"", `"a  b "`},
		{"a word as long as a token", "the token " + strings.Repeat("aZ09-_/=", 5), withheld},
		{"a shorter word", strings.Repeat("a", 39), `"` + strings.Repeat("a", 39) + `"`},
		{"many letters", strings.Repeat("ä", 200), `"` + strings.Repeat("ä", 60) + `"`},
		{"broken letters", strings.Repeat("\xff", 200), `"` + strings.Repeat("\uFFFD", 60) + `"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := quote(test.text, []string{"", " hunter2 secret "}); got != test.want {
				t.Errorf("quote(%q) = %s; want %s", test.text, got, test.want)
			}
		})
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
		return wire.Reply(http.StatusUnauthorized, "application/json", body)(n, w, r)
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
	{"a refused login", wire.Reply(401, "application/json;charset=utf-8", accessDenied), 1, []string{
		`answered 401 (error "server_error", error_description "access_denied")`, "does not say why", "client_id", "client_secret",
		"username", "password", "the user: active", "not locked out", "no password reset", "a local password", "the OAuth application: active", "scope",
		"glide.oauth.inbound.ropc.grant_type.disabled", "Exception on token flow"}},
	{"a refused login by RFC 6749", wire.Reply(400, "application/json", `{"error":"invalid_grant"}`), 1, []string{`answered 400 (error "invalid_grant")`, "username"}},
	{"a refused login without a word", wire.Reply(401, "", ""), 1, []string{"answered 401. ServiceNow does not say why", "client_id"}},
	{"a refused login with half a body", func(_ int, w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Length", "1000")
		w.WriteHeader(401)
		_, _ = io.WriteString(w, accessDenied)
		return true
	}, 1, []string{"answered 401"}},
	{"a refused login with HTML", wire.Reply(401, "text/html", "<html>S3ntinel-body</html>"), 1, []string{"answered 401"}},
	{"a refused login with another object", wire.Reply(401, "application/json", `{"error":{"message":"User Not Authenticated","detail":"Required to provide Auth information"},"status":"failure"}`), 1,
		[]string{`message "User Not Authenticated", detail "Required to provide Auth information"`}},
	{"a refused login with a long text", wire.Reply(401, "application/json", `{"error":"server_error","error_description":"`+strings.Repeat("xxx ", 1250)+`"}`), 1, []string{`xxx xxx "`}},
	{"a refused login with words as long as a token", wire.Reply(401, "application/json", `{"error":"`+strings.Repeat("x", 40)+`","error_description":"of S3ntinel-body.`+strings.Repeat("x", 40)+`"}`), 1,
		[]string{"error (withheld", "error_description (withheld"}},
	{"a blocked address", wire.Reply(403, "text/html", "<html>S3ntinel-body</html>"), 1, []string{"answered 403", "IP address"}},
	{"no such page", wire.Reply(404, "text/html", "<html>S3ntinel-body</html>"), 1, []string{"answered 404", "instance_url"}},
	{"a proxy that wants a login", wire.Reply(407, "", ""), 1, []string{"answered 407", "proxy"}},
	{"a rate limit", wire.Reply(429, "application/json", rateLimit, "Retry-After", "1"), 3, []string{`answered 429 (message "Rate limit exceeded", detail "Too many requests")`}},
	{"an error of the instance", wire.Reply(500, "text/html", "<html>S3ntinel-body</html>"), 1, []string{"answered 500", "run again later"}},
	{"a bad gateway", wire.Reply(502, "text/html", "<html>S3ntinel-body</html>"), 3, []string{"answered 502", "run again later"}},
	{"an unavailable instance", wire.Reply(503, "text/html", "<html>S3ntinel-body</html>", "Retry-After", "Thu, 01 Jan 1970 00:00:00 GMT"), 3, []string{"answered 503"}},
	{"a hibernating instance", wire.Reply(200, "text/html", hibernating), 1, []string{"hibernating", "Wake"}},
	{"a hibernating instance with 503", wire.Reply(503, "text/html", hibernating), 1, []string{"hibernating", "Wake"}},
	{"a hibernating instance behind a gateway", wire.Reply(404, "text/html", "\r\n "+hibernating), 1, []string{"hibernating", "Wake"}},
	{"a login page", wire.Reply(200, "text/html", "<!DOCTYPE html><html>S3ntinel-body</html>"), 1, []string{"answered 200 with an HTML page", "token endpoint", "instance_url"}},
	{"created", wire.Reply(201, "application/json", "{"+someToken+"}"), 1, []string{"answered 201"}},
	{"another protocol, and then silence", wire.Raw("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", true), 1, []string{"answered 101"}},

	{"nothing", wire.Reply(200, "application/json", ""), 1, []string{"answered 200 with something other than one JSON object", "token endpoint"}},
	{"a reference to a secret in the token", wire.Reply(200, "application/json", `{"access_token":"$var:u/admin/secret"}`), 1, []string{"no well-formed access_token"}},
	{"a lifetime of words", wire.Reply(200, "application/json", `{`+someToken+`,"expires_in":"S3ntinel-body"}`), 1, []string{"expires_in"}},
	{"an error beside the token", wire.Reply(200, "application/json", `{`+someToken+`,"error":"invalid_client"}`), 1, []string{`answered 200 with an error (error "invalid_client")`}},
	{"a rate limit with 200", wire.Reply(200, "application/json", rateLimit), 1, []string{`answered 200 with an error (message "Rate limit exceeded"`}},
	{"too much", wire.Reply(200, "application/json", "{"+someToken+"}"+strings.Repeat(" ", 1<<20)), 1, []string{"more than 1 MiB"}},
	{"an answer without end", wire.Endless(`{"access_token":"`, strings.Repeat("a", 1<<16)), 1, []string{"more than 1 MiB"}},
	{"an error without end", func(n int, w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(401)
		return wire.Endless(`{"error":"`, strings.Repeat("a", 1<<16))(n, w, r)
	}, 1, []string{"answered 401"}},
	{"a gzip bomb", wire.Bomb, 1, []string{"more than 1 MiB"}},
	{"gzip that is none", wire.Reply(200, "application/json", "{"+someToken+"}", "Content-Encoding", "gzip"), 1, []string{"did not answer as an HTTPS server does"}},
	{"deep nesting", wire.Reply(200, "application/json", `{`+someToken+`,"a":`+strings.Repeat("[", 100_000)), 1, []string{"something other than one JSON object"}},

	{"the password echoed", echo("user x with %s is unknown", func(s string) string { return s }), 1, []string{`error "server_error", error_description (withheld`}},
	{"the password echoed after a long text", echo(strings.Repeat("x", 99)+"%s", func(s string) string { return s }), 1, []string{"withheld"}},
	{"the client secret echoed as the error", wire.Reply(401, "application/json", `{"error":"Kx9/secret=&?#'%Kx9"}`), 1, []string{"error (withheld"}},
	{"the client secret echoed in an object", wire.Reply(429, "application/json", `{"error":{"message":"Kx9/secret=&?#'%Kx9","detail":{"a":1}}}`), 3, []string{"message (withheld"}},
	{"a token echoed", wire.Reply(200, "application/json", `{`+someToken+`,"refresh_token":"S3nt1nel-refresh-token","error":"S3nt1nel-access-token","error_description":"for s3nt1nel-REFRESH-token"}`), 1,
		[]string{"error (withheld", "error_description (withheld"}},
	{"the password in the status line", wire.Raw("HTTP/1.1 401 "+lab.Password+"\r\nContent-Length: 0\r\n\r\n", false), 1, []string{"answered 401"}},
	{"the password in headers", wire.Reply(401, "application/json", accessDenied, "X-Echo", "Zq7", "Www-Authenticate", `Basic realm="`+lab.ClientSecret+`"`), 1, []string{"answered 401"}},
	{"the password for an answer", wire.Raw(lab.Password+"\r\n\r\n", false), 1, []string{"did not answer as an HTTPS server does"}},

	{"a redirect without a place", wire.Reply(302, "", ""), 1, []string{"answered 302", "instance_url must be the instance's own address"}},
	{"a redirect to nonsense", wire.Reply(302, "", "", "Location", "http://[S3ntinel-body"), 1, []string{"answered 302", "own address"}},
	{"a redirect with the password as its host", wire.Reply(302, "", "", "Location", "https://Kx9/secret=&?#'%Kx9"), 1, []string{"answered 302", "own address"}},
	{"not modified", wire.Reply(304, "", ""), 1, []string{"answered 304"}},

	{"a reset before the headers", wire.Reset, 3, []string{"broke the connection off"}},
	{"an end before the headers", wire.Raw("", false), 3, []string{"broke the connection off"}},
	{"an end in the headers", wire.Raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n", false), 3, []string{"broke the connection off"}},
	{"an end in the body", wire.Half, 3, []string{"broke the connection off"}},
	{"an end in a chunk", wire.Raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n60\r\n{"+someToken, false), 3, []string{"broke the connection off"}},
	{"chunks that are none", wire.Raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", false), 1, []string{"did not answer as an HTTPS server does"}},
	{"headers without end", wire.Raw("HTTP/1.1 200 OK\r\n"+strings.Repeat("X-A: "+strings.Repeat("a", 1000)+"\r\n", 12_000), false), 1, []string{"did not answer as an HTTPS server does"}},
	{"no HTTP", wire.Raw("SSH-2.0-OpenSSH_9.6\r\n", false), 1, []string{"did not answer as an HTTPS server does"}},
}

// checkHostile runs the job, on a cold cache, against an answer without a token, and
// fails the test unless the run fails within limit as h says, with nothing cached
// but what the run tells others.
func checkHostile(t *testing.T, w *lab.World, h hostile, limit time.Duration) {
	t.Helper()
	w.Secrets = append(w.Secrets, "S3nt1nel-access-token", "S3nt1nel-refresh-token", "S3ntinel-body")
	w.Workspace.DeleteResource(cachePath)
	w.Instance.SetFault(h.fault)
	r := w.Run(t, lab.FlowStep)
	if r.Result != "" {
		t.Errorf("result = %s; want a failure", r.Result)
	}
	if len(r.Logins) != h.logins {
		t.Errorf("%d logins; want %d\n%s", len(r.Logins), h.logins, r.Log)
	}
	if r.Took > limit {
		t.Errorf("took %s; want at most %s", r.Took, limit)
	}
	begins := strings.LastIndex(r.Log, w.Snow.InstanceURL) // the last line that names it begins the error
	if begins < 0 {
		t.Fatalf("no error names the instance:\n%s", r.Log)
	}
	message := strings.TrimSpace(r.Log[begins:])
	lab.CheckWords(t, message, append(h.words, "/oauth_token.do")...)
	if attempts := strings.Count(r.Log, "; asking again in "); attempts != max(0, h.logins-1) {
		t.Errorf("the log tells of %d further attempts; want %d:\n%s", attempts, h.logins-1, r.Log)
	}
	if shown := (windmill.Done{Log: r.Log}).FailureText(); !strings.Contains(shown, message) {
		t.Errorf("Windmill would show only a part of the error as the result: %s", shown)
	}

	// What the others are told: the error's first words.
	cached, _ := w.Cached(t)
	if cached.Token != "" || cached.ExpiresAt != 0 || cached.Login == nil {
		t.Fatalf("the record is %+v; want no token and a login", cached)
	}
	refused := strings.Contains(message, " answered 401") || strings.Contains(message, " answered 400")
	if l := *cached.Login; l.By != "" || (l.Refusals == 1) != refused || (l.RefusedAt != 0) != refused ||
		l.Outcome == "" || utf8.RuneCountInString(l.Outcome) > 200 || !strings.HasPrefix(message, l.Outcome) {
		t.Errorf("the login is %+v; want its end, %d refusals and the error's first words", l, map[bool]int{true: 1}[refused])
	}
	if diff := cmp.Diff(w.SealLogin(*cached.Login), cached.Login); diff != "" {
		t.Errorf("the login's seal mismatch (-want +got):\n%s", diff)
	}
}

func TestAnswersThatBringNoToken(t *testing.T) {
	t.Parallel()
	for _, h := range hostileAnswers {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			checkHostile(t, lab.New(t), h, 14*time.Second)
		})
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 302, 303, 307, 308} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			t.Parallel()
			var strayed atomic.Int32
			elsewhere := lab.Serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { strayed.Add(1) }))
			host := strings.TrimPrefix(elsewhere, "http://")
			w := lab.New(t)
			checkHostile(t, w, hostile{
				fault: wire.Reply(status, "", "", "Location", "http://user:S3ntinel-body@"+host+"/login.do?a=S3ntinel-body"), logins: 1,
				words: []string{fmt.Sprintf("answered %d (redirect to %q)", status, host), "instance_url must be the instance's own address"},
			}, 10*time.Second)
			checkHostile(t, w, hostile{
				fault: wire.Reply(status, "", "", "Location", "/S3ntinel-body"), logins: 1,
				words: []string{
					fmt.Sprintf("answered %d (redirect to %q)", status, strings.TrimPrefix(w.Snow.InstanceURL, "http://")),
					"instance_url must be the instance's own address",
				},
			}, 10*time.Second)
			if n := strayed.Load(); n != 0 {
				t.Errorf("the other host was asked %d times; want never", n)
			}
		})
	}
}

func TestConnectionRefusedIsTriedAgain(t *testing.T) {
	t.Parallel()
	w := lab.New(t)
	w.Snow.InstanceURL = "http://127.0.0.1:1"
	r := w.Run(t, lab.FlowStep)
	const again = `http://127\.0\.0\.1:1/oauth_token\.do cannot be reached: the connection was refused; asking again in (\d00ms|\d(\.\d)?s)\.`
	lab.CheckLines(t, r.Log, lineNothing, again, again, `http://127\.0\.0\.1:1/oauth_token\.do cannot be reached: the connection was refused\. .+instance_url.+`)
}

func TestUnknownHostIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	w := lab.New(t)
	w.Snow.InstanceURL = "https://no-such-instance.invalid"
	r := w.Run(t, lab.FlowStep)
	lab.CheckLines(t, r.Log, lineNothing,
		`https://no-such-instance\.invalid/oauth_token\.do cannot be reached: DNS gave no address\. .+instance_url.+`)
}

// Windmill shows the last 600 characters of a failed job's log.
func TestErrorsFitIntoWhatWindmillShows(t *testing.T) {
	const shown = 600
	host := strings.Repeat("h", 60)
	snow := servicenow{InstanceURL: "https://" + host, ClientID: "id", ClientSecret: "Kx9sentinel", Username: "user", Password: "Zq7sentinel"}
	long := strings.Repeat("ä", 500)
	bodies := []string{
		fmt.Sprintf(`{"error":%q,"error_description":%q}`, long, long),
		fmt.Sprintf(`{"error":{"message":%q,"detail":%q},"error_description":%q}`, long, long, long),
		fmt.Sprintf(`{"error":%q,"error_description":%q}`, strings.Repeat("\x00", 500), strings.Repeat(`"`, 500)),
		hibernating, "<html>", `{"access_token":"abc","expires_in":"x"}`,
	}
	longest := ""
	check := func(text string) {
		t.Helper()
		if n := utf8.RuneCountInString(text); n > shown {
			t.Errorf("%d characters; want at most %d: %s", n, shown, text)
		}
		if utf8.RuneCountInString(text) > utf8.RuneCountInString(longest) {
			longest = text
		}
	}
	for _, status := range []int{200, 302, 400, 401, 403, 404, 407, 429, 500, 503} {
		for _, body := range bodies {
			got := answer{status: status, body: []byte(body)}
			if status == 302 {
				got.redirect = host
			}
			said, _, err := got.decode()
			if err == nil {
				t.Fatalf("%s is a success", body)
			}
			failed := failure(snow, got, said, err)
			check(failed.Error())
			last := login{Refusals: 99, RefusedAt: 1_800_000_000, Outcome: fmt.Sprintf("%.200s", failed.outcome)}
			for _, refusals := range []int{1, 2, 3} {
				last.Refusals = refusals
				check(heldBack(last, byCaller, heldUntil(last, byCaller, time.Unix(1_800_000_000, 0))).Error())
			}
		}
	}
	w := lab.New(t)
	w.Setenv(t)
	fastClock(t)
	t.Setenv("WM_PERMISSIONED_AS", "u/"+host)
	for _, kind := range []string{
		"Unauthorized", "Permission denied", "Not authorized", "SqlErr: row-level security", "SqlErr", "x",
	} {
		w.Workspace.SetFault(wire.Reply(500, "text/plain", kind))
		_, err := getToken(servicenow(w.Snow))
		if err == nil || !strings.Contains(err.Error(), "ServiceNow was not asked") {
			t.Errorf("getToken = %v; want an error of the cache", err)
			continue
		}
		check(err.Error())
	}
	t.Logf("the longest has %d characters: %s", utf8.RuneCountInString(longest), longest)
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
		a := answer{status: status, redirect: location, retryAfter: retryAfter, body: []byte(body)}
		said, lifetime, err := a.decode()
		token := said.AccessToken
		if err == nil {
			if status != http.StatusOK || !regexp.MustCompile(`^[A-Za-z0-9._~+/-]+=*$`).MatchString(token) {
				t.Errorf("accepted the token %q with status %d", token, status)
			}
			if lifetime < 0 || lifetime > 365*24*3600 {
				t.Errorf("lifetime = %d", lifetime)
			}
			return
		}
		failed := failure(snow, a, said, err)
		text := failed.Error()
		for _, secret := range []string{snow.Password, snow.ClientSecret} {
			if strings.Contains(strings.ToLower(text), strings.ToLower(secret)) {
				t.Errorf("the error repeats %q: %s", secret, text)
			}
		}
		printable := func(r rune) bool { return r != '\n' && unicode.IsControl(r) }
		if !utf8.ValidString(text) || strings.ContainsFunc(text, printable) || strings.Contains(failed.outcome, "\n") {
			t.Errorf("the error would not print well: %q", text)
		}
		if n := utf8.RuneCountInString(text); n > 600 {
			t.Errorf("%d characters: %s", n, text)
		}
		if failed.pause < 0 || failed.pause > longestRetryAfter {
			t.Errorf("pause = %s", failed.pause)
		}
		if failed.refused != (status == 400 || status == 401) && !errors.Is(err, errAsleep) {
			t.Errorf("status %d is a refusal: %t", status, failed.refused)
		}
	})
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

// What stands beside main.go.

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
	if err != nil || time.Duration(timeout)*time.Second <= time.Minute {
		t.Errorf("timeout = %d s, %v; want more than the run's own minute, for its error to be seen", timeout, err)
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

// A year.

// TestYear lives through a workspace's year by an injected clock: a week of it if
// short, two days if in process. The figures of its log stand in local/README.md.
func TestYear(t *testing.T) {
	for _, test := range []struct {
		name      string
		remaining bool
	}{{"where a login renews the expiry", false}, {"where a login gives the remaining lifetime", true}} {
		t.Run(test.name, func(t *testing.T) { simulate(t, test.remaining) })
	}
}

// simulate runs the schedule every 15 minutes, 1 to 4 flow steps between, and each
// hour a scheduled flow with a loop, all as calls of the script's own functions over
// HTTP. Now and then a token is revoked, the password is changed and the resource
// mended hours or days later, or the instance hibernates overnight.
func simulate(t *testing.T, remaining bool) {
	const period = 15 * time.Minute
	days := 365
	switch {
	case lab.InProcess:
		days = 2
	case testing.Short():
		days = 7
	}
	chance := mathrand.New(mathrand.NewSource(1))
	clock := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	end := clock.AddDate(0, 0, days)

	w := lab.New(t)
	w.Instance.Now = func() time.Time { return clock }
	w.Instance.Remaining = remaining
	w.Setenv(t)
	setClock(t, w.Instance.Now)
	sleep = func(pause time.Duration) {
		clock = clock.Add(pause)
	}
	stdout := os.Stdout
	defer func() { os.Stdout = stdout }()
	var err error
	if os.Stdout, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	}
	defer os.Stdout.Close()

	// What the instance is like at the moment.
	var (
		hibernatingUntil time.Time // zero when awake
		mendedAt         time.Time // when the resource will have the new password; zero when it has
		revokedAt        time.Time // zero when the cache is good again
		healthy          bool      // the last scheduled run succeeded, with the resource as it is
		refusals         int       // in a row, of these credentials
		unsound          int
	)
	count := make(map[string]int)
	fail := func(format string, args ...any) {
		t.Helper()
		if unsound++; unsound < 10 {
			t.Errorf(clock.Format(time.RFC3339)+": "+format, args...)
		}
	}
	loginsFail := func() bool { return clock.Before(hibernatingUntil) || !mendedAt.IsZero() }

	// attempt makes one run and returns how many logins it made.
	attempt := func(origin []string) (token string, logins int, err error) {
		for _, setting := range append([]string{"WM_FLOW_JOB_ID=", "WM_FLOW_PATH=", "WM_SCHEDULE_PATH="}, origin...) {
			name, value, _ := strings.Cut(setting, "=")
			os.Setenv(name, value)
		}
		token, err = getToken(servicenow(w.Snow))
		calls := w.Instance.TakeCalls()
		w.Workspace.TakeCalls()
		for _, call := range calls {
			if refusals++; call.Status != http.StatusUnauthorized {
				refusals = 0
			}
		}
		if refusals > 3 || w.Instance.Locked(w.Account.Username) {
			fail("%d refusals in a row", refusals)
		}
		if len(calls) > 1 {
			fail("%d logins in one run", len(calls))
		}
		count["logins"] += len(calls)
		return token, len(calls), err
	}

	step := func(origin []string) {
		token, logins, err := attempt(origin)
		count["steps"]++
		if err != nil {
			if !loginsFail() {
				fail("a step failed after %d logins: %v", logins, err)
			}
			return
		}
		// What the instance itself says; it ends a revoked token at once, of which
		// nobody can know.
		if left := w.Instance.Remains(token); revokedAt.IsZero() && left <= time.Minute && (logins == 0 || !remaining) {
			fail("a step was handed a token that lives for another %s", left)
		}
		if !healthy || logins == 0 {
			return
		}
		count["logins of steps while the schedule was healthy"]++
		// With the remaining lifetime, no schedule can get a token that lasts: the
		// steps of its last minute, and the first after it, ask for themselves.
		if left := w.Instance.Remains(token); !remaining || left > 62*time.Second && left < 30*time.Minute {
			fail("a step logged in, though the schedule is healthy; its token lives for %s", left)
		}
	}

	schedule := func() {
		heldBack := refusals > 0
		token, logins, err := attempt(lab.Schedule)
		count["runs of the schedule"]++
		if logins != 1 && !heldBack {
			fail("the schedule made %d logins; want 1", logins)
		}
		healthy = err == nil
		if err != nil {
			if !loginsFail() {
				fail("the schedule failed: %v", err)
			}
			if !revokedAt.IsZero() {
				revokedAt = clock // no login can heal the cache before the next one
			}
			return
		}
		if cached, _ := w.Cached(t); cached.Token != token || cached.Login != nil || !w.Instance.Valid(token) {
			fail("after the schedule, the cache is not good")
		}
		if !revokedAt.IsZero() && clock.Sub(revokedAt) > period+time.Minute {
			fail("the cache is good again only %s after the revocation", clock.Sub(revokedAt))
		}
		revokedAt = time.Time{}
	}

	for next := clock; next.Before(end); next = next.Add(period) {
		// A schedule starts a few seconds late, now more, now less.
		clock = next.Add(time.Duration(chance.Intn(5000)) * time.Millisecond)
		schedule()
		if next.Minute() == 30 {
			loop := windmill.StepOfScheduledFlow(lab.FlowPath, "a", "f/ServiceNow/nightly")
			for range 5 {
				clock = clock.Add(10 * time.Second)
				step(loop)
			}
		}
		for _, at := range moments(chance, clock, next.Add(period), 1+chance.Intn(4)) {
			clock = at
			awake := hibernatingUntil.Before(clock)
			switch {
			case !mendedAt.IsZero() && clock.After(mendedAt):
				w.Snow.Password, mendedAt = w.Account.Password, time.Time{}
				healthy, refusals = false, 0
				count["resource mended"]++
			case awake && chance.Intn(500) == 0:
				w.Instance.Revoke()
				revokedAt = clock
				count["token revoked"]++
			case awake && mendedAt.IsZero() && chance.Intn(2000) == 0:
				w.Instance.SetAccount(w.Account, false)
				w.Account.Password += "+"
				w.Instance.SetAccount(w.Account, true)
				mendedAt = clock.Add(time.Duration(chance.Int63n(int64(48 * time.Hour))))
				count["password changed"]++
			case awake && clock.Hour() == 22 && chance.Intn(60) == 0:
				hibernatingUntil = clock.Add(8 * time.Hour)
				w.Instance.SetFault(func(n int, rw http.ResponseWriter, r *http.Request) bool {
					return clock.Before(hibernatingUntil) && wire.Reply(200, "text/html", hibernating)(n, rw, r)
				})
				count["hibernated overnight"]++
			}
			step(lab.FlowStep)
		}
	}
	t.Logf("%d days: %v", days, count)
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

// What the script's own checks cost; the table of `make bench` has them beside a job.

func BenchmarkInputCheck(b *testing.B) {
	b.ReportAllocs()
	for range b.N {
		snow := servicenow{" https://dev12345.service-now.com/ ", "id", lab.ClientSecret, "user", lab.Password}
		if _, err := checked(snow); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRecordCheck(b *testing.B) {
	snow := servicenow{"https://dev12345.service-now.com", "id", lab.ClientSecret, "user", lab.Password}
	r := record{Token: strings.Repeat("t", 86), ExpiresAt: 1_700_000_000, InstanceURL: snow.InstanceURL}
	r.Seal = snow.seal(r)
	value := map[string]any{"token": r.Token, "expires_at": 1_700_000_000.0, "instance_url": r.InstanceURL, "seal": r.Seal}
	b.ReportAllocs()
	for range b.N {
		if found := snow.understand(value); found.record != r || found.record.usable() {
			b.Fatal("the record is not what it is")
		}
	}
}
