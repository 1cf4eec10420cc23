package windmill

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// What started a job, for Job.StartedBy. Windmill sets these variables in schedule.rs and worker_flow.rs. A schedule
// with retries runs a flow of one step that has the script's own path.
var (
	ByHand              []string // or by a webhook, or by a schedule's "Run now"
	BySchedule          = []string{"WM_SCHEDULE_PATH=f/ServiceNow/warm_token"}
	ByScheduleWithRetry = append(startedBy("f/ServiceNow/get_token", "a"), BySchedule...)
	StepOfScheduledFlow = append(startedBy("f/ServiceNow/open_incidents/branchall-0", "a"), BySchedule...)
	StepOfFlow          = startedBy("f/ServiceNow/open_incidents", "a")
	ByScript            = startedBy("f/ServiceNow/caller", "") // through one of Windmill's clients
)

// startedBy describes a job that the job of a flow or of a script at path started.
func startedBy(path, step string) []string {
	id := NewID()
	return []string{
		"WM_FLOW_PATH=" + path, "WM_FLOW_JOB_ID=" + id, "WM_ROOT_FLOW_JOB_ID=" + id, "WM_FLOW_STEP_ID=" + step,
	}
}

// Worker compiles Go scripts and runs them as jobs of a workspace.
type Worker struct {
	workspace *Workspace
	baseURL   string        // where the workspace is served, without /api
	dir       string        // holds the folders of the jobs
	slots     chan struct{} // has room for the jobs that run at once

	mu       sync.Mutex
	binaries map[string]string // by the script's path
}

// NewWorker returns a worker of the workspace that is served at baseURL. It keeps its files in dir, an absolute path,
// and runs as many jobs at once as it has slots.
func NewWorker(workspace *Workspace, baseURL, dir string, slots int) *Worker {
	wk := &Worker{
		workspace: workspace,
		baseURL:   baseURL,
		dir:       dir,
		slots:     make(chan struct{}, slots),
		binaries:  make(map[string]string),
	}
	workspace.start = func(job Job) {
		go func() {
			done, err := wk.Run(context.Background(), job)
			if err != nil {
				done = Done{Failed: true, Log: err.Error()}
			}
			workspace.complete(job.ID, &done)
		}()
	}
	return wk
}

// Job is a run of a deployed script.
type Job struct {
	ID        string   // optional
	Path      string   // of the script
	Args      string   // JSON, such as {"snow": "$res:path"}, which stands for that resource
	Token     string   // the API token of the job
	StartedBy []string // what started the job, as NAME=value; later variables win
}

// Done is a job that has ended.
type Done struct {
	Result json.RawMessage // what main returned
	Failed bool
	Log    string        // standard output and standard error
	Took   time.Duration // without the time in the queue
}

const clientModule = "github.com/windmill-labs/windmill-go-client"

// A script's requirements, and its main, which must start a line and have one argument.
var (
	requireLine = regexp.MustCompile(`//(require .*\n)`)
	mainLine    = regexp.MustCompile(`(?m)^func main\((\w+) (.*?)\) `)
)

// Deploy compiles a script as a worker does, and deploys it at path. If the module in moduleDir replaces the Windmill
// client, so does the job. It also takes over the module's go.sum: a checksum database may be out of reach.
func (wk *Worker) Deploy(ctx context.Context, path, source, moduleDir string) error {
	defer wk.workspace.Enqueue(QueuedJob{
		ID:         NewID(),
		Kind:       "dependencies",
		ScriptPath: path,
		StartedAt:  time.Now(),
	})()
	argument := mainLine.FindStringSubmatch(source)
	if argument == nil {
		return errors.New("the script has no line like func main(name type) … with one argument")
	}
	standIn, err := goCommand(ctx, moduleDir, "", "list", "-m", "-f", "{{with .Replace}}{{.Dir}}{{end}}", clientModule)
	if err != nil {
		return err
	}
	sums, err := os.ReadFile(filepath.Join(moduleDir, "go.sum"))
	if err != nil {
		return err
	}
	mod := "module mymod\ngo 1.22\n"
	for _, match := range requireLine.FindAllStringSubmatch(source, -1) {
		mod += match[1]
	}
	if standIn != "" {
		mod += fmt.Sprintf("replace %s => %q\n", clientModule, standIn)
	}
	if !strings.HasPrefix(strings.TrimSpace(source), "package") {
		source = "package inner; " + source
	}
	dir, err := os.MkdirTemp(wk.dir, "build")
	if err != nil {
		return err
	}
	err = os.Mkdir(filepath.Join(dir, "inner"), 0o755)
	for name, content := range map[string]string{
		"go.mod":              mod,
		"go.sum":              string(sums),
		"main.go":             programSource,
		"inner/inner_main.go": source,
		"inner/runner.go":     fmt.Sprintf(runnerSource, argument[2], argument[1]),
	} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
	if err != nil {
		return err
	}
	if _, err := goCommand(ctx, dir, "GOWORK=off", "mod", "tidy"); err != nil {
		return err
	}
	if _, err := goCommand(ctx, dir, "GOWORK=off", "build", "main.go"); err != nil {
		return err
	}
	wk.mu.Lock()
	defer wk.mu.Unlock()
	wk.binaries[path] = filepath.Join(dir, "main")
	return nil
}

// Run runs a job to its end. A job that fails is not an error. It is an error if the job cannot be started, leaves no
// result, or is ended by ctx.
func (wk *Worker) Run(ctx context.Context, job Job) (Done, error) {
	if job.ID == "" {
		job.ID = NewID()
	}
	wk.slots <- struct{}{}
	defer func() { <-wk.slots }()
	defer wk.Enqueue(job)()
	args, err := wk.workspace.resolve([]byte(job.Args), job.Token)
	if err != nil { // The job fails before its script runs.
		return Done{Failed: true, Log: err.Error() + "\n"}, nil
	}
	dir, err := os.MkdirTemp(wk.dir, "job")
	if err != nil {
		return Done{}, err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "args.json"), args, 0o600); err != nil {
		return Done{}, err
	}
	wk.mu.Lock()
	binary := wk.binaries[job.Path]
	wk.mu.Unlock()
	var log bytes.Buffer
	command := exec.CommandContext(ctx, binary)
	command.Dir, command.Env, command.Stdout, command.Stderr = dir, wk.Environment(job), &log, &log
	began := time.Now()
	err = command.Run()
	done := Done{Log: log.String(), Took: time.Since(began)}
	if ctx.Err() != nil {
		return done, ctx.Err()
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		done.Failed = true
		return done, nil
	}
	if err != nil {
		return done, err
	}
	done.Result, err = os.ReadFile(filepath.Join(dir, "result.json"))
	return done, err
}

// Enqueue lists a job as running from now on, with the flow that Windmill makes of a schedule with retries. The
// function that it returns removes both.
func (wk *Worker) Enqueue(job Job) (remove func()) {
	env := make(map[string]string)
	for _, setting := range job.StartedBy {
		name, value, _ := strings.Cut(setting, "=")
		env[name] = value
	}
	queued := QueuedJob{
		ID:             job.ID,
		Kind:           "script",
		ScriptPath:     job.Path,
		PermissionedAs: wk.workspace.Users[job.Token].Name,
		StartedAt:      wk.workspace.Now(),
	}
	removeJob := wk.workspace.Enqueue(queued)
	if env["WM_FLOW_PATH"] != job.Path {
		return removeJob
	}
	queued.ID, queued.Kind = env["WM_FLOW_JOB_ID"], "singlestepflow"
	queued.StartedAt = queued.StartedAt.Add(-time.Second)
	removeFlow := wk.workspace.Enqueue(queued)
	return func() { removeJob(); removeFlow() }
}

// Environment returns the whole environment of a job. Only PATH and the proxy come from the worker's own.
func (wk *Worker) Environment(job Job) []string {
	user := wk.workspace.Users[job.Token].Name
	env := []string{
		"WM_WORKSPACE=" + wk.workspace.Name, "WM_TOKEN=" + job.Token, "WM_JOB_ID=" + job.ID, "WM_JOB_PATH=" + job.Path,
		"WM_BASE_URL=" + wk.baseURL, "BASE_INTERNAL_URL=" + wk.baseURL,
		"WM_EMAIL=user@example.com", "WM_USERNAME=user", "WM_PERMISSIONED_AS=" + user,
		"WM_FLOW_JOB_ID=", "WM_ROOT_FLOW_JOB_ID=", "WM_FLOW_PATH=", "WM_FLOW_STEP_ID=", "WM_SCHEDULE_PATH=",
		"WM_STATE_PATH=", "WM_OBJECT_PATH=", "WM_WORKER_GROUP=default", "TZ=UTC", "HOME=/tmp",
	}
	for _, name := range []string{"PATH", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		env = append(env, name+"="+os.Getenv(name))
	}
	return append(env, job.StartedBy...)
}

// runnerSource calls the script's main with an argument of its type and name.
const runnerSource = `package inner

type Req struct {
	Argument %s ` + "`json:\"%s\"`" + `
}

func Run(req Req) (interface{}, error) { return main(req.Argument) }
`

// programSource reads the arguments, runs the script and writes its result.
const programSource = `package main

import (
	"encoding/json"
	"fmt"
	"os"

	"mymod/inner"
)

func main() {
	var req inner.Req
	args, err := os.ReadFile("args.json")
	check(err)
	check(json.Unmarshal(args, &req))
	result, err := inner.Run(req)
	check(err)
	encoded, err := json.Marshal(result)
	check(err)
	check(os.WriteFile("result.json", encoded, 0o600))
}

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
`

// goCommand runs the go command in dir with one more variable, and returns what it printed. It sets GOFLAGS, because
// the caller's may break the build.
func goCommand(ctx context.Context, dir, env string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, "go", args...)
	command.Dir, command.Env = dir, append(os.Environ(), "GOFLAGS=-buildvcs=false", env)
	var complaint strings.Builder
	command.Stderr = &complaint
	output, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, complaint.String())
	}
	return strings.TrimSpace(string(output)), nil
}
