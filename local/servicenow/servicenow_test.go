package servicenow

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

var (
	user     = Account{"id", "client-secret", "user", "password"}
	inactive = Account{"id", "client-secret", "gone", "password"}
	client   = Account{"machine", "client-secret", "", ""}
)

// newInstance has a clock that starts at 0.
func newInstance() (i *Instance, clock *time.Time) {
	now := time.Unix(0, 0)
	return &Instance{Now: func() time.Time { return now }, Accounts: map[Account]bool{user: true, client: true, inactive: false}}, &now
}

// logIn asks for a token and returns what a reader sees: the status and the body, "…" in the place of tokens, and the
// access token.
func logIn(i *Instance, grantType string, a Account) (answer, token string) {
	form := url.Values{"grant_type": {grantType}, "client_id": {a.ClientID}, "client_secret": {a.ClientSecret}}
	if a.Username != "" {
		form["username"], form["password"] = []string{a.Username}, []string{a.Password}
	}
	request := httptest.NewRequest(http.MethodPost, "/oauth_token.do", strings.NewReader(form.Encode()))
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response := httptest.NewRecorder()
	i.ServeHTTP(response, request)
	answer = fmt.Sprint(response.Code, " ", response.Body)
	_, token, _ = strings.Cut(answer, `"access_token":"`)
	token, _, _ = strings.Cut(token, `"`)
	for _, issued := range i.Issued() {
		answer = strings.ReplaceAll(answer, issued, "…")
	}
	return answer, token
}

func TestAnswers(t *testing.T) {
	const denied = `401 {"error_description":"access_denied","error":"server_error"}`
	for _, test := range []struct {
		name, grantType string
		account         Account
		hibernating     bool
		want            string
	}{
		{"password", "password", user, false,
			`200 {"access_token":"…","refresh_token":"…","scope":"useraccount","token_type":"Bearer","expires_in":1800}`},
		{"client credentials", "client_credentials", client, false,
			`200 {"access_token":"…","scope":"useraccount","token_type":"Bearer","expires_in":1800}`},
		{"wrong password", "password", Account{"id", "client-secret", "user", "wrong"}, false, denied},
		{"wrong client secret", "client_credentials", Account{"machine", "wrong", "", ""}, false, denied},
		{"inactive", "password", inactive, false, denied},
		{"another's grant", "client_credentials", user, false, denied},
		{"hibernating", "password", user, true,
			`200 <html><title>Instance Hibernating page</title><body class="instance-hibernating-page"></body></html>`},
	} {
		i, _ := newInstance()
		i.Hibernating = test.hibernating
		if got, _ := logIn(i, test.grantType, test.account); got != test.want {
			t.Errorf("%s:\ngot  %s\nwant %s", test.name, got, test.want)
		}
	}
}

func TestTheSameTokenWhileItIsValid(t *testing.T) {
	i, clock := newInstance()
	_, first := logIn(i, "password", user)
	*clock = clock.Add(10 * time.Minute)
	if answer, again := logIn(i, "password", user); again != first || !strings.Contains(answer, `"expires_in":1800`) {
		t.Errorf("%s; want the same token for another 30 minutes", answer)
	}
	i.Revoke(first)
	_, second := logIn(i, "password", user)
	*clock = clock.Add(30 * time.Minute)
	outlived := i.Valid(second)
	_, third := logIn(i, "password", user)
	if second == first || third == second || outlived || !i.Valid(third) {
		t.Error("a revoked or expired token was given again")
	}
	changed := Account{"id", "client-secret", "user", "changed"}
	i.Accounts[changed], i.Lifetime = true, time.Minute
	if answer, fourth := logIn(i, "password", changed); fourth != third || !strings.Contains(answer, `"expires_in":60}`) {
		t.Errorf("after a change of password: %s; want the same token for a minute", answer)
	}
}

func TestFiveRefusalsInARowLockAUser(t *testing.T) {
	i, clock := newInstance()
	got := ""
	for _, step := range "wwww+wwwww-+w+w+-wwww+3ww" { // the right password, half the time of a lock, else a wrong one
		if step == '-' {
			*clock = clock.Add(15 * time.Minute / 2)
			continue
		}
		if step == '3' { // lock from here on
			i.LockAfter = 3
		}
		answer, _ := logIn(i, "password", Account{"id", "client-secret", "user", map[rune]string{'+': "password"}[step]})
		got += answer[:3]
		if clock.Before(i.Refusals("user").LockedUntil) {
			got += "L"
		}
		got += " "
	}
	if want := "401 401 401 401 200 401 401 401 401 401L 401L 401L 401L 401L 401L 401 401 401 401 200 401 401 401L "; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if n := i.Refusals("user").All; n != 21 || i.Requests() != 23 {
		t.Errorf("%d refused of %d", n, i.Requests())
	}
}
