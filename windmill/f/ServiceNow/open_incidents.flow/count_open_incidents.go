package inner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// record is what f/ServiceNow/snow_token_cache holds. A step needs nothing else
// of the credentials.
type record struct {
	Token     string `json:"token"`
	ExpiresAt int64  `json:"expires_at"` // Unix seconds
}

// main returns the number of open incidents by priority, from ServiceNow's
// Aggregate API.
func main(cache record, instance_url string) (map[string]int, error) {
	// The token goes there: only over TLS, but for a server on this machine.
	if !strings.HasPrefix(instance_url, "https://") && !strings.HasPrefix(instance_url, "http://127.0.0.1:") {
		return nil, errors.New("instance_url must look like https://dev12345.service-now.com")
	}
	query := url.Values{
		"sysparm_query": {"active=true"}, "sysparm_count": {"true"},
		"sysparm_group_by": {"priority"}, "sysparm_display_value": {"true"},
	}
	address := strings.TrimRight(instance_url, "/") + "/api/now/stats/incident"
	request, err := http.NewRequest(http.MethodGet, address+"?"+query.Encode(), nil)
	if err != nil {
		return nil, errors.New("instance_url is not a URL")
	}
	request.Header.Set("Authorization", "Bearer "+cache.Token)
	request.Header.Set("Accept", "application/json")

	client := http.Client{Timeout: 30 * time.Second}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	switch {
	case response.StatusCode == http.StatusUnauthorized:
		return nil, errors.New("ServiceNow does not accept the cached token: it may have been revoked. " +
			"Run the schedule f/ServiceNow/warm_token now, which always gets a good one, then run this flow again")
	case response.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s answered %d", address, response.StatusCode)
	}

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
	// A bound, lest a page of megabytes fill the worker's memory.
	if err := json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&answer); err != nil {
		return nil, fmt.Errorf("%s answered with something other than JSON", address)
	}
	open := make(map[string]int)
	for _, group := range answer.Result {
		count, err := strconv.Atoi(group.Stats.Count)
		if err != nil || len(group.Groups) != 1 {
			return nil, fmt.Errorf("%s answered with something other than counts by priority", address)
		}
		open[group.Groups[0].Value] = count
	}
	return open, nil
}
