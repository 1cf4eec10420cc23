// Package windmill_api is the part of the published client's generated API that main.go calls (v1.501.4,
// api/windmill_api.gen.go). Its methods return the answer as it arrived.
package windmill_api

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
)

// ClientWithResponses sends requests to Windmill. The published client has other fields.
type ClientWithResponses struct {
	Server        string // ends in /api
	Authorization string // header of every request
}

// RequestEditorFn changes a request. The published methods accept such functions. This client ignores them.
type RequestEditorFn func(ctx context.Context, req *http.Request) error

// GetResourceValue reads a resource's value as it is stored.
func (c *ClientWithResponses) GetResourceValue(
	ctx context.Context, workspace, path string, _ ...RequestEditorFn,
) (*http.Response, error) {
	return c.send(ctx, http.MethodGet, workspace, "resources/get_value/"+url.PathEscape(path), nil, nil)
}

// CreateResourceParams is the query of CreateResource.
type CreateResourceParams struct{ UpdateIfExists *bool }

// CreateResource is the body of CreateResource.
type CreateResource struct {
	Description  *string     `json:"description,omitempty"`
	Path         string      `json:"path"`
	ResourceType string      `json:"resource_type"`
	Value        interface{} `json:"value"`
}

// CreateResourceJSONRequestBody is the published name of the body.
type CreateResourceJSONRequestBody = CreateResource

// CreateResource makes a resource or, with UpdateIfExists, replaces one.
func (c *ClientWithResponses) CreateResource(
	ctx context.Context, workspace string, params *CreateResourceParams, body CreateResourceJSONRequestBody,
	_ ...RequestEditorFn,
) (*http.Response, error) {
	content, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	query := url.Values{}
	if params.UpdateIfExists != nil {
		query.Set("update_if_exists", strconv.FormatBool(*params.UpdateIfExists))
	}
	return c.send(ctx, http.MethodPost, workspace, "resources/create", query, content)
}

// ListQueueParams is the query of ListQueue. The published client has more fields.
type ListQueueParams struct {
	ScriptPathExact *string
	Running         *bool
}

// ListQueue lists the jobs in the queue.
func (c *ClientWithResponses) ListQueue(
	ctx context.Context, workspace string, params *ListQueueParams, _ ...RequestEditorFn,
) (*http.Response, error) {
	query := url.Values{}
	if params.ScriptPathExact != nil {
		query.Set("script_path_exact", *params.ScriptPathExact)
	}
	if params.Running != nil {
		query.Set("running", strconv.FormatBool(*params.Running))
	}
	return c.send(ctx, http.MethodGet, workspace, "jobs/queue/list", query, nil)
}

// send sends one request with an http.Client that has no timeout.
func (c *ClientWithResponses) send(
	ctx context.Context, method, workspace, endpoint string, query url.Values, body []byte,
) (*http.Response, error) {
	address := c.Server + "/w/" + url.PathEscape(workspace) + "/" + endpoint
	request, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.URL.RawQuery = query.Encode()
	request.Header.Set("Authorization", c.Authorization)
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	return (&http.Client{}).Do(request)
}
