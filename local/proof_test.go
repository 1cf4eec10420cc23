package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"servicenow-token/local/windmill"
)

const loginsPath = "f/ServiceNow/snow_token_logins"

// folder holds all that the tests build and run.
var folder string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "servicenow-token")
	must(err)
	folder = dir
	code := m.Run()
	must(os.RemoveAll(folder))
	os.Exit(code)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// atTop goes to main.go. Had TestMain done so, go test would take no note of what is read there, and cache its results.
var atTop = sync.OnceFunc(func() { must(os.Chdir("..")) })

// script is main.go, built once. Its clock is AHEAD by some time where a proof sets that.
var script = sync.OnceValue(func() (binary string) {
	content, err := os.ReadFile("main.go")
	must(err)
	start, end, found := strings.Cut(string(content), "\nvar now, sleep = time.Now, time.Sleep\n")
	if !found {
		panic("main.go has no such clock")
	}
	return build(start + "\nvar sleep = time.Sleep\n" + `func now() time.Time {
		ahead, _ := time.ParseDuration(os.Getenv("AHEAD"))
		return time.Now().Add(ahead)
	}` + "\n" + end)
})

// build makes a job of a script's source.
func build(source string) (binary string) {
	file := filepath.Join(folder, "script.go")
	must(os.WriteFile(file, []byte(source), 0o600))
	binary, err := (&windmill.Worker{Dir: folder}).Build(context.Background(), file, ".")
	must(err)
	return binary
}

// proof is a world of a test's own.
type proof struct {
	*world
	t testing.TB
}

func newProof(t testing.TB) proof {
	if testing.Short() {
		t.Skip("runs many jobs as processes")
	}
	atTop()
	w := newWorld(folder)
	t.Cleanup(w.close)
	return proof{w, t}
}

// steps runs the script as steps of so many flows at once.
func (p proof) steps(jobs int, env ...string) []windmill.Done {
	step := getToken(script(), append(env, windmill.StepOfFlow...))
	return p.run(context.Background(), jobs, func(int) windmill.Job { return step })
}

// What the two resources look like when nothing is torn.
var (
	wholeCache  = regexp.MustCompile(`^({"token":"[^"]+","expires_at":\d+,"instance_url":"[^"]+","seal":"\w{64}"})?$`)
	wholeLogins = regexp.MustCompile(`^({"\w{64}":{"job":"[\w-]+","at":\d+,"outcome":"[^"]*","refusals":\d,"refused_at":\d+}})?$`)
)

// check fails the test unless each job said or returned want, after so many seconds at most, and nothing is torn.
func (p proof) check(want string, seconds float64, all []windmill.Done) {
	p.t.Helper()
	for _, done := range all {
		if !strings.Contains(string(done.Result)+done.Log, want) || done.Took.Seconds() > seconds || done.Log == saysASecret {
			p.t.Errorf("after %s, in the place of %s: %s\n%s", done.Took, want, done.Result, done.Log)
		}
	}
	cache, logins := p.workspace.Get(cachePath), p.workspace.Get(loginsPath)
	if !wholeCache.Match(cache) || !wholeLogins.Match(logins) {
		p.t.Errorf("torn: %s, %s", cache, logins)
	}
}

// plant caches a sealed token, which the instance then revokes. One for 50 s is too close to its expiry to be reused.
func (p proof) plant(lifetime time.Duration) (token string) {
	p.instance.Lifetime = lifetime
	p.check(`"OK"`, 30, p.steps(1))
	p.instance.Lifetime = 0
	p.instance.Revoke(p.token())
	p.workspace.Delete(loginsPath) // else the next run reads the cache once more
	return p.token()
}

// onRequest calls do before each request to either server, of which none is answered for which it returns true.
func (p proof) onRequest(do func(n int, r *http.Request) bool) {
	var n atomic.Int32
	fault := func(_ http.ResponseWriter, r *http.Request, _ int) bool { return do(int(n.Add(1)), r) }
	p.workspace.Fault, p.instance.Fault = fault, fault
}

func TestFortyJobsAtOnce(t *testing.T) {
	for i := range 10 {
		p := newProof(t)
		p.onRequest(func(_ int, r *http.Request) bool {
			if r.Method == http.MethodPost { // one that comes late may overwrite another's claim
				time.Sleep(rand.N(time.Duration(1+20*i) * time.Millisecond))
			}
			return false
		})
		p.check(`"OK"`, 10, p.steps(40))
		n := p.instance.Requests()
		t.Logf("logins: %d", n)
		if n > 2 {
			t.Error("want 2 at most")
		}
	}
}

// Two wrong users beside a right one, and beside the Python script's writes: each wrong one is refused once.
func TestWrongUsersInOneCache(t *testing.T) {
	p := newProof(t)
	for i := range 15 { // five rounds
		user, want := [3]string{"wrong 1", "wrong 2", account.Username}[i%3], [3]string{"answered 401", "answered 401", `"OK"`}[i%3]
		ahead := fmt.Sprintf("AHEAD=%ds", 6*i) // for no failure stands for so long
		job := getToken(script(), append([]string{ahead}, windmill.StepOfFlow...))
		job.Args = fmt.Sprintf(`{"snow": {"instance_url": %q, "client_id": %q, "client_secret": %q, "username": %q, "password": %q}}`,
			p.address, account.ClientID, account.ClientSecret, user, account.Password)
		done := p.run(context.Background(), 1, func(int) windmill.Job { return job })[0]
		if !strings.Contains(string(done.Result)+done.Log, want) {
			t.Errorf("run %d, as %s, in the place of %s: %s\n%s", i, user, want, done.Result, done.Log)
		}
		p.workspace.Set(cachePath, []byte(`{"token": "of the Python script", "expires_at": 1.5}`))
	}
	if one, two := p.instance.Refusals("wrong 1").All, p.instance.Refusals("wrong 2").All; one != 1 || two != 1 {
		t.Errorf("refused logins: %d and %d; want one each", one, two)
	}
}

func TestMoreJobsThanSlots(t *testing.T) {
	p, _, began := newProof(t), script(), time.Now()
	p.worker.Slots = make(chan struct{}, 12)
	p.instance.Fault = func(w http.ResponseWriter, _ *http.Request, _ int) bool { w.WriteHeader(503); return true }
	p.check("answered 503", 10, p.steps(60))
	if n, took := p.instance.Requests(), time.Since(began); n > 4 || took > 10*time.Second {
		t.Errorf("%d requests within %s; want 4 within 10 s at most", n, took)
	}
}

func TestClocksApart(t *testing.T) {
	for _, test := range [][2]int{{2, 20}, {2, 60}, {2, 110}, {10, 20}, {10, 60}, {10, 110}} {
		p, jobs, apart := newProof(t), test[0], test[1]
		p.instance.Fault = func(http.ResponseWriter, *http.Request, int) bool { time.Sleep(3 * time.Second); return false }
		p.check(`"OK"`, 8, p.run(context.Background(), jobs, func(i int) windmill.Job {
			return getToken(script(), append([]string{fmt.Sprintf("AHEAD=%ds", i*apart/(jobs-1))}, windmill.StepOfFlow...))
		}))
		if n := p.instance.Requests(); n != 1 {
			t.Errorf("%d jobs, up to %d s apart: %d logins; want 1", jobs, apart, n)
		}
	}
}

// Whenever a job is killed: the token that was cached is there, or a newer one, and the next run gets one.
func TestKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	_ = newProof(t) // skips, which a goroutine cannot
	atOnce(100, func(i int) {
		p, cached, startedBy := newProof(t), "", windmill.StepOfFlow
		switch i % 3 {
		case 1:
			cached = p.plant(50 * time.Second)
		case 2:
			cached, startedBy = p.plant(time.Hour), windmill.BySchedule
		}
		job := func(int) windmill.Job { return getToken(script(), startedBy) }
		ctx, kill := context.WithCancel(context.Background())
		defer kill()
		p.onRequest(func(n int, _ *http.Request) bool {
			if n == 1+(i/3)%8 { // of the eight that a run makes
				time.AfterFunc(rand.N(120*time.Millisecond), kill)
			}
			time.Sleep(20*time.Millisecond + rand.N(40*time.Millisecond))
			return false
		})
		p.check("", 10, p.run(ctx, 1, job))
		if token := p.token(); token != cached && !p.instance.Valid(token) {
			t.Errorf("a run that was killed left the token %q", token)
		}
		p.check(`"OK"`, 30, p.run(context.Background(), 1, job))
	})
}

// A run asks Windmill four times, ServiceNow, and Windmill three times. Of these x is never answered, s after 24 s.
func TestHanging(t *testing.T) {
	t.Parallel()
	_ = newProof(t) // skips, which a goroutine cannot
	tests := []string{"....x...", "....xxxx", "s...xxxx"}
	for _, n := range []int{0, 1, 2, 3, 5, 6, 7} {
		tests = append(tests, "........"[:n]+"xxxxxxxx"[n:], "........"[:n]+"x.......")
	}
	atOnce(len(tests), func(i int) {
		p, test := newProof(t), tests[i]
		p.plant(50 * time.Second)
		before := p.workspace.Get(cachePath)
		p.onRequest(func(n int, r *http.Request) bool {
			switch test[min(n, 8)-1] {
			case 's':
				time.Sleep(24 * time.Second)
			case 'x':
				<-r.Context().Done()
				return true
			}
			return false
		})
		first, who, limit := strings.Index(test, "x"), "Windmill", 55.0
		switch {
		case first < 3: // before the claim, where a turn's limit holds
			limit = 32
		case first == 4:
			who = "oauth_token.do"
		}
		all := p.steps(1)
		p.check(who+" did not answer", limit, all)
		if told := strings.Contains(string(p.workspace.Get(loginsPath)), "did not answer"); test == "....x..." && !told {
			t.Error("the other runs were not told")
		}
		if isSame := bytes.Equal(before, p.workspace.Get(cachePath)); isSame != (first < 6) || all[0].Failed != isSame {
			t.Errorf("%s: the cache is as it was: %t, the run failed: %t", test, isSame, all[0].Failed)
		}
	})
}

// The error has Go's own words. No redirect is followed, and nobody asked twice who has answered.
func TestNetwork(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.Method == http.MethodConnect {
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		elsewhere := strings.Replace(r.Host, "127.0.0.1", "localhost", 1)
		http.Redirect(w, r, "http://"+elsewhere, http.StatusTemporaryRedirect)
	})
	server, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	t.Cleanup(server.Close)
	t.Cleanup(secure.Close)
	for _, test := range []struct {
		address, proxy, want string
		asked, repeated      int
	}{
		{"dev12345", "http://127.0.0.1:1", "(proxyconnect tcp: dial tcp 127.0.0.1:1: connect: connection refused)", 0, 1},
		{"dev12345", "http://user:" + jobToken + "@" + server.Listener.Addr().String(), "(Proxy Authentication Required)", 1, 0},
		{secure.URL, "", "(tls: failed to verify certificate: x509: certificate signed by unknown authority)", 0, 0},
		{server.URL, "", "answered 307 Temporary Redirect. The redirect was not followed", 1, 0},
		{"no-such-host.invalid", "", "did not answer (dial tcp: lookup no-such-host.invalid", 0, 0},
	} {
		p := newProof(t)
		p.moveTo(test.address)
		asked.Store(0)
		all := p.steps(1, "HTTPS_PROXY="+test.proxy)
		p.check(test.want, 10, all)
		if n, repeated := asked.Load(), strings.Count(all[0].Log, "once more"); int(n) != test.asked || repeated != test.repeated {
			t.Errorf("asked %d times, %d times once more; want %d, %d\n%s", n, repeated, test.asked, test.repeated, all[0].Log)
		}
	}
}

func TestTheDemo(t *testing.T) {
	_ = newProof(t) // skips, and goes to the top
	var out bytes.Buffer
	err := run(context.Background(), &out, "")
	if lines := strings.Count(out.String(), "\n"); err != nil || lines > 25 { // and make says a few
		t.Errorf("%v after %d lines:\n%s", err, lines, &out)
	}
}

func TestALoginOutsideWindmill(t *testing.T) {
	p, file := newProof(t), filepath.Join(t.TempDir(), "instance.json")
	t.Setenv("TMPDIR", t.TempDir())
	for _, test := range []struct {
		password, end string
		mode          os.FileMode
		want          string
	}{
		{account.Password, "}", 0o600, "It gave one"},
		{"Wr0ng", "}", 0o600, "answered 401"},
		{account.Password, "}", 0o640, "chmod 600"},
		{"Wr0ng", "", 0o600, "must hold a JSON object"},
		{"$res:Wr0ng", "}", 0o600, "must hold a JSON object"},
	} {
		content := fmt.Sprintf(`{"instance_url": %q, "client_id": %q, "client_secret": %q, "username": %q, "password": %q`+test.end,
			p.address, account.ClientID, account.ClientSecret, account.Username, test.password)
		must(os.WriteFile(file, []byte(content), test.mode))
		must(os.Chmod(file, test.mode))
		var out bytes.Buffer
		err := run(context.Background(), &out, file)
		said, isGood := fmt.Sprint(&out, err), test.want == "It gave one"
		if !strings.Contains(said, test.want) || p.hasSecret(said) || strings.Contains(said, "Wr0ng") || isGood != (err == nil) {
			t.Errorf("it said %s; want %s", said, test.want)
		}
	}
	if left, _ := filepath.Glob(os.Getenv("TMPDIR") + "/*"); left != nil || p.instance.Requests() != 2 {
		t.Errorf("it left %v after %d requests; want nothing, 2", left, p.instance.Requests())
	}
}

// bareSource is a script that makes a warm run's one call, and nothing else.
const bareSource = `package inner

import ("io"; "net/http"; "os")

func main(snow map[string]string) (string, error) {
	request, _ := http.NewRequest("GET", os.Getenv("BASE_INTERNAL_URL")+"/api/w/local/resources/get_value/f%2FServiceNow%2Fsnow_token_cache", nil)
	request.Header.Set("Authorization", "Bearer "+os.Getenv("WM_TOKEN"))
	response, err := http.DefaultClient.Do(request)
	if err == nil {
		_, err = io.ReadAll(response.Body)
	}
	return "OK", err
}
`

func BenchmarkWarm(b *testing.B) {
	p := newProof(b)
	p.check(`"OK"`, 30, p.steps(1))
	b.Run("script", func(b *testing.B) { p.measure(b, script(), "") })
	b.Run("bare", func(b *testing.B) { p.measure(b, build(bareSource), "") })
}

// A cold run has a pause of 0.3 s.
func BenchmarkCold(b *testing.B) { newProof(b).measure(b, script(), cachePath) }

// measure gives the time of a job's process alone, each time without the resource at path, if there is one.
func (p proof) measure(b *testing.B, binary, path string) {
	var took time.Duration
	for range b.N {
		p.workspace.Delete(path)
		p.workspace.Delete(loginsPath)
		all := p.run(context.Background(), 1, func(int) windmill.Job { return getToken(binary, windmill.StepOfFlow) })
		p.check(`"OK"`, 30, all)
		took += all[0].Took
	}
	b.ReportMetric(float64(took.Nanoseconds())/float64(b.N), "ns/op")
}
