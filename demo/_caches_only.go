package inner

// For comparison, this script does what the Hub's Python script is meant to do: it caches the token. It does not look
// at other jobs, and it does not record failed logins.

//require github.com/windmill-labs/windmill-go-client v1.501.4

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	wmill "github.com/windmill-labs/windmill-go-client"
	api "github.com/windmill-labs/windmill-go-client/api"
)

const cachePath = "f/ServiceNow/snow_token_cache"

type record struct {
	Token     string `json:"token"`
	ExpiresAt int64  `json:"expires_at"`
}

func main(snow map[string]string) (string, error) {
	windmill, _ := wmill.GetClient() // The error is always nil.
	ctx := context.Background()
	response, err := windmill.Client.GetResourceValue(ctx, windmill.Workspace, cachePath)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	var cached record
	_ = json.NewDecoder(response.Body).Decode(&cached) // If nothing is cached, the answer is not JSON.
	if cached.ExpiresAt > time.Now().Unix()+60 {
		return "OK", nil
	}
	fresh, err := logIn(snow)
	if err != nil {
		return "", err
	}
	updateIfExists := true
	params := &api.CreateResourceParams{UpdateIfExists: &updateIfExists}
	resource := api.CreateResource{Path: cachePath, ResourceType: "state", Value: fresh}
	if _, err := windmill.Client.CreateResource(ctx, windmill.Workspace, params, resource); err != nil {
		return "", err
	}
	return "OK", nil
}

func logIn(snow map[string]string) (record, error) {
	form := url.Values{"grant_type": {"password"}}
	for _, field := range []string{"client_id", "client_secret", "username", "password"} {
		form.Set(field, snow[field])
	}
	response, err := http.PostForm(snow["instance_url"]+"/oauth_token.do", form)
	if err != nil {
		return record{}, err
	}
	defer response.Body.Close()
	var answer struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || answer.AccessToken == "" {
		return record{}, fmt.Errorf("no token: ServiceNow answered %d", response.StatusCode)
	}
	return record{Token: answer.AccessToken, ExpiresAt: time.Now().Unix() + answer.ExpiresIn}, nil
}
