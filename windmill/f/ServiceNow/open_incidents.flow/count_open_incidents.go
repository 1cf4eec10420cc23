package inner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// record is what f/ServiceNow/snow_token_cache holds. The step sees no password.
type record struct {
	Token       string  `json:"token"`
	ExpiresAt   float64 `json:"expires_at"`   // Unix seconds; the Python script writes a fraction
	InstanceURL string  `json:"instance_url"` // whose token it is; the Python script writes none
}

// main returns the number of open incidents by priority, from ServiceNow's Aggregate
// API. Its errors show neither the token nor what the other side sent.
func main(cache record) (map[string]int, error) {
	log.SetOutput(io.Discard) // net/http logs bytes that it did not expect, whatever they are
	address, ok := instanceAddress(cache.InstanceURL)
	switch {
	case cache.Token == "":
		return nil, errors.New("f/ServiceNow/snow_token_cache holds no token: run f/ServiceNow/get_token")
	case cache.ExpiresAt <= float64(time.Now().Unix()):
		return nil, errors.New("the cached token has expired: switch the schedule f/ServiceNow/warm_token on, " +
			"or put f/ServiceNow/get_token before this step")
	case !ok: // who planted it may have put anything there: it is not repeated
		return nil, errors.New("instance_url in f/ServiceNow/snow_token_cache is not like https://dev12345.service-now.com, " +
			"so another script wrote it: run f/ServiceNow/get_token")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	address.Path += "/api/now/stats/incident"
	address.RawQuery = "sysparm_query=active=true&sysparm_count=true&sysparm_group_by=priority"
	header := http.Header{"Authorization": {"Bearer " + cache.Token}, "Accept": {"application/json"}}
	request := &http.Request{Method: http.MethodGet, URL: address, Header: header}
	// An http.Client would follow a redirect, and take the token along.
	response, err := http.DefaultTransport.RoundTrip(request.WithContext(ctx))
	var network *net.OpError // the texts of other errors may repeat what came
	switch {
	case errors.As(err, &network):
		return nil, fmt.Errorf("%s cannot be reached: %w", address.Host, network)
	case err != nil:
		return nil, fmt.Errorf("%s did not answer within 30 s as an HTTPS server with a trusted certificate does", address.Host)
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
		return readCounts(address.Host, io.LimitReader(response.Body, 1<<20))
	case http.StatusUnauthorized:
		return nil, fmt.Errorf("%s answered 401: it does not accept the token of f/ServiceNow/snow_token_cache, which may have "+
			"been revoked. If the cache still holds this token, write {} into it, run f/ServiceNow/get_token, run this again", address.Host)
	case http.StatusForbidden:
		return nil, fmt.Errorf("%s answered 403: it knows the token, but refuses this call. Check the user's right to read "+
			"incidents, and the OAuth application's scope: another scope needs a new token", address.Host)
	}
	return nil, fmt.Errorf("%s answered %d: check instance_url in the servicenow resource", address.Host, response.StatusCode)
}

// instanceAddress returns where a token may go: HTTPS, or HTTP on loopback.
func instanceAddress(given string) (address *url.URL, ok bool) {
	address, err := url.Parse(given)
	if err != nil || address.Hostname() == "" || strings.ContainsAny(given, "@?#") {
		return nil, false
	}
	onLoopback := address.Hostname() == "localhost" || net.ParseIP(address.Hostname()).IsLoopback()
	return address, address.Scheme == "https" || (address.Scheme == "http" && onLoopback)
}

// readCounts reads the Aggregate API's answer.
func readCounts(host string, body io.Reader) (map[string]int, error) {
	strange := fmt.Errorf("%s answered something else than counts by priority, or too late: is it an instance, and awake?", host)
	var answer struct {
		Result []struct {
			Stats  struct{ Count string }   `json:"stats"`
			Groups []struct{ Value string } `json:"groupby_fields"`
		} `json:"result"`
	}
	if err := json.NewDecoder(body).Decode(&answer); err != nil || answer.Result == nil {
		return nil, strange
	}
	open := make(map[string]int)
	for _, group := range answer.Result {
		count, err := strconv.Atoi(group.Stats.Count)
		if err != nil || len(group.Groups) != 1 {
			return nil, strange
		}
		open[group.Groups[0].Value] = count
	}
	return open, nil
}
