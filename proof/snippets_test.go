//go:build proof

package proof

import (
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"servicenow-token/simulator"
	"servicenow-token/simulator/windmill"
)

const consumerPath = "f/ServiceNow/consumer" // of the script that uses the token

// The documented code runs with Windmill's real clients. Its main returns the status of the last call to ServiceNow.
func TestDocumentedCode(t *testing.T) {
	for _, test := range []language{
		{
			name:    "python",
			client:  "WMILL_PYPI",
			file:    "snippet.py",
			install: `python3 -m venv . && bin/pip install --quiet "$WMILL_PYPI" requests`,
			run:     `bin/python -c 'import snippet; print(snippet.main())'`,
		},
		{
			name:    "typescript",
			client:  "WMILL_NPM",
			file:    "snippet.ts",
			install: `npm install --silent --ignore-scripts --prefix . "$WMILL_NPM" esbuild@0.28.2`,
			run: `node_modules/.bin/esbuild --log-level=error snippet.ts --outfile=snippet.mjs &&
				node --input-type=module -e 'import { main } from "./snippet.mjs"; console.log(await main())'`,
		},
	} {
		t.Run(test.name, test.prove)
	}
}

// language says how to run code with a real client.
type language struct{ name, client, file, install, run string }

func (lang language) prove(t *testing.T) {
	if os.Getenv(lang.client) == "" {
		t.Skip(lang.client + " does not say which client to install")
	}
	dir := t.TempDir()
	shell(t, dir, os.Environ(), lang.install)
	for _, test := range []struct {
		name, file string
		isRevoked  bool  // before the code runs
		answers    []int // of ServiceNow's API
	}{
		{"read", "../README.md", false, []int{200}},
		{"renew", "../docs/operate.md", true, []int{401, 200}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w, answers := newConsumerWorld(t)
			if test.isRevoked {
				w.ServiceNow.Revoke()
			}
			writeFile(filepath.Join(dir, lang.file), block(t, test.file, lang.name))
			job := windmill.Job{ID: windmill.NewID(), Path: consumerPath, Token: simulator.JobToken}
			w.expectUse(shell(t, dir, w.Worker.Environment(job), lang.run), answers, test.answers)
		})
	}
}

func TestDocumentedGo(t *testing.T) {
	w, answers := newConsumerWorld(t)
	w.deploy(consumerPath, block(t, "../README.md", "go"))
	job := step()
	job.Path, job.Args = consumerPath, `{"cache": "$res:`+simulator.CachePath+`"}`
	done := w.Run(context.Background(), job)
	w.expectUse(string(done.Result)+done.Log, answers, []int{200})
}

// newConsumerWorld has a token in the cache, and an API that answers every call with a valid token. The simulated
// instance knows only one call.
func newConsumerWorld(t *testing.T) (w *world, answers chan int) {
	w = newWorld(t, 2)
	answers = make(chan int, 9)
	w.MoveTo(w.Serve(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/api/now/") {
			w.ServiceNow.ServeHTTP(rw, r)
			return
		}
		token, isBearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		status := http.StatusUnauthorized
		if isBearer && w.ServiceNow.IsValid(token) {
			status = http.StatusOK
		}
		answers <- status
		rw.WriteHeader(status)
		_, _ = io.WriteString(rw, `{"result": []}`)
	})))
	w.expect(w.run(), ok, 10*time.Second)
	return w, answers
}

// expectUse fails the test unless the code printed 200 and ServiceNow's API gave these answers. There may be one login
// before the first answer, and one after a 401.
func (w *world) expectUse(output string, answers chan int, want []int) {
	w.t.Helper()
	if strings.TrimSpace(output) != "200" || w.SecretIn(output) != "" {
		w.t.Errorf("the code printed %q; want 200", output)
	}
	var got []int
	for len(answers) > 0 {
		got = append(got, <-answers)
	}
	if !slices.Equal(got, want) {
		w.t.Errorf("the API answered %v; want %v", got, want)
	}
	w.expectLogins(0, len(want))
	w.expectToken()
	w.expectFailures(noFailure)
}

// block returns the only code in a language that a file contains.
func block(t *testing.T, file, language string) string {
	t.Helper()
	parts := strings.Split(readFile(file), "\n```"+language+"\n")
	if len(parts) != 2 {
		t.Fatalf("%s has %d blocks in %s; want 1", file, len(parts)-1, language)
	}
	code, _, _ := strings.Cut(parts[1], "```")
	return code
}

// shell runs a command in dir, and returns what it printed.
func shell(t *testing.T, dir string, env []string, line string) string {
	t.Helper()
	command := exec.Command("sh", "-c", line)
	command.Dir, command.Env = dir, env
	output, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, output)
	}
	return string(output)
}
