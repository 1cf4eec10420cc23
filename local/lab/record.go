package lab

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"servicenow-token/local/windmill"
)

// Record is the cached record, by the fields that it must have and no others.
type Record struct {
	Token       string `json:"token"`
	ExpiresAt   int64  `json:"expires_at"` // Unix seconds
	InstanceURL string `json:"instance_url"`
	Seal        string `json:"seal"`
	Login       *Login `json:"login,omitempty"` // nil after a success
}

// Login is the record's field while a job logs in or after a login that failed.
type Login struct {
	By        string `json:"by"`
	At        int64  `json:"at"` // Unix seconds
	Refusals  int    `json:"refusals"`
	RefusedAt int64  `json:"refused_at"` // Unix seconds
	Outcome   string `json:"outcome"`
	Seal      string `json:"seal"`
}

// sealOf is the HMAC-SHA256 of parts, each with its length before it.
func (w *World) sealOf(parts ...string) string {
	var message bytes.Buffer
	for _, part := range parts {
		message.WriteString(strconv.Itoa(len(part)) + ":" + part + ",")
	}
	mac := hmac.New(sha256.New, []byte(w.Snow.ClientSecret))
	mac.Write(message.Bytes())
	return hex.EncodeToString(mac.Sum(nil))
}

// Address is what instance_url comes to, in the spellings that tests use.
func (w *World) Address() string {
	return strings.ToLower(strings.TrimRight(strings.TrimSpace(w.Snow.InstanceURL), "/"))
}

// Seal returns the record of a token and its expiry in Unix seconds, for the
// world's credentials.
func (w *World) Seal(token string, expiresAt int64) Record {
	return Record{token, expiresAt, w.Address(), w.sealOf(w.Address(), w.Snow.ClientID, w.Snow.Username, w.Snow.Password,
		token, strconv.FormatInt(expiresAt, 10)), nil}
}

// SealLogin returns l with its seal.
func (w *World) SealLogin(l Login) *Login {
	l.Seal = w.sealOf("login", w.Address(), w.Snow.ClientID, w.Snow.Username, w.Snow.Password,
		l.By, strconv.FormatInt(l.At, 10), strconv.Itoa(l.Refusals), strconv.FormatInt(l.RefusedAt, 10), l.Outcome)
	return &l
}

// Sealed returns a record that lasts for lifetime from now.
func (w *World) Sealed(token string, lifetime time.Duration) Record {
	return w.Seal(token, time.Now().Add(lifetime).Unix())
}

// Plant puts a value into the cache.
func (w *World) Plant(t testing.TB, value any) {
	t.Helper()
	encoded, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	w.Workspace.SetResource(CachePath, windmill.Resource{Type: "state", Value: encoded})
}

// Cached returns what the cache holds.
func (w *World) Cached(t testing.TB) (cached Record, found bool) {
	t.Helper()
	resource, found := w.Workspace.Resource(CachePath)
	if !found {
		return Record{}, false
	}
	decoder := json.NewDecoder(bytes.NewReader(resource.Value))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&cached); err != nil {
		t.Fatalf("the cache holds %s: %v", resource.Value, err)
	}
	return cached, true
}

// CheckCached fails the test unless the cache holds a sealed record, with no login,
// of a token that ServiceNow accepts for half an hour and that the Python script
// would use.
func (w *World) CheckCached(t testing.TB) Record {
	t.Helper()
	cached, found := w.Cached(t)
	if !found {
		t.Fatal("nothing cached")
	}
	if !w.Instance.Valid(cached.Token) {
		t.Errorf("ServiceNow does not accept the cached token")
	}
	if lasts := time.Until(time.Unix(cached.ExpiresAt, 0)); lasts < 29*time.Minute || lasts > 31*time.Minute {
		t.Errorf("the cached token lasts %s; want half an hour", lasts)
	}
	if diff := cmp.Diff(w.Seal(cached.Token, cached.ExpiresAt), cached); diff != "" {
		t.Errorf("cached record mismatch (-want +got):\n%s", diff)
	}
	// As the Python script reads it: cache["token"] if cache["expires_at"] > time.time() + 60.
	python, _ := w.value()
	expiresAt, number := python["expires_at"].(float64)
	if python["token"] != cached.Token || !number || expiresAt <= float64(time.Now().UnixNano())/1e9+60 ||
		expiresAt != math.Trunc(expiresAt) {
		t.Errorf("the Python script would not use this record: %v", python)
	}
	return cached
}

// CheckUnchanged fails the test unless the cache, a login apart, holds what it did before.
func (w *World) CheckUnchanged(t testing.TB, before windmill.Resource) {
	t.Helper()
	after, _ := w.Workspace.Resource(CachePath)
	if diff := cmp.Diff(withoutLogin(t, before), withoutLogin(t, after)); diff != "" {
		t.Errorf("the record, its login apart, mismatch (-before +after):\n%s", diff)
	}
}

// withoutLogin returns the fields of a record, to the digit, but its login.
func withoutLogin(t testing.TB, resource windmill.Resource) map[string]string {
	t.Helper()
	raw := make(map[string]json.RawMessage)
	if resource.Value != nil {
		if err := json.Unmarshal(resource.Value, &raw); err != nil {
			t.Fatal(err)
		}
	}
	fields := make(map[string]string)
	for name, value := range raw {
		if name != "login" {
			fields[name] = string(value)
		}
	}
	return fields
}
