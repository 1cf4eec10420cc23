// Package windmill stands in for the published Windmill client, v1.501.4, where no module proxy serves it. It has
// what main.go calls, sends the same requests, and has no timeout: a call ends only when its context does.
package windmill

import (
	"os"

	api "github.com/windmill-labs/windmill-go-client/api"
)

// ClientWithWorkspace is a client and the workspace of the job that made it.
type ClientWithWorkspace struct {
	Client    *api.ClientWithResponses
	Workspace string
}

// GetClient returns a client for BASE_INTERNAL_URL, WM_TOKEN and WM_WORKSPACE as they are now. Its error is always
// nil, even if one of them is missing.
func GetClient() (ClientWithWorkspace, error) {
	client := &api.ClientWithResponses{
		Server:        os.Getenv("BASE_INTERNAL_URL") + "/api",
		Authorization: "Bearer " + os.Getenv("WM_TOKEN"),
	}
	return ClientWithWorkspace{Client: client, Workspace: os.Getenv("WM_WORKSPACE")}, nil
}
