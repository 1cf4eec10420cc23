package windmill_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// recorder is a workspace of what was pushed to it, by kind and path, such as "scripts f/ServiceNow/get_token".
type recorder map[string]map[string]any

// ServeHTTP answers what the CLI asks: who it is, what is there, and its creations and updates.
func (rec recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	endpoint := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/api/"), "w/ws/")
	kind, path, _ := strings.Cut(strings.Replace(endpoint, "resources/type/", "resource_types/", 1), "/")
	w.Header().Set("Content-Type", "application/json")
	switch {
	case endpoint == "users/whoami":
		fmt.Fprint(w, `{"email": "admin@example.com", "username": "admin", "is_admin": true, "groups": [], "folders": []}`)
	case r.Method == http.MethodPost:
		item := map[string]any{}
		_ = json.NewDecoder(r.Body).Decode(&item) // what is no item has no path
		if item["path"] == nil {
			item["path"] = item["name"]
		}
		rec[fmt.Sprint(kind, " ", item["path"])] = item
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, `"0123456789abcdef"`)
	default: // get/p/f/ServiceNow/get_token, get/ServiceNow …
		path = strings.TrimPrefix(strings.TrimPrefix(path, "get/"), "p/")
		item, found := rec[kind+" "+path]
		if !found {
			w.WriteHeader(http.StatusNotFound)
		}
		if kind == "scripts" && found {
			item["hash"] = "0123456789abcdef"
		}
		_ = json.NewEncoder(w).Encode(item) // a client that has gone needs no answer
	}
}

// The lines of the README, by the real CLI, from this folder with its links.
func TestTheCLIPushesEverything(t *testing.T) {
	cli := os.Getenv("WMILL_CLI")
	if cli == "" {
		t.Skip("WMILL_CLI names no CLI: make check does")
	}
	rec := recorder{}
	server := httptest.NewServer(rec)
	defer server.Close()
	root := t.TempDir() // the CLI leaves a wmill-lock.yaml
	for _, name := range []string{"main.go", "script.yaml", "windmill"} {
		if output, err := exec.Command("cp", "-R", filepath.Join("..", name), root).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
	}
	cache, _ := exec.Command("npm", "config", "get", "cache").Output()
	readme := strings.Split(readFile(t, "../README.md"), "\n")
	pushes := 0
	for _, line := range append(readme, "npx "+cli+" script push f/ServiceNow/get_token.go") { // a second time, too
		arguments, isPush := strings.CutPrefix(line, "npx "+cli+" ")
		if !isPush {
			continue
		}
		pushes++
		command := exec.Command("npx", append([]string{"--yes", cli}, strings.Fields(arguments)...)...)
		command.Args = append(command.Args, "--base-url", server.URL, "--workspace", "ws", "--token", "none")
		command.Dir = filepath.Join(root, "windmill")
		command.Env = append(os.Environ(), "HOME="+root, "XDG_CONFIG_HOME="+root, "npm_config_cache="+strings.TrimSpace(string(cache)))
		if output, err := command.CombinedOutput(); err != nil || !strings.Contains(string(output), "pushed") {
			t.Errorf("%s: %v\n%s", line, err, output)
		}
	}
	if pushes != 7 {
		t.Errorf("%d pushes; want the README's six, and one again", pushes)
	}

	script := rec["scripts f/ServiceNow/get_token"]
	if script["content"] != readFile(t, "../main.go") || script["language"] != "go" {
		t.Errorf("the script is not main.go, letter by letter: %v", script)
	}
	for want, in := range map[string]any{
		`"format":"resource-servicenow"`:                          script["schema"],
		`"required":["instance_url","client_id","client_secret"]`: rec["resource_types servicenow"]["schema"],
		`"schedule":"0 */15 * * * *"`:                             rec["schedules f/ServiceNow/warm_token"],
		`"enabled":false`:                                         rec["schedules f/ServiceNow/warm_token"],
		`"path":"f/ServiceNow/get_token"`:                         rec["flows f/ServiceNow/open_incidents"],
		`func main(cache record)`:                                 rec["flows f/ServiceNow/open_incidents"],
		`"name":"ServiceNow"`:                                     rec["folders ServiceNow"],
		`"name":"ServiceNow_login"`:                               rec["folders ServiceNow_login"],
	} {
		if encoded, _ := json.Marshal(in); !strings.Contains(string(encoded), want) {
			t.Errorf("no %s in %s", want, encoded)
		}
	}
	for _, folder := range []string{"folders ServiceNow", "folders ServiceNow_login"} {
		if rec[folder]["owners"] != nil || rec[folder]["extra_perms"] != nil {
			t.Errorf("%s would lose its sharing: %v", folder, rec[folder])
		}
	}
}

// What the items name is there, and sync sees no other item.
func TestTheFolder(t *testing.T) {
	for name, wants := range map[string][]string{
		"f/ServiceNow/get_token.go":                  {readFile(t, "../main.go")},
		"f/ServiceNow/get_token.script.yaml":         {readFile(t, "../script.yaml")},
		"f/ServiceNow/warm_token.schedule.yaml":      {"script_path: f/ServiceNow/get_token\n", "enabled: false\n", "$res:" + snowPath},
		"f/ServiceNow/open_incidents.flow/flow.yaml": {"path: f/ServiceNow/get_token\n", "$res:" + snowPath, "$res:" + cachePath, "!inline count_open_incidents.go"},
		"wmill.yaml": {"includes:\n  - f/ServiceNow/get_token.*\n  - f/ServiceNow/open_incidents.flow/**\nskipFolders: true\n", "skipResources: true\n",
			"skipResourceTypes: true\n", "skipVariables: true\n", "skipWorkspaceDependencies: true\n", "skipDatatableMigrations: true\n"},
	} {
		for _, want := range wants {
			if content := readFile(t, name); !strings.Contains(content, want) {
				t.Errorf("no %q in %s", want, name)
			}
		}
	}
}

// The README tells of errors in the script's own words.
func TestTheErrorsOfTheREADME(t *testing.T) {
	_, table, _ := strings.Cut(readFile(t, "../README.md"), "| the error says |")
	rows := strings.Split(table, "\n| ")[1:]
	for _, row := range rows {
		for i, said := range strings.Split(strings.Split(row, " |")[0], "`") {
			if isQuoted := i%2 == 1; isQuoted && !strings.Contains(row, "Windmill's own") && !strings.Contains(readFile(t, "../main.go"), said) {
				t.Errorf("main.go does not say %q", said)
			}
		}
	}
	if len(rows) < 10 {
		t.Errorf("%d errors; want ten at least", len(rows))
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
