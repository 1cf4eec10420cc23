package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"servicenow-token/local/lab"
	"servicenow-token/local/windmill"
)

func TestMain(m *testing.M) { os.Exit(lab.RunTests(m)) }

// The benchmarks tell what the script adds to a job, as ratios to what a job costs
// anyway. `make bench` makes a table of what they report.

// The paths of the client's requests below a Windmill's address.
const (
	resourcesPath = "/api/w/test%20workspace/resources/"
	readPath      = resourcesPath + "get_value_interpolated/" + lab.EscapedPath
	createPath    = resourcesPath + "create?update_if_exists=true"
	updatePath    = resourcesPath + "update_value/" + lab.EscapedPath
)

// floorSource is the least that a job with the same effect can be: one GET to
// Windmill, and the result written.
const floorSource = `package main

import (
	"io"
	"net/http"
	"os"
)

func main() {
	address := os.Getenv("BASE_INTERNAL_URL") + "` + readPath + `"
	request, err := http.NewRequest("GET", address, nil)
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

// builtFloor is floorSource, built once, beside the job.
var builtFloor = sync.OnceValues(func() (binary string, err error) {
	job, err := lab.Job()
	if err != nil {
		return "", err
	}
	source := filepath.Join(filepath.Dir(job), "floor.go")
	if err := os.WriteFile(source, []byte(floorSource), 0o600); err != nil {
		return "", err
	}
	binary = strings.TrimSuffix(source, ".go")
	output, err := exec.Command("go", "build", "-o", binary, source).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, output)
	}
	return binary, nil
})

// warmWorld is a world with a good record in the cache, and a flow step to run in it.
func warmWorld(b *testing.B) (w *lab.World, job windmill.Job) {
	b.Helper()
	w = lab.New(b)
	w.Plant(b, w.Sealed(strings.Repeat("t", 86), time.Hour))
	return w, w.Job(b, lab.FlowStep)
}

// took runs a job and returns the time from its start to its exit.
func took(b *testing.B, w *lab.World, job windmill.Job) time.Duration {
	b.Helper()
	done, err := w.Worker.Run(context.Background(), job)
	if err != nil || string(done.Result) != `"OK"` {
		b.Fatalf("result = %s, %v\n%s", done.Result, err, done.Log)
	}
	return done.Took
}

// copied returns a copy of a binary, for where a file lies in memory makes its start
// some hundredths faster or slower.
func copied(b *testing.B, binary string) string {
	b.Helper()
	content, err := os.ReadFile(binary)
	if err != nil {
		b.Fatal(err)
	}
	again := filepath.Join(b.TempDir(), "job")
	if err := os.WriteFile(again, content, 0o700); err != nil {
		b.Fatal(err)
	}
	return again
}

// median returns the middle of durations, in milliseconds.
func median(durations []time.Duration) float64 {
	slices.Sort(durations)
	return durations[len(durations)/2].Seconds() * 1000
}

// A warm job and the floor, in turn, so that what else the machine does meets both.
func BenchmarkWarmJob(b *testing.B) {
	w, job := warmWorld(b)
	floor := job
	var err error
	if floor.Binary, err = builtFloor(); err != nil {
		b.Fatal(err)
	}
	took(b, w, job)
	took(b, w, floor)
	var jobs, floors []time.Duration
	var ratios []float64
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		if i%20 == 0 {
			job.Binary, floor.Binary = copied(b, job.Binary), copied(b, floor.Binary)
		}
		if i%2 == 0 { // neither always comes first
			jobs, floors = append(jobs, took(b, w, job)), append(floors, took(b, w, floor))
		} else {
			floors, jobs = append(floors, took(b, w, floor)), append(jobs, took(b, w, job))
		}
		ratios = append(ratios, jobs[i].Seconds()/floors[i].Seconds())
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "ratio")
	b.ReportMetric(median(jobs), "job-ms")
	b.ReportMetric(median(floors), "floor-ms")
}

// claimPause is how long a job waits to see whether its claim to log in stands.
const claimPause = 300 * time.Millisecond

// send makes a request to one of the world's servers, as the client and the script
// do, and fails the benchmark unless the answer has the status.
func send(b *testing.B, w *lab.World, method, address, contentType, body string, status int) {
	b.Helper()
	request, err := http.NewRequest(method, address, strings.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	request.Header.Set("Content-Type", contentType)
	request.Header.Set("Authorization", "Bearer "+w.Token)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		b.Fatal(err)
	}
	defer response.Body.Close()
	if _, err := io.ReadAll(response.Body); err != nil || response.StatusCode != status {
		b.Fatalf("%s %s: %s, %v", method, address, response.Status, err)
	}
}

// A cold job, and in turn what it consists of: a warm job, which starts, checks and
// reads; the pause for its claim; and from this process the other calls, which are
// the claim, its reading, the login and the store.
func BenchmarkColdJob(b *testing.B) {
	w, job := warmWorld(b)
	record, err := json.Marshal(w.Sealed(strings.Repeat("t", 86), time.Hour))
	if err != nil {
		b.Fatal(err)
	}
	const isJSON, isForm = "application/json", "application/x-www-form-urlencoded"
	create := fmt.Sprintf(`{"path":%q,"value":%s,"resource_type":"state"}`, lab.CachePath, record)
	update := fmt.Sprintf(`{"value":%s}`, record)
	login := url.Values{
		"grant_type": {"password"},
		"client_id":  {w.Snow.ClientID}, "client_secret": {w.Snow.ClientSecret},
		"username": {w.Snow.Username}, "password": {w.Snow.Password},
	}.Encode()
	var colds, parts []time.Duration
	calls := 0
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		w.Workspace.DeleteResource(lab.CachePath)
		w.Workspace.TakeCalls()
		w.Instance.TakeCalls()
		colds = append(colds, took(b, w, job))
		calls = len(w.Workspace.TakeCalls()) + len(w.Instance.TakeCalls())
		warm := took(b, w, job)

		w.Workspace.DeleteResource(lab.CachePath)
		windmill := w.Worker.BaseURL
		started := time.Now()
		send(b, w, "GET", windmill+readPath, "", "", http.StatusNotFound)
		send(b, w, "POST", windmill+createPath, isJSON, create, http.StatusCreated)
		send(b, w, "GET", windmill+readPath, "", "", http.StatusOK)
		send(b, w, "POST", w.Snow.InstanceURL+"/oauth_token.do", isForm, login, http.StatusOK)
		send(b, w, "GET", windmill+readPath, "", "", http.StatusOK)
		send(b, w, "POST", windmill+updatePath, isJSON, update, http.StatusOK)
		parts = append(parts, warm+claimPause+time.Since(started))
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
			w, job := warmWorld(b)
			var slowest []time.Duration
			b.ResetTimer()
			for i := 0; i < b.N; i++ {
				durations := make([]time.Duration, crowd)
				var group sync.WaitGroup
				for j := range durations {
					group.Add(1)
					go func() {
						defer group.Done()
						done, err := w.Worker.Run(context.Background(), job)
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
	for _, script := range []struct{ name, file string }{
		{"script", filepath.Join(lab.Root(), "main.go")}, {"client-only", clientOnly},
	} {
		b.Run(script.name, func(b *testing.B) {
			source, err := os.ReadFile(script.file)
			if err != nil {
				b.Fatal(err)
			}
			worker := &windmill.Worker{Dir: b.TempDir()}
			binary, err := worker.Build(context.Background(), script.file, lab.Root())
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
					content := fmt.Appendf(source, "\nfunc Built%d() {}\n", time.Now().UnixNano())
					if err := os.WriteFile(inner, content, 0o600); err != nil {
						b.Fatal(err)
					}
					build := exec.Command("go", "build", "-o", binary, "main.go")
					build.Dir = filepath.Dir(binary)
					build.Env = append(os.Environ(), cache, "GOWORK=off", "GOFLAGS=-buildvcs=false")
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
