// Package inner is a Windmill script. It obtains an OAuth2 access token from
// ServiceNow by the Resource Owner Password Credentials grant (RFC 6749, section
// 4.3), keeps it in the Windmill resource f/ServiceNow/snow_token_cache and
// reuses it until it is within a minute of its expiry.
//
// Run it by hand to verify credentials, on a schedule to keep the cache warm, or
// as a step of a flow whose later steps read the token from the resource. It
// prints what it did and returns "OK", never the token.
package inner

//require github.com/windmill-labs/windmill-go-client v1.501.4

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	wmill "github.com/windmill-labs/windmill-go-client"
)

const (
	cachePath = "f/ServiceNow/snow_token_cache"
	cacheType = "state" // the one type of which Windmill keeps no readable history

	// Lifetimes of tokens, in seconds.
	expiryMargin    = 60                 // a token closer to its expiry is not reused
	defaultLifetime = 1800               // ServiceNow's default, where its answer has no expires_in
	longestLifetime = 365 * 24 * 60 * 60 // keeps expires_at a sane integer

	runLimit      = 58 * time.Second // with process start and exit, a run ends within a minute
	storeReserve  = 10 * time.Second // of runLimit, kept for storing what ServiceNow gave
	windmillLimit = 10 * time.Second // for one call of the client
	attemptLimit  = 15 * time.Second // for one request to ServiceNow, its answer included

	mostAttempts      = 3
	firstPause        = 500 * time.Millisecond // between attempts, doubled for each
	longestRetryAfter = 5 * time.Second
	longestAnswer     = 1 << 20 // bytes; a token's answer has a few hundred
)

// now and after are variables for the tests to replace.
var (
	now   = time.Now
	after = time.After
)

// errNotCached marks the error of a run that has a token but could not store it.
var errNotCached = errors.New("the token is not stored in " + cachePath)

// servicenow is the Windmill resource type of the same name: an instance, and
// the OAuth application and user to log in with.
type servicenow struct {
	InstanceURL  string `json:"instance_url"` // a URL, a host, or a bare name such as dev12345
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"` // also the key of the cached record's seal
	Username     string `json:"username"`
	Password     string `json:"password"`
}

// record is what the cache holds. Other scripts read the token and its expiry;
// by the seal this script knows a record of its own for the same credentials.
type record struct {
	Token     string `json:"token"`
	ExpiresAt int64  `json:"expires_at"` // Unix seconds
	Seal      string `json:"seal"`       // see servicenow.seal
}

// answer is what came back from ServiceNow, or from something in its place.
type answer struct {
	status     int
	redirect   string // the host that the Location header names
	retryAfter string // the Retry-After header
	body       []byte // cut just past longestAnswer
}

// fault is a request that got no token. Its texts are our own words and the
// answer's OAuth error fields, nothing else that was sent or received.
type fault struct {
	outcome    string // who was asked and what came back
	advice     string // what to check
	status     int    // the answer's; 0 where no whole answer came
	retryAfter string // the answer's header
	cause      error  // what broke, where no whole answer came
}

// Error says who was asked, what came back and what to check.
func (f *fault) Error() string { return f.outcome + ". " + f.advice + "." }

// main makes sure that the cache holds a usable token for snow and returns "OK".
// Outside Windmill it verifies the credentials only.
func main(snow servicenow) (string, error) {
	if _, err := obtain(snow); err != nil {
		return "", err
	}
	return "OK", nil
}

// ServiceNow lets other Go packages name the argument of GetToken.
type ServiceNow = servicenow

// GetToken returns an access token for snow, from the cache or from ServiceNow,
// and says on standard output which. It takes a minute at the most. An error
// means that there is no token; one that cannot be stored is only a warning.
func GetToken(snow ServiceNow) (string, error) {
	token, err := obtain(snow)
	if errors.Is(err, errNotCached) {
		fmt.Printf("Warning: %v\n", err)
		err = nil
	}
	return token, err
}

// obtain returns a token and says where it came from. With an errNotCached the
// token is good all the same.
func obtain(snow servicenow) (string, error) {
	if err := snow.check(); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	defer cancel()

	onWindmill := os.Getenv("BASE_INTERNAL_URL") != "" && os.Getenv("WM_TOKEN") != ""
	// A scheduled run asks even if the cache is good: that keeps it warm without
	// a gap, notices a changed password at once and heals a revoked token.
	scheduled := os.Getenv("WM_SCHEDULE_PATH") != ""
	if onWindmill && !scheduled {
		cached, err := readCache(ctx, snow)
		if err == nil && cached.usable(now()) {
			fmt.Printf("Found a token in %s, valid for another %s.\n", cachePath, cached.remaining())
			fmt.Println("Reused it: ServiceNow was not asked.")
			return cached.Token, nil
		}
		if err == nil {
			err = errors.New("found a token that has expired or is about to")
		}
		fmt.Printf("No usable token in %s: %v.\n", cachePath, err)
	}

	fresh, err := askServiceNow(ctx, snow)
	if err != nil {
		return "", err
	}
	fmt.Printf("%s accepted the login of %q and gave a token valid for %s.\n", snow.InstanceURL, snow.Username, fresh.remaining())
	if !onWindmill {
		fmt.Println("Nothing was cached: BASE_INTERNAL_URL and WM_TOKEN are not set, so this is not a Windmill job.")
		return fresh.Token, nil
	}
	if err := writeCache(ctx, snow, fresh); err != nil {
		return fresh.Token, fmt.Errorf("%w: %w. Check that the folder %s exists and that the user whom this run, or its schedule, runs as may write in it",
			errNotCached, err, path.Dir(cachePath))
	}
	fmt.Printf("Stored it in %s.\n", cachePath)
	return fresh.Token, nil
}

// check makes InstanceURL an address to which a path can be added, or returns an
// error that names what to mend in the resource.
func (snow *servicenow) check() error {
	var empty []string
	for _, field := range []struct{ name, value string }{
		{"instance_url", snow.InstanceURL}, {"client_id", snow.ClientID}, {"client_secret", snow.ClientSecret},
		{"username", snow.Username}, {"password", snow.Password},
	} {
		if strings.TrimSpace(field.value) == "" {
			empty = append(empty, field.name)
		}
	}
	if empty != nil {
		return fmt.Errorf("the servicenow resource has nothing in %s: fill in every field", strings.Join(empty, ", "))
	}
	address, ok := instanceAddress(snow.InstanceURL)
	if !ok {
		// The value is not repeated: somebody may have put a password into it.
		return errors.New("instance_url is not an instance's address: it must look like https://dev12345.service-now.com (or dev12345), " +
			"with https, and without user, password, query, fragment or the path of a page")
	}
	snow.InstanceURL = address
	return nil
}

// instanceAddress returns the scheme, host and path prefix that instanceURL
// stands for, with no slash at the end; ok is false if it stands for none.
func instanceAddress(instanceURL string) (address string, ok bool) {
	address = strings.TrimFunc(instanceURL, func(r rune) bool { return unicode.IsSpace(r) || r == '/' })
	if !strings.Contains(address, "://") {
		if !strings.ContainsAny(address, ".:/") && address != "localhost" {
			address += ".service-now.com"
		}
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil || strings.ContainsAny(address, "@?#") || strings.ContainsFunc(address, unicode.IsControl) ||
		strings.HasSuffix(u.Host, ":") || strings.Contains(u.Path, "@") || path.Ext(u.Path) == ".do" {
		return "", false
	}
	host := u.Hostname()
	ip := net.ParseIP(host)
	// Plain ASCII: other letters may turn into another host's, as the Kelvin sign into k.
	named := ip != nil || madeOf(host, "-._") && !strings.HasPrefix(host, ".")
	u.Host = strings.ToLower(u.Host)
	loopback := u.Hostname() == "localhost" || ip.IsLoopback()
	return u.String(), named && (u.Scheme == "https" || u.Scheme == "http" && loopback)
}

// usable is the condition by which the Python script, too, reuses a record.
func (r record) usable(now time.Time) bool { return r.ExpiresAt > now.Unix()+expiryMargin }

// remaining is the time left until the token expires.
func (r record) remaining() time.Duration {
	return time.Duration(r.ExpiresAt-now().Unix()) * time.Second
}

// seal binds a token and its expiry (Unix seconds) to these credentials: a record
// of another instance, user or password, or one that somebody planted or
// stretched, has not got it. It is an HMAC-SHA256 in hex.
func (snow servicenow) seal(token string, expiresAt int64) string {
	mac := hmac.New(sha256.New, []byte(snow.ClientSecret))
	for _, part := range []string{
		snow.InstanceURL, snow.ClientID, snow.Username, snow.Password, token, strconv.FormatInt(expiresAt, 10),
	} {
		fmt.Fprintf(mac, "%d:%s,", len(part), part) // the length tells "ab","c" from "a","bc"
	}
	return hex.EncodeToString(mac.Sum(nil))
}

// readCache returns the cached record, expired or not. The error says why there
// is none to believe.
func readCache(ctx context.Context, snow servicenow) (record, error) {
	value, err := callWindmill(ctx, func() (any, error) { return wmill.GetResource(cachePath) })
	if err != nil {
		return record{}, err
	}
	cached, ok := snow.sealed(value)
	if !ok {
		return record{}, errors.New("found no record from this script with these credentials")
	}
	return cached, nil
}

// sealed returns the record that a resource's value is, if it has the seal.
func (snow servicenow) sealed(value any) (cached record, ok bool) {
	fields, _ := value.(map[string]any)
	token, _ := fields["token"].(string)
	expiresAt, _ := fields["expires_at"].(float64)
	seal, _ := fields["seal"].(string)
	cached = record{token, int64(expiresAt), seal}
	return cached, hmac.Equal([]byte(seal), []byte(snow.seal(cached.Token, cached.ExpiresAt)))
}

// writeCache stores fresh and reads it back, for old Windmill servers answer 200
// and store nothing where the job may not write.
func writeCache(ctx context.Context, snow servicenow, fresh record) error {
	if _, err := callWindmill(ctx, func() (any, error) { return nil, wmill.SetResource(cachePath, fresh, cacheType) }); err != nil {
		return err
	}
	stored, err := readCache(ctx, snow)
	// A job at the same time may have stored its own token since, which expires
	// within a run's length of ours; a record that was to be renewed, much earlier.
	concurrent := stored.usable(now()) && stored.ExpiresAt > fresh.ExpiresAt-int64(runLimit.Seconds())
	if err == nil && stored != fresh && !concurrent {
		err = errors.New("found an older record there, although Windmill reported success")
	}
	return err
}

// callWindmill bounds a call of the client, which waits for ever and panics on a
// 200 that is not JSON. A call that is given up goes on until the process ends.
func callWindmill(ctx context.Context, call func() (any, error)) (any, error) {
	type reply struct {
		value any
		err   error
	}
	replies := make(chan reply, 1)
	go func() {
		r := reply{err: errors.New("panic")}
		defer func() {
			_ = recover()
			replies <- r
		}()
		r.value, r.err = call()
	}()
	ctx, cancel := context.WithTimeout(ctx, windmillLimit)
	defer cancel()
	select {
	case r := <-replies:
		return r.value, describeWindmill(r.err)
	case <-ctx.Done():
		return nil, errors.New("got no answer from Windmill in time")
	}
}

// describeWindmill tells the client's error by its kind. The text of it is all
// that Windmill answered, where a token may stand, so it is not shown.
func describeWindmill(err error) error {
	if err == nil {
		return nil
	}
	for _, kind := range []string{
		"Not found", "Not authorized", "Unauthorized", "Permission denied", "Require Admin", "Bad request", "Internal", "SqlErr",
	} {
		if strings.HasPrefix(err.Error(), kind) {
			return fmt.Errorf("got %q from Windmill", kind)
		}
	}
	var unreachable *url.Error
	if errors.As(err, &unreachable) {
		return errors.New("could not reach Windmill")
	}
	return errors.New("could not understand Windmill's answer")
}

// askServiceNow asks for a token, again where retryPause sees a chance.
func askServiceNow(ctx context.Context, snow servicenow) (record, error) {
	end, _ := ctx.Deadline()
	end = end.Add(-storeReserve)
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	for attempt := 1; ; attempt++ {
		fresh, failed := logIn(ctx, snow)
		if failed == nil {
			return fresh, nil
		}
		pause, again := retryPause(attempt, failed, rand.Float64(), now())
		if !again || time.Until(end) < pause {
			return record{}, failed
		}
		fmt.Printf("%s; asking again in %s.\n", failed.outcome, pause.Round(100*time.Millisecond))
		<-after(pause)
	}
}

// retryPause decides whether to ask again after an attempt (the first is 1)
// failed, and after what pause. jitter is from [0, 1).
func retryPause(attempt int, failed *fault, jitter float64, now time.Time) (pause time.Duration, again bool) {
	switch {
	// What three attempts do not get past is for the next run.
	case attempt >= mostAttempts:
		return 0, false
	// The instance or a gateway says that it is busy or restarting.
	case failed.status == http.StatusTooManyRequests, failed.status == http.StatusBadGateway,
		failed.status == http.StatusServiceUnavailable, failed.status == http.StatusGatewayTimeout:
	// A full instance or a firewall swallowed the request. If it did arrive, no
	// harm is done: ServiceNow gives the same token again.
	case isTimeout(failed.cause):
	// The other side went away, as in a restart.
	case isBreak(failed.cause):
	// A refusal counts towards the user's lock-out. A redirect, an untrusted
	// certificate, an unknown host, a malformed answer would only come again.
	default:
		return 0, false
	}
	// Jitter spreads jobs that failed together; the second pause is longer than the first.
	pause = time.Duration(float64(firstPause<<(attempt-1)) * (1 + jitter))
	return max(pause, retryAfter(failed.retryAfter, now)), true
}

// retryAfter reads a Retry-After header, seconds or a date (RFC 9110, section
// 10.2.3), up to longestRetryAfter.
func retryAfter(header string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(header, 10, 32); err == nil {
		return min(time.Duration(seconds)*time.Second, longestRetryAfter)
	}
	date, _ := http.ParseTime(header) // else long ago
	return min(max(date.Sub(now), 0), longestRetryAfter)
}

// logIn asks for a token once and returns it sealed.
func logIn(ctx context.Context, snow servicenow) (record, *fault) {
	endpoint := snow.InstanceURL + "/oauth_token.do"
	// The lifetime counts from before the request, so that what the answer takes
	// shortens it rather than lengthens it.
	asked := now()
	got, err := post(ctx, endpoint, url.Values{
		"grant_type": {"password"},
		"client_id":  {snow.ClientID}, "client_secret": {snow.ClientSecret},
		"username": {snow.Username}, "password": {snow.Password},
	})
	if err != nil {
		return record{}, describeBreak(endpoint, err)
	}
	token, lifetime, err := got.token()
	if err != nil {
		return record{}, got.describe(endpoint, err, snow)
	}
	expiresAt := asked.Unix() + lifetime
	return record{token, expiresAt, snow.seal(token, expiresAt)}, nil
}

// transport sends each request once, which HTTP/2 would not promise, and is used
// without an http.Client, which would follow a redirect with the password.
var transport = &http.Transport{
	Proxy:             http.ProxyFromEnvironment,
	DisableKeepAlives: true,
	TLSNextProto:      map[string]func(string, *tls.Conn) http.RoundTripper{}, // no HTTP/2
}

// post sends form to endpoint. Its error means that no whole answer came; of
// anything but a 200, half is enough.
func post(ctx context.Context, endpoint string, form url.Values) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptLimit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return answer{}, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Accept", "application/json")
	response, err := transport.RoundTrip(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	got := answer{status: response.StatusCode, retryAfter: response.Header.Get("Retry-After")}
	if location, err := response.Location(); err == nil {
		got.redirect = location.Host
	}
	if got.status == http.StatusSwitchingProtocols {
		return got, nil // what follows is the bare connection, of which a read knows no deadline
	}
	got.body, err = io.ReadAll(io.LimitReader(response.Body, longestAnswer+1))
	if err != nil && got.status == http.StatusOK {
		return answer{}, err
	}
	return got, nil
}

// token returns the access token of a success and its lifetime in seconds (RFC
// 6749, section 5.1). The error says what there is in its place.
func (a answer) token() (token string, lifetime int64, err error) {
	if a.status != http.StatusOK {
		return "", 0, errors.New("a refusal")
	}
	if len(a.body) > longestAnswer {
		return "", 0, errors.New("more than 1 MiB")
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(a.body, &fields); err != nil || fields == nil {
		return "", 0, errors.New("something other than one JSON object")
	}
	if given := fields["error"]; given != nil && string(given) != "null" {
		return "", 0, errors.New("an error")
	}
	// The characters of RFC 6750, section 2.1, need no escaping anywhere, and
	// Windmill expands nothing made of them when it reads the resource.
	_ = json.Unmarshal(fields["access_token"], &token) // what is no string leaves it empty
	if !madeOf(strings.TrimRight(token, "="), "-._~+/") {
		return "", 0, errors.New("no well-formed access_token")
	}
	seconds := json.Number(strconv.Itoa(defaultLifetime)) // a type that takes quoted numbers, too
	if given := fields["expires_in"]; given != nil && string(given) != "null" {
		err = json.Unmarshal(given, &seconds)
	}
	parsed, _ := seconds.Float64() // out of range, it is infinite
	if err != nil || parsed <= 0 {
		return "", 0, errors.New("an expires_in that is no positive number")
	}
	return token, int64(min(parsed, longestLifetime)), nil
}

// describe makes a fault of an answer of which token said that there is a problem.
func (a answer) describe(endpoint string, problem error, snow servicenow) *fault {
	failed := &fault{status: a.status, retryAfter: a.retryAfter}
	failed.outcome = fmt.Sprintf("%s answered %d", endpoint, a.status)
	page := bytes.HasPrefix(bytes.TrimSpace(a.body), []byte("<"))
	switch {
	case page && bytes.Contains(bytes.ToLower(a.body), []byte("hibernating")):
		failed.outcome += " with the page of a hibernating instance"
		failed.advice = "Wake the instance at developer.servicenow.com, then run again"
		return failed
	case page && a.status == http.StatusOK:
		failed.outcome += " with an HTML page"
	case a.status == http.StatusOK:
		failed.outcome += " with " + problem.Error()
	}
	failed.outcome += a.details(snow)

	switch {
	case a.status >= 300 && a.status < 400:
		failed.advice = "It was not followed, lest the password go elsewhere: instance_url must be the instance's own address"
	// The causes are those of ServiceNow's KB0791140 and KB1115956.
	case a.status == http.StatusBadRequest, a.status == http.StatusUnauthorized:
		failed.advice = "ServiceNow does not tell why. Check client_id, client_secret, username, password; that the user is active, " +
			"not locked out, needs no password reset and is not \"Web service access only\"; that the OAuth application is active, its scope intact; " +
			"that glide.oauth.inbound.ropc.grant_type.disabled is not true. The instance's system log has the cause (\"Exception on token flow\")"
	case a.status == http.StatusForbidden:
		failed.advice = "Check the instance's IP address access control, and any gateway before it"
	case a.status == http.StatusTooManyRequests:
		failed.advice = "Check what else asks this instance so often"
	case a.status >= 500:
		failed.advice = "The instance or a gateway before it is failing or busy: run again later"
	default:
		failed.advice = "This is not what an instance's token endpoint answers: check instance_url, and any gateway or proxy between"
	}
	return failed
}

// details returns, in brackets, what of the answer may stand in the log: the host
// of a redirect and the error fields (RFC 6749, section 5.2; where that has a code,
// ServiceNow's rate limit has an object). It is "" if there is none.
func (a answer) details(snow servicenow) string {
	var fields, object map[string]json.RawMessage
	_ = json.Unmarshal(a.body, &fields) // what is no object has no fields
	_ = json.Unmarshal(fields["error"], &object)
	text := func(raw json.RawMessage) (s string) { _ = json.Unmarshal(raw, &s); return s }
	secrets := []string{snow.Password, snow.ClientSecret, text(fields["access_token"]), text(fields["refresh_token"])}
	var said []string
	for _, field := range []struct{ name, value string }{
		{"redirect to", a.redirect},
		{"error", text(fields["error"])}, {"error_description", text(fields["error_description"])},
		{"message", text(object["message"])}, {"detail", text(object["detail"])},
	} {
		if field.value != "" {
			said = append(said, field.name+" "+quote(field.value, secrets))
		}
	}
	if said == nil {
		return ""
	}
	return " (" + strings.Join(said, ", ") + ")"
}

// describeBreak makes a fault of an exchange that broke. Go's own text is not
// shown, for it may quote what the other side sent or a proxy's password.
func describeBreak(endpoint string, err error) *fault {
	var unknownHost *net.DNSError
	var untrusted *tls.CertificateVerificationError
	var outcome, advice string
	switch {
	case isTimeout(err):
		outcome, advice = "did not answer in time", "Check that the worker may reach it (firewall, proxy) and that it is not overloaded"
	case errors.As(err, &unknownHost):
		outcome, advice = "is on a host that DNS does not know", "Check instance_url, and the worker's DNS and proxy variables"
	case errors.As(err, &untrusted):
		outcome, advice = fmt.Sprintf("has an untrusted certificate (%.150q)", untrusted.Err), "Check instance_url, and what stands between worker and instance"
	case errors.Is(err, syscall.ECONNREFUSED):
		outcome, advice = "refused the connection", "Check instance_url, and the worker's proxy variables"
	case isBreak(err):
		outcome, advice = "broke the connection off", "Run again later; if it stays so, check what stands between worker and instance"
	default:
		outcome, advice = "did not answer as an HTTPS server does", "Check instance_url, and the worker's proxy variables"
	}
	return &fault{outcome: endpoint + " " + outcome, advice: advice, cause: err}
}

// isTimeout reports whether err is the end of a deadline, ours or the network's.
func isTimeout(err error) bool {
	var network net.Error
	return errors.As(err, &network) && network.Timeout()
}

// isBreak reports whether err is a connection refused, or ended by the other side.
func isBreak(err error) bool {
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// quote returns text shortened and quoted, but withholds it if it repeats a
// secret, or may: what has escapes of a URL, a form, HTML or JSON may hide one.
func quote(text string, secrets []string) string {
	withhold := strings.ContainsAny(text, `%+&\`)
	for _, secret := range secrets {
		secret = strings.TrimSpace(secret)
		withhold = withhold || secret != "" && strings.Contains(strings.ToLower(text), strings.ToLower(secret))
	}
	if withhold {
		return "(withheld, it may repeat a secret)"
	}
	return fmt.Sprintf("%.100q", text)
}

// madeOf reports whether text is ASCII letters, digits and the given punctuation
// only, and not empty.
func madeOf(text, punctuation string) bool {
	return text != "" && !strings.ContainsFunc(text, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune(punctuation, r))
	})
}
