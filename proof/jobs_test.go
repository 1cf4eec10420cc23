//go:build proof

package proof

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"servicenow-token/simulator"
	"servicenow-token/simulator/windmill"
)

// One job logs in. The others use its token or fail with its error, even if there are more jobs than slots.
func TestHerds(t *testing.T) {
	for _, test := range []struct {
		name      string
		jobs      int
		slots     int
		startedBy []string
		status    int    // of ServiceNow's answers
		want      string // from each job
		failures  string // on record
		logins    int    // at most
	}{
		{"cold", 40, 40, windmill.StepOfFlow, 200, ok, noFailure, 1},
		{"refused", 40, 40, windmill.StepOfFlow, 401, "answered 401", oneFailure("answered 401", refusal), 1},
		{"more jobs than slots", 60, 12, windmill.StepOfFlow, 503, "answered 503", oneFailure("answered 503", fault), 4},
		{"by hand", 20, 20, windmill.ByHand, 200, ok, noFailure, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, test.slots)
			w.ServiceNow.Accounts[simulator.Account] = test.status != http.StatusUnauthorized
			w.ServiceNow.Intercept = delayed(200*time.Millisecond, test.status)
			w.Windmill.Intercept = func(http.ResponseWriter, *http.Request, int) bool {
				time.Sleep(rand.N(8 * time.Millisecond)) // Jobs overtake each other.
				return false
			}
			job := func() windmill.Job { return simulator.Job(test.startedBy) }
			for range 3 {
				before := w.forget()
				for _, done := range w.RunAtOnce(context.Background(), test.jobs, job) {
					w.expect(done, test.want, 20*time.Second)
				}
				w.expectLogins(before, test.logins)
				w.expectFailures(test.failures)
				if test.want == ok {
					w.expectToken()
				}
				if t.Failed() {
					return // A herd that does not work together takes minutes.
				}
			}
		})
	}
}

// forget removes both records, ends the token, and returns the number of token requests so far.
func (w *world) forget() (logins int) {
	w.Windmill.Delete(simulator.CachePath)
	w.Windmill.Delete(simulator.FailuresPath)
	w.ServiceNow.Revoke()
	return w.Logins()
}

// It does not matter whether the workers' clocks agree.
func TestClocks(t *testing.T) {
	const clock = "\nvar now, sleep = time.Now, time.Sleep\n"
	const shifted = `
		var sleep = time.Sleep

		func now() time.Time {
			ahead, _ := time.ParseDuration(os.Getenv("AHEAD"))
			return time.Now().Add(ahead)
		}
	`
	source := readFile("../main.go")
	if !strings.Contains(source, clock) {
		t.Fatal("main.go has another clock")
	}
	w := newWorld(t, 10)
	w.deploy(simulator.ScriptPath, strings.Replace(source, clock, shifted, 1))
	w.ServiceNow.Intercept = delayed(200*time.Millisecond, http.StatusOK)
	for _, apart := range []int64{20, 60, 110} {
		t.Run(fmt.Sprintf("%d s apart", apart), func(t *testing.T) {
			w := &world{World: w.World, t: t}
			before := w.forget()
			var started atomic.Int64
			job := func() windmill.Job {
				ahead := fmt.Sprintf("AHEAD=%ds", started.Add(1)*apart/10)
				return simulator.Job(slices.Concat(windmill.StepOfFlow, []string{ahead}))
			}
			for _, done := range w.RunAtOnce(context.Background(), 10, job) {
				w.expect(done, ok, 5*time.Second)
			}
			w.expectLogins(before, 1)
			w.expectToken()
			w.expectFailures(noFailure)
		})
	}
}

// A job that is killed in the middle of its login leaves the queue. The job behind it logs in.
func TestKilled(t *testing.T) {
	w := newWorld(t, 2)
	logins := make(chan time.Time, 2)
	w.ServiceNow.Intercept = func(rw http.ResponseWriter, r *http.Request, n int) bool {
		logins <- time.Now()
		return n == 1 && hang(rw, r, n)
	}
	ctx, kill := context.WithCancel(context.Background())
	defer kill()
	go w.Run(ctx, step())
	<-logins
	ended := make(chan windmill.Done)
	go func() { ended <- w.run() }()
	time.Sleep(1200 * time.Millisecond) // The next job waits.
	killed := time.Now()
	kill()
	done := <-ended
	w.expect(done, ok, 10*time.Second)
	if !strings.Contains(done.Log, "Waiting for job") {
		t.Errorf("the next job did not wait:\n%s", done.Log)
	}
	w.expectLogins(0, 2)
	pause := (<-logins).Sub(killed)
	t.Logf("the next login began %s after the kill", pause)
	if pause < 0 || pause > 2*time.Second {
		t.Error("want at most 2 s")
	}
	w.expectToken()
	w.expectFailures(noFailure)
}

// A job that stops in the middle of its login stays in the queue. The jobs behind it skip it.
func TestStuck(t *testing.T) {
	w := newWorld(t, 11)
	t.Parallel()
	asked := make(chan bool, 1)
	w.ServiceNow.Intercept = func(rw http.ResponseWriter, r *http.Request, n int) bool {
		if n > 1 {
			return false
		}
		asked <- true
		return hang(rw, r, n)
	}
	ctx, kill := context.WithTimeout(context.Background(), 75*time.Second)
	defer kill() // even a job that is stopped
	stuck := step()
	ended := make(chan windmill.Done, 1)
	go func() { ended <- w.Run(ctx, stuck) }()
	<-asked
	process := processOf(stuck)
	check(syscall.Kill(process, syscall.SIGSTOP))
	for _, done := range w.RunAtOnce(ctx, 10, step) {
		w.expect(done, ok, 35*time.Second)
	}
	w.expectLogins(0, 3)
	w.expectToken()
	w.expectFailures(noFailure)
	check(syscall.Kill(process, syscall.SIGCONT))
	w.expect(<-ended, "did not answer: timed out", 55*time.Second)
	w.expectToken()
	w.expectFailures(oneFailure("timed out", fault))
}

// processOf returns the ID of the process of a running job.
func processOf(job windmill.Job) int {
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	check(err)
	isOwn := func(file string) bool {
		environment, _ := os.ReadFile(file) // Another process may just have ended.
		return strings.Contains(string(environment), "WM_JOB_ID="+job.ID)
	}
	index := slices.IndexFunc(files, isOwn)
	if index < 0 {
		panic("the job has no process")
	}
	process, err := strconv.Atoi(filepath.Base(filepath.Dir(files[index])))
	check(err)
	return process
}

// A warm step takes hardly longer than a bare script that makes the same call. A busy machine slows both.
func BenchmarkWarm(b *testing.B) {
	w := newWorld(b, 1)
	w.deploy("f/ServiceNow/bare", bareSource)
	bare := step()
	bare.Path = "f/ServiceNow/bare"
	w.expect(w.run(), ok, 10*time.Second)
	var script, floor time.Duration
	for range b.N {
		done, bareDone := w.run(), w.Run(context.Background(), bare)
		w.expect(done, ok, 10*time.Second)
		w.expect(bareDone, ok, 10*time.Second)
		script += done.Took
		floor += bareDone.Took
	}
	w.expectLogins(0, 1)
	b.ReportMetric(script.Seconds()*1000/float64(b.N), "ms/script")
	b.ReportMetric(floor.Seconds()*1000/float64(b.N), "ms/bare")
	b.ReportMetric(script.Seconds()/floor.Seconds(), "script/bare")
}

// bareSource makes the one call of a warm step, and does nothing else.
const bareSource = `package inner

import (
	"io"
	"net/http"
	"net/url"
	"os"
)

func main(snow any) (string, error) {
	workspace := os.Getenv("BASE_INTERNAL_URL") + "/api/w/" + url.PathEscape(os.Getenv("WM_WORKSPACE"))
	endpoint := workspace + "/resources/get_value/f%2FServiceNow%2Fsnow_token_cache"
	request, err := http.NewRequest("GET", endpoint, nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", "Bearer "+os.Getenv("WM_TOKEN"))
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	_, err = io.ReadAll(response.Body)
	return "OK", err
}
`

// A cold step makes seven calls to Windmill and one login.
func BenchmarkCold(b *testing.B) {
	w := newWorld(b, 1)
	var took time.Duration
	for range b.N {
		w.forget()
		done := w.run()
		w.expect(done, ok, 10*time.Second)
		took += done.Took
	}
	b.ReportMetric(took.Seconds()*1000/float64(b.N), "ms/script")
}
