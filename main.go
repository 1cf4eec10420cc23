package inner

// The word package comes first: a Windmill worker writes a package clause of its
// own before a file that begins with anything else, a comment included.

// This is a Windmill script. It obtains an OAuth2 access token from ServiceNow by
// the Resource Owner Password Credentials grant (RFC 6749, section 4.3), keeps it
// in the Windmill resource f/ServiceNow/snow_token_cache and reuses it until it is
// within a minute of its expiry.
//
// Run it by hand to verify credentials, on a schedule to keep the cache warm, or
// as a step of a flow whose later steps read the token from the resource. It
// prints what it did and returns "OK", never the token.

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
	"log"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	wmill "github.com/windmill-labs/windmill-go-client"
)

const (
	cachePath = "f/ServiceNow/snow_token_cache"
	cacheType = "state" // of this type Windmill keeps no readable history

	// Lifetimes of tokens, in seconds.
	expiryMargin    = 60                 // a cached token this close to its expiry is not reused
	defaultLifetime = 1800               // ServiceNow's default, where its answer has no expires_in
	longestLifetime = 365 * 24 * 60 * 60 // keeps expires_at a sane integer

	// A run takes a minute at the most: it is done asking ServiceNow by second 49, stores
	// what came of that within 5 s and, where it must, reads it back within 5.5 s.
	readLimit    = 2500 * time.Millisecond // reading the cache, each of two tries
	loginLimit   = 20 * time.Second        // a login that takes longer is taken for that of a killed job
	claimLimit   = 10 * time.Second        // claiming the login and reading that back
	askLimit     = 18 * time.Second        // asking ServiceNow, from the claim on if there is one
	attemptLimit = 15 * time.Second        // one request to ServiceNow, its answer included
	storeLimit   = 5 * time.Second         // one write, and all of storing what came of a login
	lastClaim    = 25 * time.Second        // from a run's start; later it claims no login
	lastWait     = 35 * time.Second        // from a run's start; later it waits for no other job's
	lastAnswer   = 49 * time.Second        // from a run's start; later it does not wait for ServiceNow

	tryPause    = 500 * time.Millisecond     // before a call to Windmill is tried once more
	claimPause  = 300 * time.Millisecond     // in which another job's claim may replace ours
	clockSkew   = time.Hour                  // between workers; a time further ahead than that says nothing
	untilMended = 100 * 365 * 24 * time.Hour // until a person does something

	tokenEndpoint     = "/oauth_token.do"
	mostAttempts      = 3
	firstPause        = 500 * time.Millisecond // between attempts, doubled for each
	longestRetryAfter = 5 * time.Second
	shortestAttempt   = 2 * time.Second // with less time left, asking again would only bring a timeout
	longestAnswer     = 1 << 20         // bytes; a token's answer has a few hundred
	tellingPart       = 6               // bytes in a row of a secret that no text may repeat
)

// now and sleep are variables for the tests to replace.
var (
	now   = time.Now
	sleep = time.Sleep
)

// servicenow is the Windmill resource type of the same name: an instance, and
// the OAuth application and user to log in with.
type servicenow struct {
	InstanceURL  string `json:"instance_url"` // a URL, a host, or a bare name such as dev12345
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"` // also the key of the cache's seals
	Username     string `json:"username"`
	Password     string `json:"password"`
}

// record is what the cache holds. Other scripts read the token, its expiry and its
// instance. The seal shows that this script wrote it, for the same credentials.
type record struct {
	Token       string `json:"token"`
	ExpiresAt   int64  `json:"expires_at"`   // Unix seconds
	InstanceURL string `json:"instance_url"` // scheme, host and path prefix, no slash at the end
	Seal        string `json:"seal"`         // see servicenow.seal
}

// login is the cached record's field "login", there while a job logs in and after a
// login that failed. It tells all other jobs to wait, or to leave ServiceNow alone.
type login struct {
	By        string `json:"by"`         // the id of the job that logs in; empty when it has ended
	At        int64  `json:"at"`         // when it began, in Unix seconds
	Refusals  int    `json:"refusals"`   // how often in a row ServiceNow refused these credentials
	RefusedAt int64  `json:"refused_at"` // the last time, in Unix seconds
	Outcome   string `json:"outcome"`    // who was asked at the last failure, and what came back
	Seal      string `json:"seal"`       // see servicenow.loginSeal
}

// cache is what a read of the resource found.
type cache struct {
	value   any    // as it was read; nil where there is nothing
	record  record // the zero record unless its seal is of these credentials
	login   login  // anybody's, perhaps planted: believed only in that it is under way
	trusted login  // the same if its seal is of these credentials, else the zero login
}

// cacheError says that the cache could not be read or written, and what to check.
type cacheError string

// Error begins with the cache's path.
func (e cacheError) Error() string { return string(e) }

// tokenAnswer is what the token endpoint answers: RFC 6749, sections 5.1 and 5.2.
type tokenAnswer struct {
	AccessToken  string          `json:"access_token"`
	RefreshToken string          `json:"refresh_token"` // not used, but no error may repeat it
	ExpiresIn    json.RawMessage `json:"expires_in"`    // seconds: a number, a quoted one, or null
	Error        any             `json:"error"`         // a code; in ServiceNow's rate limit, an object
	Description  string          `json:"error_description"`
}

// loginError is a request to ServiceNow that brought no token. Its texts are our
// own words, the instance's address, what answer.details lets through, and why a
// certificate is not trusted: nothing else of what was sent or received.
type loginError struct {
	outcome string        // who was asked and what came back, in one line
	advice  string        // what to check
	mayHelp bool          // asking again may help
	pause   time.Duration // before that, as the answer's Retry-After asks
	refused bool          // ServiceNow did not accept these credentials
}

// Error says who was asked, what came back and what to check.
func (e *loginError) Error() string { return e.outcome + ". " + e.advice }

// main makes sure that the cache holds a usable token for snow and returns "OK".
// Outside Windmill it verifies the credentials only.
func main(snow servicenow) (string, error) {
	log.SetOutput(io.Discard) // net/http logs bytes that it did not expect, whatever they are
	if _, err := getToken(snow); err != nil {
		return "", err
	}
	return "OK", nil
}

// getToken returns an access token for snow, from the cache or from ServiceNow, and
// prints which.
func getToken(snow servicenow) (string, error) {
	snow, err := checked(snow)
	if err != nil {
		return "", err
	}
	if os.Getenv("BASE_INTERNAL_URL") == "" || os.Getenv("WM_TOKEN") == "" {
		fresh, failed := askServiceNow(snow, now().Add(askLimit))
		if failed != nil {
			return "", failed
		}
		fmt.Println("Nothing was cached: BASE_INTERNAL_URL and WM_TOKEN are not both set, so this is not a Windmill job.")
		return fresh.Token, nil
	}

	started := startedBy()
	token, askUntil, err := awaitTurn(snow, started)
	_, noCache := err.(cacheError)
	switch {
	case noCache && started == byCaller:
		return "", fmt.Errorf("%w ServiceNow was not asked, because no later step would find its token", err)
	case noCache:
		fmt.Printf("%v\nAsking ServiceNow all the same, to verify the credentials.\n", err)
	case err != nil || token != "":
		return token, err
	case started != byCaller:
		fmt.Printf("Run on its own, by %s: asking ServiceNow, whatever is cached.\n", started)
	}

	fresh, failed := askServiceNow(snow, askUntil)
	if failed != nil {
		storeFailure(snow, failed)
		return "", failed
	}
	if err := store(snow, fresh, noCache); err != nil {
		return "", err
	}
	fmt.Printf("Stored it in %s.\n", cachePath)
	return fresh.Token, nil
}

// origin is who started this run.
type origin string

const (
	byCaller   origin = "a flow or another script"
	bySchedule origin = "a schedule"
	byHand     origin = "hand or webhook"
)

// startedBy returns who started this run. One that a flow or another script called
// reuses what is cached. A run of its own, by a schedule or by hand, asks ServiceNow
// even if the cache is good: to verify the credentials, to renew the token before it
// runs out, to replace a revoked one.
//
// Windmill sets WM_FLOW_JOB_ID for every run that something called, but also where a
// schedule has a retry or a skip handler: it wraps the script into a flow of one step,
// with the script's own path (schedule.rs). On an agent worker that path may be
// missing: such a run counts as called. WM_SCHEDULE_PATH alone tells nothing: the
// steps of a scheduled flow have it, too.
func startedBy() origin {
	called := os.Getenv("WM_FLOW_JOB_ID") != "" && os.Getenv("WM_FLOW_PATH") != os.Getenv("WM_JOB_PATH")
	switch {
	case called, os.Getenv("WM_JOB_ID") == "": // without a job's id, the environment does not say
		return byCaller
	case os.Getenv("WM_SCHEDULE_PATH") != "":
		return bySchedule
	}
	return byHand
}

// The input.

// checked returns snow with an InstanceURL to which a path can be added, or an
// error that names what to mend in the resource.
func checked(snow servicenow) (servicenow, error) {
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
		return snow, fmt.Errorf("the servicenow resource has nothing in %s: fill in every field", strings.Join(empty, ", "))
	}
	address, ok := instanceAddress(snow.InstanceURL)
	if !ok {
		// The value is not repeated: somebody may have put a password into it.
		return snow, errors.New("instance_url is not an instance's address: it must look like " +
			"https://dev12345.service-now.com (or dev12345), with https, and without user, password, query, fragment " +
			"or the path of a page; at service-now.com, without any path")
	}
	snow.InstanceURL = address
	return snow, nil
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
	// Plain ASCII: other letters may turn into another host's, as the Kelvin sign into k.
	parts := regexp.MustCompile(`^([A-Za-z]+)://([\w-][\w.-]*|\[[\d:A-Fa-f.]+\])(:\d+)?` +
		`(/(?:[\w.~!$&'()*+,;=:/-]|%[\dA-Fa-f][\dA-Fa-f])*)?$`).FindStringSubmatch(address)
	if parts == nil {
		return "", false
	}
	scheme, host, port, prefix := strings.ToLower(parts[1]), strings.ToLower(parts[2]), parts[3], parts[4]
	ip := net.ParseIP(strings.Trim(host, "[]"))
	switch {
	case strings.HasPrefix(host, "[") && ip == nil:
		return "", false
	case scheme != "https" && !(scheme == "http" && (host == "localhost" || ip.IsLoopback())):
		return "", false
	// A gateway may have a path. What follows an instance is a page's, such as
	// /now/nav/ui/home, and so is a path that ends in .do anywhere.
	case prefix != "" && strings.HasSuffix(host, ".service-now.com"), path.Ext(prefix) == ".do":
		return "", false
	}
	return scheme + "://" + host + port + prefix, true
}

// The cache.

// usable is the condition by which the Python script, too, reuses a record.
func (r record) usable() bool { return r.ExpiresAt > now().Unix()+expiryMargin }

// remaining is the time left until the token expires, in whole seconds.
func (r record) remaining() time.Duration {
	return time.Duration(r.ExpiresAt-now().Unix()) * time.Second
}

// seal binds a token and its expiry to these credentials. No record of another
// instance, user or password has it, and none that somebody planted or stretched.
func (snow servicenow) seal(r record) string {
	return snow.sign(snow.InstanceURL, snow.ClientID, snow.Username, snow.Password, r.Token, r.ExpiresAt)
}

// loginSeal does the same for a login. Its first part keeps the two kinds apart.
func (snow servicenow) loginSeal(l login) string {
	return snow.sign("login", snow.InstanceURL, snow.ClientID, snow.Username, snow.Password,
		l.By, l.At, l.Refusals, l.RefusedAt, l.Outcome)
}

// sign returns the HMAC-SHA256 of parts in hex.
func (snow servicenow) sign(parts ...any) string {
	mac := hmac.New(sha256.New, []byte(snow.ClientSecret))
	for _, part := range parts {
		text := fmt.Sprint(part)
		fmt.Fprintf(mac, "%d:%s,", len(text), text) // the length tells "ab","c" from "a","bc"
	}
	return hex.EncodeToString(mac.Sum(nil))
}

// understand tells what a resource's value holds for these credentials.
func (snow servicenow) understand(value any) cache {
	found := cache{value: value}
	fields, _ := value.(map[string]any)
	encoded, _ := json.Marshal(value) // it was decoded from JSON
	var stored struct {
		record
		Login login `json:"login"`
	}
	_ = json.Unmarshal(encoded, &stored) // a field of another type stays empty
	// To other readers a field is what its exact name says; to encoding/json, what "Token" says, too.
	r := stored.record
	r.InstanceURL = snow.InstanceURL // no other is believed
	if fields["token"] == r.Token && fields["expires_at"] == float64(r.ExpiresAt) &&
		fields["instance_url"] == r.InstanceURL && hmac.Equal([]byte(r.Seal), []byte(snow.seal(r))) {
		found.record = r
	}
	found.login = stored.Login
	if hmac.Equal([]byte(found.login.Seal), []byte(snow.loginSeal(found.login))) {
		found.trusted = found.login
	}
	return found
}

// readCache reads the resource, again if that fails.
func readCache(ctx context.Context, snow servicenow) (cache, error) {
	var err error
	for try := range 2 {
		if try > 0 {
			sleep(tryPause)
		}
		var value any // of this try alone: a call that was given up may still set it
		err = callWindmill(ctx, readLimit, func() (err error) {
			value, err = wmill.GetResource(cachePath)
			return err
		})
		if err == nil || strings.HasPrefix(err.Error(), "Not found:") { // the latter where nothing is cached yet
			return snow.understand(value), nil
		}
	}
	return cache{}, cacheError(cachePath + " cannot be read: " + describeWindmill(err))
}

// writeCache gives the resource a new value.
func writeCache(ctx context.Context, value any) error {
	err := callWindmill(ctx, storeLimit, func() error { return wmill.SetResource(cachePath, value, cacheType) })
	if err != nil {
		return cacheError(cachePath + " cannot be written: " + describeWindmill(err))
	}
	return nil
}

// leave writes what came of a login, again if that fails.
func leave(ctx context.Context, value any) error {
	err := writeCache(ctx, value)
	if err != nil {
		sleep(tryPause)
		err = writeCache(ctx, value)
	}
	return err
}

// store puts a new record, without a login, into the cache. It reads the record back
// where no claim has shown that the cache can be written (unclaimed), and where only the
// answers to its writes may have been lost.
func store(snow servicenow, fresh record, unclaimed bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), storeLimit)
	defer cancel()
	failed := leave(ctx, fresh)
	switch {
	case failed == nil && !unclaimed:
		return nil
	case failed != nil && unclaimed:
		return failed
	}
	found, err := readCache(context.Background(), snow)
	// A login at the same time brings the same token, with an expiry some seconds apart.
	there := found.record.Token == fresh.Token && found.record.ExpiresAt > fresh.ExpiresAt-expiryMargin
	switch {
	case there && (failed == nil || found.login == (login{})): // without our claim, only an answer was lost
		return nil
	case failed != nil:
		return failed
	case err != nil:
		return err
	}
	return notStored()
}

// notStored is the error of a write that Windmill answered with success but did not do.
func notStored() error {
	return cacheError(cachePath + " cannot be written: Windmill reported success, but it is not there. " + checkRights())
}

// callWindmill bounds a call of the client, which waits for ever and panics on a
// 200 that is not JSON. A call that is given up goes on until the process ends.
func callWindmill(ctx context.Context, limit time.Duration, call func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if ctx.Err() != nil { // no call is begun for which nobody waits: it might still write
		return ctx.Err()
	}
	ended := make(chan error, 1)
	go func() {
		defer func() {
			if recover() != nil {
				ended <- errors.New("panic")
			}
		}()
		ended <- call()
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// describeWindmill tells the client's error by its kind, and what to check. The
// text of the error is all that Windmill answered, where a token may stand, so it
// is not shown. The kinds are those of Windmill's error.rs.
func describeWindmill(err error) string {
	kind, _, _ := strings.Cut(err.Error(), ":")
	var unreachable *url.Error
	switch {
	case errors.As(err, &unreachable), errors.Is(err, context.DeadlineExceeded):
		return "Windmill was not reached, or did not answer in time. " +
			"Check that the worker reaches BASE_INTERNAL_URL, and that Windmill is not overloaded."
	case kind == "Unauthorized":
		return `Windmill answered "Unauthorized". Check that the job's token (WM_TOKEN) is still valid.`
	case kind == "Permission denied":
		return fmt.Sprintf(`Windmill answered "Permission denied": a protection rule of the workspace forbids it. `+
			"Make this run's user %q an admin, or add it to the rule's bypass list.", os.Getenv("WM_PERMISSIONED_AS"))
	// Not readable, or not creatable; an update that changed nothing; an old server's refusal to create.
	case kind == "Not authorized", kind == "Not found",
		kind == "SqlErr" && strings.Contains(err.Error(), "row-level security"):
		return fmt.Sprintf("Windmill answered %q. ", kind) + checkRights()
	case kind == "Bad request", kind == "Internal", kind == "SqlErr":
		return fmt.Sprintf("Windmill answered %q. Check the log of its server.", kind)
	}
	return "Windmill's answer was not understood. Check BASE_INTERNAL_URL, and any proxy between."
}

// checkRights tells what to check where Windmill does not let the run at the cache.
func checkRights() string {
	return fmt.Sprintf("Check that the folder %s exists and that this run's user %q may read and write in it.",
		path.Dir(cachePath), os.Getenv("WM_PERMISSIONED_AS"))
}

// One login at a time.
//
// A run that must log in claims the login: it writes itself into the record, and
// asks ServiceNow only if it still stands there a moment later. All others wait for
// what comes of that login, be it a token or a failure. So a herd of jobs makes one
// login, as a rule, and a failing instance is asked by one of them. After a refusal nobody
// asks for a while, since a few in a row lock the user.

// underWay reports whether a job is logging in.
func (l login) underWay(now time.Time) bool {
	began := time.Unix(l.At, 0)
	return l.By != "" && now.Sub(began) < loginLimit && began.Sub(now) <= clockSkew
}

// heldUntil returns until when a run must not ask, because ServiceNow refused these
// credentials before. ServiceNow locks a user after five refusals in a row, or after three
// where one counts more than once (KB0749501).
func heldUntil(last login, started origin, now time.Time) time.Time {
	refused := time.Unix(last.RefusedAt, 0)
	switch {
	case last.Refusals <= 0, refused.After(now.Add(clockSkew)):
		return time.Time{}
	// A person may have mended something, and may press Run again and again.
	case started == byHand:
		return refused.Add(time.Minute)
	// It may have been a passing fault of ServiceNow's.
	case last.Refusals == 1:
		return refused.Add(10 * time.Minute)
	case last.Refusals == 2:
		return refused.Add(6 * time.Hour)
	}
	return refused.Add(untilMended)
}

// heldBack is the error of a run that does not ask before until.
func heldBack(last login, started origin, until time.Time) error {
	refused, next := time.Unix(last.RefusedAt, 0).UTC(), "before "+until.UTC().Format(time.RFC3339)
	if until.Sub(refused) == untilMended {
		next = "again"
	}
	who := "flow or schedule"
	otherwise := "or, if the fault was on ServiceNow's side and is mended, run this script by hand"
	if started == byHand {
		who, otherwise = "run by hand", "or run this script again after that"
	}
	return fmt.Errorf("ServiceNow was not asked, so that it does not lock the user. "+
		"Refusals of these credentials in a row: %d, the last at %s. What came back last: %s.\n"+
		"No %s asks %s, unless the credentials in the resource change. Mend them there, %s",
		last.Refusals, refused.Format(time.RFC3339), last.Outcome, who, next, otherwise)
}

// awaitTurn returns the token that this run may reuse: the cached one, or that of a login
// for which it waited. Otherwise it claims the login and returns until when this run may
// ask ServiceNow. If the cache cannot be used, it returns that time and a cacheError. Any
// other error says why this run must not ask.
func awaitTurn(snow servicenow, started origin) (token string, askUntil time.Time, err error) {
	begun := now()
	found, err := readCache(context.Background(), snow)
	if err == nil && started == byCaller && !found.record.usable() {
		fmt.Println(whyNotReused(found))
	}
	first := found.record
	waited := false    // for another job's login, so that its outcome is taken, whatever it is
	unchanged := false // by this run's last claim
	for err == nil {
		at := now()
		age := at.Sub(begun)
		held := heldUntil(found.trusted, started, at)
		reusable := started == byCaller && found.record.usable()
		// What another job's login has just brought will do even for its last minute. It may
		// be the very record that was there before. Beside a login of other credentials it
		// must be newer.
		alone, newer := found.login == (login{}), found.record.ExpiresAt > first.ExpiresAt
		brought := found.record.remaining() > 0 &&
			(waited && (alone || newer) || unchanged && alone && started == byCaller)
		switch {
		case reusable, brought:
			fmt.Printf("Reused the token of %q at %s: %s has it, valid for another %s.\n",
				snow.Username, snow.InstanceURL, cachePath, found.record.remaining())
			return found.record.Token, time.Time{}, nil
		case waited && found.trusted.By == "" && found.trusted.Outcome != "":
			return "", time.Time{}, fmt.Errorf("the login of another job, for which this run waited, failed: %s. "+
				"That job's log says what to check", found.trusted.Outcome)
		case found.login.underWay(at) && age < lastWait:
			found, err = awaitEnd(snow, found, min(loginLimit, lastWait-age))
			waited = true
		case at.Before(held):
			return "", time.Time{}, heldBack(found.trusted, started, held)
		case age > lastClaim:
			return "", time.Time{}, errors.New("other jobs have been logging in all the time, and none stored a token: " +
				"their logs say why. Run again later")
		default:
			again, ours, failed := claim(snow, found)
			if ours {
				return "", at.Add(askLimit), nil
			}
			// An old Windmill server answers 200 and stores nothing where the job may not
			// write. Once it may be chance: another job's login can bring back the very
			// record that was there, to the second.
			same := reflect.DeepEqual(again.value, found.value)
			if same && unchanged && failed == nil {
				failed = notStored()
			}
			waited, unchanged = waited || !same, same
			found, err = again, failed
		}
	}
	// No claim of this run's limits it here, only the minute.
	return "", begun.Add(min(now().Sub(begun)+askLimit, lastAnswer)), err
}

// awaitEnd waits until the login under way has ended, and returns what is in the
// cache then. One that has not ended within limit is dead, whatever the clocks say.
func awaitEnd(snow servicenow, found cache, limit time.Duration) (_ cache, err error) {
	other, name := found.login.By, "Another job"
	if found.trusted == found.login { // else it may be anything that somebody planted
		name = fmt.Sprintf("Job %.40q", other)
	}
	fmt.Println(name + " is logging in: waiting for it.")
	latest := now().Add(limit)
	pause := claimPause + rand.N(claimPause) // a login may be short, so the first look comes soon
	for found.login.By == other && found.login.underWay(now()) && now().Before(latest) {
		sleep(pause)
		pause = time.Second
		var again cache // a look that failed counts only if it was the last one
		if again, err = readCache(context.Background(), snow); err == nil {
			found = again
		}
	}
	if err == nil && found.login.By == other {
		fmt.Println("It has not ended in time: no longer waiting for it.")
		found.login.At = 0 // so that it is no longer under way, even by a clock that is ahead
	}
	return found, err
}

// whyNotReused tells why a run that may reuse a token logs in.
func whyNotReused(found cache) string {
	fields, _ := found.value.(map[string]any)
	switch {
	case found.record.Token != "":
		return "The token in " + cachePath + " has expired or is about to: logging in."
	case fields == nil, fields["token"] == "":
		return "Nothing cached yet in " + cachePath + ": logging in."
	}
	return "The record in " + cachePath + " is of another instance or user, or from another script: replacing it. " +
		"If this comes every time, two configurations share this cache."
}

// claim writes this run into the record as the one that logs in, again if that fails and
// nobody else did. The login is ours if that still stands there after a pause; again is
// what stands there.
func claim(snow servicenow, found cache) (again cache, ours bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), claimLimit)
	defer cancel()
	begun := now()
	mine := found.trusted // its refusals go on counting
	mine.By, mine.At = os.Getenv("WM_JOB_ID"), begun.Unix()
	if mine.By == "" {
		mine.By = fmt.Sprintf("%016x", rand.Uint64())
	}
	mine.Seal = snow.loginSeal(mine)
	for try := 1; ; try++ {
		writing := now()
		failed := writeCache(ctx, snow.withLogin(found.value, mine))
		// A job that read the record just before our write may claim it, too. It needs about as
		// long for that as our write took, so we wait as long, but leave time to read it back.
		written := now()
		sleep(max(claimPause, min(written.Sub(writing), claimLimit-readLimit-written.Sub(begun))))
		again, err = readCache(ctx, snow)
		switch {
		case again.login == mine: // where the write failed, only its answer was lost
			return again, true, nil
		case failed == nil, err == nil && !reflect.DeepEqual(again.value, found.value):
			return again, false, err
		// A write that was given up may still be done, and is not made twice.
		case try == 2, written.Sub(writing) >= storeLimit:
			return again, false, failed
		}
	}
}

// withLogin returns value with l as its login, and all else as it was read, unless
// value is no object or repeats a secret.
func (snow servicenow) withLogin(value any, l login) map[string]any {
	fields := map[string]any{"token": "", "expires_at": 0} // so that every reader finds a token and an expiry
	if object, ok := value.(map[string]any); ok && !snow.repeatedIn(value) {
		fields = maps.Clone(object)
	}
	fields["login"] = l
	return fields
}

// repeatedIn reports whether a string in value is one of snow's secrets. Somebody may
// have planted "$var:…", which Windmill expands when it reads a resource: written back,
// the secret would stand there in plain text.
func (snow servicenow) repeatedIn(value any) bool {
	encoded, _ := json.Marshal(value)
	password, _ := json.Marshal(snow.Password)
	clientSecret, _ := json.Marshal(snow.ClientSecret)
	return bytes.Contains(encoded, password) || bytes.Contains(encoded, clientSecret)
}

// storeFailure tells the runs that wait, and later ones, what came of the login.
func storeFailure(snow servicenow, failed *loginError) {
	ctx, cancel := context.WithTimeout(context.Background(), storeLimit)
	defer cancel()
	found, err := readCache(ctx, snow)
	if err != nil { // no refusal should go uncounted for a passing fault of Windmill's
		sleep(tryPause)
		found, err = readCache(ctx, snow)
	}
	if err == nil {
		ended := found.trusted // its refusals go on counting
		ended.By, ended.Outcome = "", fmt.Sprintf("%.200s", failed.outcome)
		if failed.refused {
			ended.Refusals, ended.RefusedAt = ended.Refusals+1, now().Unix()
		}
		ended.Seal = snow.loginSeal(ended)
		err = leave(ctx, snow.withLogin(found.value, ended))
	}
	if err != nil {
		fmt.Printf("Other runs could not be told that this login failed: %v\n", err)
	}
}

// Asking ServiceNow.

// askServiceNow returns a sealed record of the token that it gets until the given
// time. It asks again where that may help.
func askServiceNow(snow servicenow, until time.Time) (record, *loginError) {
	ctx, cancel := context.WithTimeout(context.Background(), until.Sub(now()))
	defer cancel()
	for attempt := 1; ; attempt++ {
		fresh, failed := logIn(ctx, snow)
		if failed == nil {
			fmt.Printf("%s accepted the login of %q and gave a token valid for %s.\n",
				snow.InstanceURL, snow.Username, fresh.remaining())
			if !fresh.usable() {
				fmt.Println("That is a minute or less: later steps may find it expired.")
			}
			return fresh, nil
		}
		// Jitter spreads jobs that failed together.
		pause := firstPause << (attempt - 1)
		pause = max(pause+rand.N(pause), failed.pause)
		// What three attempts do not get past is for a later run.
		if !failed.mayHelp || attempt == mostAttempts || now().Add(pause+shortestAttempt).After(until) {
			return record{}, failed
		}
		fmt.Printf("%s; asking again in %s.\n", failed.outcome, pause.Round(100*time.Millisecond))
		sleep(pause)
	}
}

// logIn asks for a token once.
func logIn(ctx context.Context, snow servicenow) (record, *loginError) {
	// The lifetime counts from before the request, so that what the answer takes
	// shortens it rather than lengthens it.
	asked := now()
	got, err := post(ctx, snow.InstanceURL+tokenEndpoint, url.Values{
		"grant_type": {"password"},
		"client_id":  {snow.ClientID}, "client_secret": {snow.ClientSecret},
		"username": {snow.Username}, "password": {snow.Password},
	})
	if err != nil {
		return record{}, failure(snow, answer{}, tokenAnswer{}, err)
	}
	said, lifetime, err := got.decode()
	if err != nil {
		return record{}, failure(snow, got, said, err)
	}
	fresh := record{Token: said.AccessToken, ExpiresAt: asked.Unix() + lifetime, InstanceURL: snow.InstanceURL}
	fresh.Seal = snow.seal(fresh)
	return fresh, nil
}

// failure makes an error of an answer that brought no token, or of no answer.
func failure(snow servicenow, got answer, said tokenAnswer, err error) *loginError {
	failed := judge(got.status, err)
	failed.outcome = snow.InstanceURL + tokenEndpoint + " " + failed.outcome + got.details(said, snow)
	failed.mayHelp = failed.mayHelp && !got.late
	failed.pause = retryAfter(got.retryAfter, now())
	return &failed
}

// transport sends each request once: on a kept connection, or by HTTP/2, Go might send
// it again by itself. There is no http.Client, which would follow a redirect and send the
// password along.
var transport = &http.Transport{
	Proxy:             http.ProxyFromEnvironment,
	DisableKeepAlives: true,
	TLSNextProto:      map[string]func(string, *tls.Conn) http.RoundTripper{}, // no HTTP/2
}

// answer is what came back from ServiceNow, or from something in its place.
type answer struct {
	status     int
	redirect   string // the host that the Location header of a redirect names
	retryAfter string // the Retry-After header
	body       []byte // cut just past longestAnswer
	late       bool   // the body did not end in time
}

// post sends form to endpoint. Its error means that no whole answer came; only a 200
// need be whole.
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
	if location, err := response.Location(); err == nil && got.status/100 == 3 {
		got.redirect = location.Host
	}
	if got.status == http.StatusSwitchingProtocols {
		return got, nil // the body is the bare connection: reading it could hang past the deadline
	}
	got.body, err = io.ReadAll(io.LimitReader(response.Body, longestAnswer+1))
	if err != nil && got.status == http.StatusOK {
		return answer{}, err
	}
	got.late = errors.Is(err, context.DeadlineExceeded)
	return got, nil
}

// errAsleep says that the answer is the page of a hibernating developer instance.
var errAsleep = errors.New("the page of a hibernating instance")

// decode returns the answer's fields and, of a success, the token's lifetime in
// seconds. The error says what there is in the place of a token.
func (a answer) decode() (said tokenAnswer, lifetime int64, err error) {
	body := bytes.TrimSpace(a.body)
	page := bytes.HasPrefix(body, []byte("<"))
	var mistyped *json.UnmarshalTypeError // which leaves that field empty and decodes the others
	err = json.Unmarshal(body, &said)
	object := bytes.HasPrefix(body, []byte("{")) && (err == nil || errors.As(err, &mistyped))
	switch {
	case page && bytes.Contains(bytes.ToLower(body), []byte("hibernating")):
		return said, 0, errAsleep
	case a.status != http.StatusOK:
		return said, 0, errors.New("a refusal")
	case len(a.body) > longestAnswer:
		return said, 0, errors.New("more than 1 MiB")
	case page:
		return said, 0, errors.New("an HTML page")
	case !object:
		return said, 0, errors.New("something other than one JSON object")
	case said.Error != nil:
		return said, 0, errors.New("an error")
	// The characters of RFC 6750, section 2.1, need no escaping in a header or in JSON, and
	// Windmill expands nothing made of them when it reads the resource.
	case !regexp.MustCompile(`^[\w.~+/-]+=*$`).MatchString(said.AccessToken):
		return said, 0, errors.New("no well-formed access_token")
	}
	// json.Number takes quoted numbers, too, and null leaves it as it is.
	seconds := json.Number(strconv.Itoa(defaultLifetime))
	if said.ExpiresIn != nil && json.Unmarshal(said.ExpiresIn, &seconds) != nil {
		seconds = "0"
	}
	parsed, _ := seconds.Float64() // out of range, it is infinite
	if parsed < 1 {
		return said, 0, errors.New("no usable expires_in")
	}
	return said, int64(min(parsed, longestLifetime)), nil
}

// judge says what came back of a request that brought no token, what to check, and
// whether asking again may help. status is 0 where no whole answer came. err is decode's
// or, where there is no status, Go's: its text is shown only for an untrusted certificate,
// since others may quote what the other side sent, or a proxy's password.
func judge(status int, err error) loginError {
	const (
		later   = "The instance or a gateway before it is failing or busy: run again later."
		strange = "This is not what a token endpoint answers: check instance_url, and any gateway or proxy between."
		worker  = "Check instance_url, and the worker's network, DNS and proxy variables."
		between = "Check instance_url, and what stands between worker and instance."
	)
	answered := fmt.Sprintf("answered %d", status)
	is := func(cause error) bool { return errors.Is(err, cause) }
	var network net.Error
	timeout := errors.As(err, &network) && network.Timeout()
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	untrusted := errors.As(err, &certificate)
	if untrusted {
		err = certificate.Err
	}
	for _, v := range []struct {
		applies         bool
		outcome, advice string
		mayHelp         bool
	}{
		// Somebody has to wake it, whatever the status.
		{is(errAsleep), answered + " with " + err.Error(), "Wake it at developer.servicenow.com.", false},

		// A refusal counts towards the user's lock-out.
		{status == 400 || status == 401, answered, refusalAdvice, false},

		// Something other than the login is wrong, and would be wrong again.
		{status == 200, answered + " with " + err.Error(), strange, false},
		{status/100 == 3, answered, "It was not followed: instance_url must be the instance's own address.", false},
		{status == 403, answered, "Check the instance's IP address access control, and any gateway before it.", false},

		// The instance or a gateway says that it is busy or restarting.
		{status == 429, answered, "Check what else asks this instance so often.", true},
		{status == 502 || status == 503 || status == 504, answered, later, true},
		{status >= 500, answered, later, false},
		{status > 0, answered, strange, false},

		// No whole answer came, from here on. A timeout leaves too little time for another attempt.
		{timeout, "did not answer in time", "Check that the worker may reach it, and that it is not overloaded.", false},
		{errors.As(err, &dns), "cannot be reached: DNS gave no address", worker, false},
		{untrusted, fmt.Sprintf("has an untrusted certificate (%.150q)", err), between, false},
		{is(syscall.ENETUNREACH) || is(syscall.EHOSTUNREACH), "cannot be reached: there is no route to it", worker, false},

		// The other side went away, as in a restart. Where the request did arrive,
		// ServiceNow gives the same token again.
		{is(syscall.ECONNREFUSED), "cannot be reached: the connection was refused", worker, true},
		{is(io.EOF) || is(io.ErrUnexpectedEOF), "broke the connection off", between, true},
		{is(syscall.ECONNRESET) || is(syscall.EPIPE), "broke the connection off", between, true},
	} {
		if v.applies {
			return loginError{outcome: v.outcome, advice: v.advice, mayHelp: v.mayHelp, refused: v.advice == refusalAdvice}
		}
	}
	return loginError{outcome: "did not answer as an HTTPS server does", advice: worker}
}

// refusalAdvice has the causes of KB0791140 and KB1115956.
const refusalAdvice = `ServiceNow does not say why it refused the login. Check:
- client_id, client_secret, username, password
- the user: active, not locked out, no password reset due, a local password
- the OAuth application: active, its scope intact
- glide.oauth.inbound.ropc.grant_type.disabled: not true
- the instance's system log: "Exception on token flow"`

// details returns, in brackets, what of the answer may stand in the log: the host of
// a redirect and the error's texts. It is "" if there are none.
func (a answer) details(said tokenAnswer, snow servicenow) string {
	code, _ := said.Error.(string)
	object, _ := said.Error.(map[string]any)
	message, _ := object["message"].(string)
	detail, _ := object["detail"].(string)
	secrets := []string{snow.Password, snow.ClientSecret, said.AccessToken, said.RefreshToken}
	var shown []string
	for _, field := range []struct{ name, value string }{
		{"redirect to", a.redirect}, {"error", code}, {"error_description", said.Description},
		{"message", message}, {"detail", detail},
	} {
		if field.value != "" && len(shown) < 2 { // Windmill shows the last 600 characters of a failed job's log
			shown = append(shown, field.name+" "+quote(field.value, secrets))
		}
	}
	if shown == nil {
		return ""
	}
	return " (" + strings.Join(shown, ", ") + ")"
}

// quote returns text shortened and quoted, but withholds it if it repeats a part of a
// secret, or may: what has escapes of a URL, a form, HTML or JSON may hide one, and a
// word of 40 characters or more may be a token or a part of one.
func quote(text string, secrets []string) string {
	withhold := strings.ContainsAny(text, `%+&\`) || regexp.MustCompile(`[\w/=~-]{40}`).MatchString(text)
	visible := func(text string) string { // so that no blank or unprintable character hides a secret
		return strings.Map(func(r rune) rune {
			if unicode.IsSpace(r) || !unicode.IsPrint(r) {
				return -1
			}
			return unicode.ToLower(r)
		}, text)
	}
	seen := visible(text)
	for _, secret := range secrets {
		secret = visible(secret)
		part := min(len(secret), tellingPart)
		for at := 0; part > 0 && at+part <= len(secret); at++ {
			withhold = withhold || strings.Contains(seen, secret[at:at+part])
		}
	}
	if withhold {
		return "(withheld, it may repeat a secret)"
	}
	plain := strings.Map(func(r rune) rune {
		if r == '"' || !unicode.IsPrint(r) {
			return ' ' // %q would make more of it
		}
		return r
	}, text)
	return fmt.Sprintf("%.60q", plain)
}

// retryAfter reads a Retry-After header, seconds or a date (RFC 9110, section
// 10.2.3), up to longestRetryAfter.
func retryAfter(header string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(header, 10, 32); err == nil || errors.Is(err, strconv.ErrRange) {
		return min(time.Duration(seconds)*time.Second, longestRetryAfter)
	}
	date, _ := http.ParseTime(header) // else long ago
	return min(max(date.Sub(now), 0), longestRetryAfter)
}
