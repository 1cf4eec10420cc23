package windmill

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"
)

// clientModule is the Windmill client's import path.
const clientModule = "github.com/windmill-labs/windmill-go-client"

// Worker builds Go scripts and runs them as jobs of a workspace, in the way of
// Windmill's Go executor.
type Worker struct {
	// Workspace resolves the jobs' arguments and knows their tokens.
	Workspace *Workspace
	// BaseURL is where the workspace is served, without /api.
	BaseURL string
	// Dir is an existing folder for the job folders.
	Dir string
}

// Job is a built script and what it runs with.
type Job struct {
	// Binary is the built script, from Build.
	Binary string
	// Args has a value for each argument of the script's main. A string
	// "$res:path" stands for that resource's value.
	Args map[string]any
	// Token is the workspace token with which the job calls Windmill.
	Token string
	// Path is where the script is deployed; "" is a preview, which has no path.
	Path string
	// ID is the job's; "" stands for a new one.
	ID string
	// Env is the environment on top of the worker's own, as "NAME=value": who
	// started the job (ByHand and so on) and what the worker group adds.
	Env []string
	// Output gets the job's log while the job runs, if it is not nil. An error of
	// its Write ends the job.
	Output io.Writer
}

// Done is a job that has ended.
type Done struct {
	Result json.RawMessage // what main returned, or null if the job failed
	Failed bool
	Log    string        // what the job wrote to standard output and standard error
	Took   time.Duration // from process start to exit
}

// FailureText is what Windmill shows as the result of a failed job: the last 600
// characters of its log.
func (d Done) FailureText() string {
	log := []rune(strings.TrimSpace(d.Log))
	return string(log[max(0, len(log)-600):])
}

// Build makes a program of a script, in a new folder below Dir. moduleDir is a
// folder of the module that says by which client jobs are built: the published
// one, or the one that takes its place there. The steps are those of
// handle_go_job in go_executor.rs.
func (wk *Worker) Build(ctx context.Context, script, moduleDir string) (binary string, err error) {
	source, err := os.ReadFile(script)
	if err != nil {
		return "", err
	}
	runner, err := runnerSource(source)
	if err != nil {
		return "", err
	}
	standIn, err := wk.goCommand(ctx, moduleDir, nil, "list", "-m", "-f", "{{with .Replace}}{{.Dir}}{{end}}", clientModule)
	if err != nil {
		return "", err
	}
	jobDir, err := os.MkdirTemp(wk.Dir, "build")
	if err != nil {
		return "", err
	}
	dir := filepath.Join(jobDir, "go")
	if err := os.MkdirAll(filepath.Join(dir, "inner"), 0o755); err != nil {
		return "", err
	}
	inner := string(source)
	if !strings.HasPrefix(strings.TrimSpace(inner), "package") {
		inner = "package inner; " + inner
	}
	if err := os.WriteFile(filepath.Join(dir, "inner", "inner_main.go"), []byte(inner), 0o644); err != nil {
		return "", err
	}
	alone := []string{"GOWORK=off"}
	if _, err := wk.goCommand(ctx, dir, alone, "mod", "init", "mymod"); err != nil {
		return "", err
	}
	var requirements strings.Builder
	for _, match := range requireLine.FindAllStringSubmatch(string(source), -1) {
		fmt.Fprintf(&requirements, "require %s\n", match[1])
	}
	if replacement := strings.TrimSpace(standIn); replacement != "" {
		fmt.Fprintf(&requirements, "replace %s => %q\n", clientModule, replacement)
	}
	if err := appendTo(filepath.Join(dir, "go.mod"), requirements.String()); err != nil {
		return "", err
	}
	if _, err := wk.goCommand(ctx, dir, alone, "mod", "tidy"); err != nil {
		return "", err
	}
	for name, content := range map[string]string{"inner/runner.go": runner, "main.go": programSource} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return "", err
		}
	}
	_, err = wk.goCommand(ctx, dir, alone, "build", "main.go")
	return filepath.Join(dir, "main"), err
}

// Run runs a job to its end. The error means that it could not be started or that
// ctx ended it; a job that fails is no error.
func (wk *Worker) Run(ctx context.Context, job Job) (Done, error) {
	dir, err := os.MkdirTemp(wk.Dir, "job")
	if err != nil {
		return Done{}, err
	}
	defer os.RemoveAll(dir)
	args, err := wk.resolve(job.Args, job.Token)
	if err != nil {
		return Done{}, err
	}
	for name, content := range map[string][]byte{"args.json": args, "result.json": nil} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return Done{}, err
		}
	}
	var log bytes.Buffer
	command := exec.CommandContext(ctx, job.Binary)
	endWithChildren(command)
	command.Dir = dir
	command.Stdout = &log
	if job.Output != nil {
		command.Stdout = io.MultiWriter(&log, job.Output)
	}
	command.Stderr = command.Stdout
	command.Env = wk.Environment(job)
	started := time.Now()
	err = command.Run()
	done := Done{Log: log.String(), Took: time.Since(started)}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return done, ctx.Err()
	case errors.As(err, &exit):
		done.Failed = true
		return done, nil
	case err != nil:
		return done, err
	}
	done.Result, err = os.ReadFile(filepath.Join(dir, "result.json"))
	return done, err
}

// Environment is all that a job finds in its environment; of two settings of one
// name the later holds. HOME is that of a sandbox. Source: go_executor.rs and
// get_reserved_variables in windmill-worker/src/common.rs.
func (wk *Worker) Environment(job Job) []string {
	id := job.ID
	if id == "" {
		id = newID()
	}
	env := []string{
		"WM_WORKSPACE=" + wk.Workspace.Name,
		"WM_TOKEN=" + job.Token,
		"WM_EMAIL=user@example.com",
		"WM_USERNAME=user",
		"WM_BASE_URL=" + wk.BaseURL,
		"WM_JOB_ID=" + id,
		"WM_JOB_PATH=" + job.Path,
		"WM_FLOW_JOB_ID=",
		"WM_ROOT_FLOW_JOB_ID=",
		"WM_FLOW_PATH=",
		"WM_FLOW_STEP_ID=",
		"WM_SCHEDULE_PATH=",
		"WM_PERMISSIONED_AS=u/user",
		"WM_STATE_PATH=",
		"WM_OBJECT_PATH=",
		"WM_WORKER_GROUP=",
		"BASE_INTERNAL_URL=" + wk.BaseURL,
		"PATH=" + os.Getenv("PATH"),
		"TZ=UTC",
		"HOME=/tmp/go",
	}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		if value, set := os.LookupEnv(name); set {
			env = append(env, name+"="+value)
		}
	}
	return append(env, job.Env...)
}

// resolve returns the JSON of args with resources in the place of references, as far
// as the token's owner may read them.
func (wk *Worker) resolve(args map[string]any, token string) ([]byte, error) {
	given, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	wk.Workspace.mu.Lock()
	defer wk.Workspace.mu.Unlock()
	resolved, err := wk.Workspace.interpolate(given, wk.Workspace.tokens[token])
	if err != nil {
		return nil, err
	}
	return json.Marshal(resolved)
}

// requireLine is where a script pins a module.
var requireLine = regexp.MustCompile(`//require (.*)\n`)

// mainStart is where the script's main begins; it must start a line.
var mainStart = regexp.MustCompile(`(?m)^func main\(`)

// runnerSource returns the file that lets a program call the script's main. It
// looks at nothing before main, so that a script which cannot be compiled fails
// where it does on a worker: in go build.
func runnerSource(script []byte) (string, error) {
	start := mainStart.FindIndex(script)
	if start == nil {
		return "", errors.New("the script has no line that starts with func main(")
	}
	source := "package inner; " + string(script[start[0]:])
	file, err := parser.ParseFile(token.NewFileSet(), "", source, parser.SkipObjectResolution)
	if err != nil {
		return "", err
	}
	var fields, arguments strings.Builder
	for _, parameter := range file.Decls[0].(*ast.FuncDecl).Type.Params.List {
		kind := source[parameter.Type.Pos()-file.FileStart : parameter.Type.End()-file.FileStart]
		for _, name := range parameter.Names {
			first, size := utf8.DecodeRuneInString(name.Name)
			field := string(unicode.ToUpper(first)) + name.Name[size:]
			fmt.Fprintf(&fields, "\t%s %s `json:%q`\n", field, kind, name.Name)
			fmt.Fprintf(&arguments, "req.%s, ", field)
		}
	}
	return fmt.Sprintf(runnerFormat, fields.String(), strings.TrimSuffix(arguments.String(), ", ")), nil
}

// runnerFormat takes the fields of Req and the arguments of main.
const runnerFormat = `package inner

type Req struct {
%s}

func Run(req Req) (interface{}, error) {
	return main(%s)
}
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
	if err := run(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run() error {
	args, err := os.ReadFile("args.json")
	if err != nil {
		return err
	}
	var req inner.Req
	if err := json.Unmarshal(args, &req); err != nil {
		return err
	}
	result, err := inner.Run(req)
	if err != nil {
		return err
	}
	encoded, err := json.Marshal(result)
	if err != nil {
		return err
	}
	file, err := os.OpenFile("result.json", os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := file.Write(encoded); err != nil {
		return err
	}
	return file.Close()
}
`

// goCommand runs the go command in dir and returns what it printed. The caller's
// GOFLAGS are replaced, for some stop a build. An empty value would not do: then
// those of "go env -w" count.
// What a stopped command leaves is in Dir.
func (wk *Worker) goCommand(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, "go", args...)
	endWithChildren(command)
	command.Dir = dir
	command.Env = append(append(os.Environ(), "GOFLAGS=-buildvcs=false", "GOTMPDIR="+wk.Dir), env...)
	var output, complaint bytes.Buffer
	command.Stdout, command.Stderr = &output, &complaint
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, complaint.String())
	}
	return output.String(), nil
}

// endWithChildren makes the end of command's context kill command and all that it
// started.
func endWithChildren(command *exec.Cmd) {
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGKILL) }
	command.WaitDelay = 5 * time.Second
}

func appendTo(name, text string) error {
	file, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := file.WriteString(text); err != nil {
		return err
	}
	return file.Close()
}
