//go:build proof

package windmill_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	command = regexp.MustCompile(`(?m)^npx (windmill-cli@\S+) (.*)$`)
	// Of an existing folder, owners and extra_perms would overwrite the rights.
	unwanted = regexp.MustCompile(`"owners"|"extra_perms"|"enabled":true`)
)

// The README does not push the alarm.
const alarmCommands = `
npx windmill-cli@1.819.0 flow push f/ServiceNow/token_alarm.flow f/ServiceNow/token_alarm
npx windmill-cli@1.819.0 schedule push f/ServiceNow/token_alarm.schedule.yaml f/ServiceNow/token_alarm
`

// recorder is an empty workspace. It records the bodies of all POST requests by endpoint.
type recorder map[string][]string

func (rec recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	endpoint := strings.TrimPrefix(r.URL.Path, "/api/w/ws/")
	switch {
	case r.Method == http.MethodPost:
		body, _ := io.ReadAll(r.Body) // The test finds out if the body is incomplete.
		rec[endpoint] = append(rec[endpoint], string(body))
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, `"0123456789abcdef"`)
	case strings.HasSuffix(endpoint, "users/whoami"):
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"email": "admin@example.com", "username": "admin", "is_admin": true, "groups": [], "folders": []}`)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// push runs the commands of a text in a copy of this folder, because the CLI leaves a file behind.
func (rec recorder) push(t *testing.T, text string) {
	server := httptest.NewServer(rec)
	defer server.Close()
	root := t.TempDir()
	for _, name := range []string{"main.go", "script.yaml", "windmill"} {
		if output, err := exec.Command("cp", "-R", filepath.Join("..", name), root).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
	}
	for _, found := range command.FindAllStringSubmatch(text, -1) {
		arguments := "--yes " + found[1] + " " + found[2] + " --workspace ws --token none --base-url " + server.URL
		npx := exec.Command("npx", strings.Fields(arguments)...)
		npx.Dir = filepath.Join(root, "windmill")
		npx.Env = append(os.Environ(), "XDG_CONFIG_HOME="+root) // not the workspaces of whoever runs this test
		if output, err := npx.CombinedOutput(); err != nil || !strings.Contains(string(output), "pushed") {
			t.Errorf("%s: %v\n%s", found[0], err, output)
		}
	}
}

func TestTheCLIPushesEverything(t *testing.T) {
	rec := recorder{}
	rec.push(t, readFile(t, "../README.md")+alarmCommands)
	for endpoint, wants := range map[string][]string{
		"resources/type/create": {`"required":["instance_url","client_id","client_secret"]`},
		"folders/create":        {`"name":"ServiceNow"`, `"name":"ServiceNow_login"`},
		"scripts/create":        {`"format":"resource-servicenow"`},
		"schedules/create":      {`"enabled":false`, `"enabled":false`},
		"flows/create":          {`func main(cache record)`, `"failure_module":`},
	} {
		bodies := rec[endpoint]
		if len(bodies) != len(wants) {
			t.Fatalf("%d calls of %s; want %d", len(bodies), endpoint, len(wants))
		}
		for i, want := range wants {
			if !strings.Contains(bodies[i], want) || unwanted.MatchString(bodies[i]) {
				t.Errorf("pushed %s\nwant %s, and nothing like %s", bodies[i], want, unwanted)
			}
		}
	}
	var script struct{ Content, Language string }
	_ = json.Unmarshal([]byte(rec["scripts/create"][0]), &script) // What is missing stays empty.
	if script.Content != readFile(t, "../main.go") || script.Language != "go" {
		t.Errorf("the script is not main.go: %+v", script)
	}
}
