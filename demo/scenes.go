package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"servicenow-token/simulator"
	"servicenow-token/simulator/windmill"
)

const (
	countPath      = "f/ServiceNow/count_open_incidents"
	cachesOnlyPath = "f/ServiceNow/caches_only"

	newPassword = simulator.Sentinel + " new Pass*word"
	loginDelay  = 200 * time.Millisecond // before ServiceNow answers a login

	ok = `"OK"`
)

// scene is one block of the demo: jobs that run at once, and what is due.
type scene struct {
	title    string
	prepare  func() // changes something before the jobs run
	jobs     int
	job      func() windmill.Job
	detail   string
	showsLog bool // of the first job

	want      string // part of what each job returns or, if it fails, prints
	logins    int
	mayBeMore bool // logins
	calls     int  // to Windmill; 0 for any number
}

// showAll plays the scenes. It stops with an error at the first one that does not end as it should.
func (d *demo) showAll(ctx context.Context) error {
	d.print("", "Building two more scripts: the next step of the example flow, and a script that only caches.")
	err := d.deploy(ctx, countPath, "windmill/f/ServiceNow/open_incidents.flow/count_open_incidents.go")
	if err != nil {
		return err
	}
	// The underscore keeps this file out of the package in its folder.
	if err := d.deploy(ctx, cachesOnlyPath, "demo/_caches_only.go"); err != nil {
		return err
	}
	d.ServiceNow.Incidents = map[string]int{"1": 2, "2": 7, "3": 40}
	d.ServiceNow.Intercept = func(http.ResponseWriter, *http.Request, int) bool {
		time.Sleep(loginDelay)
		return false
	}
	for _, s := range d.scenes() {
		if err := d.show(ctx, s); err != nil {
			return err
		}
	}
	d.print("", "All of this is as it should be, including the jobs that failed.")
	return nil
}

func (d *demo) scenes() []scene {
	herd := fmt.Sprintf("There are %d workers, and ServiceNow takes %s for a login. "+
		"One job logs in, and the others wait for its token.", workers, loginDelay)
	return []scene{
		{title: "A run by hand verifies the credentials",
			jobs: 1, job: byHand, showsLog: true, want: ok, logins: 1},
		{title: "The schedule replaces a token that was revoked", prepare: d.ServiceNow.Revoke,
			jobs: 1, job: bySchedule, want: ok, logins: 1},
		{title: "A flow's step reuses the token",
			jobs: 1, job: step, showsLog: true, want: ok, calls: 1},
		{title: "The flow's next step counts the open incidents by priority",
			jobs: 1, job: countStep, want: `{"1":2,"2":7,"3":40}`},
		{title: "Forty flows at once, with nothing cached", prepare: d.emptyCache, detail: herd,
			jobs: 40, job: step, want: ok, logins: 1},
		{title: "The same forty with a script that only caches, as the Hub's is meant to", prepare: d.emptyCache,
			detail: "Each job that starts before the first token is stored logs in by itself.",
			jobs:   40, job: cachesOnlyStep, want: ok, logins: 2, mayBeMore: true},
		{title: "The password was changed in ServiceNow, and the schedule is refused", prepare: d.changePassword,
			jobs: 1, job: bySchedule, showsLog: true, want: "answered 401", logins: 1},
		{title: "Forty flows that find nothing cached are held back", prepare: d.emptyCache,
			jobs: 40, job: step, showsLog: true, want: "Run again after"},
		{title: "The same forty with the script that only caches",
			detail: "Each job tries the old password. After five refusals, ServiceNow locks the user.",
			jobs:   40, job: cachesOnlyStep, want: "answered 401", logins: 40},
		{title: "Somebody unlocks the user, enters the new password, and runs the script by hand", prepare: d.repair,
			jobs: 1, job: byHand, want: ok, logins: 1},
		{title: "The flow goes on",
			jobs: 1, job: step, want: ok, calls: 1},
	}
}

func byHand() windmill.Job     { return simulator.Job(windmill.ByHand) }
func bySchedule() windmill.Job { return simulator.Job(windmill.BySchedule) }
func step() windmill.Job       { return simulator.Job(windmill.StepOfFlow) }

func countStep() windmill.Job {
	job := step()
	job.Path, job.Args = countPath, fmt.Sprintf(`{"cache": "$res:%s"}`, simulator.CachePath)
	return job
}

func cachesOnlyStep() windmill.Job {
	job := step()
	job.Path = cachesOnlyPath
	return job
}

func (d *demo) emptyCache() { d.Windmill.Delete(simulator.CachePath) }

func (d *demo) changePassword() {
	changed := simulator.Account
	changed.Password = newPassword
	d.ServiceNow.Accounts[simulator.Account] = false
	d.ServiceNow.Accounts[changed] = true
}

func (d *demo) repair() {
	d.ServiceNow.Unlock(simulator.Account.Username)
	d.Windmill.Variables["f/ServiceNow_login/password"] = newPassword
}

// show runs the jobs of a scene, prints what the servers saw, and compares it with what is due.
func (d *demo) show(ctx context.Context, s scene) error {
	if s.prepare != nil {
		s.prepare()
	}
	loginsBefore, callsBefore, began := d.Logins(), len(d.Windmill.Calls()), time.Now()
	all := d.RunAtOnce(ctx, s.jobs, s.job)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	took := time.Since(began).Round(time.Millisecond)
	logins, calls := d.Logins()-loginsBefore, len(d.Windmill.Calls())-callsBefore
	d.print("", fmt.Sprintf("%s: %s (%s, %s to Windmill, %s)", s.title,
		count(logins, "login"), result(all), count(calls, "call"), took))
	d.print("    ", s.detail)
	if s.showsLog {
		d.print("    ", all[0].Log)
	}
	if err := s.check(all, logins, calls); err != nil {
		return fmt.Errorf("the last block is not as it should be: %w", err)
	}
	if !all[0].Failed && !d.ServiceNow.IsValid(d.Token()) {
		return errors.New("the last block is not as it should be: a valid token in the cache was due")
	}
	return nil
}

// result returns the result of the first job, after the number of jobs if there are several.
func result(all []windmill.Done) string {
	first := strings.Trim(string(all[0].Result), `"`)
	if all[0].Failed {
		first = "failed"
	}
	if len(all) == 1 {
		return first
	}
	return fmt.Sprintf("%d × %s", len(all), first)
}

// count returns a number with its noun, such as "1 login" or "2 logins".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// check compares how a scene ended with what is due.
func (s scene) check(all []windmill.Done, logins, calls int) error {
	for _, done := range all {
		said := string(done.Result)
		if done.Failed {
			said = done.Log
		}
		if !strings.Contains(said, s.want) {
			return fmt.Errorf("%s was due from each job, but one said: %s", s.want, said)
		}
	}
	if s.mayBeMore && logins < s.logins {
		return fmt.Errorf("%s or more were due", count(s.logins, "login"))
	}
	if !s.mayBeMore && logins != s.logins {
		return fmt.Errorf("due: %s", count(s.logins, "login"))
	}
	if s.calls > 0 && calls != s.calls {
		return fmt.Errorf("due: %s to Windmill", count(s.calls, "call"))
	}
	return nil
}
