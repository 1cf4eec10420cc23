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
	user   = Account{"id", "client-secret", "user", "password"}
	client = Account{"machine", "client-secret", "", ""}
)

// logIn asks for a token and returns what a reader sees: the status and the body, "…"
// in the place of tokens, and the access token.
func logIn(i *Instance, grantType string, a Account) (answer, token string) {
	form := url.Values{"grant_type": {grantType}, "client_id": {a.ClientID}, "client_secret": {a.ClientSecret}}
	if a.Username != "" {
		form.Set("username", a.Username)
		form.Set("password", a.Password)
	}
	request := httptest.NewRequest(http.MethodPost, "/oauth_token.do", strings.NewReader(form.Encode()))
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response := httptest.NewRecorder()
	i.ServeHTTP(response, request)
	answer = fmt.Sprint(response.Code, " ", strings.TrimSpace(response.Body.String()))
	for _, issued := range i.Issued() {
		answer = strings.ReplaceAll(answer, issued, "…")
	}
	_, token, _ = strings.Cut(response.Body.String(), `"access_token":"`)
	token, _, _ = strings.Cut(token, `"`)
	return answer, token
}

func TestAnswers(t *testing.T) {
	const (
		denied    = `401 {"error_description":"access_denied","error":"server_error"}`
		userToken = `200 {"access_token":"…","expires_in":1800,"refresh_token":"…","scope":"useraccount","token_type":"Bearer"}`
		noUser    = `400 {"error":"unauthorized_client","error_description":"Received ` +
			`client_credentials grant_type request however integration user is not configured for OAuth:machine"}`
		theMachine = `200 {"access_token":"…","expires_in":1800,"scope":"useraccount","token_type":"Bearer"}`
	)
	for _, test := range []struct {
		name, grantType string
		account         Account
		noUser          bool
		want            string
	}{
		{"password", "password", user, true, userToken},
		{"client credentials", "client_credentials", client, false, theMachine},
		{"client credentials, nobody to act as", "client_credentials", client, true, noUser},
		{"wrong password", "password", Account{"id", "client-secret", "user", "wrong"}, false, denied},
		{"wrong client secret", "client_credentials", Account{"machine", "wrong", "", ""}, true, denied},
		{"inactive", "password", Account{"id", "client-secret", "gone", "password"}, false, denied},
		{"another's grant", "client_credentials", user, false, denied},
	} {
		now := time.Now()
		i := &Instance{Now: func() time.Time { return now }, NoApplicationUser: test.noUser}
		i.SetAccount(user, true)
		i.SetAccount(client, true)
		i.SetAccount(Account{"id", "client-secret", "gone", "password"}, false)
		if got, _ := logIn(i, test.grantType, test.account); got != test.want {
			t.Errorf("%s:\ngot  %s\nwant %s", test.name, got, test.want)
		}
	}
}

func TestTheSameTokenWhileItIsValid(t *testing.T) {
	for remaining, want := range map[bool]string{false: `"expires_in":1800`, true: `"expires_in":1200`} {
		now := time.Now()
		i := &Instance{Now: func() time.Time { return now }, Remaining: remaining}
		i.SetAccount(user, true)
		_, first := logIn(i, "password", user)
		now = now.Add(10 * time.Minute)
		answer, again := logIn(i, "password", user)
		if again != first || !strings.Contains(answer, want) {
			t.Errorf("Remaining %t: %s; want the same token and %s", remaining, answer, want)
		}
		i.Revoke(first)
		_, second := logIn(i, "password", user)
		now = now.Add(30 * time.Minute)
		_, third := logIn(i, "password", user)
		if second == first || third == second || i.Valid(second) || !i.Valid(third) {
			t.Errorf("Remaining %t: a revoked or expired token was given again", remaining)
		}
	}
}

func TestFiveRefusalsInARowLockAUser(t *testing.T) {
	now := time.Now()
	i := &Instance{Now: func() time.Time { return now }}
	i.SetAccount(user, true)
	got := ""
	for _, step := range "wwww+wwwww-+w+w+-wwww+" { // a wrong password, the right one, half the time of a lock
		password := map[rune]string{'w': "wrong", '+': user.Password}[step]
		if step == '-' {
			now = now.Add(15 * time.Minute / 2)
			continue
		}
		answer, _ := logIn(i, "password", Account{user.ClientID, user.ClientSecret, user.Username, password})
		got += answer[:3]
		if i.Locked("user") {
			got += "L"
		}
		got += " "
	}
	if want := "401 401 401 401 200 401 401 401 401 401L 401L 401L 401L 401L 401L 401 401 401 401 200 "; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !i.EverLocked("user") || i.Refused("user") != 18 || i.Requests() != 20 {
		t.Errorf("ever locked %t, %d refused of %d", i.EverLocked("user"), i.Refused("user"), i.Requests())
	}
}
