// Package windmill stands in for the published Windmill client, v1.501.4, where no module proxy serves it: what the
// script calls of it, with its requests and its hazards. A call ends only with its context, for there is no timeout.
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

// GetClient returns a client by the environment as it is now: BASE_INTERNAL_URL, WM_TOKEN and WM_WORKSPACE. Its error
// is always nil, whatever is missing there.
func GetClient() (ClientWithWorkspace, error) {
	client := &api.ClientWithResponses{Server: os.Getenv("BASE_INTERNAL_URL") + "/api", Authorization: "Bearer " + os.Getenv("WM_TOKEN")}
	return ClientWithWorkspace{client, os.Getenv("WM_WORKSPACE")}, nil
}
