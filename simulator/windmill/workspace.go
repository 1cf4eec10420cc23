// Package windmill simulates a Windmill server 1.713.1 and its workers, as far as this project's scripts need them:
// the resources of a workspace, the job queue, and jobs that run as processes.
//
// It follows windmill-labs/windmill, backend: windmill-store/src/resources.rs, windmill-api/src/jobs.rs, and
// windmill-worker/src/go_executor.rs.
package windmill

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// User is a user with rights.
type User struct {
	Name    string          // such as u/admin
	Folders map[string]bool // such as f/ServiceNow: true for write, false for read, as in Windmill's extra_perms
}

// Workspace serves the API of one workspace below /api/w/{Name}/. Set its fields before or between calls.
type Workspace struct {
	Name      string
	Users     map[string]User   // by API token
	Variables map[string]string // by path
	Now       func() time.Time  // the clock of the database
	// Intercept, if not nil, sees the nth call first. If it returns true, it has answered the call itself.
	Intercept func(w http.ResponseWriter, r *http.Request, n int) bool

	mu        sync.Mutex
	resources map[string]json.RawMessage
	calls     []string
	queue     []QueuedJob
	started   map[string]*Done // by job ID; nil while the job runs
	start     func(job Job)    // runs a job that a client starts
}

// Set stores the value of a resource, whatever the rights.
func (ws *Workspace) Set(at string, value json.RawMessage) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.resources == nil {
		ws.resources = make(map[string]json.RawMessage)
	}
	ws.resources[at] = value
}

// Get returns the value of a resource as it is stored, or nil if there is none.
func (ws *Workspace) Get(at string) json.RawMessage {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return ws.resources[at]
}

// Delete removes a resource.
func (ws *Workspace) Delete(at string) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	delete(ws.resources, at)
}

// Calls returns the method and endpoint of all calls so far, such as "GET resources/get_value/f/a/b". A create has the
// path of the resource at its end, too.
func (ws *Workspace) Calls() []string {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return slices.Clip(ws.calls)
}

// answer is what the server sends back. An empty kind is JSON.
type answer struct {
	status int
	kind   string
	body   []byte
}

func plain(status int, text string) answer {
	return answer{status: status, kind: "text/plain", body: []byte(text)}
}

func encoded(value any) answer {
	body, _ := json.Marshal(value) // The values that the server makes always encode.
	return answer{status: http.StatusOK, kind: "application/json", body: body}
}

// ServeHTTP answers like Windmill.
func (ws *Workspace) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	endpoint := strings.TrimPrefix(r.URL.Path, "/api/w/"+ws.Name+"/")
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	n := ws.note(r.Method+" "+endpoint, body)
	if ws.Intercept != nil && ws.Intercept(w, r, n) {
		return
	}
	got := ws.answer(r, endpoint, body)
	w.Header().Set("Content-Type", got.kind)
	w.WriteHeader(got.status)
	_, _ = w.Write(got.body) // A client that has gone needs no answer.
}

// note adds a call to the list, and returns its length.
func (ws *Workspace) note(call string, body []byte) (n int) {
	if call == "POST resources/create" {
		var resource struct{ Path string }
		_ = json.Unmarshal(body, &resource) // A body that broke off has no path.
		call += "/" + resource.Path
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.calls = append(ws.calls, call)
	return len(ws.calls)
}

// answer finds the endpoint for a request.
func (ws *Workspace) answer(r *http.Request, endpoint string, body []byte) answer {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if _, isKnown := ws.Users[token]; !isKnown {
		return plain(http.StatusUnauthorized, "Not authorized: Unauthorized")
	}
	var resource struct {
		Path  string          `json:"path"`
		Value json.RawMessage `json:"value"`
	}
	routes := []struct {
		prefix string
		handle func(rest string) answer
	}{
		{"GET resources/get_value/", func(at string) answer { return ws.read(at, token, false) }},
		{"GET resources/get_value_interpolated/", func(at string) answer { return ws.read(at, token, true) }},
		{"GET resources/get/", func(at string) answer { return ws.read(at, token, false) }},
		{"GET resources/exists/", func(at string) answer { return encoded(ws.Get(at) != nil) }},
		{"POST resources/create", func(string) answer {
			_ = json.Unmarshal(body, &resource) // A body that broke off has no path, so it is refused.
			return ws.create(resource.Path, resource.Value, token, r.URL.Query().Get("update_if_exists") == "true")
		}},
		{"POST resources/update_value/", func(at string) answer {
			_ = json.Unmarshal(body, &resource)
			return ws.update(at, resource.Value, token)
		}},
		{"GET jobs/queue/list", func(string) answer { return encoded(ws.list(r.URL.Query(), token)) }},
		{"POST jobs/run/p/", func(at string) answer { return ws.run(at, body, r.URL.Query(), token) }},
		{"GET jobs_u/completed/get_result_maybe/", func(id string) answer { return ws.result(id) }},
	}
	for _, route := range routes {
		if rest, isThis := strings.CutPrefix(r.Method+" "+endpoint, route.prefix); isThis {
			return route.handle(rest)
		}
	}
	return plain(http.StatusNotFound, "Not found: no such route")
}

// mayRead reports whether the user may read what lies at a path.
func (ws *Workspace) mayRead(token, at string) bool {
	_, isGranted := ws.Users[token].Folders[path.Dir(at)]
	return isGranted
}

func (ws *Workspace) mayWrite(token, at string) bool { return ws.Users[token].Folders[path.Dir(at)] }

// read returns a resource's value. Interpolation replaces the references in it.
func (ws *Workspace) read(at, token string, interpolate bool) answer {
	value := ws.Get(at)
	if value == nil {
		return plain(http.StatusNotFound, "Not found: Resource "+at+" not found")
	}
	if !ws.mayRead(token, at) {
		return plain(http.StatusUnauthorized, "Not authorized: Resource exists but you don't have access to it:\n"+
			"folder perms: {}\ngroups: [all]\ntoken prefix: "+token[:min(10, len(token))])
	}
	if !interpolate {
		return answer{status: http.StatusOK, kind: "application/json", body: value}
	}
	resolved, err := ws.resolve(value, token)
	if err != nil {
		return plain(http.StatusNotFound, err.Error())
	}
	return answer{status: http.StatusOK, kind: "application/json", body: resolved}
}

func (ws *Workspace) create(at string, value json.RawMessage, token string, replace bool) answer {
	if !ws.mayWrite(token, at) {
		return plain(http.StatusBadRequest, "SqlErr: error returned from database: new row violates "+
			`row-level security policy for table "resource" @resources.rs:872:5`)
	}
	if ws.Get(at) != nil && !replace {
		return plain(http.StatusBadRequest, "Bad request: Resource "+at+" already exists")
	}
	ws.Set(at, value)
	return plain(http.StatusCreated, "resource "+at+" created")
}

// update answers 200 even if it stores nothing, because the resource does not exist or the user may not write it.
func (ws *Workspace) update(at string, value json.RawMessage, token string) answer {
	if ws.Get(at) != nil && ws.mayWrite(token, at) {
		ws.Set(at, value)
	}
	return plain(http.StatusOK, "value of resource "+at+" updated")
}

// reference is a JSON string that names a resource or a variable.
var reference = regexp.MustCompile(`"\$(res|var):[^"\\]+"`)

// resolve replaces the JSON strings that name a resource or a variable. It is an error if the user may not read one.
func (ws *Workspace) resolve(value []byte, token string) ([]byte, error) {
	var failure error
	resolved := reference.ReplaceAllFunc(value, func(name []byte) []byte {
		kind, at, _ := strings.Cut(strings.Trim(string(name), `"$`), ":")
		if kind == "var" {
			variable, isFound := ws.Variables[at]
			if !isFound || !ws.mayRead(token, at) {
				failure = errors.New("Not found: Variable " + at + " not found")
			}
			return encoded(variable).body
		}
		got := ws.read(at, token, true)
		if got.status != http.StatusOK {
			failure = errors.New(string(got.body))
		}
		return got.body
	})
	return resolved, failure
}
