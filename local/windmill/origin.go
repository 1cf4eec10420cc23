package windmill

import (
	"crypto/rand"
	"fmt"
)

// ByHand is a run by hand, by webhook or by a schedule's "Run now" button.
//
// It and the functions below say who starts a job: each returns what Job.Env
// needs, and what it leaves out is empty. Source: windmill-labs/windmill, backend,
// schedule.rs and worker_flow.rs, which pushes every step with the schedule of its
// flow.
//
//	                     WM_SCHEDULE_PATH  WM_FLOW_STEP_ID  WM_FLOW_JOB_ID  WM_FLOW_PATH
//	ByHand               -                 -                -               -
//	BySchedule           set               -                -               -
//	ByWrappedSchedule    set               a                set             the script's own path
//	StepOfFlow           -                 the step's id    set             the flow's path
//	StepOfScheduledFlow  set               the step's id    set             the flow's path
//	ByScript             -                 -                the caller's    the caller's path
//	ByFlowEditor         -                 -                -               the flow's path
//
// On agent workers WM_FLOW_PATH may be empty.
func ByHand() []string { return nil }

// BySchedule is a run of a script by the schedule at path.
func BySchedule(path string) []string {
	return []string{"WM_SCHEDULE_PATH=" + path}
}

// ByWrappedSchedule is a run of a script by a schedule that has a retry or a skip
// handler: Windmill makes a flow of it, of one step, under the script's own path.
// Job.Path must be that path, too.
func ByWrappedSchedule(schedule, script string) []string {
	return StepOfScheduledFlow(script, "a", schedule)
}

// StepOfFlow is a step of a flow that no schedule started.
func StepOfFlow(flow, step string) []string {
	return append(ByScript(flow), "WM_FLOW_STEP_ID="+step)
}

// StepOfScheduledFlow is a step of a flow that a schedule started.
func StepOfScheduledFlow(flow, step, schedule string) []string {
	return append(StepOfFlow(flow, step), "WM_SCHEDULE_PATH="+schedule)
}

// ByScript is a run of a script that another script, the caller, started.
func ByScript(caller string) []string {
	id := newID()
	return []string{"WM_FLOW_JOB_ID=" + id, "WM_ROOT_FLOW_JOB_ID=" + id, "WM_FLOW_PATH=" + caller}
}

// ByFlowEditor is a flow editor's test of one step.
func ByFlowEditor(flow string) []string {
	return []string{"WM_FLOW_PATH=" + flow}
}

// newID makes the id of a job: a random UUID (RFC 9562, version 4).
func newID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails, by its documentation
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}
