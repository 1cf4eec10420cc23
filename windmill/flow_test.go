package windmill_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"servicenow-token/local/servicenow"
	"servicenow-token/local/windmill"
)

const (
	stepFile  = "f/ServiceNow/open_incidents.flow/count_open_incidents.go"
	cachePath = "f/ServiceNow/snow_token_cache"
	snowPath  = "f/ServiceNow_login/servicenow"
	jobToken  = "S3cret-job-token"
)

// newWorker starts a Windmill for a user who may use and renew the token, and builds scripts.
func newWorker(t *testing.T, scripts ...string) (worker *windmill.Worker, binaries []string) {
	workspace := &windmill.Workspace{Name: "local", Users: map[string]windmill.Rights{
		jobToken: {"f/ServiceNow": true, "f/ServiceNow_login": false}}}
	server := httptest.NewServer(workspace)
	t.Cleanup(server.Close)
	worker = &windmill.Worker{Workspace: workspace, BaseURL: server.URL, Dir: t.TempDir()}
	for _, script := range scripts {
		binary, err := worker.Build(context.Background(), script, "..")
		if err != nil {
			t.Fatal(err)
		}
		binaries = append(binaries, binary)
	}
	return worker, binaries
}

// A revoked token is renewed by one login, for both who got the 401.
func TestTheFlowAndTheRenewal(t *testing.T) {
	worker, binaries := newWorker(t, "f/ServiceNow/get_token.go", stepFile)
	instance := &servicenow.Instance{Now: time.Now, Incidents: map[string]int{"1": 2, "3": 40},
		Accounts: map[servicenow.Account]bool{{ClientID: "id", ClientSecret: "S3cret-client"}: true}}
	server := httptest.NewServer(instance)
	t.Cleanup(server.Close)
	value := fmt.Sprintf(`{"instance_url": %q, "client_id": "id", "client_secret": "S3cret-client"}`, server.URL)
	worker.Workspace.Set(snowPath, json.RawMessage(value))
	getToken := windmill.Job{Binary: binaries[0], Args: `{"snow": "$res:` + snowPath + `"}`, Path: "f/ServiceNow/get_token"}
	count := windmill.Job{Binary: binaries[1], Args: `{"cache": "$res:` + cachePath + `"}`}
	// run runs a job, which must return or say want, after so many logins in all.
	run := func(job windmill.Job, startedBy []string, want string, logins int) {
		t.Helper()
		job.Env, job.Token = startedBy, jobToken
		done, err := worker.Run(context.Background(), job)
		said := string(done.Result) + "\n" + done.Log
		isSecret := func(secret string) bool { return strings.Contains(said, secret) }
		isLeak := slices.ContainsFunc(append(instance.Issued(), jobToken, "S3cret-client"), isSecret)
		if err != nil || !strings.Contains(said, want) || instance.Requests() != logins || isLeak {
			t.Fatalf("%v, secret said: %t, after %d logins:\n%s\nwant %s, after %d", err, isLeak, instance.Requests(), said, want, logins)
		}
	}
	const counts = `{"1":2,"3":40}`
	run(getToken, windmill.StepOfFlow, `"OK"`, 1)
	run(count, windmill.StepOfFlow, counts, 1)
	used := instance.Issued()[0]
	instance.Revoke(used)
	run(getToken, windmill.ByScript, `"OK"`, 1) // it cannot know, and reuses what is cached
	run(count, windmill.StepOfFlow, "If the cache still holds this token, write {} into it, run f/ServiceNow/get_token, run this again", 1)
	for range 2 { // two consumers, both of which got the 401
		if strings.Contains(string(worker.Workspace.Get(cachePath)), used) {
			worker.Workspace.Set(cachePath, json.RawMessage("{}"))
		}
		run(getToken, windmill.ByScript, `"OK"`, 2)
		run(count, windmill.StepOfFlow, counts, 2)
	}
}

// What the step says of a record, and of the answer to a request with it.
func TestTheStep(t *testing.T) {
	worker, binaries := newWorker(t, stepFile)
	const strange, planted = "HOST answered something else", "is not like https://dev12345.service-now.com, so another script wrote it"
	// RAW stands for what may not be repeated. Without an answer nothing may be asked; with status 0 it is no HTTP.
	for _, test := range []struct{ record, answer, want string }{
		{`null`, ``, "holds no token"},
		{`{}`, ``, "holds no token"},
		{`{"token": "RAW", "expires_at": 1732449600, "instance_url": "http://HOST"}`, ``, "has expired"},
		{`{"token": "RAW", "expires_at": SOON.25}`, ``, planted}, // the Python script's
		{`http://dev12345.service-now.com`, ``, planted},
		{`http://127.0.0.1.example.com`, ``, planted},
		{`https://127.0.0.1:1@HOST`, ``, planted},
		{`https://:443`, ``, planted},
		{`http://HOST?`, ``, planted},
		{`https://HOST`, ``, "HOST did not answer within 30 s as an HTTPS server"},
		{`http://127.0.0.1:1`, ``, "127.0.0.1:1 cannot be reached: dial tcp 127.0.0.1:1: connect: connection refused"},
		{`http://HOST`, `200 {"result": []}`, `{}`},
		{`http://HOST/gateway`, `200 {"result": [{"stats": {"count": "2"}, "groupby_fields": [{"value": "1"}]}]}`, `{"1":2}`},
		{`http://HOST`, `200 {"result": [{"stats": {"count": "RAW"}, "groupby_fields": [{"value": "1"}]}]}`, strange},
		{`http://HOST`, `200 {"result": [{"stats": {"count": "2"}}]}`, strange},
		{`http://HOST`, `200 {"error": "RAW"}`, strange},
		{`http://HOST`, `200 <html>RAW</html>`, strange},
		{`http://HOST`, "0 220 RAW\r\n", "HOST did not answer within 30 s as an HTTPS server"},
		{`http://HOST`, "0 HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"result\": []}RAW", `{}`}, // Go's own log would show the rest
		{`http://HOST`, `307 RAW`, "HOST answered 307: check instance_url"},
		{`http://HOST`, `401 RAW`, "HOST answered 401: it does not accept the token"},
		{`http://HOST`, `403 RAW`, "HOST answered 403: it knows the token, but refuses this call. Check the user's right"},
	} {
		var asked, wantAsked string
		status, body, _ := strings.Cut(test.answer, " ")
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked += "http://" + r.Host + r.URL.Path
			w.Header().Set("Location", "/elsewhere")
			if code, _ := strconv.Atoi(status); code != 0 {
				w.WriteHeader(code)
				fmt.Fprint(w, body)
				return
			}
			connection, _, _ := http.NewResponseController(w).Hijack() // never fails on HTTP/1.1
			defer connection.Close()
			fmt.Fprint(connection, body)
		}))
		fill := strings.NewReplacer("HOST", server.Listener.Addr().String(), "SOON", fmt.Sprint(time.Now().Unix()+60)).Replace
		record := fill(test.record)
		if test.answer != "" {
			wantAsked = record + "/api/now/stats/incident"
		}
		if test.record != "null" && test.record[0] != '{' {
			record = fill(`{"token": "RAW", "expires_at": SOON.25, "instance_url": "` + record + `"}`)
		}
		done, err := worker.Run(context.Background(), windmill.Job{Binary: binaries[0], Args: `{"cache": ` + record + `}`, Token: jobToken})
		server.Close()
		said := string(done.Result) + done.Log
		if err != nil || !strings.Contains(said, fill(test.want)) || strings.Contains(said, "RAW") || asked != wantAsked {
			t.Errorf("%v, with %s and %s it asked %q and said:\n%s\nwant %s", err, test.record, test.answer, asked, said, test.want)
		}
	}
}
