// Command local runs the token script as Windmill would: it builds the job as a
// worker does and runs it against a Windmill and a ServiceNow on this machine, in
// each way in which a run is started. Where the environment variable SNOW names a
// file, it runs the job once against the real instance that the file describes.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"servicenow-token/local/windmill"
)

// scriptPath is where the script is deployed.
const scriptPath = "f/ServiceNow/get_token"

func main() {
	// With SIGPIPE, which comes where what reads the output has ended.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	err := run(ctx, newPrinter(os.Stdout), os.Getenv("SNOW"))
	stopped := ctx.Err() != nil
	stop()
	switch {
	case err == nil:
		return
	case stopped:
		fmt.Fprintln(os.Stderr, "Stopped.")
	default:
		fmt.Fprintln(os.Stderr, "Failed:", err)
	}
	os.Exit(1)
}

// run runs the demonstration or, if snowFile is not empty, the job against the
// instance of that file. All that it leaves on the machine is what was printed.
func run(ctx context.Context, out printer, snowFile string) (err error) {
	dir, err := os.MkdirTemp("", "servicenow-token")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if snowFile != "" {
		return runInstance(ctx, out, dir, snowFile)
	}
	return demonstrate(ctx, out, dir)
}

// newWorker serves a new workspace and makes a worker for it, which works in dir.
func newWorker(dir string) (worker *windmill.Worker, token string, stop func(), err error) {
	workspace := &windmill.Workspace{Name: "local"}
	workspace.AddFolder("f/ServiceNow")
	workspace.AddFolder("f/ServiceNow_login")
	token = random()
	workspace.AddToken(token, windmill.Rights{"f/ServiceNow": windmill.Write, "f/ServiceNow_login": windmill.Read})
	address, stop, err := serve(workspace)
	return &windmill.Worker{Workspace: workspace, BaseURL: address, Dir: dir}, token, stop, err
}

// build builds the job, and says so before, for it may take long.
func build(ctx context.Context, out printer, worker *windmill.Worker) (binary string, err error) {
	fmt.Fprintln(out, "Building the job as a worker does (the first time takes half a minute) …")
	started := time.Now()
	if binary, err = buildJob(ctx, worker); err == nil {
		out.field("Job", fmt.Sprintf("main.go, built in %.1f s", time.Since(started).Seconds()))
	}
	return binary, err
}

// buildJob is a variable for the tests to replace, which do not all build.
var buildJob = func(ctx context.Context, worker *windmill.Worker) (binary string, err error) {
	return worker.Build(ctx, "main.go", ".")
}

// serve serves handler on a free port of this machine.
func serve(handler http.Handler) (address string, stop func(), err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }() // ends with an error when it is closed
	return "http://" + listener.Addr().String(), func() { _ = server.Close() }, nil
}

// random makes a secret of 32 characters.
func random() string {
	secret := make([]byte, 16)
	_, _ = rand.Read(secret) // never fails, by its documentation
	return hex.EncodeToString(secret)
}

// printer writes aligned lines, in colour on a terminal.
type printer struct {
	io.Writer
	bold, dim, green, red, plain string
}

func newPrinter(file *os.File) printer {
	info, err := file.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return printer{Writer: file}
	}
	return printer{file, "\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m"}
}

// heading prints what comes next.
func (p printer) heading(name, purpose string) {
	fmt.Fprintf(p, "\n%s%-16s%s%s\n", p.bold, name, p.plain, purpose)
}

// field prints a name and a text.
func (p printer) field(name, text string) {
	fmt.Fprintf(p, "%s%-16s%s%s\n", p.dim, name, p.plain, text)
}

// result prints what a run of the job came to.
func (p printer) result(done windmill.Done, ok bool) {
	colour, result := p.green, string(done.Result)
	if !ok {
		colour = p.red
	}
	if done.Failed {
		result = "failed"
	}
	p.field("  result", fmt.Sprintf("%s%s%s in %d ms", colour, result, p.plain, done.Took.Milliseconds()))
}

// logPrinter prints a job's log beside the name "log", as it comes.
type logPrinter struct {
	printer
	begun, midLine bool
}

// Write prints a piece of the log.
func (p *logPrinter) Write(text []byte) (int, error) {
	for _, line := range bytes.SplitAfter(text, []byte("\n")) {
		if len(line) == 0 {
			continue
		}
		margin := strings.Repeat(" ", 16)
		switch {
		case p.midLine:
			margin = ""
		case !p.begun:
			margin = fmt.Sprintf("%s%-16s%s", p.dim, "  log", p.plain)
		}
		if _, err := fmt.Fprintf(p.printer, "%s%s", margin, line); err != nil {
			return 0, err
		}
		p.begun, p.midLine = true, !bytes.HasSuffix(line, []byte("\n"))
	}
	return len(text), nil
}
