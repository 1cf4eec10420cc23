// Package servicenow simulates a ServiceNow instance: the token endpoint for both grants, the lock-out of users, and
// one query of the Aggregate API, which counts open incidents.
//
// It follows ServiceNow's documentation (KB0791140, KB0749501) and answers captured in public clients.
package servicenow

import (
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// Account is what a client logs in with. Without Username and Password, it is the client credentials grant.
type Account struct{ ClientID, ClientSecret, Username, Password string }

// Instance answers POST /oauth_token.do and GET /api/now/stats/incident. Set its fields before or between requests.
type Instance struct {
	Now       func() time.Time
	Accounts  map[Account]bool // false for an account that is inactive
	Lifetime  time.Duration    // of a token; zero: 30 minutes, ServiceNow's default
	KeepsDate bool             // a login with a valid token does not renew its expiry
	LockAfter int              // failed logins in a row lock a user for 15 minutes; zero: 5
	Incidents map[string]int   // the open incidents by priority
	// Intercept, if not nil, sees the nth token request first, with its form parsed. If it returns true, it has
	// answered the request itself.
	Intercept func(w http.ResponseWriter, r *http.Request, n int) bool

	mu       sync.Mutex
	forms    []url.Values
	refusals map[string]Refusals
	tokens   map[Account]token // by client ID and user
	issued   []string
}

// Refusals counts the refused logins of a user, without those that Intercept answered.
type Refusals struct {
	All, InARow int
	LockedUntil time.Time // zero: never locked
}

// token is an account's latest token. A login while it is valid returns it again.
type token struct {
	value   string
	expires time.Time
}

func (i *Instance) lock() (unlock func()) { i.mu.Lock(); return i.mu.Unlock }

// Forms returns the forms of all token requests so far.
func (i *Instance) Forms() []url.Values { defer i.lock()(); return slices.Clip(i.forms) }

// Refusals returns the refused logins of a user so far.
func (i *Instance) Refusals(user string) Refusals { defer i.lock()(); return i.refusals[user] }

// Issued returns every access and refresh token so far.
func (i *Instance) Issued() []string { defer i.lock()(); return slices.Clip(i.issued) }

// Revoke ends all tokens. The next login gets a new one.
func (i *Instance) Revoke() { defer i.lock()(); i.tokens = nil }

// Unlock forgets the refused logins of a user, as if an administrator had unlocked the user.
func (i *Instance) Unlock(user string) { defer i.lock()(); delete(i.refusals, user) }

// IsValid reports whether the instance accepts value as a bearer token now.
func (i *Instance) IsValid(value string) bool {
	defer i.lock()()
	for _, t := range i.tokens {
		if t.value == value {
			return i.Now().Before(t.expires)
		}
	}
	return false
}

// ServeHTTP answers like the instance.
func (i *Instance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	status, body := http.StatusNotFound, `{"error":{"message":"no such page"},"status":"failure"}`
	switch r.URL.Path {
	case "/oauth_token.do":
		_ = r.ParseForm() // What cannot be parsed is missing, so the login is refused.
		unlock := i.lock()
		i.forms = append(i.forms, r.PostForm)
		n := len(i.forms)
		unlock()
		if i.Intercept != nil && i.Intercept(w, r, n) {
			return
		}
		status, body = i.logIn(r)
	case "/api/now/stats/incident":
		status, body = i.countIncidents(r)
	}
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body) // A client that has gone needs no answer.
}

// logIn answers a token request whose form has been parsed.
func (i *Instance) logIn(r *http.Request) (status int, body string) {
	defer i.lock()()
	form, now := r.PostForm, i.Now()
	account := Account{
		ClientID:     form.Get("client_id"),
		ClientSecret: form.Get("client_secret"),
		Username:     form.Get("username"),
		Password:     form.Get("password"),
	}
	grant := "password"
	if account.Username == "" {
		grant = "client_credentials"
	}
	isProper := r.Method == http.MethodPost && r.URL.RawQuery == "" && form.Get("grant_type") == grant
	isLocked := now.Before(i.refusals[account.Username].LockedUntil)
	if !isProper || !i.Accounts[account] || isLocked {
		i.countRefusal(account.Username, now, isLocked)
		return http.StatusUnauthorized, `{"error_description":"access_denied","error":"server_error"}`
	}
	past := i.refusals[account.Username]
	past.InARow = 0
	i.setRefusals(account.Username, past)
	current, expiresIn := i.renew(account, now)
	refresh := ""
	if account.Username != "" {
		refresh = fmt.Sprintf(`"refresh_token":%q,`, i.newToken())
	}
	return http.StatusOK, fmt.Sprintf(`{"access_token":%q,%s"scope":"useraccount","token_type":"Bearer","expires_in":%d}`,
		current, refresh, expiresIn)
}

// renew returns the account's token, and for how many seconds it is valid. It makes a new one if there is none.
func (i *Instance) renew(account Account, now time.Time) (value string, expiresIn int) {
	if i.tokens == nil {
		i.tokens = make(map[Account]token)
	}
	of := Account{ClientID: account.ClientID, Username: account.Username} // A new password does not end the token.
	current := i.tokens[of]
	isValid := now.Before(current.expires)
	if !isValid {
		current.value = i.newToken()
	}
	if !isValid || !i.KeepsDate {
		current.expires = now.Add(cmp.Or(i.Lifetime, 30*time.Minute))
	}
	i.tokens[of] = current
	return current.value, int(current.expires.Sub(now).Seconds())
}

// countRefusal locks a user after too many refusals in a row. A login of a locked user does not count.
func (i *Instance) countRefusal(user string, now time.Time, isLocked bool) {
	past := i.refusals[user]
	past.All++
	if user != "" && !isLocked {
		past.InARow++
	}
	if past.InARow >= cmp.Or(i.LockAfter, 5) {
		past.InARow, past.LockedUntil = 0, now.Add(15*time.Minute)
	}
	i.setRefusals(user, past)
}

func (i *Instance) setRefusals(user string, refusals Refusals) {
	if i.refusals == nil {
		i.refusals = make(map[string]Refusals)
	}
	i.refusals[user] = refusals
}

// newToken makes a token of 86 characters, like the longest of ServiceNow's opaque ones.
func (i *Instance) newToken() string {
	random := make([]byte, 64)
	_, _ = rand.Read(random) // Its documentation says that it never fails.
	value := base64.RawURLEncoding.EncodeToString(random)
	i.issued = append(i.issued, value)
	return value
}

// countIncidents answers one query of the Aggregate API.
func (i *Instance) countIncidents(r *http.Request) (status int, body string) {
	bearer, isBearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !isBearer || !i.IsValid(bearer) {
		return http.StatusUnauthorized,
			`{"error":{"message":"User Not Authenticated","detail":"Required to provide Auth information"},"status":"failure"}`
	}
	if r.URL.Query().Encode() != "sysparm_count=true&sysparm_group_by=priority&sysparm_query=active%3Dtrue" {
		return http.StatusBadRequest, `{"error":{"message":"unknown query"},"status":"failure"}`
	}
	var groups []string
	for priority, n := range i.Incidents {
		groups = append(groups,
			fmt.Sprintf(`{"stats":{"count":"%d"},"groupby_fields":[{"field":"priority","value":%q}]}`, n, priority))
	}
	return http.StatusOK, `{"result":[` + strings.Join(groups, ",") + `]}`
}
