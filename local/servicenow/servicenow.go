// Package servicenow is a ServiceNow instance on this machine, as far as jobs
// need it: the token endpoint by its documentation (OAuth API request and response
// parameters; KB0791140) and by captures in public clients, and the Aggregate API
// for incidents.
package servicenow

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"servicenow-token/local/wire"
)

// Account is a user and the OAuth application through which the user logs in.
type Account struct {
	ClientID, ClientSecret, Username, Password string
}

// Instance answers POST /oauth_token.do and GET /api/now/stats/incident. Set
// its fields before it is served; the zero value has no accounts.
type Instance struct {
	wire.Recorder

	// Now is the instance's clock; nil means time.Now.
	Now func() time.Time
	// Lifetime is that of a token; zero means 30 minutes, ServiceNow's default.
	Lifetime time.Duration
	// Remaining makes a login while a token is valid leave its expiry as it is.
	// Without it, the expiry is renewed for a full lifetime. ServiceNow's texts
	// tell of both.
	Remaining bool
	// Incidents has the number of open incidents of each priority.
	Incidents map[string]int

	mu       sync.Mutex
	failed   map[string]failures // by the user's name
	accounts map[Account]bool
	tokens   map[grant]*token
	issued   []string
}

// A user is locked after lockAfter failed logins in a row, for unlockAfter: the
// defaults of glide.user.max_unlock_attempts and glide.user.unlock_timeout_in_mins.
const (
	lockAfter   = 5
	unlockAfter = 15 * time.Minute
)

// failures are a user's failed logins in a row.
type failures struct {
	count int
	last  time.Time
}

// Locked reports whether a user is locked out.
func (i *Instance) Locked(username string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.locked(username)
}

func (i *Instance) locked(username string) bool {
	failed := i.failed[username]
	return failed.count >= lockAfter && i.now().Sub(failed.last) < unlockAfter
}

// grant is to whom a token is given. A change of password leaves it as it is; whether
// ServiceNow then ends the token is not documented.
type grant struct{ clientID, username string }

// token is what a grant came to last.
type token struct {
	value   string
	expires time.Time
}

// SetAccount adds an account, or removes one: its logins are then refused.
func (i *Instance) SetAccount(account Account, active bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.accounts == nil {
		i.accounts = make(map[Account]bool)
	}
	i.accounts[account] = active
}

// Revoke ends every token; the next login gets a new one.
func (i *Instance) Revoke() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.tokens = nil
}

// Valid reports whether the instance would accept value as a bearer token now.
func (i *Instance) Valid(value string) bool { return i.Remains(value) > 0 }

// Remains returns for how long the instance would accept value as a bearer token;
// it is not positive if it does not.
func (i *Instance) Remains(value string) time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, t := range i.tokens {
		if t.value == value {
			return t.expires.Sub(i.now())
		}
	}
	return 0
}

// Issued returns every access and refresh token that the instance ever gave.
func (i *Instance) Issued() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]string(nil), i.issued...)
}

func (i *Instance) now() time.Time {
	if i.Now != nil {
		return i.Now()
	}
	return time.Now()
}

// ServeHTTP answers as the instance does.
func (i *Instance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.Record(i.serve)(w, r)
}

func (i *Instance) serve(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/oauth_token.do":
		i.serveToken(w, r)
	case "/api/now/stats/incident":
		i.serveIncidents(w, r)
	default:
		w.Header().Set("Content-Type", "text/html;charset=UTF-8")
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte("<html><title>Page not found</title></html>"))
	}
}

// serveIncidents counts the open incidents by priority, by the one query that it knows.
func (i *Instance) serveIncidents(w http.ResponseWriter, r *http.Request) {
	bearer, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !found || !i.Valid(bearer) {
		answer(w, http.StatusUnauthorized, map[string]any{
			"error":  map[string]string{"message": "User Not Authenticated", "detail": "Required to provide Auth information"},
			"status": "failure",
		})
		return
	}
	query := r.URL.Query()
	if query.Get("sysparm_query") != "active=true" || query.Get("sysparm_count") != "true" || query.Get("sysparm_group_by") != "priority" {
		answer(w, http.StatusBadRequest, map[string]any{"error": map[string]string{"message": "unknown query"}, "status": "failure"})
		return
	}
	result := []any{}
	for priority, count := range i.Incidents {
		result = append(result, map[string]any{
			"stats":          map[string]string{"count": strconv.Itoa(count)},
			"groupby_fields": []map[string]string{{"field": "priority", "value": priority}},
		})
	}
	answer(w, http.StatusOK, map[string]any{"result": result})
}

func (i *Instance) serveToken(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil || r.Method != http.MethodPost || r.URL.RawQuery != "" {
		refuse(w)
		return
	}
	account := Account{
		ClientID: r.PostForm.Get("client_id"), ClientSecret: r.PostForm.Get("client_secret"),
		Username: r.PostForm.Get("username"), Password: r.PostForm.Get("password"),
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.failed == nil {
		i.failed = make(map[string]failures)
	}
	if r.PostForm.Get("grant_type") != "password" || !i.accounts[account] || i.locked(account.Username) {
		failed := i.failed[account.Username]
		if !i.locked(account.Username) { // what a locked user tries does not lock it for longer
			if failed.count >= lockAfter {
				failed.count = 0
			}
			i.failed[account.Username] = failures{failed.count + 1, i.now()}
		}
		refuse(w)
		return
	}
	delete(i.failed, account.Username)
	lifetime := i.Lifetime
	if lifetime == 0 {
		lifetime = 30 * time.Minute
	}
	now := i.now()
	to := grant{account.ClientID, account.Username}
	current := i.tokens[to]
	switch {
	// A token with less than a second left would be given with expires_in 0.
	case current == nil || current.expires.Sub(now) < time.Second:
		current = &token{i.issue(), now.Add(lifetime)}
		if i.tokens == nil {
			i.tokens = make(map[grant]*token)
		}
		i.tokens[to] = current
	case !i.Remaining:
		current.expires = now.Add(lifetime)
	}
	answer(w, http.StatusOK, map[string]any{
		"access_token":  current.value,
		"refresh_token": i.issue(),
		"scope":         "useraccount",
		"token_type":    "Bearer",
		"expires_in":    int(current.expires.Sub(now).Seconds()),
	})
}

// issue makes a token of 86 characters, as ServiceNow's opaque ones have at most.
func (i *Instance) issue() string {
	random := make([]byte, 64)
	_, _ = rand.Read(random) // never fails, by its documentation
	value := base64.RawURLEncoding.EncodeToString(random)
	i.issued = append(i.issued, value)
	return value
}

// refuse answers as ServiceNow does to nearly every refused login, whatever the cause.
func refuse(w http.ResponseWriter) {
	answer(w, http.StatusUnauthorized, json.RawMessage(`{"error_description":"access_denied","error":"server_error"}`))
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a client that has gone needs no answer
}
