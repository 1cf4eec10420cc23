package inner

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

const query = "/api/now/stats/incident?sysparm_query=active=true&sysparm_count=true&sysparm_group_by=priority"

// record is the content of f/ServiceNow/snow_token_cache.
type record struct {
	Token       string  `json:"token"`
	ExpiresAt   float64 `json:"expires_at"`   // Unix seconds; the Python script stores a fraction
	InstanceURL string  `json:"instance_url"` // empty if the Python script stored the token
}

// main returns the number of open incidents by priority. Its errors contain neither the token nor the answer's body.
func main(cache record) (map[string]int, error) {
	if cache.Token == "" || cache.InstanceURL == "" {
		return nil, errors.New("f/ServiceNow/snow_token_cache holds no token of f/ServiceNow/get_token. Run that script")
	}
	if cache.ExpiresAt <= float64(time.Now().Unix()) {
		return nil, errors.New("the token in f/ServiceNow/snow_token_cache has expired. " +
			"Put f/ServiceNow/get_token before this step, or switch on the schedule f/ServiceNow/warm_token")
	}
	request, err := http.NewRequest(http.MethodGet, cache.InstanceURL+query, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+cache.Token)
	request.Header.Set("Accept", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %d. %s", cache.InstanceURL, response.StatusCode, advice(response.StatusCode))
	}
	return readCounts(response)
}

// client does not follow redirects, which might send the token elsewhere.
var client = &http.Client{
	Timeout:       30 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// advice says what to check after a failed request.
func advice(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "The token may have been revoked. If f/ServiceNow/snow_token_cache still holds it, " +
			"write {} into that resource, and run f/ServiceNow/get_token"
	case http.StatusForbidden:
		return "Check the user's right to read incidents, and the scope of the OAuth application"
	default:
		return "Check instance_url in the servicenow resource"
	}
}

// readCounts decodes an answer of the Aggregate API.
func readCounts(response *http.Response) (map[string]int, error) {
	var answer struct {
		Result []struct {
			Stats struct {
				Count int `json:"count,string"`
			} `json:"stats"`
			GroupBy []struct {
				Value string `json:"value"`
			} `json:"groupby_fields"`
		} `json:"result"`
	}
	err := json.NewDecoder(response.Body).Decode(&answer)
	if err != nil || answer.Result == nil {
		return nil, fmt.Errorf("%s sent no counts. Check that it is an instance, and awake", response.Request.Host)
	}
	counts := make(map[string]int)
	for _, group := range answer.Result {
		for _, priority := range group.GroupBy {
			counts[priority.Value] = group.Stats.Count
		}
	}
	return counts, nil
}
