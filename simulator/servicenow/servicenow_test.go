package servicenow

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

const (
	refused = `401 {"error_description":"access_denied","error":"server_error"}`
	right   = "grant_type=password&client_id=c&client_secret=s&username=u&password=p"
	wrong   = "grant_type=password&client_id=c&client_secret=s&username=u&password=x"
	machine = "grant_type=client_credentials&client_id=c&client_secret=s"
	query   = "/api/now/stats/incident?sysparm_query=active=true&sysparm_count=true&sysparm_group_by=priority"
)

// instance is an Instance with a clock.
type instance struct {
	*Instance
	clock time.Time
}

func newInstance() *instance {
	i := &instance{clock: time.Unix(1772366400, 0)}
	i.Instance = &Instance{
		Now: func() time.Time { return i.clock },
		Accounts: map[Account]bool{
			{ClientID: "c", ClientSecret: "s", Username: "u", Password: "p"}: true,
			{ClientID: "c", ClientSecret: "s"}:                               true,
		},
		Incidents: map[string]int{"1": 2},
	}
	return i
}

// send returns the status and body of an answer, with TOKEN in place of each token that was issued.
func (i *instance) send(method, target, form, bearer string) string {
	request := httptest.NewRequest(method, target, strings.NewReader(form))
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Authorization", bearer)
	response := httptest.NewRecorder()
	i.ServeHTTP(response, request)
	text := fmt.Sprint(response.Code, " ", response.Body)
	for _, token := range i.Issued() {
		text = strings.ReplaceAll(text, token, "TOKEN")
	}
	return text
}

func (i *instance) logIn(form string) string {
	return i.send(http.MethodPost, "/oauth_token.do", form, "")
}

func granted(expiresIn int) string {
	return fmt.Sprintf(`200 {"access_token":"TOKEN","refresh_token":"TOKEN","scope":"useraccount","token_type":"Bearer",`+
		`"expires_in":%d}`, expiresIn)
}

func TestLogin(t *testing.T) {
	for _, test := range []struct{ name, method, query, form, want string }{
		{"password", "POST", "", right, granted(1800)},
		{"client credentials", "POST", "", machine,
			`200 {"access_token":"TOKEN","scope":"useraccount","token_type":"Bearer","expires_in":1800}`},
		{"wrong password", "POST", "", wrong, refused},
		{"wrong grant", "POST", "", strings.Replace(right, "password", "client_credentials", 1), refused},
		{"in the query", "POST", "?" + right, "", refused},
		{"GET", "GET", "", right, refused},
		{"nothing", "POST", "", "%", refused},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := newInstance().send(test.method, "/oauth_token.do"+test.query, test.form, ""); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestTokenIsRepeatedWhileItIsValid(t *testing.T) {
	for _, test := range []struct {
		name      string
		keepsDate bool
		want      string
	}{
		{"renewed", false, granted(1800)},
		{"with its old expiry", true, granted(800)},
	} {
		t.Run(test.name, func(t *testing.T) {
			i := newInstance()
			i.KeepsDate = test.keepsDate
			i.logIn(right)
			i.clock = i.clock.Add(1000 * time.Second)
			if got := i.logIn(right); got != test.want {
				t.Errorf("got %s; want %s", got, test.want)
			}
			if tokens := i.Issued(); len(tokens) != 3 { // one access token and two refresh tokens
				t.Errorf("issued %d tokens; want 3", len(tokens))
			}
			i.clock = i.clock.Add(1800 * time.Second)
			first := i.Issued()[0]
			if i.logIn(right); i.IsValid(first) || len(i.Issued()) != 5 {
				t.Error("the expired token is valid, or was not replaced")
			}
		})
	}
}

func TestLockOut(t *testing.T) {
	for _, lockAfter := range []int{5, 3} {
		t.Run(fmt.Sprint(lockAfter), func(t *testing.T) {
			i := newInstance()
			i.LockAfter = lockAfter
			for n := range lockAfter {
				if got := i.logIn(right); got != granted(1800) { // sets the count back
					t.Fatalf("login %d: %s", n, got)
				}
				for range lockAfter - 1 {
					i.logIn(wrong)
				}
			}
			i.logIn(wrong)
			if got := i.logIn(right); got != refused {
				t.Errorf("a locked user got %s", got)
			}
			if got := i.logIn(machine); got == refused {
				t.Error("the client credentials grant was refused, which has no user")
			}
			i.clock = i.clock.Add(15 * time.Minute)
			if got := i.logIn(right); got != granted(1800) {
				t.Errorf("after 15 minutes: %s", got)
			}
			for range lockAfter {
				i.logIn(wrong)
			}
			i.Unlock("u")
			if got := i.logIn(right); got != granted(1800) {
				t.Errorf("after an administrator has unlocked the user: %s", got)
			}
		})
	}
}

func TestIncidents(t *testing.T) {
	i := newInstance()
	i.logIn(right)
	token := i.Issued()[0]
	const unauthenticated = `401 {"error":{"message":"User Not Authenticated","detail":"Required to provide Auth information"},` +
		`"status":"failure"}`
	for _, test := range []struct{ name, target, bearer, want string }{
		{"valid", query, "Bearer " + token, `200 {"result":[{"stats":{"count":"2"},"groupby_fields":[{"field":"priority","value":"1"}]}]}`},
		{"no token", query, "", unauthenticated},
		{"no bearer", query, token, unauthenticated},
		{"another query", "/api/now/stats/incident", "Bearer " + token, `400 {"error":{"message":"unknown query"},"status":"failure"}`},
		{"another page", "/x", "Bearer " + token, `404 {"error":{"message":"no such page"},"status":"failure"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := i.send(http.MethodGet, test.target, "", test.bearer); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
	i.Revoke()
	if got := i.send(http.MethodGet, query, "", "Bearer "+token); got != unauthenticated {
		t.Errorf("with a revoked token: %s", got)
	}
}
