package windmill

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Who started a job, for Job.Env. Source: windmill-labs/windmill, schedule.rs and worker_flow.rs; an agent worker may
// leave WM_FLOW_PATH empty. A schedule with a retry runs a flow of one step under the script's own path, so that
// WM_FLOW_PATH equals WM_JOB_PATH.
var (
	ByHand              []string // or by webhook, or by a schedule's "Run now"
	BySchedule          = []string{"WM_SCHEDULE_PATH=f/ServiceNow/warm_token"}
	ByScheduleWithRetry = startedBy("f/ServiceNow/get_token", "WM_FLOW_STEP_ID=a", "WM_SCHEDULE_PATH=f/ServiceNow/warm_token")
	StepOfScheduledFlow = startedBy("f/ServiceNow/open_incidents/branchall-0", "WM_FLOW_STEP_ID=a", "WM_SCHEDULE_PATH=f/ServiceNow/every_day")
	StepOfFlow          = startedBy("f/ServiceNow/open_incidents", "WM_FLOW_STEP_ID=a")
	ByScript            = startedBy("f/ServiceNow/caller") // through one of Windmill's clients
)

// startedBy is a job that the job of a flow or of a script at path started.
func startedBy(path string, more ...string) []string {
	id := newID()
	return append([]string{"WM_FLOW_PATH=" + path, "WM_FLOW_JOB_ID=" + id, "WM_ROOT_FLOW_JOB_ID=" + id}, more...)
}

// Worker builds Go scripts and runs them as jobs of a workspace.
type Worker struct {
	Workspace *Workspace
	BaseURL   string        // where the workspace is served, without /api
	Dir       string        // an existing folder for the jobs' folders, absolute
	Slots     chan struct{} // has room for the jobs that run at once; further ones queue; nil: no limit
}

// Job is a built script and what it runs with.
type Job struct {
	Binary string   // from Build
	Args   string   // in JSON, such as {"snow": "$res:path"}, which stands for that resource
	Token  string   // with which the job calls Windmill
	Path   string   // where the script is deployed; empty: a preview
	Env    []string // who started it, and what the worker group adds, as NAME=value
}

// Done is a job that has ended.
type Done struct {
	Result json.RawMessage // what main returned
	Failed bool
	Log    string        // standard output and standard error
	Took   time.Duration // without the queue
}

const clientModule = "github.com/windmill-labs/windmill-go-client"

// What a script pins, and its main, which must start a line. It has one argument, whose type has no parenthesis.
var (
	requireLine = regexp.MustCompile(`//(require .*\n)`)
	mainLine    = regexp.MustCompile(`(?m)^func main\((\w+) (.*?)\) `)
)

// Build makes a program of a script, in a new folder below Dir, as handle_go_job does. If the module in moduleDir
// replaces the Windmill client by a folder, with its go.work, so does this.
func (wk *Worker) Build(ctx context.Context, script, moduleDir string) (binary string, err error) {
	source, err := os.ReadFile(script)
	if err != nil {
		return "", err
	}
	argument := mainLine.FindSubmatch(source)
	if argument == nil {
		return "", errors.New(script + " has no line like func main(name type) … with one argument")
	}
	standIn, err := goCommand(ctx, moduleDir, "", "list", "-m", "-f", "{{with .Replace}}{{.Dir}}{{end}}", clientModule)
	if err != nil {
		return "", err
	}
	mod := "module mymod\ngo 1.22\n"
	for _, match := range requireLine.FindAllSubmatch(source, -1) {
		mod += string(match[1])
	}
	if standIn != "" {
		mod += fmt.Sprintf("replace %s => %q\n", clientModule, standIn)
	}
	if !bytes.HasPrefix(bytes.TrimSpace(source), []byte("package")) {
		source = append([]byte("package inner; "), source...)
	}
	dir, err := os.MkdirTemp(wk.Dir, "build")
	if err != nil {
		return "", err
	}
	err = os.Mkdir(filepath.Join(dir, "inner"), 0o755)
	for name, content := range map[string]string{
		"go.mod": mod, "main.go": programSource, "inner/inner_main.go": string(source),
		"inner/runner.go": fmt.Sprintf(runnerSource, argument[2], argument[1]),
	} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
	if err != nil {
		return "", err
	}
	if _, err := goCommand(ctx, dir, "GOWORK=off", "mod", "tidy"); err != nil {
		return "", err
	}
	_, err = goCommand(ctx, dir, "GOWORK=off", "build", "main.go")
	return filepath.Join(dir, "main"), err
}

// Run runs a job to its end. A job that fails is no error: an error is a job that could not be started, that left no
// result, or that ctx ended.
func (wk *Worker) Run(ctx context.Context, job Job) (Done, error) {
	if wk.Slots != nil {
		wk.Slots <- struct{}{}
		defer func() { <-wk.Slots }()
	}
	args, err := wk.Workspace.resolve([]byte(job.Args), job.Token)
	if err != nil { // it fails before its script runs
		return Done{Failed: true, Log: err.Error() + "\n"}, nil
	}
	dir, err := os.MkdirTemp(wk.Dir, "job")
	if err != nil {
		return Done{}, err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "args.json"), args, 0o600); err != nil {
		return Done{}, err
	}
	var log bytes.Buffer
	command := exec.CommandContext(ctx, job.Binary)
	command.Dir, command.Env, command.Stdout, command.Stderr = dir, wk.Environment(job), &log, &log
	started := time.Now()
	err = command.Run()
	done := Done{Log: log.String(), Took: time.Since(started)}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case errors.As(err, &exit):
		done.Failed, err = true, nil
	case err == nil:
		done.Result, err = os.ReadFile(filepath.Join(dir, "result.json"))
	}
	return done, err
}

// Environment is all that a job finds in its environment, nothing of the worker's own but PATH and the proxy. Of two
// settings of one name the later holds.
func (wk *Worker) Environment(job Job) []string {
	env := []string{
		"WM_WORKSPACE=" + wk.Workspace.Name, "WM_TOKEN=" + job.Token, "WM_JOB_ID=" + newID(), "WM_JOB_PATH=" + job.Path,
		"WM_BASE_URL=" + wk.BaseURL, "BASE_INTERNAL_URL=" + wk.BaseURL,
		"WM_EMAIL=user@example.com", "WM_USERNAME=user", "WM_PERMISSIONED_AS=u/user",
		"WM_FLOW_JOB_ID=", "WM_ROOT_FLOW_JOB_ID=", "WM_FLOW_PATH=", "WM_FLOW_STEP_ID=", "WM_SCHEDULE_PATH=",
		"WM_STATE_PATH=", "WM_OBJECT_PATH=", "WM_WORKER_GROUP=default", "TZ=UTC", "HOME=/tmp",
	}
	for _, name := range []string{"PATH", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		env = append(env, name+"="+os.Getenv(name))
	}
	return append(env, job.Env...)
}

// newID makes the id of a job, random and in the form of a UUID.
func newID() string {
	return fmt.Sprintf("%08x-%04x-4000-8000-%012x", rand.Uint32(), rand.N(1<<16), rand.N(1<<48))
}

// runnerSource lets a program call the script's main with an argument of a type and a name.
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

// goCommand runs the go command in dir and returns what it printed. GOFLAGS are plain, for some stop a build.
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
