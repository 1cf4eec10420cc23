package inner

// Windmill compiles this file only if it begins with the word "package".
//
// This script gets an OAuth 2.0 access token from ServiceNow and stores it in the Windmill resource
// f/ServiceNow/snow_token_cache for other jobs to read. It uses the password grant (RFC 6749, section 4.3)
// or, if the servicenow resource names no user, the client credentials grant (section 4.4).
//
// Run it by hand to verify the credentials, on a schedule to keep the token fresh, or as a step of a flow.
// A step reuses the stored token until a minute before it expires. The result is "OK", never the token.
//
// ServiceNow may lock a user after a few refused logins. So when several jobs run at the same time, only the
// one that started first logs in. The others wait, and then use its token or fail with its error. The script
// records failed logins in f/ServiceNow/snow_token_failures, so that later jobs do not try again too soon.

//require github.com/windmill-labs/windmill-go-client v1.501.4

import (
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
	"math"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	wmill "github.com/windmill-labs/windmill-go-client"
	api "github.com/windmill-labs/windmill-go-client/api"
)

const (
	cachePath    = "f/ServiceNow/snow_token_cache"
	failuresPath = "f/ServiceNow/snow_token_failures"

	expiryMargin    = time.Minute // a step reuses a token only if it has more time left
	defaultLifetime = 1800        // seconds, if ServiceNow does not send expires_in

	runLimit     = 54 * time.Second
	turnLimit    = 30 * time.Second       // how long a run waits for its turn
	stuckAfter   = 24 * time.Second       // how long a job may stay first in the queue before we skip it
	pollInterval = 500 * time.Millisecond // between two looks at the queue
	loginLimit   = 20 * time.Second       // for both requests of a login
	retryDelay   = time.Second            // before a failed request is sent again

	// For how many seconds a failed login keeps other runs from trying the same credentials.
	failureHold = 5
	refusalHold = 600 // if it was refused; also the longest Retry-After that we respect
	byHandHold  = 60  // the most for a run by hand: somebody may have fixed the cause

	maxBody  = 4 << 20 // bytes; enough for the 1,000 jobs that Windmill lists at most
	maxQuote = 1000    // bytes

	encodingSigns = `%\&#+{` // URLs, JSON and HTML may use them to encode a secret
)

var (
	hostName    = regexp.MustCompile(`^\w[\w.:-]*$`)  // a colon is part of an IPv6 address
	bearerToken = regexp.MustCompile(`^[\w.~+/=-]+$`) // RFC 6750, section 2.1
)

// Tests replace the clock.
var now, sleep = time.Now, time.Sleep

// servicenow is the Windmill resource type of the same name.
type servicenow struct {
	InstanceURL  string `json:"instance_url"` // a URL, a host name, or an instance name such as dev12345
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
	Username     string `json:"username"` // empty, like the password, for the client credentials grant
	Password     string `json:"password"`
}

// main makes sure that the cache holds a valid token.
func main(snow servicenow) (string, error) {
	log.SetOutput(io.Discard) // net/http logs unexpected bytes from a server, which may contain a secret
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	defer cancel()
	cleaned, err := clean(snow)
	if err != nil {
		return "", err
	}
	if err := newRun(cleaned).ensureToken(ctx); err != nil {
		return "", err
	}
	return "OK", nil
}

// The input.

// clean trims and checks the fields. Its errors never quote a field: a password may be in the wrong one.
func clean(snow servicenow) (servicenow, error) {
	cleaned := servicenow{
		InstanceURL:  strings.TrimSpace(snow.InstanceURL),
		ClientID:     strings.TrimSpace(snow.ClientID),
		ClientSecret: strings.TrimSpace(snow.ClientSecret),
		Username:     strings.TrimSpace(snow.Username),
		Password:     strings.TrimRight(snow.Password, "\r\n"), // a space may be part of a password
	}
	if cleaned.InstanceURL == "" || cleaned.ClientID == "" || cleaned.ClientSecret == "" {
		return servicenow{}, errors.New("instance_url, client_id and client_secret are required: " +
			`fill them in, and pass the servicenow resource as "$res:" followed by its path`)
	}
	if (cleaned.Username == "") != (cleaned.Password == "") {
		return servicenow{}, errors.New("set both username and password, " +
			"or leave both empty to use the client credentials grant")
	}
	address, ok := instanceAddress(cleaned.InstanceURL)
	if !ok {
		return servicenow{}, errors.New("instance_url must be an address such as " +
			"https://dev12345.service-now.com or an instance name such as dev12345")
	}
	cleaned.InstanceURL = address
	return cleaned, nil
}

// instanceAddress turns an instance_url into the address to which /oauth_token.do is appended.
func instanceAddress(given string) (address string, ok bool) {
	if strings.Contains(given, "@") { // a user name, or a misplaced password
		return "", false
	}
	full := strings.TrimRight(given, "/")
	isURL := strings.Contains(full, "://")
	if !strings.ContainsAny(full, ".:/") { // an instance name
		full += ".service-now.com"
	}
	if !isURL {
		full = "https://" + full
	}
	parsed, err := url.Parse(full)
	if err != nil || !hostName.MatchString(parsed.Hostname()) {
		return "", false
	}
	host := strings.ToLower(parsed.Hostname())
	if !isURL && !strings.Contains(host, ".") { // a typo such as https//dev12345
		return "", false
	}
	isLocal := host == "localhost" || host == "127.0.0.1"
	isSafe := parsed.Scheme == "https" || (parsed.Scheme == "http" && isLocal)
	if !isSafe {
		return "", false
	}
	path := strings.TrimRight(parsed.EscapedPath(), "/")
	return parsed.Scheme + "://" + strings.ToLower(parsed.Host) + gatewayPath(host, path), true
}

// gatewayPath returns the part of a path that leads through a gateway. It drops the path of a page
// that somebody has copied from the browser.
func gatewayPath(host, path string) string {
	if strings.HasSuffix(host, ".service-now.com") || strings.HasSuffix(host, ".servicenowservices.com") {
		return ""
	}
	gateway := strings.TrimRight(strings.TrimSuffix(path, "/oauth_token.do"), "/")
	isPage := strings.HasSuffix(gateway, ".do") || strings.HasPrefix(gateway+"/", "/now/")
	if isPage {
		return ""
	}
	return gateway
}

// The run.

// run is one run of this script.
type run struct {
	snow     servicenow
	key      string // identifies these credentials among the failures
	windmill wmill.ClientWithWorkspace
	job      string   // the ID of this run's job
	isStep   bool     // called by a flow or by another script
	isByHand bool     // started by a person or by a webhook
	secrets  []string // no message may contain them
}

// newRun finds out from the environment what started this run.
func newRun(snow servicenow) *run {
	windmill, _ := wmill.GetClient() // The error is always nil.
	isScheduled := os.Getenv("WM_SCHEDULE_PATH") != ""
	// If a schedule has retries, Windmill wraps the script in a flow that has the same path as the script.
	isWrapped := isScheduled && os.Getenv("WM_FLOW_PATH") == os.Getenv("WM_JOB_PATH")
	isStep := os.Getenv("WM_FLOW_JOB_ID") != "" && !isWrapped
	return &run{
		snow:     snow,
		key:      snow.seal(),
		windmill: windmill,
		job:      os.Getenv("WM_JOB_ID"),
		isStep:   isStep,
		isByHand: !isStep && !isScheduled,
		secrets:  []string{strings.TrimSpace(snow.Password), snow.ClientSecret, os.Getenv("WM_TOKEN")},
	}
}

// ensureToken finds or renews the token. Outside Windmill, it only tests the login.
func (r *run) ensureToken(ctx context.Context) error {
	isOutside := os.Getenv("WM_TOKEN") == "" && os.Getenv("WM_WORKSPACE") == "" &&
		os.Getenv("BASE_INTERNAL_URL") == ""
	if isOutside {
		fmt.Println("Not running in Windmill, so the token will not be stored.")
		_, err := r.logIn(ctx)
		return err
	}
	found, err := r.findToken(ctx)
	if err != nil {
		return fmt.Errorf("did not log in to ServiceNow: %w", err)
	}
	if found.Token != "" {
		fmt.Printf("Reusing the token in %s. It is valid for another %s at %s.\n",
			cachePath, found.lifetime(), found.InstanceURL)
		return nil
	}
	loginErr := r.renewToken(ctx)
	if err := r.recordOutcome(ctx, loginErr); err != nil {
		fmt.Printf("Later runs will not know how this login ended: %v\n", err)
	}
	return loginErr
}

// findToken returns a token that makes a login unnecessary, or the zero cachedToken if this run must log in.
func (r *run) findToken(ctx context.Context) (cachedToken, error) {
	// If a call hangs, give up while there is still time to log in and to record the outcome.
	ctx, cancel := context.WithTimeout(ctx, turnLimit+2*time.Second)
	defer cancel()
	cached, err := r.readCache(ctx)
	if err != nil {
		return cachedToken{}, err
	}
	// Only a step reuses this token. A run by hand verifies the credentials, and a schedule renews the token.
	if r.isStep && cached.lifetime() > expiryMargin {
		return cached, nil
	}
	return r.awaitTurn(ctx, cached)
}

// awaitTurn waits until this run may log in, and then returns the zero cachedToken. If another run stores a
// token in the meantime, it returns that token. If a failed login forbids another one, it returns an error.
func (r *run) awaitTurn(ctx context.Context, before cachedToken) (cachedToken, error) {
	waitingSince := make(map[string]time.Time) // by the ID of the job that was first in the queue
	for deadline := now().Add(turnLimit); now().Before(deadline); sleep(pollInterval) {
		// Read the queue first: a job that has left it has already stored its token or its failure.
		jobs, err := r.readQueue(ctx)
		if err != nil {
			return cachedToken{}, err
		}
		cached, err := r.readCache(ctx)
		if err != nil {
			return cachedToken{}, err
		}
		if cached != before && cached.lifetime() > 0 {
			return cached, nil
		}
		failures, err := r.readFailures(ctx)
		if err != nil {
			return cachedToken{}, err
		}
		if err := r.checkHold(failures[r.key]); err != nil {
			return cachedToken{}, err
		}
		first := r.firstInQueue(jobs, waitingSince)
		if first == r.job {
			// Log in only if a refusal can be recorded. Writing the failures back unchanged proves it.
			return cachedToken{}, r.write(ctx, failuresPath, failures)
		}
		if _, isWaiting := waitingSince[first]; !isWaiting {
			fmt.Printf("Waiting for job %s, which started earlier.\n", r.quote(first))
			waitingSince[first] = now()
		}
	}
	return cachedToken{}, fmt.Errorf("other jobs of this script took longer than %s to log in", turnLimit)
}

// renewToken logs in and stores the token.
func (r *run) renewToken(ctx context.Context) error {
	fresh, err := r.logIn(ctx)
	if err != nil {
		return err
	}
	if err := r.write(ctx, cachePath, fresh); err != nil {
		return err
	}
	fmt.Printf("Stored the token in %s.\n", cachePath)
	return nil
}

// The cache.

// cachedToken is the content of the cache, or zero if there is no token. Other scripts read the first three
// fields.
type cachedToken struct {
	Token       string `json:"token"`
	ExpiresAt   int64  `json:"expires_at"` // Unix seconds
	InstanceURL string `json:"instance_url"`
	Job         string `json:"job"`  // tells logins apart even if ServiceNow repeats the token
	Seal        string `json:"seal"` // proves that this script stored the token, with the same credentials
}

// lifetime returns how much longer the token is valid.
func (c cachedToken) lifetime() time.Duration {
	return time.Duration(c.ExpiresAt-now().Unix()) * time.Second
}

// seal returns a hash of content and the credentials, keyed with the client secret.
func (snow servicenow) seal(content ...any) string {
	text, _ := json.Marshal(append(content, snow)) // Encoding strings and numbers cannot fail.
	mac := hmac.New(sha256.New, []byte(snow.ClientSecret))
	mac.Write(text)
	return hex.EncodeToString(mac.Sum(nil))
}

// sealed returns c with the instance and the seal that belong to these credentials.
func (snow servicenow) sealed(c cachedToken) cachedToken {
	c.InstanceURL = snow.InstanceURL
	c.Seal = snow.seal(c.Token, c.ExpiresAt, c.Job)
	return c
}

// readCache returns the cached token, or the zero cachedToken if there is none for these credentials.
func (r *run) readCache(ctx context.Context) (cachedToken, error) {
	var record map[string]any
	if err := r.read(ctx, cachePath, &record); err != nil {
		return cachedToken{}, err
	}
	// Decoding into a struct would also accept a field such as Token, which could hide a forged field token.
	text := func(name string) string {
		value, _ := record[name].(string)
		return value
	}
	expiresAt, _ := record["expires_at"].(float64)
	cached := cachedToken{
		Token:       text("token"),
		ExpiresAt:   int64(expiresAt),
		InstanceURL: text("instance_url"),
		Job:         text("job"),
		Seal:        text("seal"),
	}
	if cached != r.snow.sealed(cached) {
		return cachedToken{}, nil
	}
	r.secrets = append(r.secrets, cached.Token)
	return cached, nil
}

// The failures.

// failure describes the latest login with one set of credentials, if that login failed.
type failure struct {
	Job      string `json:"job"`
	Outcome  string `json:"outcome"`
	At       int64  `json:"at"`       // Unix seconds
	Hold     int64  `json:"hold"`     // the seconds during which other runs do not log in
	Refusals int    `json:"refusals"` // since the last successful login
}

// readFailures returns the failures by the key of their credentials.
func (r *run) readFailures(ctx context.Context) (map[string]failure, error) {
	var failures map[string]failure
	err := r.read(ctx, failuresPath, &failures)
	if failures == nil { // The resource does not exist, or holds something else.
		failures = make(map[string]failure)
	}
	return failures, err
}

// checkHold returns an error if it is too soon to log in again, or if another refusal may lock the user.
func (r *run) checkHold(last failure) error {
	hold := min(last.Hold, refusalHold)
	if r.isByHand {
		hold = min(hold, byHandHold)
	}
	age := now().Unix() - last.At
	isTooSoon := age < hold && age > -hold // The other worker's clock may be ahead.
	// ServiceNow locks a user after five refusals in a row (KB0749501), or after three if it counts each one
	// more than once. Only a run by hand may risk the third.
	mayLockUser := last.Refusals > 1 && r.snow.Username != "" && !r.isByHand
	if !isTooSoon && !mayLockUser {
		return nil
	}
	advice := "Run again after " + utc(last.At+hold)
	if mayLockUser {
		advice = fmt.Sprintf("ServiceNow has refused these credentials %d times and may lock the user. "+
			"Flows and schedules will not log in until a run by hand succeeds, the credentials in the "+
			"servicenow resource change, or you delete %s", last.Refusals, failuresPath)
	}
	return fmt.Errorf("job %s failed at %s: %s. %s",
		r.quote(last.Job), utc(last.At), r.quote(last.Outcome), advice)
}

func utc(unix int64) string { return time.Unix(unix, 0).UTC().Format(time.RFC3339) }

// recordOutcome records for later runs how this run's login ended.
func (r *run) recordOutcome(ctx context.Context, loginErr error) error {
	failures, err := r.readFailures(ctx)
	if err != nil {
		return err
	}
	previous, isRecorded := failures[r.key]
	switch {
	case loginErr != nil:
		failures[r.key] = r.newFailure(previous, loginErr)
	case isRecorded:
		delete(failures, r.key)
	default:
		return nil
	}
	return r.write(ctx, failuresPath, failures)
}

// newFailure returns the record of a failed login. It replaces the previous record.
func (r *run) newFailure(previous failure, loginErr error) failure {
	latest := failure{
		Job:     r.job,
		Outcome: loginErr.Error(),
		At:      now().Unix(),
		Hold:    failureHold,
	}
	var failed *loginError
	if !errors.As(loginErr, &failed) { // The login succeeded, but the token could not be stored.
		return latest
	}
	latest.Outcome = failed.outcome
	latest.Hold = max(failureHold, failed.retryAfter)
	latest.Refusals = previous.Refusals
	if failed.isRefusal {
		latest.Hold = refusalHold
		latest.Refusals++
	}
	return latest
}

// The queue.

// queuedJob is a running job in Windmill's queue.
type queuedJob struct {
	ID        string    `json:"id"`
	Kind      string    `json:"job_kind"`
	StartedAt time.Time `json:"started_at"` // by the clock of Windmill's database
}

// startedBefore reports whether job started before other. The IDs decide a tie.
func (job queuedJob) startedBefore(other queuedJob) bool {
	if job.StartedAt.Equal(other.StartedAt) {
		return job.ID < other.ID
	}
	return job.StartedAt.Before(other.StartedAt)
}

// firstInQueue returns the ID of the job that started first. It skips jobs of another kind and those that
// seem dead or stuck.
func (r *run) firstInQueue(jobs []queuedJob, waitingSince map[string]time.Time) string {
	index := slices.IndexFunc(jobs, func(job queuedJob) bool { return job.ID == r.job })
	if index < 0 { // Windmill does not list this job, so nobody waits for it.
		return r.job
	}
	own := jobs[index]
	first := own
	for _, job := range jobs {
		// A job that deploys this script, or a flow around a schedule with retries, has the same path.
		isOtherKind := job.Kind != own.Kind
		isDead := own.StartedAt.Sub(job.StartedAt) > runLimit // No run takes longer.
		since, isWaiting := waitingSince[job.ID]
		isStuck := isWaiting && now().Sub(since) > stuckAfter
		if isOtherKind || isDead || isStuck {
			continue
		}
		if job.startedBefore(first) {
			first = job
		}
	}
	return first.ID
}

// Windmill's API.

// readQueue returns the running jobs that have the path of this script.
func (r *run) readQueue(ctx context.Context) ([]queuedJob, error) {
	const action = "read the job queue"
	path, isRunning := os.Getenv("WM_JOB_PATH"), true
	params := &api.ListQueueParams{ScriptPathExact: &path, Running: &isRunning}
	status, body, err := r.call(ctx, action, func() (*http.Response, error) {
		return r.windmill.Client.ListQueue(ctx, r.windmill.Workspace, params)
	})
	if err != nil {
		return nil, err
	}
	var jobs []queuedJob
	if status != http.StatusOK || json.Unmarshal(body, &jobs) != nil {
		return nil, r.unexpected(action, status, body)
	}
	return jobs, nil
}

// read decodes the resource at path into value. What is missing or has another type stays as it is.
func (r *run) read(ctx context.Context, path string, value any) error {
	action := "read " + path
	status, body, err := r.call(ctx, action, func() (*http.Response, error) {
		return r.windmill.Client.GetResourceValue(ctx, r.windmill.Workspace, path)
	})
	if err != nil {
		return err
	}
	if status == http.StatusNotFound && strings.HasPrefix(string(body), "Not found: Resource") {
		return nil
	}
	if status != http.StatusOK || !json.Valid(body) {
		return r.unexpected(action, status, body)
	}
	_ = json.Unmarshal(body, value)
	return nil
}

// write stores value in the resource at path.
func (r *run) write(ctx context.Context, path string, value any) error {
	action := "write " + path
	updateIfExists := true
	params := &api.CreateResourceParams{UpdateIfExists: &updateIfExists}
	// Windmill keeps no history of resources of the type state.
	resource := api.CreateResource{Path: path, ResourceType: "state", Value: value}
	status, body, err := r.call(ctx, action, func() (*http.Response, error) {
		return r.windmill.Client.CreateResource(ctx, r.windmill.Workspace, params, resource)
	})
	if err != nil {
		return err
	}
	if status != http.StatusCreated {
		return r.unexpected(action, status, body)
	}
	return nil
}

// call sends a request to Windmill, and once more if the network or Windmill itself fails.
func (r *run) call(
	ctx context.Context, action string, send func() (*http.Response, error),
) (status int, body []byte, err error) {
	status, body, err = receive(send())
	if (err != nil || isWindmillFault(status, body)) && ctx.Err() == nil {
		sleep(retryDelay)
		status, body, err = receive(send())
	}
	if err != nil {
		return 0, nil, fmt.Errorf("could not %s: Windmill did not answer: %s. Check BASE_INTERNAL_URL",
			action, r.quote(reason(err)))
	}
	return status, body, nil
}

// isWindmillFault reports whether Windmill or its database failed. A missing permission is also reported
// as a database error, but is not a fault.
func isWindmillFault(status int, body []byte) bool {
	isDatabaseError := strings.HasPrefix(string(body), "Sql")
	isMissingPermission := strings.Contains(string(body), "row-level security")
	return status >= 500 || (isDatabaseError && !isMissingPermission)
}

// unexpected describes a response from Windmill that the script cannot use, and says what to check.
func (r *run) unexpected(action string, status int, body []byte) error {
	// The first line says what went wrong. Later lines may list permissions and tokens.
	text, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
	if status/100 == 2 {
		text = "not the expected JSON" // The body may contain the token.
	}
	isDenied := status == 400 || status == 401 || status == 403
	advice := "Check BASE_INTERNAL_URL and Windmill's server log"
	if isDenied && !isWindmillFault(status, body) {
		advice = "Check that the folder f/ServiceNow exists and that " + os.Getenv("WM_PERMISSIONED_AS") +
			" may read and write in it"
	}
	if strings.HasSuffix(text, "Unauthorized") {
		advice = "Windmill has rejected WM_TOKEN. Run the job again"
	}
	return fmt.Errorf("could not %s: Windmill answered %s, %s. %s",
		action, statusLine(status), r.quote(strings.TrimRight(text, ".: ")), advice)
}

// receive reads the response to a request.
func receive(response *http.Response, sendErr error) (status int, body []byte, err error) {
	if sendErr != nil {
		return 0, nil, sendErr
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusSwitchingProtocols {
		return response.StatusCode, nil, nil // The body is an open connection that may never end.
	}
	body, err = io.ReadAll(io.LimitReader(response.Body, maxBody))
	return response.StatusCode, body, err
}

// reason returns the text of err without the URL that http.Client adds, cut off at the first quotation mark.
func reason(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "timed out"
	}
	text := err.Error()
	var failed *url.Error
	if errors.As(err, &failed) {
		text = failed.Err.Error()
	}
	beforeQuote, _, _ := strings.Cut(text, `"`) // A server may have sent what follows, or it names a proxy.
	return strings.TrimRight(beforeQuote, " :(")
}

// statusLine returns a status with its name, such as "401 Unauthorized".
func statusLine(status int) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", status, http.StatusText(status)))
}

// ServiceNow's token endpoint.

// loginError says why ServiceNow issued no token, and what to check.
type loginError struct {
	outcome     string // who was asked, and what came back
	advice      string // what to check
	isRefusal   bool   // ServiceNow did not accept the credentials
	isTransient bool   // another try may help
	retryAfter  int64  // how many seconds ServiceNow asks us to wait
}

func (e *loginError) Error() string { return e.outcome + ". " + e.advice }

// logIn gets a new token. It tries once more after a transient failure.
func (r *run) logIn(ctx context.Context) (cachedToken, error) {
	ctx, cancel := context.WithTimeout(ctx, loginLimit)
	defer cancel()
	fmt.Printf("Requesting a token from %s.\n", r.snow.InstanceURL)
	fresh, failed := r.requestToken(ctx)
	if failed != nil && failed.isTransient && ctx.Err() == nil {
		fmt.Printf("%s. Trying once more.\n", failed.outcome)
		sleep(retryDelay)
		fresh, failed = r.requestToken(ctx)
	}
	if failed != nil {
		return cachedToken{}, failed
	}
	fmt.Printf("Received a token that is valid for %s.\n", fresh.lifetime())
	return fresh, nil
}

// tokenResponse is the response of a token endpoint (RFC 6749, sections 5.1 and 5.2).
type tokenResponse struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"` // not used, but no message may contain it
	ExpiresIn    any    `json:"expires_in"`    // seconds, as a number or in quotes
	Error        string `json:"error"`
	Description  string `json:"error_description"`
}

// seconds returns the lifetime of the token, or 0 if expires_in is not a number.
func (t tokenResponse) seconds() int64 {
	if t.ExpiresIn == nil {
		return defaultLifetime
	}
	seconds, err := strconv.ParseFloat(fmt.Sprint(t.ExpiresIn), 64)
	if err != nil || math.IsNaN(seconds) {
		return 0
	}
	return int64(min(max(seconds, 0), 1e9)) // Many more seconds would overflow a time.Duration.
}

// requestToken asks ServiceNow for a token once.
func (r *run) requestToken(ctx context.Context) (cachedToken, *loginError) {
	askedAt := now().Unix() // The lifetime counts from here, in case the response is slow.
	response, err := r.post(ctx)
	status, body, err := receive(response, err)
	hasErrorStatus := status != 0 && status != http.StatusOK // The status is enough, even without a body.
	if err != nil && !hasErrorStatus {
		return cachedToken{}, &loginError{
			outcome:     r.snow.InstanceURL + " did not answer: " + r.quote(reason(err)),
			advice:      "Check instance_url, and this worker's network, DNS, certificates and proxy",
			isTransient: true,
		}
	}
	var answer tokenResponse
	_ = json.Unmarshal(body, &answer) // Fields of another type stay empty.
	r.secrets = append(r.secrets, answer.AccessToken, answer.RefreshToken)
	if status != http.StatusOK || answer.Error != "" || !bearerToken.MatchString(answer.AccessToken) {
		return cachedToken{}, r.explain(response, body, answer)
	}
	fresh := r.snow.sealed(cachedToken{
		Token:     answer.AccessToken,
		ExpiresAt: askedAt + answer.seconds(),
		Job:       r.job,
	})
	if fresh.lifetime() <= 0 {
		return cachedToken{}, &loginError{
			outcome: r.snow.InstanceURL + " sent a token that has already expired" +
				r.detail("expires_in", fmt.Sprint(answer.ExpiresIn)),
			advice:      "Run again",
			isTransient: true,
		}
	}
	return fresh, nil
}

// transport sends each request once. Unlike an http.Client, it follows no redirects, which might send the
// password elsewhere. It does not use HTTP/2, because Go may send an HTTP/2 request again on its own.
var transport = &http.Transport{
	Proxy:        http.ProxyFromEnvironment,
	TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}, // switches HTTP/2 off
}

// post sends the credentials to the token endpoint.
func (r *run) post(ctx context.Context) (*http.Response, error) {
	form := url.Values{
		"grant_type":    {"client_credentials"},
		"client_id":     {r.snow.ClientID},
		"client_secret": {r.snow.ClientSecret},
	}
	if r.snow.Username != "" {
		form.Set("grant_type", "password")
		form.Set("username", r.snow.Username)
		form.Set("password", r.snow.Password)
	}
	endpoint, body := r.snow.InstanceURL+"/oauth_token.do", strings.NewReader(form.Encode())
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, body)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Accept", "application/json")
	return transport.RoundTrip(request)
}

// explain turns a response without a usable token into an error.
func (r *run) explain(response *http.Response, body []byte, answer tokenResponse) *loginError {
	status := response.StatusCode
	outcome := fmt.Sprintf("%s answered %s", response.Request.URL, statusLine(status))
	outcome += r.detail("error", answer.Error)
	outcome += r.detail("error_description", answer.Description)
	outcome += r.detail("Retry-After", response.Header.Get("Retry-After"))
	retryAfter, _ := strconv.ParseInt(response.Header.Get("Retry-After"), 10, 64) // 0 for a date
	isBusy := status == 502 || status == 503 || status == 504
	isOAuthRefusal := answer.Error != "" && (status == 200 || status == 400 || status == 401)
	advice := faultAdvice(status, string(body))
	if isOAuthRefusal {
		advice = r.refusalAdvice()
	}
	return &loginError{
		outcome:     outcome,
		advice:      advice,
		isRefusal:   isOAuthRefusal || status == 401,
		isTransient: isBusy && retryAfter <= 0,
		retryAfter:  retryAfter,
	}
}

// detail returns a part of an outcome, or nothing if the text is empty.
func (r *run) detail(name, text string) string {
	if text == "" {
		return ""
	}
	return ", " + name + " " + r.quote(text)
}

// refusalAdvice lists the likely causes of a refusal (KB0791140, KB1115956). The response does not name one.
func (r *run) refusalAdvice() string {
	if r.snow.Username == "" {
		return "Check client_id and client_secret. " +
			"The OAuth application must be active, with a scope and an OAuth Application User. " +
			"The property glide.oauth.inbound.client.credential.grant_type.enabled must be true. " +
			`Search ServiceNow's system log for "Exception on token flow"`
	}
	return "Check client_id, client_secret, username and password. " +
		"The user must be active and not locked out, with a local password and no password reset due. " +
		"The OAuth application must be active, with its scope intact. " +
		"The property glide.oauth.inbound.ropc.grant_type.disabled must not be true. " +
		`Search ServiceNow's system log for "Exception on token flow"`
}

// faultAdvice says what to check after a response that is not an OAuth error.
func faultAdvice(status int, body string) string {
	switch {
	case strings.Contains(body, "instance-hibernating-page"):
		return "The instance is hibernating. Wake it at developer.servicenow.com"
	case status/100 == 3:
		return "The redirect was not followed. Set instance_url to the address of the instance itself"
	case status == 403:
		return "Check the instance's IP address access control, and any gateway in between"
	case status == 429 || status >= 500:
		return "The instance, or a gateway in between, is busy or failing"
	default:
		return "This is not a token endpoint's response. Check instance_url, the credentials, " +
			"and any gateway or proxy in between"
	}
}

// quote returns text from outside, or a placeholder if it may contain a secret, plain or encoded.
func (r *run) quote(text string) string {
	const hidden = "(hidden: it may contain a secret)"
	mayEncode := func(c rune) bool {
		isInvisible := !unicode.IsGraphic(c) // and may split a secret
		return isInvisible || strings.ContainsRune(encodingSigns, c)
	}
	if text == "" {
		return "(empty)"
	}
	if len(text) > maxQuote || strings.ContainsFunc(text, mayEncode) {
		return hidden
	}
	for _, secret := range r.secrets {
		if secret != "" && strings.Contains(strings.ToLower(text), strings.ToLower(secret)) {
			return hidden
		}
	}
	return text
}
