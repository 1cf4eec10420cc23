// Package windmill_api is the part of the published client's generated API that reads and writes resources (v1.501.4,
// api/windmill_api.gen.go).
package windmill_api

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// ClientWithResponses reads answers whole. The published one has other fields.
type ClientWithResponses struct {
	Server        string // ends in /api
	Authorization string // header of every request
}

// Response is an answer with its body read. The published client has a type of this form for each call.
type Response struct {
	Body         []byte
	HTTPResponse *http.Response
}

// StatusCode is the status line's number.
func (r Response) StatusCode() int { return r.HTTPResponse.StatusCode }

// GetResourceValueWithResponse reads a resource's value as it is stored. A body that is no JSON, where status 200 and
// Content-Type promise one, is an error.
func (c *ClientWithResponses) GetResourceValueWithResponse(ctx context.Context, workspace, path string) (*Response, error) {
	got, err := c.call(ctx, http.MethodGet, workspace, "get_value/"+url.PathEscape(path), nil)
	if err == nil && got.StatusCode() == http.StatusOK && strings.Contains(got.HTTPResponse.Header.Get("Content-Type"), "json") {
		if err := json.Unmarshal(got.Body, new(any)); err != nil {
			return nil, err
		}
	}
	return got, err
}

// CreateResourceParams is the query of a create. Unlike with the published client, UpdateIfExists must be set.
type CreateResourceParams struct{ UpdateIfExists *bool }

// CreateResource is the body of a create.
type CreateResource struct {
	Path         string `json:"path"`
	ResourceType string `json:"resource_type"`
	Value        any    `json:"value"`
}

// CreateResourceWithResponse makes a resource, or replaces one with UpdateIfExists.
func (c *ClientWithResponses) CreateResourceWithResponse(ctx context.Context, workspace string,
	params *CreateResourceParams, body CreateResource) (*Response, error) {
	content, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return c.call(ctx, http.MethodPost, workspace, "create?update_if_exists="+strconv.FormatBool(*params.UpdateIfExists), content)
}

// call sends one request below /resources/, by an http.Client without a timeout.
func (c *ClientWithResponses) call(ctx context.Context, method, workspace, endpoint string, content []byte) (*Response, error) {
	address := c.Server + "/w/" + url.PathEscape(workspace) + "/resources/" + endpoint
	request, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", c.Authorization)
	if content != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := (&http.Client{}).Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	return &Response{body, response}, nil
}
