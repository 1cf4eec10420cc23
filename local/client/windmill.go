// Package windmill stands in for the published Windmill client where a module
// proxy does not serve it: the two functions that the script calls, with the
// requests of the published v1.501.4 and with its hazards. It has no timeout, its
// errors are bare response bodies, and it panics on a 200 that is not JSON.
package windmill

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
)

// GetResource returns the value of the resource at path, with what it refers to
// (variables, other resources) filled in. The error of a status other than 2xx
// is the response's body, nothing else.
func GetResource(path string) (interface{}, error) {
	got, err := getResource(path)
	if err != nil {
		return nil, err
	}
	if got.status/100 != 2 {
		return nil, errors.New(string(got.body))
	}
	return *got.json200, nil
}

// SetResource gives the resource at path a new value. It creates the resource if
// reading it answers 404, with the given type or else "any"; otherwise, whatever
// that reading answers, it updates the value and leaves the type alone.
func SetResource(path string, value interface{}, resourceTypeOpt ...string) error {
	got, err := getResource(path)
	if err != nil {
		return err
	}
	var set reply
	if got.status == http.StatusNotFound {
		resourceType := "any"
		if len(resourceTypeOpt) > 0 {
			resourceType = resourceTypeOpt[0]
		}
		set, err = call(http.MethodPost, "create?update_if_exists=true", map[string]interface{}{
			"path": path, "value": value, "resource_type": resourceType,
		})
	} else {
		set, err = call(http.MethodPost, "update_value/"+url.PathEscape(path), map[string]interface{}{"value": value})
	}
	if err != nil {
		return err
	}
	if set.status/100 != 2 {
		return errors.New(string(set.body))
	}
	return nil
}

// reply is a response of the resource API.
type reply struct {
	status  int
	body    []byte
	json200 *interface{} // nil unless the response is a 200 and says that it is JSON
}

func getResource(path string) (reply, error) {
	return call(http.MethodGet, "get_value_interpolated/"+url.PathEscape(path), nil)
}

// call makes one request below /resources/ in the workspace of the environment.
func call(method, endpoint string, body interface{}) (reply, error) {
	var content io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return reply{}, err
		}
		content = bytes.NewReader(encoded)
	}
	address := os.Getenv("BASE_INTERNAL_URL") + "/api/w/" + url.PathEscape(os.Getenv("WM_WORKSPACE")) + "/resources/" + endpoint
	request, err := http.NewRequest(method, address, content)
	if err != nil {
		return reply{}, err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	request.Header.Set("Authorization", "Bearer "+os.Getenv("WM_TOKEN"))
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	got := reply{status: response.StatusCode}
	if got.body, err = io.ReadAll(response.Body); err != nil {
		return reply{}, err
	}
	if got.status == http.StatusOK && strings.Contains(response.Header.Get("Content-Type"), "json") && method == http.MethodGet {
		var value interface{}
		if err := json.Unmarshal(got.body, &value); err != nil {
			return reply{}, err
		}
		got.json200 = &value
	}
	return got, nil
}
