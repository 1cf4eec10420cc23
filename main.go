package inner

// The word package comes first: before anything else, a comment included, a Windmill worker puts a package clause.
// This script gets an OAuth2 access token from ServiceNow, by the password grant (RFC 6749) or, where the resource names
// no user, by the client credentials grant. It keeps the token in the Windmill resource f/ServiceNow/snow_token_cache
// and reuses it until a minute before its expiry. Run it by hand to verify the credentials, on a schedule to keep the
// cache warm, or as a step of a flow whose later steps read the resource. It returns "OK", never the token.

//require github.com/windmill-labs/windmill-go-client v1.501.4

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	wmill "github.com/windmill-labs/windmill-go-client"
	api "github.com/windmill-labs/windmill-go-client/api"
)

const (
	cachePath       = "f/ServiceNow/snow_token_cache"  // the token, for all who need it
	loginsPath      = "f/ServiceNow/snow_token_logins" // what the runs of this script tell each other
	expiryMargin    = time.Minute                      // a token this close to its expiry is not reused
	defaultLifetime = 1800                             // seconds; ServiceNow's, where an answer has no expires_in
	runLimit        = 54 * time.Second                 // what turn and login leave of it is for storing the token
	turnLimit       = 30 * time.Second                 // from a run's start until it may ask
	loginLimit      = 20 * time.Second                 // for both requests that a login may take
	pause           = time.Second                      // before a request is repeated, and between looks at another job's login
	claimPause      = 300 * time.Millisecond           // in which another job's claim may replace ours
	deadAfter       = loginLimit + 4*time.Second       // a login watched for so long is a killed job's
	clockSkew       = 5 * time.Minute                  // between two workers' clocks, at most: other claims say nothing
	failureStands   = 5 * time.Second                  // so long a failed login is that of each called run, too
	longestAnswer   = 1 << 20                          // bytes of ServiceNow's answer; a token's has a few hundred
	longestQuote    = 300                              // bytes of what others say
	succeeded       = "OK"                             // the outcome of a login that brought a token
	alphanumeric    = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
)

// now and sleep are variables for the tests to replace.
var now, sleep = time.Now, time.Sleep

// servicenow is the Windmill resource type of that name. Without a user, the token is the OAuth application's own.
type servicenow struct {
	InstanceURL  string `json:"instance_url"` // a URL, a host, or a bare name such as dev12345
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"` // also the key of all seals
	Username     string `json:"username"`
	Password     string `json:"password"`
}

// main makes sure that the cache holds a usable token. Its errors say who was asked, what came back and what to check.
func main(snow servicenow) (string, error) {
	log.SetOutput(io.Discard) // net/http logs bytes that it did not expect, whatever they are
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	defer cancel()
	defer time.AfterFunc(runLimit+pause/2, func() { // for a 101 (Switching Protocols), whose connection no deadline ends
		fmt.Println("Given up after 55 s: Windmill or ServiceNow keeps a connection open and says nothing.")
		os.Exit(1)
	}).Stop()
	r, err := newRun(snow)
	if err == nil {
		err = r.ensureToken(ctx)
	}
	if err != nil {
		return "", err
	}
	return "OK", nil
}

// run is one run of the script. A called run reuses what is cached. A run of its own asks ServiceNow even if the cache
// is good: to verify the credentials, to renew the token before it runs out, to replace a revoked one.
type run struct {
	snow       servicenow
	inWindmill bool
	job        string // its id
	called     bool   // by a flow or another script
	byHand     bool   // or by a webhook; if neither, by a schedule
	began      time.Time
	secrets    []string // which no text may repeat
}

// newRun checks the input, and tells from the environment who started this run.
func newRun(snow servicenow) (*run, error) {
	snow, err := checked(snow)
	if err != nil {
		return nil, err
	}
	secrets := []string{strings.TrimSpace(snow.Password), snow.ClientSecret, os.Getenv("WM_TOKEN")}
	r := &run{snow: snow, job: os.Getenv("WM_JOB_ID"), began: now(), secrets: secrets}
	missing := slices.DeleteFunc([]string{"WM_TOKEN", "WM_WORKSPACE", "BASE_INTERNAL_URL"},
		func(name string) bool { return os.Getenv(name) != "" })
	r.inWindmill = len(missing) < 3 || r.job != ""
	if r.inWindmill && len(missing) > 0 {
		return nil, fmt.Errorf("a Windmill worker sets %s, which is empty here: check how this job is started", strings.Join(missing, ", "))
	}
	// Of a schedule with a retry or a skip handler Windmill makes a flow, which has the script's own path (schedule.rs).
	scheduled := os.Getenv("WM_SCHEDULE_PATH") != ""
	wrapped := scheduled && os.Getenv("WM_FLOW_PATH") == os.Getenv("WM_JOB_PATH")
	inFlow := os.Getenv("WM_FLOW_JOB_ID") != "" && !wrapped
	r.called = inFlow || r.job == "" // without an id, the rest says nothing
	r.byHand = !r.called && !scheduled
	r.job = cmp.Or(r.job, fmt.Sprintf("unnamed-%016x", rand.Uint64()))
	return r, nil
}

// ensureToken leaves a usable token in the cache: that which is there, which another job has just got, or its own.
func (r *run) ensureToken(ctx context.Context) error {
	if !r.inWindmill {
		fmt.Println("This is no Windmill job: nothing will be cached.")
		_, err := r.logIn(ctx)
		return err
	}
	claimed, reused, err := r.awaitTurn(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("ServiceNow was not asked: %w", err)
	case claimed == nil:
		fmt.Printf("Reused the token in %s, valid for another %s at %s.\n", cachePath, reused.remaining(), reused.InstanceURL)
		return nil
	}
	fresh, err := r.logIn(ctx)
	if failed, ok := err.(*failure); ok {
		r.end(ctx, claimed, failed.outcome, failed.refused)
		return err
	}
	if _, err := r.access(ctx, cachePath, fresh); err != nil {
		r.end(ctx, claimed, "a token came, but "+cachePath+" cannot be written", false)
		return err
	}
	fmt.Printf("Stored it in %s.\n", cachePath)
	r.end(ctx, claimed, succeeded, false)
	return nil
}

// checked returns snow as it is used. No error repeats a value, for somebody may have put a password there.
func checked(snow servicenow) (servicenow, error) {
	for _, field := range []*string{&snow.InstanceURL, &snow.ClientID, &snow.ClientSecret, &snow.Username} {
		*field = strings.TrimSpace(*field)
	}
	address, ok := instanceAddress(snow.InstanceURL)
	switch {
	case snow.InstanceURL == "" || snow.ClientID == "" || snow.ClientSecret == "":
		return snow, errors.New("the servicenow resource must have instance_url, client_id and client_secret")
	case (snow.Username == "") != (snow.Password == ""):
		return snow, errors.New("the servicenow resource must have username and password, or neither for client credentials")
	case !ok:
		return snow, errors.New("instance_url is not an address such as https://dev12345.service-now.com or dev12345: https, no user, no query")
	}
	snow.InstanceURL = address
	return snow, nil
}

// instanceAddress returns scheme, host, port and a gateway's path of what people put into instance_url.
func instanceAddress(given string) (address string, ok bool) {
	given = strings.TrimRight(given, "/")
	isURL := strings.Contains(given, "://")
	if !strings.ContainsAny(given, ".:/") && given != "localhost" {
		given += ".service-now.com"
	}
	if !isURL {
		given = "https://" + given
	}
	parsed, err := url.Parse(given)
	if err != nil || strings.Contains(given+parsed.EscapedPath(), "@") { // an @ may end a user's password
		return "", false
	}
	host, path := parsed.Hostname(), strings.TrimRight(parsed.EscapedPath(), "/")
	isHost := consistsOf(host, alphanumeric+"-._:") && strings.ContainsAny(host, alphanumeric) // with colons: IPv6
	isMaimed := strings.TrimLeft(host, "-._") != host || strings.HasSuffix(parsed.Host, ":") || strings.HasPrefix(path, "//")
	host = strings.ToLower(host)
	isNamed := isURL || host == "localhost" || strings.Contains(host, ".")
	onLoopback := host == "localhost" || host == "127.0.0.1" || host == "::1"
	isSafe := parsed.Scheme == "https" || (parsed.Scheme == "http" && onLoopback)
	atServiceNow := strings.HasSuffix(host, ".service-now.com") || strings.HasSuffix(host, ".servicenowservices.com")
	isPage := atServiceNow || strings.HasSuffix(path, ".do") // copied from the browser
	if isPage {
		path, parsed.RawQuery, parsed.Fragment = "", "", ""
	}
	ok = isHost && isNamed && !isMaimed && isSafe && parsed.RawQuery == "" && parsed.Fragment == ""
	return parsed.Scheme + "://" + strings.ToLower(parsed.Host) + path, ok
}

func consistsOf(text, characters string) bool { return strings.Trim(text, characters) == "" }

// The two resources.

// record is what the cache holds. Other scripts read the token, its expiry and its instance.
type record struct {
	Token       string `json:"token"`
	ExpiresAt   int64  `json:"expires_at"`   // Unix seconds
	InstanceURL string `json:"instance_url"` // scheme, host, port and path prefix, no slash at the end
	Seal        string `json:"seal"`         // shows that this script wrote it, for the same credentials
}

// remaining is the time left until the token expires, in whole seconds; of the zero record it is negative.
func (c record) remaining() time.Duration {
	return time.Duration(c.ExpiresAt-now().Unix()) * time.Second
}

// seal returns the HMAC-SHA256, in hex, of the credentials and more: a record that was planted or stretched has another.
func (snow servicenow) seal(more ...any) string {
	parts, _ := json.Marshal(append([]any{snow.InstanceURL, snow.ClientID, snow.Username, snow.Password}, more...))
	mac := hmac.New(sha256.New, []byte(snow.ClientSecret))
	mac.Write(parts)
	return hex.EncodeToString(mac.Sum(nil))
}

// readCache returns the cached record, or the zero record if none has the seal of these credentials.
func (r *run) readCache(ctx context.Context) (record, error) {
	value, err := r.access(ctx, cachePath, nil)
	var fields map[string]any // by their exact names, as others read them: into a struct, "Token" would do for "token"
	_ = json.Unmarshal(value, &fields)
	token, _ := fields["token"].(string)
	expiry, _ := fields["expires_at"].(float64)
	seal, _ := fields["seal"].(string)
	cached := record{token, int64(expiry), r.snow.InstanceURL, r.snow.seal(token, int64(expiry))}
	isWhole := fields["instance_url"] == cached.InstanceURL && expiry == float64(cached.ExpiresAt)
	if !isWhole || !hmac.Equal([]byte(seal), []byte(cached.Seal)) {
		return record{}, err
	}
	return cached, err
}

// login is the last login with some credentials. The zero login is none.
type login struct {
	Job       string `json:"job"`        // the id of the job that logs in, or did
	At        int64  `json:"at"`         // when it began or, once it has ended, ended; Unix seconds
	Outcome   string `json:"outcome"`    // empty while it is under way; succeeded; else what came back
	Refusals  int    `json:"refusals"`   // of these credentials in a row
	RefusedAt int64  `json:"refused_at"` // the last of them; Unix seconds
}

// readLogins returns the last login with each set of credentials, by their seal.
func (r *run) readLogins(ctx context.Context) (map[string]login, error) {
	value, err := r.access(ctx, loginsPath, nil)
	var logins map[string]login // what is of another type stays empty
	if _ = json.Unmarshal(value, &logins); logins == nil {
		logins = make(map[string]login)
	}
	return logins, err
}

// age is how long ago a time was, by this worker's clock. It is negative if another worker's clock is ahead.
func age(at int64) time.Duration { return now().Sub(time.Unix(at, 0)) }

// access reads the resource at path, or writes it if there is a value: once more if the network or Windmill itself
// failed. It returns what was read, in JSON and as it is stored, or nil if there is no such resource.
func (r *run) access(ctx context.Context, path string, value any) ([]byte, error) {
	status, body, err := callWindmill(ctx, path, value)
	if failed := err != nil || status >= 500; failed && ctx.Err() == nil {
		sleep(pause)
		status, body, err = callWindmill(ctx, path, value)
	}
	failing, done := path+" cannot be read", status == http.StatusOK && json.Valid(body)
	if value != nil {
		failing, done = path+" cannot be written", status == http.StatusCreated
	}
	said, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n") // what follows tells of rights and tokens
	check := "Windmill's server log, and BASE_INTERNAL_URL"
	switch {
	case err != nil:
		err = cmp.Or(errors.Unwrap(err), err) // a *url.Error repeats the URL
		return nil, fmt.Errorf("%s: Windmill did not answer (%s). Check BASE_INTERNAL_URL", failing, r.quote(err.Error(), ""))
	case done:
		return body, nil
	case value == nil && status == http.StatusNotFound && strings.HasPrefix(said, "Not found"): // not a gateway's own 404
		return nil, nil
	case status == http.StatusOK: // it may hold the token
		said = "which is no JSON"
	case strings.HasSuffix(said, "Unauthorized"):
		check = "WM_TOKEN, the job's token, which Windmill does not accept"
	case status == 400 || status == 401 || status == 403:
		check = "that the folder f/ServiceNow exists, and that " + os.Getenv("WM_PERMISSIONED_AS") + " may read and write in it"
	}
	return nil, fmt.Errorf("%s: Windmill answered %d, %s. Check %s", failing, status, r.quote(said, `"@=+!?#$&{}|`), check)
}

func callWindmill(ctx context.Context, path string, value any) (int, []byte, error) {
	windmill, _ := wmill.GetClient() // its error is always nil
	if value == nil {
		got, err := windmill.Client.GetResourceValueWithResponse(ctx, windmill.Workspace, path)
		if err != nil {
			return 0, nil, err
		}
		return got.StatusCode(), got.Body, nil
	}
	update, state := true, "state" // of this type Windmill keeps no readable history
	got, err := windmill.Client.CreateResourceWithResponse(ctx, windmill.Workspace,
		&api.CreateResourceParams{UpdateIfExists: &update}, api.CreateResource{Path: path, ResourceType: state, Value: value})
	if err != nil {
		return 0, nil, err
	}
	return got.StatusCode(), got.Body, nil
}

// One login at a time.
//
// A run that must log in claims the login: it writes its job's id into the logins (not into the cache: a claim touches
// no token), and asks only if that still stands there a moment later. All others wait for what comes of its login.

// awaitTurn returns the logins with this run's claim in them when it is to ask ServiceNow, else the record to reuse.
func (r *run) awaitTurn(ctx context.Context) (map[string]login, record, error) {
	turn, cancel := context.WithTimeout(ctx, turnLimit)
	defer cancel()
	margin := expiryMargin
	cached, err := r.readCache(turn)
	if isGood := r.called && cached.remaining() > margin; err != nil || isGood {
		return nil, cached, err
	}
	first, watched, watchedSince := login{}, login{}, r.began
	for look := 1; now().Sub(r.began) < turnLimit; look++ {
		logins, err := r.readLogins(turn)
		if err != nil {
			return nil, record{}, err
		}
		last := logins[r.snow.seal()]
		if look == 1 {
			first = last
		}
		if r.isAnothers(last) && last != watched {
			watched, watchedSince = last, now()
			fmt.Printf("Job %s is logging in: waiting for it.\n", r.quote(last.Job, ""))
		}
		if r.isAnothers(last) && now().Sub(watchedSince) < deadAfter {
			sleep(pause)
			continue
		}
		// A login that ended during this run counts for it: the failure, or the token, be it for its last minute.
		awaited := last != first && last != (login{})
		if awaited {
			margin = 0
		}
		justNow := r.called && age(last.At).Abs() < failureStands
		failed := last.Outcome != "" && last.Outcome != succeeded
		if failed && (awaited || justNow) {
			return nil, record{}, fmt.Errorf("job %s has just failed, for this run, too: %s. Its log says what to check",
				r.quote(last.Job, ""), r.quote(last.Outcome, ""))
		}
		if last.Outcome == succeeded && (awaited || r.called) {
			if cached, err := r.readCache(turn); err != nil || cached.remaining() > margin {
				return nil, cached, err
			}
		}
		if err := r.heldBack(last); err != nil {
			return nil, record{}, err
		}
		mine := login{Job: r.job, At: now().Unix(), Refusals: last.Refusals, RefusedAt: last.RefusedAt}
		logins[r.snow.seal()] = mine
		writing := now()
		if _, err := r.access(turn, loginsPath, logins); err != nil {
			return nil, record{}, err
		}
		// A job that looked before this write may still write a claim, and takes about as long for it.
		settling := min(2*now().Sub(writing), turnLimit-now().Sub(r.began))
		sleep(max(claimPause, settling))
		claimed, err := r.readLogins(turn)
		if err != nil { // else others would wait for the claim
			r.end(ctx, logins, "Windmill failed after the claim", false)
		}
		if err != nil || claimed[r.snow.seal()] == mine {
			return claimed, record{}, err
		}
	}
	return nil, record{}, fmt.Errorf("other jobs have been logging in all the time, the last of them %s", r.quote(watched.Job, ""))
}

func (r *run) isAnothers(l login) bool {
	return l.Job != "" && l.Job != r.job && l.Outcome == "" && age(l.At).Abs() < clockSkew
}

// heldBack returns an error if refusals in a row forbid this run to ask. ServiceNow locks a user after five, or three
// where it counts one more than once (KB0749501). A person may have mended something, and may ask sooner.
func (r *run) heldBack(last login) error {
	byHand, others, rule := time.Minute, 10*time.Minute, "do not ask for 10 minutes"
	if last.Refusals > 1 {
		byHand, others, rule = 20*time.Minute, 100*365*24*time.Hour, "do not ask again"
	}
	heldFor := map[bool]time.Duration{true: byHand, false: others}[r.byHand]
	if last.Refusals < 1 || age(last.RefusedAt) >= heldFor {
		return nil
	}
	refused := time.Unix(last.RefusedAt, 0).UTC()
	return fmt.Errorf("it refused these credentials, %d in a row, the last at %s (%s), and a few lock the user. Flows and schedules %s; "+
		"a run by hand may from %s on. This ends with other credentials in the servicenow resource, a run by hand that succeeds, or "+
		"when %s is deleted", last.Refusals, refused.Format(time.RFC3339), cmp.Or(r.quote(last.Outcome, ""), "unknown"), rule,
		refused.Add(byHand).Format(time.RFC3339), loginsPath)
}

// end puts what came of this run's login in the place of its claim.
func (r *run) end(ctx context.Context, claimed map[string]login, outcome string, refused bool) {
	logins, err := r.readLogins(ctx)
	if err != nil {
		logins = claimed
	}
	last := logins[r.snow.seal()]
	if refused {
		last.Refusals, last.RefusedAt = last.Refusals+1, now().Unix()
	}
	if !r.isAnothers(last) { // else that job took this run for dead, and its claim stays
		last.Job, last.At, last.Outcome = r.job, now().Unix(), fmt.Sprintf("%.*s", longestQuote, outcome)
	}
	if outcome == succeeded {
		last.Refusals = 0
	}
	logins[r.snow.seal()] = last
	if _, err := r.access(ctx, loginsPath, logins); err != nil {
		fmt.Printf("Other runs could not be told what came of this one: %v\n", err)
	}
	// Windmill has no compare-and-swap: a write at the same moment may have undone this one, and the refusal be forgotten.
	for wait := claimPause; refused && wait < time.Second && ctx.Err() == nil; wait *= 3 {
		sleep(wait)
		logins, err := r.readLogins(ctx)
		if found := logins[r.snow.seal()]; err == nil && found.Refusals < last.Refusals {
			found.Refusals, found.RefusedAt = last.Refusals, last.RefusedAt
			logins[r.snow.seal()] = found
			_, _ = r.access(ctx, loginsPath, logins)
		}
	}
}

// failure is a login that brought no token.
type failure struct {
	outcome string // who was asked and what came back
	advice  string // what to check
	refused bool   // ServiceNow did not accept the credentials
	passing bool   // asking again may help
}

// Error says who was asked, what came back and what to check.
func (f *failure) Error() string { return f.outcome + ". " + f.advice }

// logIn asks for a token, once more if a gateway or the network failed. Its error is a *failure.
func (r *run) logIn(ctx context.Context) (record, error) {
	ctx, cancel := context.WithTimeout(ctx, loginLimit)
	defer cancel()
	fmt.Printf("Asking %s for a token.\n", r.snow.InstanceURL)
	fresh, failed := r.ask(ctx)
	if failed != nil && failed.passing && ctx.Err() == nil {
		fmt.Printf("%s. Asking once more.\n", failed.outcome)
		sleep(pause)
		fresh, failed = r.ask(ctx)
	}
	if failed != nil {
		return record{}, failed
	}
	fmt.Printf("It gave one that is valid for %s.\n", fresh.remaining())
	return fresh, nil
}

func (r *run) ask(ctx context.Context) (record, *failure) {
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {r.snow.ClientID}, "client_secret": {r.snow.ClientSecret}}
	if r.snow.Username != "" {
		form["grant_type"], form["username"], form["password"] = []string{"password"}, []string{r.snow.Username}, []string{r.snow.Password}
	}
	asked := now() // the lifetime counts from here, so that the answer's way shortens it
	endpoint := r.snow.InstanceURL + "/oauth_token.do"
	request, _ := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(form.Encode())) // a checked address
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	// On a kept connection, or by HTTP/2, Go might send it twice. An http.Client would follow redirects, password and all.
	noHTTP2 := map[string]func(string, *tls.Conn) http.RoundTripper{}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, TLSNextProto: noHTTP2}
	response, err := transport.RoundTrip(request)
	var body []byte
	if err == nil {
		defer response.Body.Close()
		body, err = io.ReadAll(io.LimitReader(response.Body, longestAnswer))
	}
	if notOK := response != nil && response.StatusCode != http.StatusOK; err != nil && !notOK { // its status says enough
		is := func(cause error) bool { return errors.Is(err, cause) }
		brokenOff := is(syscall.ECONNRESET) || is(syscall.EPIPE) || is(io.EOF) || is(io.ErrUnexpectedEOF)
		return record{}, &failure{outcome: endpoint + " did not answer (" + r.quote(err.Error(), "") + ")",
			advice:  "Check instance_url, and this worker's network, DNS, certificates and proxy variables",
			passing: brokenOff || is(syscall.ECONNREFUSED)}
	}
	var answer tokenAnswer
	_ = json.Unmarshal(body, &answer) // what is no JSON, or of another type, stays as it is
	r.secrets = append(r.secrets, answer.AccessToken, answer.RefreshToken)
	isToken := answer.AccessToken != "" && consistsOf(answer.AccessToken, alphanumeric+"-._~+/=") // RFC 6750
	lifetime, _ := strconv.ParseFloat(fmt.Sprint(cmp.Or(answer.ExpiresIn, any(defaultLifetime))), 64)
	isLifetime := lifetime >= 1 && lifetime <= 1e9
	if response.StatusCode != http.StatusOK || answer.Error != nil || !isToken || !isLifetime {
		return record{}, r.judge(endpoint, response, body, answer)
	}
	expiry := asked.Unix() + int64(lifetime)
	return record{answer.AccessToken, expiry, r.snow.InstanceURL, r.snow.seal(answer.AccessToken, expiry)}, nil
}

// tokenAnswer is what the token endpoint answers (RFC 6749, sections 5.1 and 5.2), or nearly: any type is met in any.
type tokenAnswer struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"` // not used, but no error may repeat it
	ExpiresIn    any    `json:"expires_in"`    // seconds: a number, a quoted one, or nothing
	Error        any    `json:"error"`         // a code; an object where ServiceNow is busy
	Description  any    `json:"error_description"`
}

// judge says what came back in the place of a token, and what to check.
func (r *run) judge(endpoint string, response *http.Response, body []byte, answer tokenAnswer) *failure {
	status := response.StatusCode
	outcome := fmt.Sprintf("%s answered %d %s", endpoint, status, cmp.Or(http.StatusText(status), "(unknown)"))
	code, _ := answer.Error.(string)
	description, _ := answer.Description.(string)
	for _, field := range [][2]string{{"error", code}, {"error_description", description}, {"Retry-After", response.Header.Get("Retry-After")}} {
		if field[1] != "" {
			outcome += ", " + field[0] + " " + r.quote(field[1], "")
		}
	}
	answersLogin := status == 200 || status == 400 || status == 401
	refused := answersLogin && code != "" // a gateway's own 401 is no JSON, and a busy ServiceNow's error an object
	advice := "That is not what a token endpoint answers: check instance_url, and any gateway or proxy between"
	switch {
	case refused && r.snow.Username == "":
		advice = "Check client_id and client_secret; the OAuth application: active, with a scope and an OAuth Application User; " +
			"glide.oauth.inbound.client.credential.grant_type.enabled: true; in the instance's system log: Exception on token flow"
	case refused: // KB0791140, KB1115956
		advice = "ServiceNow does not say why. Check client_id, client_secret, username and password; the user: active, " +
			"not locked out, no password reset due, a local password; the OAuth application: active, its scope intact; " +
			"glide.oauth.inbound.ropc.grant_type.disabled: not true; in the instance's system log: Exception on token flow"
	case strings.Contains(string(body), "instance-hibernating-page"):
		advice = "It is the page of a hibernating instance: wake it at developer.servicenow.com"
	case status/100 == 3:
		advice = "The redirect was not followed: instance_url must be the instance's own address"
	case status == 403:
		advice = "Check the instance's IP address access control, and any gateway before it"
	case status == 429:
		advice = "Check what else asks this instance so often"
	case status >= 500:
		advice = "The instance or a gateway before it is failing or busy: run again later"
	}
	return &failure{outcome, advice, refused, status == 502 || status == 503 || status == 504}
}

// quote returns what others said, unless it may repeat a secret, which escapes of a URL, a form or JSON might hide.
func (r *run) quote(text, further string) string {
	hidden := len(text) > longestQuote || !consistsOf(text, alphanumeric+" .,:;'/()[]-_>*"+further)
	for _, secret := range r.secrets {
		hidden = hidden || (secret != "" && strings.Contains(strings.ToLower(text), strings.ToLower(secret)))
	}
	if hidden {
		return "(not repeated here)"
	}
	return text
}
