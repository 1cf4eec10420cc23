package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"servicenow-token/local/servicenow"
	"servicenow-token/local/windmill"
	"servicenow-token/local/wire"
)

const (
	snowPath     = "f/ServiceNow_login/servicenow" // the resource that describes the local instance
	flowPath     = "f/ServiceNow/open_incidents"
	schedulePath = "f/ServiceNow/warm_token"
	nightlyPath  = "f/ServiceNow/nightly" // a schedule that runs the flow
)

// start is one of the ways in which a run of the script is started.
type start struct {
	name, purpose string
	origin        []string
	logins        int // how many are due
}

// demonstrate shows a run of each kind, one after the other, and then a herd.
func demonstrate(ctx context.Context, out printer, dir string) error {
	worker, token, stop, err := newWorker(dir)
	if err != nil {
		return err
	}
	defer stop()
	instance := &servicenow.Instance{}
	address, stop, err := serve(instance)
	if err != nil {
		return err
	}
	defer stop()
	createInstance(worker.Workspace, instance, address)
	out.field("Windmill", worker.BaseURL)
	out.field("ServiceNow", address)
	binary, err := build(ctx, out, worker)
	if err != nil {
		return err
	}
	job := windmill.Job{Binary: binary, Path: scriptPath, Args: map[string]any{"snow": "$res:" + snowPath}, Token: token}

	var failed []string
	for _, s := range []start{
		{"by hand", "verifies the credentials", windmill.ByHand(), 1},
		{"flow step", "reuses the token", windmill.StepOfFlow(flowPath, "a"), 0},
		{"scheduled flow", "its step reuses the token", windmill.StepOfScheduledFlow(flowPath, "a", nightlyPath), 0},
		{"schedule", "renews the token", windmill.BySchedule(schedulePath), 1},
	} {
		out.heading(s.name, s.purpose)
		job.Env, job.Output = s.origin, &logPrinter{printer: out}
		done, err := worker.Run(ctx, job)
		if err != nil {
			return err
		}
		toWindmill, toServiceNow := worker.Workspace.TakeCalls(), instance.TakeCalls()
		ok := !done.Failed && len(toServiceNow) == s.logins
		if !ok {
			failed = append(failed, s.name)
		}
		out.result(done, ok)
		out.field("  Windmill", list(toWindmill))
		out.field("  ServiceNow", fmt.Sprintf("%s (%s due)", list(toServiceNow), count(s.logins)))
	}

	out.heading(fmt.Sprintf("%d jobs at once", herdSize), "steps of flows, with nothing cached")
	worker.Workspace.DeleteResource("f/ServiceNow/snow_token_cache")
	job.Env, job.Output = windmill.StepOfFlow(flowPath, "a"), nil
	took, log, err := herd(ctx, worker, job)
	if err != nil {
		return err
	}
	logins := instance.TakeCalls()
	if log != "" {
		failed = append(failed, "jobs at once")
		fmt.Fprint(&logPrinter{printer: out}, log)
	}
	if len(logins) < 1 || len(logins) > 2 {
		failed = append(failed, "number of logins")
	}
	out.field("  result", fmt.Sprintf("%s, all jobs ended within %d ms", count(len(logins)), took.Milliseconds()))
	out.field("  ServiceNow", fmt.Sprintf("%s (%s due)", list(logins), count(1)))
	if failed != nil {
		return fmt.Errorf("not as it should be: %s", strings.Join(failed, ", "))
	}
	return nil
}

// herdSize is the number of jobs that herd runs.
const herdSize = 20

// herd runs job many times at once. It returns how long that took, and the log of a
// run that failed, empty if none did.
func herd(ctx context.Context, worker *windmill.Worker, job windmill.Job) (
	took time.Duration, failed string, err error) {
	var wait sync.WaitGroup
	var done [herdSize]windmill.Done
	var errs [herdSize]error
	started := time.Now()
	for i := range herdSize {
		wait.Add(1)
		go func() {
			defer wait.Done()
			done[i], errs[i] = worker.Run(ctx, job)
		}()
	}
	wait.Wait()
	took = time.Since(started)
	for _, d := range done {
		if d.Failed {
			failed = d.Log
		}
	}
	return took, failed, errors.Join(errs[:]...)
}

// createInstance makes an account on the instance, and in the workspace the
// resource that describes it, its secrets in variables as in a real workspace.
func createInstance(workspace *windmill.Workspace, instance *servicenow.Instance, address string) {
	account := servicenow.Account{
		ClientID: random(), ClientSecret: random(), Username: "windmill.integration", Password: random(),
	}
	instance.SetAccount(account, true)
	workspace.SetVariable("f/ServiceNow_login/client_secret", account.ClientSecret)
	workspace.SetVariable("f/ServiceNow_login/password", account.Password)
	value, _ := json.Marshal(map[string]string{ // strings always marshal
		"instance_url": address, "client_id": account.ClientID, "client_secret": "$var:f/ServiceNow_login/client_secret",
		"username": account.Username, "password": "$var:f/ServiceNow_login/password",
	})
	workspace.SetResource(snowPath, windmill.Resource{Type: "servicenow", Value: value})
}

// count says a number of logins in words.
func count(logins int) string {
	switch logins {
	case 0:
		return "no login"
	case 1:
		return "one login"
	}
	return fmt.Sprintf("%d logins", logins)
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
