package servicenow

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var account = Account{ClientID: "id", ClientSecret: "client-secret", Username: "user", Password: "password"}

// logIn asks the instance for a token with the changes to the right form.
func logIn(t *testing.T, i *Instance, changes url.Values) (status int, body map[string]any) {
	t.Helper()
	form := url.Values{
		"grant_type": {"password"}, "client_id": {account.ClientID}, "client_secret": {account.ClientSecret},
		"username": {account.Username}, "password": {account.Password},
	}
	for key, values := range changes {
		form[key] = values
	}
	request := httptest.NewRequest(http.MethodPost, "/oauth_token.do", strings.NewReader(form.Encode()))
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response := httptest.NewRecorder()
	i.ServeHTTP(response, request)
	if err := json.Unmarshal(response.Body.Bytes(), &body); err != nil {
		t.Fatal(err)
	}
	return response.Code, body
}

func TestLoggingInAgain(t *testing.T) {
	for name, remaining := range map[string]bool{"renews the expiry": false, "leaves the expiry": true} {
		t.Run(name, func(t *testing.T) {
			clock := time.Unix(1_800_000_000, 0)
			i := &Instance{Now: func() time.Time { return clock }, Remaining: remaining}
			i.SetAccount(account, true)

			_, first := logIn(t, i, nil)
			if got, want := first["expires_in"], 1800.0; got != want {
				t.Errorf("expires_in = %v; want %v", got, want)
			}
			clock = clock.Add(10 * time.Minute)
			_, again := logIn(t, i, nil)
			if again["access_token"] != first["access_token"] {
				t.Error("another token while the first was valid")
			}
			want := 1800.0
			if remaining {
				want = 1200
			}
			if got := again["expires_in"]; got != want {
				t.Errorf("expires_in after 10 minutes = %v; want %v", got, want)
			}
			clock = clock.Add(30 * time.Minute)
			if i.Valid(first["access_token"].(string)) {
				t.Error("the token is valid after its expiry")
			}
			if _, fresh := logIn(t, i, nil); fresh["access_token"] == first["access_token"] {
				t.Error("the same token after its expiry")
			}
		})
	}
}

func TestARevokedTokenIsReplaced(t *testing.T) {
	i := &Instance{}
	i.SetAccount(account, true)
	_, first := logIn(t, i, nil)
	i.Revoke()
	_, second := logIn(t, i, nil)
	if first["access_token"] == second["access_token"] || i.Valid(first["access_token"].(string)) || !i.Valid(second["access_token"].(string)) {
		t.Error("the revoked token lives on")
	}
}

func TestAChangeOfPasswordLeavesTheTokenAsItIs(t *testing.T) {
	i := &Instance{}
	i.SetAccount(account, true)
	_, first := logIn(t, i, nil)
	changed := account
	changed.Password = "changed"
	i.SetAccount(account, false)
	i.SetAccount(changed, true)
	_, second := logIn(t, i, url.Values{"password": {"changed"}})
	if first["access_token"] != second["access_token"] {
		t.Error("another token after a change of password")
	}
}

func TestEveryRefusalLooksTheSame(t *testing.T) {
	i := &Instance{}
	i.SetAccount(account, true)
	want := map[string]any{"error": "server_error", "error_description": "access_denied"}
	for _, changes := range []url.Values{
		{"password": {"wrong"}}, {"username": {"wrong"}}, {"client_id": {"wrong"}}, {"client_secret": {"wrong"}},
		{"grant_type": {"client_credentials"}}, {"password": nil},
	} {
		status, body := logIn(t, i, changes)
		if status != http.StatusUnauthorized {
			t.Errorf("%v: status = %d; want 401", changes, status)
		}
		if diff := cmp.Diff(want, body); diff != "" {
			t.Errorf("%v: refusal mismatch (-want +got):\n%s", changes, diff)
		}
	}
	i.SetAccount(account, false)
	if status, _ := logIn(t, i, nil); status != http.StatusUnauthorized {
		t.Errorf("inactive account: status = %d; want 401", status)
	}
}
