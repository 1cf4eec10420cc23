package windmill_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"servicenow-token/simulator"
	"servicenow-token/simulator/windmill"
)

// stepPath is where these tests deploy the second step of the flow open_incidents.
const stepPath = "f/ServiceNow/count_open_incidents"

// newWorld starts a world in which both steps of the flow open_incidents are deployed.
func newWorld(t *testing.T) *simulator.World {
	t.Helper()
	world := simulator.New(time.Now, t.TempDir(), 1)
	t.Cleanup(world.Close)
	for path, file := range map[string]string{
		simulator.ScriptPath: "f/ServiceNow/get_token.go",
		stepPath:             "f/ServiceNow/open_incidents.flow/count_open_incidents.go",
	} {
		if err := world.Worker.Deploy(context.Background(), path, readFile(t, file), ".."); err != nil {
			t.Fatal(err)
		}
	}
	return world
}

// countStep returns a job of the second step, whose input is a record or the name of a resource.
func countStep(cache string) windmill.Job {
	return windmill.Job{
		Path:      stepPath,
		Args:      `{"cache": ` + cache + `}`,
		Token:     simulator.JobToken,
		StartedBy: windmill.StepOfFlow,
	}
}

// check runs a job whose log or result must contain want.
func check(t *testing.T, world *simulator.World, job windmill.Job, want string) {
	t.Helper()
	done := world.Run(context.Background(), job)
	if said := string(done.Result) + done.Log; !strings.Contains(said, want) {
		t.Errorf("the job said:\n%s\nwant %s", said, want)
	}
}

func TestTheFlowAndTheRenewal(t *testing.T) {
	world := newWorld(t)
	world.ServiceNow.Incidents = map[string]int{"1": 2, "3": 40}
	getToken := simulator.Job(windmill.StepOfFlow)
	count := countStep(`"$res:` + simulator.CachePath + `"`)
	const counts = `{"1":2,"3":40}`
	check(t, world, getToken, `"OK"`)
	check(t, world, count, counts)

	revoked := world.Token()
	world.ServiceNow.Revoke()
	check(t, world, getToken, `"OK"`) // It cannot know that the token has been revoked.
	check(t, world, count, "write {} into that resource, and run f/ServiceNow/get_token")

	for range 2 { // Two jobs have used the revoked token. Both renew it.
		if world.Token() == revoked {
			world.Set(simulator.CachePath, struct{}{})
		}
		check(t, world, simulator.Job(windmill.ByScript), `"OK"`)
		check(t, world, count, counts)
	}
	if world.Logins() != 2 {
		t.Errorf("%d logins; want one at the start and one for both renewals", world.Logins())
	}
}

// Records that the second step meets. INSTANCE stands for the address of a server.
const (
	goodRecord    = `{"token": "s3ntinel-token", "expires_at": 4102444800, "instance_url": "INSTANCE"}`
	gatewayRecord = `{"token": "s3ntinel-token", "expires_at": 4102444800, "instance_url": "INSTANCE/gateway"}`
	expiredRecord = `{"token": "s3ntinel-token", "expires_at": 1735689600, "instance_url": "INSTANCE"}`
	pythonRecord  = `{"token": "s3ntinel-token", "expires_at": 4102444800.25}`
	brokenRecord  = `{"token": "s3ntinel-token", "expires_at": 4102444800, "instance_url": "http://["}`
	noToken       = `{"expires_at": 4102444800, "instance_url": "INSTANCE"}`
	deadRecord    = `{"token": "s3ntinel-token", "expires_at": 4102444800, "instance_url": "http://127.0.0.1:1"}`
)

var stepTests = []struct {
	name, record string
	status       int // of the server's answer; 0 if it must not be asked
	body, want   string
}{
	{"empty resource", `null`, 0, ``, "holds no token of f/ServiceNow/get_token"},
	{"no token", noToken, 0, ``, "holds no token of f/ServiceNow/get_token"},
	{"record of the Python script", pythonRecord, 0, ``, "holds no token of f/ServiceNow/get_token"},
	{"expired", expiredRecord, 0, ``, "has expired. Put f/ServiceNow/get_token before this step"},
	{"not an address", brokenRecord, 0, ``, "missing ']' in host"},
	{"no server", deadRecord, 0, ``, "connection refused"},
	{"no incidents", goodRecord, 200, `{"result": []}`, `{}`},
	{"incidents", goodRecord, 200, countAnswer("2"), `{"1":2}`},
	{"gateway", gatewayRecord, 200, countAnswer("2"), `{"1":2}`},
	{"count that is no number", goodRecord, 200, countAnswer("s3ntinel"), "sent no counts"},
	{"error in a 200", goodRecord, 200, `{"error": "s3ntinel"}`, "sent no counts"},
	{"page", goodRecord, 200, `<html>s3ntinel</html>`, "sent no counts"},
	{"redirect", goodRecord, 307, `s3ntinel`, "answered 307. Check instance_url"},
	{"unauthorized", goodRecord, 401, `s3ntinel`, "answered 401. The token may have been revoked"},
	{"forbidden", goodRecord, 403, `s3ntinel`, "answered 403. Check the user's right"},
}

func countAnswer(count string) string {
	return `{"result": [{"stats": {"count": "` + count + `"}, "groupby_fields": [{"value": "1"}]}]}`
}

// World.Run fails a job that repeats the token or the body of an answer: both contain the sentinel.
func TestTheSecondStep(t *testing.T) {
	world := newWorld(t)
	for _, test := range stepTests {
		t.Run(test.name, func(t *testing.T) {
			var asked atomic.Int32
			instance := world.Serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				asked.Add(1)
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(test.status)
				fmt.Fprint(w, test.body)
			}))
			check(t, world, countStep(strings.Replace(test.record, "INSTANCE", instance, 1)), test.want)
			if want := int32(min(test.status, 1)); asked.Load() != want {
				t.Errorf("it sent %d requests; want %d", asked.Load(), want)
			}
		})
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
