package windmill

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"
)

// QueuedJob is a job in the queue.
type QueuedJob struct {
	ID             string
	Kind           string // script; preview for the editor's Test; dependencies for a deployment; singlestepflow
	ScriptPath     string
	PermissionedAs string    // the user, such as u/admin
	StartedAt      time.Time // zero while the job waits for a worker
}

// NewID returns a random job ID.
func NewID() string {
	return fmt.Sprintf("%08x-%04x-4000-8000-%012x", rand.Uint32(), rand.N(1<<16), rand.N(1<<48))
}

// Enqueue adds a job to the queue. The function that it returns removes the job.
func (ws *Workspace) Enqueue(job QueuedJob) (remove func()) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.queue = append(ws.queue, job)
	return func() {
		ws.mu.Lock()
		defer ws.mu.Unlock()
		ws.queue = slices.DeleteFunc(ws.queue, func(other QueuedJob) bool { return other.ID == job.ID })
	}
}

// Queue returns the jobs in the queue.
func (ws *Workspace) Queue() []QueuedJob {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return slices.Clone(ws.queue)
}

// list returns the jobs that match a query and that the user may see, the latest to be added first. Whoever may read the folder of a
// script sees all jobs of that script. Everybody sees their own.
func (ws *Workspace) list(query url.Values, token string) []map[string]any {
	found := []map[string]any{}
	jobs := ws.Queue()
	slices.Reverse(jobs)
	for _, job := range jobs {
		isRunning := !job.StartedAt.IsZero()
		if wanted := query.Get("running"); wanted != "" && wanted != strconv.FormatBool(isRunning) {
			continue
		}
		if wanted := query.Get("script_path_exact"); wanted != "" && wanted != job.ScriptPath {
			continue
		}
		if job.PermissionedAs != ws.Users[token].Name && !ws.mayRead(token, job.ScriptPath) {
			continue
		}
		row := map[string]any{
			"id":              job.ID,
			"job_kind":        job.Kind,
			"script_path":     job.ScriptPath,
			"permissioned_as": job.PermissionedAs,
			"running":         isRunning,
			"started_at":      nil,
		}
		if isRunning {
			row["started_at"] = job.StartedAt.UTC().Format("2006-01-02T15:04:05.000000Z")
		}
		found = append(found, row)
	}
	return found[:min(len(found), 1000)]
}

// run starts a job for a client. The client names its own job, so that the new one counts as called by it.
func (ws *Workspace) run(at string, args json.RawMessage, query url.Values, token string) answer {
	if ws.start == nil || !ws.mayRead(token, at) {
		return plain(http.StatusNotFound, "Not found: Script not found at name "+at)
	}
	job := Job{ID: NewID(), Path: at, Args: string(args), Token: token}
	if parent := query.Get("parent_job"); parent != "" {
		job.StartedBy = []string{"WM_FLOW_JOB_ID=" + parent, "WM_FLOW_PATH=f/ServiceNow/caller"}
	}
	ws.complete(job.ID, nil)
	ws.start(job)
	return plain(http.StatusCreated, job.ID)
}

// complete notes how a job that a client started ended. It is nil at the start.
func (ws *Workspace) complete(id string, done *Done) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.started == nil {
		ws.started = make(map[string]*Done)
	}
	ws.started[id] = done
}

// result returns the result of a job that a client started, if the job has ended.
func (ws *Workspace) result(id string) answer {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	done := ws.started[id]
	if done == nil {
		return encoded(map[string]any{"started": true, "completed": false, "success": nil, "result": nil})
	}
	result := any(done.Result)
	if done.Failed {
		result = map[string]any{"error": map[string]any{"name": "ExecutionErr", "message": done.Log}}
	}
	return encoded(map[string]any{"started": true, "completed": true, "success": !done.Failed, "result": result})
}
