// Package windmill_api is the part of the published client's generated API that
// reads and writes resources (v1.501.4, api/windmill_api.gen.go).
package windmill_api

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// RequestEditorFn changes a request before it is sent.
type RequestEditorFn func(ctx context.Context, req *http.Request) error

// Client is where the server is and what every request goes through.
type Client struct {
	Server         string
	RequestEditors []RequestEditorFn
}

// ClientOption sets something of a new client.
type ClientOption func(*Client) error

// ClientWithResponses reads answers whole.
type ClientWithResponses struct{ client Client }

// NewClientWithResponses returns a client of the API at server, which ends in /api.
func NewClientWithResponses(server string, opts ...ClientOption) (*ClientWithResponses, error) {
	c := &ClientWithResponses{Client{Server: server}}
	for _, option := range opts {
		if err := option(&c.client); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// GetResourceValueResponse has JSON200 only if the status is 200 and the
// Content-Type contains "json". It is not nil if the body is null.
type GetResourceValueResponse struct {
	Body         []byte
	HTTPResponse *http.Response
	JSON200      *interface{}
}

// Status is the status line's, such as "200 OK".
func (r GetResourceValueResponse) Status() string { return r.HTTPResponse.Status }

// StatusCode is the status line's number.
func (r GetResourceValueResponse) StatusCode() int { return r.HTTPResponse.StatusCode }

// GetResourceValueWithResponse reads a resource's value as it is stored. A body that
// should be JSON and is not is an error of encoding/json.
func (c *ClientWithResponses) GetResourceValueWithResponse(ctx context.Context, workspace, path string,
	reqEditors ...RequestEditorFn) (*GetResourceValueResponse, error) {
	response, body, err := c.call(ctx, http.MethodGet, workspace, "get_value/"+url.PathEscape(path), nil, reqEditors)
	if err != nil {
		return nil, err
	}
	got := &GetResourceValueResponse{Body: body, HTTPResponse: response}
	if response.StatusCode == http.StatusOK && strings.Contains(response.Header.Get("Content-Type"), "json") {
		got.JSON200 = new(interface{})
		if err := json.Unmarshal(body, got.JSON200); err != nil {
			return nil, err
		}
	}
	return got, nil
}

// CreateResourceParams is the query of a create.
type CreateResourceParams struct{ UpdateIfExists *bool }

// CreateResource is the body of a create.
type CreateResource struct {
	Description  *string     `json:"description,omitempty"`
	Path         string      `json:"path"`
	ResourceType string      `json:"resource_type"`
	Value        interface{} `json:"value"`
}

// CreateResourceResponse is the answer to a create.
type CreateResourceResponse struct {
	Body         []byte
	HTTPResponse *http.Response
}

// Status is the status line's, such as "201 Created".
func (r CreateResourceResponse) Status() string { return r.HTTPResponse.Status }

// StatusCode is the status line's number.
func (r CreateResourceResponse) StatusCode() int { return r.HTTPResponse.StatusCode }

// CreateResourceWithResponse makes a resource, or replaces one with UpdateIfExists.
func (c *ClientWithResponses) CreateResourceWithResponse(ctx context.Context, workspace string, params *CreateResourceParams,
	body CreateResource, reqEditors ...RequestEditorFn) (*CreateResourceResponse, error) {
	content, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	endpoint := "create"
	if params != nil && params.UpdateIfExists != nil {
		endpoint += "?update_if_exists=" + strconv.FormatBool(*params.UpdateIfExists)
	}
	response, answer, err := c.call(ctx, http.MethodPost, workspace, endpoint, content, reqEditors)
	if err != nil {
		return nil, err
	}
	return &CreateResourceResponse{Body: answer, HTTPResponse: response}, nil
}

// call sends one request below /resources/, by an http.Client without a timeout.
func (c *ClientWithResponses) call(ctx context.Context, method, workspace, endpoint string, content []byte,
	editors []RequestEditorFn) (*http.Response, []byte, error) {
	address := c.client.Server + "/w/" + url.PathEscape(workspace) + "/resources/" + endpoint
	request, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(content))
	if err != nil {
		return nil, nil, err
	}
	if content != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	for _, edit := range slices.Concat(c.client.RequestEditors, editors) {
		if err := edit(ctx, request); err != nil {
			return nil, nil, err
		}
	}
	response, err := (&http.Client{}).Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response, body, err
}
