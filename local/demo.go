package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"

	"servicenow-token/local/servicenow"
	"servicenow-token/local/windmill"
)

const (
	cachePath   = "f/ServiceNow/snow_token_cache"
	snowPath    = "f/ServiceNow_login/servicenow"
	jobToken    = "S3cret-job-token"
	saysASecret = "it says a secret"
)

// account is that of the servicenow resource in every world.
var account = servicenow.Account{ClientID: "windmill", ClientSecret: "S3cret-client", Username: "integration.user", Password: "S3cret pass*word"}

// world is a Windmill and a ServiceNow, and a user who may run the script.
type world struct {
	workspace *windmill.Workspace
	worker    *windmill.Worker
	instance  *servicenow.Instance
	address   string // of the instance
	close     func()
}

// newWorld starts both servers. The worker keeps its files in dir.
func newWorld(dir string) *world {
	w := &world{instance: &servicenow.Instance{Now: time.Now, Accounts: map[servicenow.Account]bool{account: true}}}
	w.workspace = &windmill.Workspace{Name: "local",
		Users:     map[string]windmill.Rights{jobToken: {"f/ServiceNow": true, "f/ServiceNow_login": false}},
		Variables: map[string]string{"f/ServiceNow_login/secret": account.ClientSecret, "f/ServiceNow_login/password": account.Password}}
	forWindmill, forServiceNow := httptest.NewServer(w.workspace), httptest.NewServer(w.instance)
	w.close = func() { forWindmill.Close(); forServiceNow.Close() }
	w.worker = &windmill.Worker{Workspace: w.workspace, BaseURL: forWindmill.URL, Dir: dir}
	w.moveTo(forServiceNow.URL)
	return w
}

// moveTo changes the address in the servicenow resource.
func (w *world) moveTo(address string) {
	w.address = address
	w.workspace.Set(snowPath, fmt.Appendf(nil, `{"instance_url": %q, "client_id": %q, "client_secret": "$var:f/ServiceNow_login/secret", `+
		`"username": %q, "password": "$var:f/ServiceNow_login/password"}`, address, account.ClientID, account.Username))
}

// token is the cached one, or empty.
func (w *world) token() string {
	var cached struct{ Token string }
	_ = json.Unmarshal(w.workspace.Get(cachePath), &cached) // what is no record stays empty
	return cached.Token
}

// hasSecret reports whether a text has one of this world's secrets in it.
func (w *world) hasSecret(text string) bool {
	isIn := func(secret string) bool { return strings.Contains(text, secret) }
	return slices.ContainsFunc(append(w.instance.Issued(), account.ClientSecret, account.Password, jobToken), isIn)
}

// getToken is a job that runs the script.
func getToken(binary string, startedBy []string) windmill.Job {
	return windmill.Job{Binary: binary, Path: "f/ServiceNow/get_token", Env: startedBy, Token: jobToken,
		Args: `{"snow": "$res:` + snowPath + `"}`}
}

// run runs jobs at once, for two minutes at most. One that cannot be run, that ctx ends, or that says a secret has failed.
func (w *world) run(ctx context.Context, jobs int, job func(i int) windmill.Job) []windmill.Done {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	all := make([]windmill.Done, jobs)
	atOnce(jobs, func(i int) {
		done, err := w.worker.Run(ctx, job(i))
		if w.hasSecret(done.Log + string(done.Result)) {
			err = errors.New(saysASecret)
		}
		if err != nil {
			done = windmill.Done{Failed: true, Log: err.Error(), Took: done.Took}
		}
		all[i] = done
	})
	return all
}

// atOnce calls do for 0 to n-1, and returns when all have returned.
func atOnce(n int, do func(i int)) {
	var group sync.WaitGroup
	group.Add(n)
	for i := range n {
		go func() { defer group.Done(); do(i) }()
	}
	group.Wait()
}

// demonstrate shows what a user cares for, one thing after the other.
func demonstrate(ctx context.Context, out io.Writer, dir string) error {
	d := &demo{world: newWorld(dir), out: out}
	defer d.close()
	d.instance.Incidents = map[string]int{"1": 2, "2": 7, "3": 40}
	fmt.Fprintf(out, "Building the jobs as a worker does, for Windmill at %s, ServiceNow at %s …\n", d.worker.BaseURL, d.address)
	scripts := []string{"windmill/f/ServiceNow/open_incidents.flow/count_open_incidents.go", "main.go"}
	for i, script := range scripts {
		binary, err := d.worker.Build(ctx, script, ".")
		if err != nil {
			return err
		}
		scripts[i] = binary
	}
	step, schedule := getToken(scripts[1], windmill.StepOfFlow), getToken(scripts[1], windmill.BySchedule)
	list := windmill.Job{Binary: scripts[0], Env: windmill.StepOfFlow, Token: jobToken, Args: `{"cache": "$res:` + cachePath + `"}`}

	d.show(ctx, "By hand, to verify the credentials", 1, getToken(scripts[1], windmill.ByHand), 1, `"OK"`)
	d.instance.Revoke(d.token())
	d.show(ctx, "On a schedule, to renew a token, which was revoked", 1, schedule, 1, `"OK"`)
	d.show(ctx, "As a step of a flow, to reuse it", 1, step, 0, `"OK"`)
	d.show(ctx, "The flow's next step, open incidents by priority", 1, list, 0, `{"1":2,"2":7,"3":40}`)
	d.workspace.Delete(cachePath)
	d.show(ctx, "Forty flows at once, with nothing cached", 40, step, 2, `"OK"`)
	d.instance.Accounts[account] = false
	d.show(ctx, "On a schedule, with the password changed on the instance", 1, schedule, 1, "failed")
	d.workspace.Delete(cachePath)
	d.show(ctx, "A flow after that, with nothing cached", 1, step, 0, "failed")
	d.show(ctx, "The schedule again, for a few refusals lock the user", 1, schedule, 0, "failed")
	if d.err == nil {
		fmt.Fprintln(out, "All of it as it should be, the three failures too.")
	}
	return d.err
}

// demo is a world whose jobs are shown.
type demo struct {
	*world
	out io.Writer
	err error // says what was not as is due, and ends the demo
}

// show runs jobs at once and prints what came of them, as the servers saw it. Each must return result, or fail because
// of a refusal. Where logins are due, there is at least one. Without one due, a job that returns makes one call.
func (d *demo) show(ctx context.Context, title string, jobs int, job windmill.Job, logins int, result string) {
	if d.err != nil {
		return
	}
	loginsBefore, callsBefore, began := d.instance.Requests(), len(d.workspace.Calls()), time.Now()
	all := d.run(ctx, jobs, func(int) windmill.Job { return job })
	took, n, calls := time.Since(began), d.instance.Requests()-loginsBefore, len(d.workspace.Calls())-callsBefore
	fmt.Fprintf(d.out, "%s: %s (%d ms; calls to Windmill: %d, logins: %d)\n",
		title, cmp.Or(string(all[0].Result), "failed"), took.Milliseconds(), calls, n)
	if log := strings.TrimSpace(all[0].Log); log != "" {
		fmt.Fprintln(d.out, "    "+strings.ReplaceAll(log, "\n", "\n    "))
	}
	isWarm := logins == 0 && result != "failed"
	isDue := min(logins, 1) <= n && n <= logins && !(isWarm && calls > 1)
	for _, done := range all {
		succeeded, refused := !done.Failed && d.instance.Valid(d.token()), done.Failed && strings.Contains(done.Log, "answered 401")
		isDue = isDue && cmp.Or(string(done.Result), "failed") == result && (succeeded || refused)
	}
	if !isDue {
		d.err = fmt.Errorf("due was: %s, logins: %d", result, logins)
	}
}
