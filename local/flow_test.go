package main

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"servicenow-token/local/servicenow"
	"servicenow-token/local/windmill"
)

const (
	flowFolder = "../windmill/f/ServiceNow/open_incidents.flow"
	cachePath  = "f/ServiceNow/snow_token_cache"
)

// step is a module of the flow: a file, and its arguments as the flow gives them.
type step struct {
	id, file string
	args     map[string]string
}

// readFlow reads the steps of flow.yaml, as far as this flow uses the format.
func readFlow(t *testing.T) []step {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(flowFolder, "flow.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	modules, _, _ := strings.Cut(string(content), "\nschema:")
	var steps []step
	for _, module := range strings.Split(modules, "    - id: ")[1:] {
		id, rest, _ := strings.Cut(module, "\n")
		s := step{id: id, args: make(map[string]string)}
		if path := regexp.MustCompile(`(?m)^        path: (.+)$`).FindStringSubmatch(rest); path != nil {
			if path[1] != "f/ServiceNow/get_token" {
				t.Fatalf("step %s runs %s; want the script that is pushed, f/ServiceNow/get_token", id, path[1])
			}
			s.file = "../main.go"
		}
		if inline := regexp.MustCompile(`(?m)^        content: '!inline (.+)'$`).FindStringSubmatch(rest); inline != nil {
			s.file = filepath.Join(flowFolder, inline[1])
		}
		for _, argument := range regexp.MustCompile(`(?m)^          (\w+):\n            type: (static|javascript)\n            (?:value|expr): (.+)$`).FindAllStringSubmatch(rest, -1) {
			s.args[argument[1]] = argument[3]
		}
		steps = append(steps, s)
	}
	return steps
}

func TestTheFlow(t *testing.T) {
	instance := &servicenow.Instance{Incidents: map[string]int{"1 - Critical": 2, "3 - Moderate": 40}}
	instanceServer := httptest.NewServer(instance)
	defer instanceServer.Close()
	workspace := &windmill.Workspace{Name: "local"}
	workspace.AddFolder("f/ServiceNow")
	workspace.AddToken("S3cret-workspace-token", windmill.Rights{Read: true, Write: true})
	windmillServer := httptest.NewServer(workspace)
	defer windmillServer.Close()
	createInstance(workspace, instance, instanceServer.URL)
	worker := &windmill.Worker{Workspace: workspace, BaseURL: windmillServer.URL, Dir: t.TempDir()}

	steps := readFlow(t)
	if len(steps) != 2 {
		t.Fatalf("%d steps; want 2", len(steps))
	}
	binaries := make(map[string]string)
	for _, s := range steps {
		binary, err := worker.Build(context.Background(), s.file, "..")
		if err != nil {
			t.Fatal(err)
		}
		binaries[s.id] = binary
		if s.id == "b" {
			if diff := cmp.Diff(map[string]string{"cache": "$res:" + cachePath, "instance_url": "flow_input.instance_url"}, s.args); diff != "" {
				t.Errorf("the second step's arguments mismatch (-want +got):\n%s", diff)
			}
		}
	}
	// run runs the flow until a step fails, and returns the last step's end.
	run := func(instanceURL string) (id string, done windmill.Done) {
		t.Helper()
		for _, s := range steps {
			args := make(map[string]any)
			for name, value := range s.args {
				args[name] = strings.ReplaceAll(value, "flow_input.instance_url", instanceURL)
			}
			var err error
			done, err = worker.Run(context.Background(), windmill.Job{
				Binary: binaries[s.id], Args: args, Token: "S3cret-workspace-token",
				Env: []string{"WM_FLOW_PATH=f/ServiceNow/open_incidents", "WM_FLOW_STEP_ID=" + s.id},
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, secret := range append(instance.Issued(), "S3cret-workspace-token") {
				if strings.Contains(done.Log+string(done.Result), secret[:8]) {
					t.Errorf("step %s printed a secret:\n%s", s.id, done.Log)
				}
			}
			id = s.id
			if done.Failed {
				break
			}
		}
		return id, done
	}
	checkCounts := func(done windmill.Done) {
		t.Helper()
		var got map[string]int
		if err := json.Unmarshal(done.Result, &got); err != nil {
			t.Fatalf("result = %s: %v\n%s", done.Result, err, done.Log)
		}
		if diff := cmp.Diff(instance.Incidents, got); diff != "" {
			t.Errorf("open incidents mismatch (-want +got):\n%s", diff)
		}
	}

	_, done := run(instanceServer.URL + "/")
	checkCounts(done)
	_, done = run(instanceServer.URL)
	checkCounts(done)

	// A revoked token: the cache cannot know, so the second step fails and says what
	// to do, after which the flow runs again.
	instance.Revoke()
	id, done := run(instanceServer.URL)
	if id != "b" || !done.Failed || !strings.Contains(done.Log, "Run the schedule f/ServiceNow/warm_token now") {
		t.Errorf("with a revoked token, step %s: failed = %t; want step b to fail and to name the schedule\n%s", id, done.Failed, done.Log)
	}
	scheduled := windmill.Job{
		Binary: binaries["a"], Args: map[string]any{"snow": "$res:" + snowPath}, Token: "S3cret-workspace-token",
		Env: []string{"WM_SCHEDULE_PATH=f/ServiceNow/warm_token"},
	}
	if done, err := worker.Run(context.Background(), scheduled); err != nil || done.Failed {
		t.Fatalf("the schedule failed: %v\n%s", err, done.Log)
	}
	_, done = run(instanceServer.URL)
	checkCounts(done)

	// The token goes nowhere but to the instance, over TLS.
	instance.TakeCalls()
	id, done = run("http://dev12345.service-now.com")
	if id != "b" || !done.Failed || !strings.Contains(done.Log, "instance_url must look like https://") {
		t.Errorf("with http, step %s: failed = %t; want step b to refuse\n%s", id, done.Failed, done.Log)
	}
	if calls := instance.TakeCalls(); calls != nil {
		t.Errorf("calls to the instance: %v; want none", calls)
	}
}
