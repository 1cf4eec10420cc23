// Package windmill is a Windmill 1.713.1 on this machine, as far as a Go script needs one: a workspace's resources
// behind the REST API, and a worker that builds and runs scripts. Source: windmill-labs/windmill, backend:
// resources.rs and windmill-worker/src/go_executor.rs.
package windmill

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// Rights are a user's, by folder, such as f/ServiceNow: true is write, false is read, as in Windmill's extra_perms.
type Rights map[string]bool

// Workspace serves get_value and create below /api/w/{Name}/resources/. Set its fields before or between calls.
type Workspace struct {
	Name      string
	Users     map[string]Rights // by token
	Variables map[string]string // by path
	// Fault, if not nil, is called first with each call, n from 1. True: it has answered.
	Fault func(w http.ResponseWriter, r *http.Request, n int) bool

	resources sync.Map // of json.RawMessage, by path
	mu        sync.Mutex
	calls     []string
}

// Set stores a resource's value, whatever the rights.
func (ws *Workspace) Set(at string, value json.RawMessage) { ws.resources.Store(at, value) }

// Get returns a resource's value as it is stored, or nil if there is none.
func (ws *Workspace) Get(at string) json.RawMessage {
	value, _ := ws.resources.Load(at)
	stored, _ := value.(json.RawMessage)
	return stored
}

// Delete removes a resource.
func (ws *Workspace) Delete(at string) { ws.resources.Delete(at) }

// Calls are the methods and paths of all calls so far, also of those that Fault answered or that were refused.
func (ws *Workspace) Calls() []string {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return slices.Clip(ws.calls)
}

// ServeHTTP answers as Windmill does.
func (ws *Workspace) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	endpoint := strings.TrimPrefix(r.URL.EscapedPath(), "/api/w/"+url.PathEscape(ws.Name)+"/resources/")
	action, escaped, _ := strings.Cut(endpoint, "/")
	var resource struct {
		Path  string
		Value json.RawMessage
	}
	resource.Path, _ = url.PathUnescape(escaped)
	body, _ := io.ReadAll(r.Body)
	_ = json.Unmarshal(body, &resource) // what broke off has no path, and is refused
	r.Body = io.NopCloser(bytes.NewReader(body))
	ws.mu.Lock()
	ws.calls = append(ws.calls, r.Method+" "+resource.Path)
	n := len(ws.calls)
	ws.mu.Unlock()
	if ws.Fault != nil && ws.Fault(w, r, n) {
		return
	}
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	status, text := http.StatusNotFound, "Not found: no such route"
	switch _, known := ws.Users[token]; {
	case !known:
		status, text = http.StatusUnauthorized, "Not authorized: Unauthorized"
	case r.Method+" "+action == "GET get_value":
		status, text = ws.read(resource.Path, token)
	case r.Method+" "+action == "POST create":
		status, text = ws.create(resource.Path, resource.Value, token, r.URL.Query().Get("update_if_exists") == "true")
	}
	w.Header().Set("Content-Type", "text/plain")
	if status == http.StatusOK {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text) // a client that has gone needs no answer
}

// mayRead reports whether the token's user may read what stands at a path.
func (ws *Workspace) mayRead(token, at string) bool {
	_, may := ws.Users[token][path.Dir(at)]
	return may
}

func (ws *Workspace) read(at, token string) (status int, text string) {
	value := ws.Get(at)
	switch {
	case value == nil:
		return http.StatusNotFound, "Not found: Resource " + at + " not found"
	case !ws.mayRead(token, at):
		return http.StatusUnauthorized, "Not authorized: Resource exists but you don't have access to it:\n" +
			"folder perms: {}\ngroups: [all]\ntoken prefix: " + token[:min(10, len(token))]
	}
	return http.StatusOK, string(value)
}

func (ws *Workspace) create(at string, value json.RawMessage, token string, update bool) (status int, text string) {
	switch {
	case !ws.Users[token][path.Dir(at)]:
		return http.StatusBadRequest, "SqlErr: error returned from database: new row violates " +
			`row-level security policy for table "resource" @resources.rs:872:5`
	case ws.Get(at) != nil && !update:
		return http.StatusBadRequest, "Bad request: Resource " + at + " already exists"
	}
	ws.Set(at, value)
	return http.StatusCreated, "resource " + at + " created"
}

// reference is a JSON string that names a resource or a variable.
var reference = regexp.MustCompile(`"\$(res|var):[^"\\]+"`)

// resolve puts resources and variables in the place of the strings in a JSON value that name them. All else stays as
// it is, the digits of numbers too. What the token's user may not read is an error.
func (ws *Workspace) resolve(value []byte, token string) ([]byte, error) {
	var failure error
	resolved := reference.ReplaceAllFunc(value, func(name []byte) []byte {
		kind, at, _ := strings.Cut(strings.Trim(string(name), `"$`), ":")
		if kind == "var" {
			variable, found := ws.Variables[at]
			if !found || !ws.mayRead(token, at) {
				failure = errors.New("Not found: Variable " + at + " not found")
			}
			content, _ := json.Marshal(variable) // a string always has a JSON form
			return content
		}
		status, text := ws.read(at, token)
		if status != http.StatusOK {
			failure = errors.New(text)
			return nil
		}
		content, err := ws.resolve([]byte(text), token)
		failure = errors.Join(failure, err)
		return content
	})
	return resolved, failure
}
