// Package simulator joins a simulated Windmill and a simulated ServiceNow to a World. The tests of main.go, the demo,
// the proofs and the tests of the example flow all run in one.
//
// A new fault or limit of ServiceNow belongs in simulator/servicenow, and a new right, endpoint or kind of job of
// Windmill in simulator/windmill. simulator/client stands in for the published Windmill client.
package simulator

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"

	"servicenow-token/simulator/servicenow"
	"servicenow-token/simulator/windmill"
)

// Where everything is, and the secrets. All secrets begin alike, so that a search finds a part of one, too.
const (
	ScriptPath   = "f/ServiceNow/get_token"
	CachePath    = "f/ServiceNow/snow_token_cache"
	FailuresPath = "f/ServiceNow/snow_token_failures"
	SnowPath     = "f/ServiceNow_login/servicenow"

	Sentinel = "s3ntinel"
	JobToken = Sentinel + "WindmillToken"
)

// Account is what the servicenow resource of a new World holds.
var Account = servicenow.Account{
	ClientID:     "client",
	ClientSecret: Sentinel + "-client-secret",
	Username:     "svc user",
	Password:     Sentinel + " Pass*word",
}

// World is a workspace whose user may run the script, and an instance that accepts its login.
type World struct {
	Windmill    *windmill.Workspace
	Worker      *windmill.Worker
	ServiceNow  *servicenow.Instance
	InstanceURL string

	servers []*httptest.Server
}

// New starts both servers. The worker keeps its files in dir and runs as many jobs at once as it has slots.
func New(now func() time.Time, dir string, slots int) *World {
	w := &World{
		ServiceNow: &servicenow.Instance{Now: now, Accounts: map[servicenow.Account]bool{Account: true}},
		Windmill: &windmill.Workspace{
			Name: "acme & co",
			Now:  now,
			Users: map[string]windmill.User{JobToken: {
				Name:    "u/user",
				Folders: map[string]bool{"f/ServiceNow": true, "f/ServiceNow_login": false},
			}},
			Variables: map[string]string{
				"f/ServiceNow_login/secret":   Account.ClientSecret,
				"f/ServiceNow_login/password": Account.Password,
			},
		},
	}
	w.Worker = windmill.NewWorker(w.Windmill, w.Serve(w.Windmill), dir, slots)
	w.MoveTo(w.Serve(w.ServiceNow))
	return w
}

// Serve starts another server, and returns its address.
func (w *World) Serve(handler http.Handler) (address string) {
	server := httptest.NewServer(handler)
	w.servers = append(w.servers, server)
	return server.URL
}

// Close stops all servers.
func (w *World) Close() {
	for _, server := range w.servers {
		server.CloseClientConnections()
		server.Close()
	}
}

// MoveTo changes the address in the servicenow resource.
func (w *World) MoveTo(address string) {
	w.InstanceURL = address
	w.Set(SnowPath, map[string]string{
		"instance_url":  address,
		"client_id":     Account.ClientID,
		"client_secret": "$var:f/ServiceNow_login/secret",
		"username":      Account.Username,
		"password":      "$var:f/ServiceNow_login/password",
	})
}

// Set stores the value of a resource.
func (w *World) Set(path string, value any) {
	encoded, err := json.Marshal(value)
	if err != nil {
		panic(err) // A test passed a value that is not JSON.
	}
	w.Windmill.Set(path, encoded)
}

// Get decodes a resource. What is missing stays as it is.
func (w *World) Get(path string, value any) { _ = json.Unmarshal(w.Windmill.Get(path), value) }

// Token returns the cached token, or nothing.
func (w *World) Token() string {
	var cached struct {
		Token string `json:"token"`
	}
	w.Get(CachePath, &cached)
	return cached.Token
}

// Logins returns the number of token requests so far.
func (w *World) Logins() int { return len(w.ServiceNow.Forms()) }

// Job returns a job that runs the script with the servicenow resource.
func Job(startedBy []string) windmill.Job {
	return windmill.Job{
		ID:        windmill.NewID(),
		Path:      ScriptPath,
		Args:      fmt.Sprintf(`{"snow": "$res:%s"}`, SnowPath),
		Token:     JobToken,
		StartedBy: startedBy,
	}
}

// Run runs a job to its end. A job that cannot be run or that prints a secret counts as failed, and its log says why.
func (w *World) Run(ctx context.Context, job windmill.Job) windmill.Done {
	done, err := w.Worker.Run(ctx, job)
	if secret := w.SecretIn(done.Log + string(done.Result)); secret != "" {
		err = fmt.Errorf("the job printed the secret %s", secret)
	}
	if err != nil {
		done = windmill.Done{Failed: true, Log: err.Error(), Took: done.Took}
	}
	return done
}

// RunAtOnce runs n jobs at once, and returns when all have ended.
func (w *World) RunAtOnce(ctx context.Context, n int, job func() windmill.Job) []windmill.Done {
	all := make([]windmill.Done, n)
	var group sync.WaitGroup
	for i := range n {
		group.Add(1)
		go func() {
			defer group.Done()
			all[i] = w.Run(ctx, job())
		}()
	}
	group.Wait()
	return all
}

// SecretIn returns a secret of this world that text contains, or nothing.
func (w *World) SecretIn(text string) string {
	if strings.Contains(strings.ToLower(text), Sentinel) {
		return Sentinel
	}
	issued := w.ServiceNow.Issued()
	issued = issued[max(0, len(issued)-200):] // No job knows older ones.
	isIn := func(token string) bool { return strings.Contains(text, token) }
	if i := slices.IndexFunc(issued, isIn); i >= 0 {
		return issued[i]
	}
	return ""
}
