// Command local runs the token script as Windmill would: it starts a Windmill and
// a ServiceNow on this machine, builds the job as a worker does and runs it in its
// three uses. With -snow it runs the job once against a real instance, and against
// a real Windmill, too, if BASE_INTERNAL_URL, WM_WORKSPACE and WM_TOKEN are set.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"servicenow-token/local/servicenow"
	"servicenow-token/local/windmill"
	"servicenow-token/local/wire"
)

// snowPath is the resource that the local workspace has for the local instance.
const snowPath = "f/ServiceNow/servicenow"

func main() {
	snowFile := flag.String("snow", "", "run once against the instance that this `file` describes (JSON, the five fields)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, newPrinter(os.Stdout), *snowFile)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "Failed:", err)
		os.Exit(1)
	}
}

// use is one of the ways in which the script is run.
type use struct {
	name, purpose string
	env           []string
	logins        int // how many are due
}

// run starts the servers, builds the job and runs it. All that it leaves on the
// machine is what was printed.
func run(ctx context.Context, out printer, snowFile string) (err error) {
	dir, err := os.MkdirTemp("", "servicenow-token")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	workspace := &windmill.Workspace{Name: "local"}
	workspace.AddFolder("f/ServiceNow")
	token := random()
	workspace.AddToken(token, windmill.Rights{Read: true, Write: true})
	windmillURL, stop, err := serve(workspace)
	if err != nil {
		return err
	}
	defer stop()
	instance := &servicenow.Instance{}
	instanceURL, stop, err := serve(instance)
	if err != nil {
		return err
	}
	defer stop()

	args := map[string]any{"snow": "$res:" + snowPath}
	uses := []use{
		{"standalone", "verifies the credentials", nil, 1},
		{"flow step", "reuses the token", []string{"WM_FLOW_PATH=f/ServiceNow/open_incidents", "WM_FLOW_STEP_ID=a"}, 0},
		{"schedule", "renews the token", []string{"WM_SCHEDULE_PATH=f/ServiceNow/warm_token"}, 1},
	}
	if snowFile != "" {
		if args["snow"], err = readInstance(snowFile); err != nil {
			return err
		}
		once := use{"real instance", "as described in " + snowFile, nil, 0}
		address, name, secret := os.Getenv("BASE_INTERNAL_URL"), os.Getenv("WM_WORKSPACE"), os.Getenv("WM_TOKEN")
		if address != "" && name != "" && secret != "" {
			once.env = []string{"BASE_INTERNAL_URL=" + address, "WM_WORKSPACE=" + name, "WM_TOKEN=" + secret}
			out.field("Windmill", address+", workspace "+name)
		} else {
			out.field("Windmill", windmillURL)
		}
		uses = []use{once}
	} else {
		createInstance(workspace, instance, instanceURL)
		out.field("Windmill", windmillURL)
		out.field("ServiceNow", instanceURL)
	}

	worker := &windmill.Worker{Workspace: workspace, BaseURL: windmillURL, Dir: dir}
	started := time.Now()
	binary, err := worker.Build(ctx, "main.go", ".")
	if err != nil {
		return err
	}
	out.field("Job", fmt.Sprintf("main.go, built as a worker does in %.1f s", time.Since(started).Seconds()))

	var failed []string
	for _, u := range uses {
		job := windmill.Job{Binary: binary, Args: args, Token: token, Env: u.env}
		done, err := worker.Run(ctx, job)
		if err != nil {
			return err
		}
		toWindmill, toServiceNow := workspace.TakeCalls(), instance.TakeCalls()
		ok := !done.Failed && (snowFile != "" || len(toServiceNow) == u.logins)
		if !ok {
			failed = append(failed, u.name)
		}
		out.use(u, done, ok)
		if snowFile == "" {
			out.field("  Windmill", list(toWindmill))
			out.field("  ServiceNow", list(toServiceNow))
		}
	}
	if failed != nil {
		return fmt.Errorf("not as it should be: %s", strings.Join(failed, ", "))
	}
	return nil
}

// createInstance makes an account on the instance, and in the workspace the
// resource that describes it, its secrets in variables as in a real workspace.
func createInstance(workspace *windmill.Workspace, instance *servicenow.Instance, address string) {
	account := servicenow.Account{
		ClientID: random(), ClientSecret: random(), Username: "windmill.integration", Password: random(),
	}
	instance.SetAccount(account, true)
	workspace.SetVariable("f/ServiceNow/client_secret", account.ClientSecret)
	workspace.SetVariable("f/ServiceNow/password", account.Password)
	value, _ := json.Marshal(map[string]string{ // strings always marshal
		"instance_url": address, "client_id": account.ClientID, "client_secret": "$var:f/ServiceNow/client_secret",
		"username": account.Username, "password": "$var:f/ServiceNow/password",
	})
	workspace.SetResource(snowPath, windmill.Resource{Type: "servicenow", Value: value})
}

// readInstance reads the script's argument from a file that only its owner may
// read. No error repeats any of the content.
func readInstance(name string) (map[string]string, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s holds secrets and others may read it: chmod 600 %s", name, name)
	}
	fields := make(map[string]string)
	if json.NewDecoder(file).Decode(&fields) != nil {
		return nil, fmt.Errorf("%s must be a JSON object with the strings instance_url, client_id, client_secret, username and password", name)
	}
	return fields, nil
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

// list names calls by what they do, each with its status.
func list(calls []wire.Call) string {
	var names []string
	for _, call := range calls {
		name := call.Method + " " + call.Path
		for part, action := range map[string]string{
			"/resources/get_value_interpolated/": "read", "/resources/create": "create",
			"/resources/update_value/": "update", "/oauth_token.do": "login",
		} {
			if strings.Contains(call.Path, part) {
				name = action
			}
		}
		names = append(names, fmt.Sprintf("%s %d", name, call.Status))
	}
	if names == nil {
		return "no calls"
	}
	return strings.Join(names, ", ")
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

// field prints a name and a text; the text's further lines stand below its first.
func (p printer) field(name, text string) {
	text = strings.ReplaceAll(text, "\n", "\n"+strings.Repeat(" ", 14))
	fmt.Fprintf(p, "%s%-14s%s%s\n", p.dim, name, p.plain, text)
}

// use prints how a run of the job went.
func (p printer) use(u use, done windmill.Done, ok bool) {
	colour, result := p.green, string(done.Result)
	if !ok {
		colour = p.red
	}
	if done.Failed {
		result = "failed"
	}
	fmt.Fprintf(p, "\n%s%-14s%s%s\n", p.bold, u.name, p.plain, u.purpose)
	p.field("  result", fmt.Sprintf("%s%s%s in %d ms", colour, result, p.plain, done.Took.Milliseconds()))
	p.field("  log", strings.TrimSpace(done.Log))
}
