// Package servicenow is a ServiceNow instance on this machine, as far as jobs need
// one: the token endpoint by ServiceNow's documentation (KB0791140, KB0749501) and
// by captures in public clients, and the count of open incidents.
package servicenow

import (
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Account is who may log in. Without Username and Password it is one of the client
// credentials grant, else of the password grant.
type Account struct{ ClientID, ClientSecret, Username, Password string }

// grant is the account's grant type, and the name on which its refused logins are counted.
func (a Account) grant() (grantType, name string) {
	if a.Username == "" {
		return "client_credentials", a.ClientID
	}
	return "password", a.Username
}

// Instance answers POST /oauth_token.do and GET /api/now/stats/incident. Set its
// fields before it is served, or between requests. The zero value has no account.
type Instance struct {
	Now       func() time.Time // nil: time.Now
	Lifetime  time.Duration    // of a token; zero: 30 minutes, ServiceNow's default
	LockAfter int              // so many failed logins in a row lock a user for 15 minutes; zero: 5
	// Remaining makes a login while a token is valid leave its expiry as it is.
	// Without it, the login renews it. ServiceNow's texts tell of both.
	Remaining         bool
	NoApplicationUser bool           // nobody for the client's token to act as: that grant is refused
	Hibernating       bool           // a developer instance that sleeps: an HTML page with status 200
	Incidents         map[string]int // the number of open ones, by priority
	// Fault, if not nil, is called before each token request is looked at, with its
	// form parsed. True means that it has answered. n counts from 1.
	Fault func(w http.ResponseWriter, r *http.Request, n int) bool

	mu       sync.Mutex
	accounts map[Account]bool
	forms    []url.Values
	refusals map[string]refusals // by the name that Account.grant returns
	tokens   map[[2]string]token // by client id and user; a change of password leaves them
	issued   []string
}

// refusals are the refused logins of one name.
type refusals struct {
	all, inARow int
	lockedUntil time.Time
}

// token is what an account came to last.
type token struct {
	value   string
	expires time.Time
}

// lock returns the function that unlocks, for a defer.
func (i *Instance) lock() (unlock func()) {
	i.mu.Lock()
	if i.accounts == nil {
		i.accounts, i.refusals, i.tokens = map[Account]bool{}, map[string]refusals{}, map[[2]string]token{}
	}
	return i.mu.Unlock
}

// SetAccount adds an account, or makes it inactive: its logins are then refused.
func (i *Instance) SetAccount(a Account, active bool) { defer i.lock()(); i.accounts[a] = active }

// Requests is the number of token requests so far, those that Fault answered included.
func (i *Instance) Requests() int { return len(i.Forms()) }

// Forms are the forms of the token requests so far.
func (i *Instance) Forms() []url.Values { defer i.lock()(); return slices.Clip(i.forms) }

// Refused is the number of refused logins so far of a user, or of a client id where
// there is no user. What Fault answers does not count.
func (i *Instance) Refused(username string) int { defer i.lock()(); return i.refusals[username].all }

// Locked reports whether a user is locked out now.
func (i *Instance) Locked(username string) bool {
	defer i.lock()()
	return i.now().Before(i.refusals[username].lockedUntil)
}

// EverLocked reports whether a user was locked out at any time.
func (i *Instance) EverLocked(username string) bool {
	defer i.lock()()
	return !i.refusals[username].lockedUntil.IsZero()
}

// Revoke ends an access token. The next login gets a new one.
func (i *Instance) Revoke(value string) {
	defer i.lock()()
	maps.DeleteFunc(i.tokens, func(_ [2]string, t token) bool { return t.value == value })
}

// Issued is every access and refresh token that was ever given.
func (i *Instance) Issued() []string { defer i.lock()(); return slices.Clip(i.issued) }

// Valid reports whether value is accepted as a bearer token now.
func (i *Instance) Valid(value string) bool {
	defer i.lock()()
	for _, t := range i.tokens {
		if t.value == value {
			return i.now().Before(t.expires)
		}
	}
	return false
}

func (i *Instance) now() time.Time {
	if i.Now == nil {
		return time.Now()
	}
	return i.Now()
}

// ServeHTTP answers as the instance does.
func (i *Instance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	isLogin := r.URL.Path == "/oauth_token.do"
	if isLogin && i.faulty(w, r) {
		return
	}
	var status int
	var body any
	switch {
	case i.Hibernating:
		w.Header().Set("Content-Type", "text/html;charset=UTF-8")
		_, _ = io.WriteString(w, `<html><title>Instance Hibernating page</title><body class="instance-hibernating-page"></body></html>`)
		return
	case isLogin:
		status, body = i.logIn(r)
	case r.URL.Path == "/api/now/stats/incident":
		status, body = i.countIncidents(r)
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a client that has gone needs no answer
}

// faulty records a token request, and reports whether Fault has answered it.
func (i *Instance) faulty(w http.ResponseWriter, r *http.Request) bool {
	_ = r.ParseForm() // what cannot be parsed is missing, and the login refused
	unlock := i.lock()
	i.forms = append(i.forms, r.PostForm)
	n := len(i.forms)
	unlock()
	return i.Fault != nil && i.Fault(w, r, n)
}

// logIn answers a token request whose form is parsed. What a locked user tries does
// not lock it for longer, and a client without a user cannot be locked.
func (i *Instance) logIn(r *http.Request) (status int, body any) {
	defer i.lock()()
	form, now := r.PostForm, i.now()
	account := Account{form.Get("client_id"), form.Get("client_secret"), form.Get("username"), form.Get("password")}
	grantType, name := account.grant()
	past := i.refusals[name]
	defer func() { i.refusals[name] = past }()
	proper := r.Method == http.MethodPost && r.URL.RawQuery == "" && form.Get("grant_type") == grantType
	locked := now.Before(past.lockedUntil)
	if !proper || !i.accounts[account] || locked {
		past.all++
		if account.Username != "" && !locked {
			past.inARow++
		}
		if past.inARow == cmp.Or(i.LockAfter, 5) {
			past.inARow, past.lockedUntil = 0, now.Add(15*time.Minute)
		}
		return http.StatusUnauthorized, json.RawMessage(`{"error_description":"access_denied","error":"server_error"}`)
	}
	if account.Username == "" && i.NoApplicationUser {
		past.all++
		return http.StatusBadRequest, map[string]string{"error": "unauthorized_client", "error_description": "Received " +
			"client_credentials grant_type request however integration user is not configured for OAuth:" + account.ClientID}
	}
	past.inARow = 0
	current := i.renew([2]string{account.ClientID, account.Username}, now)
	got := map[string]any{"access_token": current.value, "scope": "useraccount", "token_type": "Bearer",
		"expires_in": int(current.expires.Sub(now).Seconds())}
	if account.Username != "" {
		got["refresh_token"] = i.newToken()
	}
	return http.StatusOK, got
}

// renew returns an account's token, a new one only where none is valid. One with less
// than a second left would be given with an expires_in of 0.
func (i *Instance) renew(of [2]string, now time.Time) token {
	current := i.tokens[of]
	isNew := current.expires.Sub(now) < time.Second
	if isNew {
		current.value = i.newToken()
	}
	if isNew || !i.Remaining {
		current.expires = now.Add(cmp.Or(i.Lifetime, 30*time.Minute))
	}
	i.tokens[of] = current
	return current
}

// newToken makes a token of 86 characters, the longest of ServiceNow's opaque ones.
func (i *Instance) newToken() string {
	random := make([]byte, 64)
	_, _ = rand.Read(random) // never fails, by its documentation
	i.issued = append(i.issued, base64.RawURLEncoding.EncodeToString(random))
	return i.issued[len(i.issued)-1]
}

// countIncidents answers the one query that it knows, as the Aggregate API does.
func (i *Instance) countIncidents(r *http.Request) (status int, body any) {
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !i.Valid(bearer) {
		return http.StatusUnauthorized, json.RawMessage(
			`{"error":{"message":"User Not Authenticated","detail":"Required to provide Auth information"},"status":"failure"}`)
	}
	if r.URL.Query().Encode() != "sysparm_count=true&sysparm_group_by=priority&sysparm_query=active%3Dtrue" {
		return http.StatusBadRequest, json.RawMessage(`{"error":{"message":"unknown query"},"status":"failure"}`)
	}
	result := []any{}
	for priority, count := range i.Incidents {
		result = append(result, map[string]any{
			"stats":          map[string]string{"count": strconv.Itoa(count)},
			"groupby_fields": []map[string]string{{"field": "priority", "value": priority}},
		})
	}
	return http.StatusOK, map[string]any{"result": result}
}
