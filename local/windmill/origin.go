package windmill

import (
	"crypto/rand"
	"fmt"
)

// The functions below return what the environment tells a job of who started it, a
// row each of what windmill-labs/windmill does in worker_flow.rs, schedule.rs and
// the Go executor.

// ByHand is a run from the script's page, by webhook or by a schedule's "Run now".
func ByHand() []string { return nil }

// ByFlowEditor is the test of one step in the flow editor.
func ByFlowEditor(flow string) []string { return []string{"WM_FLOW_PATH=" + flow} }

// BySchedule is a run that the schedule at path starts.
func BySchedule(path string) []string { return []string{"WM_SCHEDULE_PATH=" + path} }

// ByWrappedSchedule is a run that a schedule with a retry or a skip handler starts:
// the only step of a flow that has the script's own path.
func ByWrappedSchedule(schedule, script string) []string {
	return StepOfScheduledFlow(script, "a", schedule)
}

// StepOfFlow is a step of a flow that no schedule started.
func StepOfFlow(flow, step string) []string {
	id := newID()
	return []string{"WM_FLOW_PATH=" + flow, "WM_FLOW_STEP_ID=" + step, "WM_FLOW_JOB_ID=" + id, "WM_ROOT_FLOW_JOB_ID=" + id}
}

// StepOfScheduledFlow is a step of a flow that a schedule started, in loops and
// branches too.
func StepOfScheduledFlow(flow, step, schedule string) []string {
	return append(StepOfFlow(flow, step), BySchedule(schedule)...)
}

// ByScript is a run that the script at caller called.
func ByScript(caller string) []string {
	id := newID()
	return []string{"WM_FLOW_PATH=" + caller, "WM_FLOW_JOB_ID=" + id, "WM_ROOT_FLOW_JOB_ID=" + id}
}

// newID makes a job id, a UUID.
func newID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails, by its documentation
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
