// Package windmill is a Windmill 1.713.1 on this machine, as far as a Go script
// needs one: a workspace's resources behind the REST API, and a worker that builds
// and runs scripts. Source: windmill-labs/windmill, backend: resources.rs and
// windmill-worker/src/go_executor.rs.
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

// Right is what somebody may do in a folder. The zero Right is none.
type Right int

// Write includes Read.
const (
	Read Right = iota + 1
	Write
)

// Rights are a user's, by folder, such as f/ServiceNow.
type Rights map[string]Right

// Resource is a typed value, as it is stored.
type Resource struct {
	Type  string          `json:"resource_type"`
	Value json.RawMessage `json:"value"`
}

// Call is a call of the API. Path is the resource's.
type Call struct{ Method, Path string }

// Workspace serves get_value and create below /api/w/{Name}/resources/. The zero
// value has no folders, no users and no resources.
type Workspace struct {
	Name string
	// Fault, if not nil, is called before each call is looked at, without a lock. True
	// means that it has answered. n counts from 1. Set it between calls.
	Fault func(w http.ResponseWriter, r *http.Request, n int) bool

	mu        sync.Mutex
	folders   map[string]bool
	users     map[string]Rights // by token
	variables map[string]string
	resources map[string]Resource
	calls     []Call
}

// lock returns the function that unlocks, for a defer.
func (ws *Workspace) lock() (unlock func()) {
	ws.mu.Lock()
	if ws.folders == nil {
		ws.folders, ws.users = map[string]bool{}, map[string]Rights{}
		ws.variables, ws.resources = map[string]string{}, map[string]Resource{}
	}
	return ws.mu.Unlock
}

// AddFolder makes a folder, such as f/ServiceNow.
func (ws *Workspace) AddFolder(path string) { defer ws.lock()(); ws.folders[path] = true }

// AddUser lets a token in, with the rights of its user.
func (ws *Workspace) AddUser(token string, rights Rights) {
	defer ws.lock()()
	ws.users[token] = rights
}

// SetVariable gives a variable its value.
func (ws *Workspace) SetVariable(path, value string) { defer ws.lock()(); ws.variables[path] = value }

// Set stores a resource, whatever the rights.
func (ws *Workspace) Set(path string, r Resource) { defer ws.lock()(); ws.resources[path] = r }

// Get returns a resource as it is stored.
func (ws *Workspace) Get(path string) (Resource, bool) {
	defer ws.lock()()
	r, found := ws.resources[path]
	return r, found
}

// Delete removes a resource.
func (ws *Workspace) Delete(path string) { defer ws.lock()(); delete(ws.resources, path) }

// Calls are the calls so far, in the order in which they came.
func (ws *Workspace) Calls() []Call {
	defer ws.lock()()
	return slices.Clip(ws.calls)
}

// ServeHTTP answers as Windmill does.
func (ws *Workspace) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var row struct {
		Path string
		Resource
	}
	body, _ := io.ReadAll(r.Body)
	_ = json.Unmarshal(body, &row) // what broke off has no path, and is refused
	r.Body = io.NopCloser(bytes.NewReader(body))
	endpoint := strings.TrimPrefix(r.URL.EscapedPath(), "/api/w/"+url.PathEscape(ws.Name)+"/resources/")
	action, escaped, _ := strings.Cut(endpoint, "/")
	if action != "create" {
		row.Path, _ = url.PathUnescape(escaped)
	}
	unlock := ws.lock()
	ws.calls = append(ws.calls, Call{Method: r.Method, Path: row.Path})
	n := len(ws.calls)
	unlock()
	if ws.Fault != nil && ws.Fault(w, r, n) {
		return
	}

	unlock = ws.lock()
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	status, text := http.StatusNotFound, "Not found: no such route"
	switch _, known := ws.users[token]; {
	case !known:
		status, text = http.StatusUnauthorized, "Not authorized: Unauthorized"
	case r.Method+" "+action == "GET get_value":
		status, text = ws.read(row.Path, token)
	case r.Method+" "+action == "POST create":
		status, text = ws.create(row.Path, row.Resource, token, r.URL.Query().Get("update_if_exists") == "true")
	}
	unlock()
	w.Header().Set("Content-Type", "text/plain")
	if status == http.StatusOK {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text) // a client that has gone needs no answer
}

// read answers get_value. Like create and expand, it needs the lock held.
func (ws *Workspace) read(at, token string) (status int, text string) {
	resource, found := ws.resources[at]
	if !found {
		return http.StatusNotFound, "Not found: Resource " + at + " not found"
	}
	if ws.users[token][path.Dir(at)] < Read {
		return http.StatusUnauthorized, "Not authorized: Resource exists but you don't have access to it:\n" +
			"folder perms: {}\ngroups: [all]\ntoken prefix: " + token[:min(10, len(token))]
	}
	return http.StatusOK, string(resource.Value)
}

// create answers create, which replaces type and value.
func (ws *Workspace) create(at string, r Resource, token string, update bool) (status int, text string) {
	folder := path.Dir(at)
	_, exists := ws.resources[at]
	switch {
	case r.Type == "" || r.Value == nil:
		return http.StatusBadRequest, "Bad request: no type or value"
	case ws.users[token][folder] < Write || !ws.folders[folder]:
		return http.StatusBadRequest, "SqlErr: error returned from database: new row violates " +
			`row-level security policy for table "resource" @resources.rs:872:5`
	case exists && !update:
		return http.StatusBadRequest, "Bad request: Resource " + at + " already exists"
	}
	ws.resources[at] = r
	return http.StatusCreated, "resource " + at + " created"
}

// resolve returns the JSON of a job's arguments, resources and variables in the place
// of the strings that name them, as far as the token's user may read them.
func (ws *Workspace) resolve(args map[string]any, token string) ([]byte, error) {
	given, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	defer ws.lock()()
	return ws.expand(given, token, 0)
}

// reference is a JSON string that names a resource or a variable.
var reference = regexp.MustCompile(`"\$(res|var):[^"\\]+"`)

// expand leaves all else in a JSON value as it is, the digits of numbers too.
func (ws *Workspace) expand(value []byte, token string, depth int) ([]byte, error) {
	var failure error
	expanded := reference.ReplaceAllFunc(value, func(name []byte) []byte {
		kind, at, _ := strings.Cut(strings.Trim(string(name), `"`), ":")
		if kind == "$var" {
			variable, found := ws.variables[at]
			if !found || ws.users[token][path.Dir(at)] < Read {
				failure = errors.New("Not found: Variable " + at + " not found")
			}
			content, _ := json.Marshal(variable) // a string always has a JSON form
			return content
		}
		status, text := ws.read(at, token)
		if depth > 20 {
			status, text = http.StatusBadRequest, "Bad request: resources that name each other"
		}
		if status != http.StatusOK {
			failure = errors.New(text)
			return nil
		}
		content, err := ws.expand([]byte(text), token, depth+1)
		failure = errors.Join(failure, err)
		return content
	})
	return expanded, failure
}
