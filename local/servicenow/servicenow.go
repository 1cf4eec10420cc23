// Package servicenow is a ServiceNow instance on this machine, as far as jobs need one: the count of open incidents, and
// the token endpoint by ServiceNow's documentation (KB0791140, KB0749501) and by captures in public clients.
package servicenow

import (
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// Account is who may log in, without Username and Password by the client credentials grant, else by the password grant.
type Account struct{ ClientID, ClientSecret, Username, Password string }

// Instance answers POST /oauth_token.do and GET /api/now/stats/incident. Set its fields before it is served, or
// between requests. It needs Now.
type Instance struct {
	Now         func() time.Time
	Accounts    map[Account]bool // false: inactive, so that its logins are refused
	Lifetime    time.Duration    // of a token, from its last login on; zero: 30 minutes, ServiceNow's default
	LockAfter   int              // so many failed logins in a row lock a user for 15 minutes; zero: 5
	Hibernating bool             // a developer instance that sleeps: an HTML page with status 200
	Incidents   map[string]int   // the number of open ones, by priority
	// Fault, if not nil, is called first with each token request, its form parsed, n from 1. True: it has answered.
	Fault func(w http.ResponseWriter, r *http.Request, n int) bool

	mu       sync.Mutex
	forms    []url.Values
	refusals map[string]Refusals
	tokens   map[Account]token // by client id and user alone: a change of password leaves them
	issued   []string
}

// Refusals are the refused logins of a user, or of a client id where there is no user, without what Fault answers.
type Refusals struct {
	All, InARow int       // a client id has none in a row
	LockedUntil time.Time // zero: never locked out
}

// token is what an account was given last. A login while it is valid gets it again.
type token struct {
	value   string
	expires time.Time
}

// lock returns the function that unlocks, for a defer.
func (i *Instance) lock() (unlock func()) { i.mu.Lock(); return i.mu.Unlock }

// Requests is the number of token requests so far, those that Fault answered included.
func (i *Instance) Requests() int { return len(i.Forms()) }

// Forms are the forms of the token requests so far.
func (i *Instance) Forms() []url.Values { defer i.lock()(); return slices.Clip(i.forms) }

// Refusals are those of a user, or of a client id, so far.
func (i *Instance) Refusals(name string) Refusals { defer i.lock()(); return i.refusals[name] }

// Issued is every access and refresh token that was ever given.
func (i *Instance) Issued() []string { defer i.lock()(); return slices.Clip(i.issued) }

// Revoke ends an access token. The next login gets a new one.
func (i *Instance) Revoke(value string) {
	defer i.lock()()
	maps.DeleteFunc(i.tokens, func(_ Account, t token) bool { return t.value == value })
}

// Valid reports whether value is accepted as a bearer token now.
func (i *Instance) Valid(value string) bool {
	defer i.lock()()
	for _, t := range i.tokens {
		if t.value == value {
			return i.Now().Before(t.expires)
		}
	}
	return false
}

// ServeHTTP answers as the instance does.
func (i *Instance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	isLogin := r.URL.Path == "/oauth_token.do"
	if isLogin {
		_ = r.ParseForm() // what cannot be parsed is missing, and the login refused
		i.mu.Lock()
		i.forms = append(i.forms, r.PostForm)
		n := len(i.forms)
		i.mu.Unlock()
		if i.Fault != nil && i.Fault(w, r, n) {
			return
		}
	}
	status, kind, body := http.StatusNotFound, "application/json;charset=utf-8", `{"error":{"message":"no such page"},"status":"failure"}`
	switch {
	case i.Hibernating:
		status, kind = http.StatusOK, "text/html;charset=UTF-8"
		body = `<html><title>Instance Hibernating page</title><body class="instance-hibernating-page"></body></html>`
	case isLogin:
		status, body = i.logIn(r)
	case r.URL.Path == "/api/now/stats/incident":
		status, body = i.countIncidents(r)
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body) // a client that has gone needs no answer
}

// logIn answers a token request whose form is parsed. What a locked user tries does not lock it for longer, and a
// client without a user cannot be locked.
func (i *Instance) logIn(r *http.Request) (status int, body string) {
	defer i.lock()()
	if i.tokens == nil {
		i.tokens, i.refusals = map[Account]token{}, map[string]Refusals{}
	}
	form, now := r.PostForm, i.Now()
	account := Account{form.Get("client_id"), form.Get("client_secret"), form.Get("username"), form.Get("password")}
	isUser, grantType := account.Username != "", "password"
	if !isUser {
		grantType = "client_credentials"
	}
	name := cmp.Or(account.Username, account.ClientID)
	past := i.refusals[name]
	defer func() { i.refusals[name] = past }()
	proper := r.Method == http.MethodPost && r.URL.RawQuery == "" && form.Get("grant_type") == grantType
	locked := now.Before(past.LockedUntil)
	if !proper || !i.Accounts[account] || locked {
		past.All++
		if isUser && !locked {
			past.InARow++
		}
		if past.InARow >= cmp.Or(i.LockAfter, 5) {
			past.InARow, past.LockedUntil = 0, now.Add(15*time.Minute)
		}
		return http.StatusUnauthorized, `{"error_description":"access_denied","error":"server_error"}`
	}
	past.InARow = 0
	of := Account{ClientID: account.ClientID, Username: account.Username}
	current, lifetime := i.tokens[of], cmp.Or(i.Lifetime, 30*time.Minute)
	if !now.Before(current.expires) {
		current.value = i.newToken()
	}
	current.expires = now.Add(lifetime)
	i.tokens[of] = current
	refresh := ""
	if isUser {
		refresh = fmt.Sprintf(`"refresh_token":%q,`, i.newToken())
	}
	return http.StatusOK, fmt.Sprintf(`{"access_token":%q,%s"scope":"useraccount","token_type":"Bearer","expires_in":%d}`,
		current.value, refresh, int(lifetime.Seconds()))
}

// newToken makes a token of 86 characters, the longest of ServiceNow's opaque ones.
func (i *Instance) newToken() string {
	random := make([]byte, 64)
	_, _ = rand.Read(random) // never fails, by its documentation
	i.issued = append(i.issued, base64.RawURLEncoding.EncodeToString(random))
	return i.issued[len(i.issued)-1]
}

// countIncidents answers the one query that it knows, as the Aggregate API does.
func (i *Instance) countIncidents(r *http.Request) (status int, body string) {
	bearer, isBearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !isBearer || !i.Valid(bearer) {
		return http.StatusUnauthorized,
			`{"error":{"message":"User Not Authenticated","detail":"Required to provide Auth information"},"status":"failure"}`
	}
	if r.URL.Query().Encode() != "sysparm_count=true&sysparm_group_by=priority&sysparm_query=active%3Dtrue" {
		return http.StatusBadRequest, `{"error":{"message":"unknown query"},"status":"failure"}`
	}
	var groups []string
	for priority, n := range i.Incidents {
		groups = append(groups, fmt.Sprintf(`{"stats":{"count":"%d"},"groupby_fields":[{"field":"priority","value":%q}]}`, n, priority))
	}
	return http.StatusOK, `{"result":[` + strings.Join(groups, ",") + `]}`
}
