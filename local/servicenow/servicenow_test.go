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
	clock = new(time.Time)
	*clock = time.Unix(0, 0)
	return &Instance{Now: func() time.Time { return *clock }, Accounts: map[Account]bool{user: true, client: true, inactive: false}}, clock
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
		name, grantType     string
		account             Account
		noUser, hibernating bool
		want                string
	}{
		{"password", "password", user, true, false,
			`200 {"access_token":"…","refresh_token":"…","scope":"useraccount","token_type":"Bearer","expires_in":1800}`},
		{"client credentials", "client_credentials", client, false, false,
			`200 {"access_token":"…","scope":"useraccount","token_type":"Bearer","expires_in":1800}`},
		{"client credentials, nobody to act as", "client_credentials", client, true, false,
			`400 {"error":"unauthorized_client","error_description":"Received client_credentials grant_type request ` +
				`however integration user is not configured for OAuth:machine"}`},
		{"wrong password", "password", Account{"id", "client-secret", "user", "wrong"}, false, false, denied},
		{"wrong client secret", "client_credentials", Account{"machine", "wrong", "", ""}, true, false, denied},
		{"inactive", "password", inactive, false, false, denied},
		{"another's grant", "client_credentials", user, false, false, denied},
		{"hibernating", "password", user, false, true,
			`200 <html><title>Instance Hibernating page</title><body class="instance-hibernating-page"></body></html>`},
	} {
		i, _ := newInstance()
		i.NoApplicationUser, i.Hibernating = test.noUser, test.hibernating
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
	_, third := logIn(i, "password", user)
	if second == first || third == second || i.Valid(second) || !i.Valid(third) {
		t.Error("a revoked or expired token was given again")
	}
}

func TestFiveRefusalsInARowLockAUser(t *testing.T) {
	i, clock := newInstance()
	got := ""
	for _, step := range "wwww+wwwww-+w+w+-wwww+" { // a wrong password, the right one, half the time of a lock
		if step == '-' {
			*clock = clock.Add(15 * time.Minute / 2)
			continue
		}
		answer, _ := logIn(i, "password", Account{"id", "client-secret", "user", map[rune]string{'w': "wrong", '+': "password"}[step]})
		got += answer[:3]
		if clock.Before(i.Refusals("user").LockedUntil) {
			got += "L"
		}
		got += " "
	}
	if want := "401 401 401 401 200 401 401 401 401 401L 401L 401L 401L 401L 401L 401 401 401 401 200 "; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if n := i.Refusals("user").All; n != 18 || i.Requests() != 20 {
		t.Errorf("%d refused of %d", n, i.Requests())
	}
}
