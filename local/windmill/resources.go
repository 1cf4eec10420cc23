// Package windmill is a Windmill on this machine, as far as a Go script needs
// it: a workspace's resources behind the REST API, and a worker that builds and
// runs scripts. Sources: windmill-labs/windmill, backend, resources.rs and
// windmill-worker/src/go_executor.rs.
package windmill

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"servicenow-token/local/wire"
)

// Right is what somebody may do in a folder.
type Right int

// Write includes Read; the zero Right is none.
const (
	Read Right = iota + 1
	Write
)

// Rights are those of a workspace token's owner, by folder, such as f/ServiceNow.
type Rights map[string]Right

// at returns the right to what is at path.
func (r Rights) at(path string) Right { return r[folderOf(path)] }

// folderOf returns the folder in which path lies: its first two parts.
func folderOf(path string) string {
	parts := strings.SplitN(path, "/", 3)
	return strings.Join(parts[:min(2, len(parts))], "/")
}

// Resource is a typed value.
type Resource struct {
	Type  string
	Value json.RawMessage
}

// Workspace serves the resource API of one workspace. The zero value is an empty
// workspace without folders and with no token.
type Workspace struct {
	wire.Recorder

	// Name is the workspace's, as in /api/w/{Name}/.
	Name string
	// OldCreate makes create without the right to write answer 400, as servers
	// before mid-2026 do.
	OldCreate bool
	// OldUpdate makes update_value answer 200 where it stores nothing, as servers
	// before August 2026 do.
	OldUpdate bool
	// Protected stands for a protection rule that forbids direct changes.
	Protected bool

	mu        sync.Mutex
	folders   map[string]bool
	resources map[string]Resource
	variables map[string]string
	tokens    map[string]Rights
}

// AddFolder makes a folder, such as f/ServiceNow.
func (ws *Workspace) AddFolder(path string) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	put(&ws.folders, path, true)
}

// AddToken makes a workspace token.
func (ws *Workspace) AddToken(token string, rights Rights) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	put(&ws.tokens, token, rights)
}

// SetVariable gives the variable at path a value.
func (ws *Workspace) SetVariable(path, value string) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	put(&ws.variables, path, value)
}

// SetResource gives the resource at path a type and a value.
func (ws *Workspace) SetResource(path string, resource Resource) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	put(&ws.resources, path, resource)
}

// DeleteResource removes the resource at path.
func (ws *Workspace) DeleteResource(path string) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	delete(ws.resources, path)
}

// Resource returns the resource at path as it is stored.
func (ws *Workspace) Resource(path string) (resource Resource, ok bool) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	resource, ok = ws.resources[path]
	return resource, ok
}

// put sets a key of a map that may not have been made yet.
func put[V any](m *map[string]V, key string, value V) {
	if *m == nil {
		*m = make(map[string]V)
	}
	(*m)[key] = value
}

// ServeHTTP answers as Windmill does.
func (ws *Workspace) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ws.Record(ws.serve)(w, r)
}

func (ws *Workspace) serve(w http.ResponseWriter, r *http.Request) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	rights, known := ws.tokens[token]
	if !known {
		refuse(w, http.StatusUnauthorized, "Unauthorized")
		return
	}
	endpoint, ours := strings.CutPrefix(r.URL.EscapedPath(), "/api/w/"+url.PathEscape(ws.Name)+"/resources/")
	action, escaped, _ := strings.Cut(endpoint, "/")
	path, err := url.PathUnescape(escaped)
	if !ours || err != nil {
		refuse(w, http.StatusNotFound, "Not found: no such route")
		return
	}
	switch r.Method + " " + action {
	case "GET get_value_interpolated":
		ws.serveValue(w, path, rights)
	case "POST create":
		ws.serveCreate(w, r, rights)
	case "POST update_value":
		ws.serveUpdate(w, r, path, rights)
	default:
		refuse(w, http.StatusNotFound, "Not found: no such route")
	}
}

func (ws *Workspace) serveValue(w http.ResponseWriter, path string, rights Rights) {
	resource, ok := ws.resources[path]
	if !ok {
		refuse(w, http.StatusNotFound, fmt.Sprintf("Not found: Resource %s not found", path))
		return
	}
	if rights.at(path) < Read {
		refuse(w, http.StatusUnauthorized, "Not authorized: Resource exists but you don't have access to it:\n"+
			"resource perms: {}\nfolder perms: {}")
		return
	}
	value, err := ws.interpolate(resource.Value, rights)
	if err != nil {
		refuse(w, http.StatusNotFound, "Not found: "+err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	bare := json.NewEncoder(w)
	bare.SetEscapeHTML(false)
	_ = bare.Encode(value) // a client that has gone needs no answer
}

func (ws *Workspace) serveCreate(w http.ResponseWriter, r *http.Request, rights Rights) {
	if ws.Protected {
		refuse(w, http.StatusForbidden, protected)
		return
	}
	var body struct {
		Path  string
		Value json.RawMessage
		Type  string `json:"resource_type"`
	}
	err := json.NewDecoder(r.Body).Decode(&body)
	parts := strings.Split(body.Path, "/")
	if err != nil || body.Type == "" || len(parts) < 3 || parts[0] != "f" {
		refuse(w, http.StatusBadRequest, "Bad request: invalid path or type")
		return
	}
	if rights.at(body.Path) < Write || !ws.folders[folderOf(body.Path)] {
		// The database refuses the row; newer servers translate what it says.
		if ws.OldCreate {
			refuse(w, http.StatusBadRequest, `SqlErr: new row violates row-level security policy for table "resource"`)
		} else {
			refuse(w, http.StatusUnauthorized, "Not authorized: You don't have write permission at this path")
		}
		return
	}
	if _, exists := ws.resources[body.Path]; exists && r.URL.Query().Get("update_if_exists") != "true" {
		refuse(w, http.StatusBadRequest, "Bad request: Resource "+body.Path+" already exists")
		return
	}
	put(&ws.resources, body.Path, Resource{body.Type, body.Value})
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, "resource %s created", body.Path)
}

func (ws *Workspace) serveUpdate(w http.ResponseWriter, r *http.Request, path string, rights Rights) {
	if ws.Protected {
		refuse(w, http.StatusForbidden, protected)
		return
	}
	var body struct{ Value json.RawMessage }
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		refuse(w, http.StatusBadRequest, "Bad request: invalid body")
		return
	}
	resource, ok := ws.resources[path]
	switch {
	case ok && rights.at(path) == Write:
		resource.Value = body.Value
		ws.resources[path] = resource
	case !ws.OldUpdate:
		refuse(w, http.StatusNotFound, fmt.Sprintf("Not found: Resource %s not found", path))
		return
	}
	fmt.Fprintf(w, "value of resource %s updated", path)
}

// interpolate replaces the strings in value that stand for a variable or another
// resource, as Windmill does when it hands a value out, under the reader's own
// rights. Without a lock of its own.
func (ws *Workspace) interpolate(value json.RawMessage, rights Rights) (any, error) {
	parsed, err := parse(value)
	if err != nil {
		return nil, err
	}
	return ws.expand(parsed, rights, 0)
}

// parse reads a JSON value and keeps the digits of its numbers, as Windmill does.
func parse(value []byte) (parsed any, err error) {
	decoder := json.NewDecoder(bytes.NewReader(value))
	decoder.UseNumber()
	err = decoder.Decode(&parsed)
	return parsed, err
}

func (ws *Workspace) expand(value any, rights Rights, depth int) (any, error) {
	if depth > 20 {
		return nil, errors.New("references nested too deeply")
	}
	switch value := value.(type) {
	case map[string]any:
		for key, part := range value {
			expanded, err := ws.expand(part, rights, depth+1)
			if err != nil {
				return nil, err
			}
			value[key] = expanded
		}
	case []any:
		for i, part := range value {
			expanded, err := ws.expand(part, rights, depth+1)
			if err != nil {
				return nil, err
			}
			value[i] = expanded
		}
	case string:
		return ws.expandString(value, rights, depth)
	}
	return value, nil
}

func (ws *Workspace) expandString(text string, rights Rights, depth int) (any, error) {
	kind, path, found := strings.Cut(text, ":")
	switch {
	case found && kind == "$res":
		resource, ok := ws.resources[path]
		if !ok || rights.at(path) < Read {
			return nil, fmt.Errorf("resource %s not found", path)
		}
		parsed, err := parse(resource.Value)
		if err != nil {
			return nil, err
		}
		return ws.expand(parsed, rights, depth+1)
	case found && (kind == "$var" || kind == "$jsonvar"):
		variable, ok := ws.variables[path]
		if !ok || rights.at(path) < Read {
			return nil, fmt.Errorf("variable %s not found", path)
		}
		if kind == "$var" {
			return variable, nil
		}
		return parse([]byte(variable))
	}
	return text, nil
}

// protected is what a protection rule answers (DisableDirectDeployment).
const protected = "Permission denied: Cannot directly deploy in this workspace. Fork or Pull request required."

// refuse answers in the way of Windmill's errors.
func refuse(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // a client that has gone needs no answer
}
