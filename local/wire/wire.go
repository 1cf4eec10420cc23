// Package wire records the HTTP calls that the local servers receive, and lets a
// test put a fault in the place of an answer.
package wire

import (
	"bytes"
	"io"
	"net/http"
	"sync"
)

// Call is one request that a server received, and the status it answered with.
type Call struct {
	Method string
	Path   string // as sent: escaped, with the query
	Header http.Header
	Body   string
	Status int // 0 where a fault wrote none
}

// Fault answers the nth request (the first is 1) in the server's place, or
// returns false to let the server answer.
type Fault func(n int, w http.ResponseWriter, r *http.Request) bool

// Recorder keeps the calls that pass through it. The zero value is ready for use.
type Recorder struct {
	mu    sync.Mutex
	seen  int
	calls []*Call
	fault Fault
}

// SetFault makes every later request pass fault first, counted anew from 1; nil ends it.
func (rec *Recorder) SetFault(fault Fault) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.fault, rec.seen = fault, 0
}

// TakeCalls returns the calls since it was last asked, in the order in which
// they came.
func (rec *Recorder) TakeCalls() []Call {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	var calls []Call
	for _, call := range rec.calls {
		calls = append(calls, *call)
	}
	rec.calls = nil
	return calls
}

// Record returns a handler that records what it passes to next.
func (rec *Recorder) Record(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // a request that broke off is recorded as far as it came
		r.Body = io.NopCloser(bytes.NewReader(body))
		call := &Call{Method: r.Method, Path: r.RequestURI, Header: r.Header.Clone(), Body: string(body)}

		rec.mu.Lock()
		rec.calls = append(rec.calls, call)
		rec.seen++
		n, fault := rec.seen, rec.fault
		rec.mu.Unlock()

		answer := &statusWriter{w, rec, call}
		if fault == nil || !fault(n, answer, r) {
			next(answer, r)
		}
	}
}

// statusWriter notes the status in the recorded call, before it is sent.
type statusWriter struct {
	http.ResponseWriter
	rec  *Recorder
	call *Call
}

func (w *statusWriter) WriteHeader(status int) {
	w.note(status)
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(data []byte) (int, error) {
	w.note(http.StatusOK)
	return w.ResponseWriter.Write(data)
}

func (w *statusWriter) note(status int) {
	w.rec.mu.Lock()
	defer w.rec.mu.Unlock()
	if w.call.Status == 0 {
		w.call.Status = status
	}
}

// Unwrap lets http.ResponseController flush and hijack.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
