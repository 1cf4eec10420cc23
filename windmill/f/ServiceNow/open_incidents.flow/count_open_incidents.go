package inner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// record is what f/ServiceNow/snow_token_cache holds. A step needs nothing else:
// it sees neither a password nor a client secret.
type record struct {
	Token       string  `json:"token"`        // empty until a login succeeded
	ExpiresAt   float64 `json:"expires_at"`   // Unix seconds; the Python script writes a fraction
	InstanceURL string  `json:"instance_url"` // the instance that gave the token; the Python script writes none
}

// main returns the number of open incidents by priority, from ServiceNow's
// Aggregate API.
func main(cache record) (map[string]int, error) {
	address, err := cache.check(time.Now())
	if err != nil {
		return nil, err
	}
	address = address.JoinPath("api/now/stats/incident")
	address.RawQuery = url.Values{
		"sysparm_query": {"active=true"}, "sysparm_count": {"true"},
		"sysparm_group_by": {"priority"}, "sysparm_display_value": {"true"},
	}.Encode()
	request, err := http.NewRequest(http.MethodGet, address.String(), nil)
	if err != nil {
		return nil, errBadAddress
	}
	request.Header.Set("Authorization", "Bearer "+cache.Token)
	request.Header.Set("Accept", "application/json")

	client := http.Client{
		Timeout: 30 * time.Second,
		// Go takes the token along to another port of the same host, and to subdomains.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%s %s", address.Host, describe(err))
	}
	defer response.Body.Close()
	switch status := response.StatusCode; {
	case status == http.StatusUnauthorized:
		return nil, fmt.Errorf("%s does not accept the cached token: it may have been revoked. "+
			"Run f/ServiceNow/get_token by hand, which asks ServiceNow and replaces a revoked token, then run this again",
			address.Host)
	case status >= 300 && status < 400:
		to := "somewhere else"
		if location, err := response.Location(); err == nil {
			to = location.Host
		}
		return nil, fmt.Errorf("%s answered %d, a redirect to %s, which the token does not follow: "+
			"check instance_url in the servicenow resource", address.Host, status, to)
	case status != http.StatusOK:
		return nil, fmt.Errorf("%s answered %d", address.Host, status)
	}
	return readCounts(address.Host, io.LimitReader(response.Body, 1<<20)) // a worker's memory is not the answer's to fill
}

// errBadAddress does not repeat the address: whoever planted it may have put anything there.
var errBadAddress = errors.New("instance_url in f/ServiceNow/snow_token_cache is not an instance's address: " +
	"it must look like https://dev12345.service-now.com, with https, and without user, password, query or fragment. " +
	"Run f/ServiceNow/get_token by hand, which writes it anew")

// check returns the address of the instance that gave the token, or an error that
// says why the record is of no use and what to do.
func (cache record) check(now time.Time) (*url.URL, error) {
	const logIn = "Switch the schedule f/ServiceNow/warm_token on, or put f/ServiceNow/get_token before this step"
	if cache.Token == "" {
		return nil, errors.New("f/ServiceNow/snow_token_cache holds no token: nobody has logged in successfully yet. " +
			"Run f/ServiceNow/get_token by hand, and see what it says")
	}
	if cache.ExpiresAt <= float64(now.Unix()) {
		expiry := time.Unix(int64(cache.ExpiresAt), 0).UTC().Format(time.RFC3339)
		return nil, fmt.Errorf("the cached token expired at %s: nothing keeps the cache warm. %s", expiry, logIn)
	}
	if cache.InstanceURL == "" {
		return nil, errors.New("the record in f/ServiceNow/snow_token_cache has no instance_url: " +
			"f/ServiceNow/get_token must have written it, not another script. " + logIn)
	}
	address, err := url.Parse(cache.InstanceURL)
	if err != nil || address.Hostname() == "" || strings.ContainsAny(cache.InstanceURL, "@?#") {
		return nil, errBadAddress
	}
	loopback := address.Hostname() == "localhost" || net.ParseIP(address.Hostname()).IsLoopback()
	if address.Scheme != "https" && !(address.Scheme == "http" && loopback) {
		return nil, errBadAddress
	}
	return address, nil
}

// describe tells why no answer came. Of an error's text only the network's is
// shown, for others repeat what the other side sent.
func describe(err error) string {
	var network *net.OpError
	var failed *url.Error
	switch {
	case errors.As(err, &failed) && failed.Timeout():
		return "did not answer in time"
	case errors.As(err, &network):
		return fmt.Sprintf("could not be reached: %v", network)
	default:
		return "did not answer as an HTTPS server with a trusted certificate does"
	}
}

// readCounts reads the Aggregate API's answer.
func readCounts(host string, body io.Reader) (map[string]int, error) {
	var answer struct {
		Result []struct {
			Stats struct {
				Count string `json:"count"`
			} `json:"stats"`
			Groups []struct {
				Value string `json:"value"`
			} `json:"groupby_fields"`
		} `json:"result"`
	}
	if err := json.NewDecoder(body).Decode(&answer); err != nil || answer.Result == nil {
		return nil, fmt.Errorf("%s answered with something other than counts by priority", host)
	}
	open := make(map[string]int)
	for _, group := range answer.Result {
		count, err := strconv.Atoi(group.Stats.Count)
		if err != nil || len(group.Groups) != 1 {
			return nil, fmt.Errorf("%s answered with something other than counts by priority", host)
		}
		open[group.Groups[0].Value] = count
	}
	return open, nil
}
