//go:build proof

package proof

import (
	"bytes"
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"servicenow-token/simulator"
	"servicenow-token/simulator/windmill"
)

// A run ends in time, whatever hangs, and says who did not answer. It finds a token that is about to expire, so it
// makes all seven calls to Windmill. A run that fails leaves the old token in the cache.
func TestServersThatHang(t *testing.T) {
	t.Parallel()
	const (
		login = 22 * time.Second // main.go's limits, and a little more
		turn  = 35 * time.Second
		run   = 55 * time.Second

		timedOut   = "did not answer: timed out"
		noCache    = simulator.CachePath + ": Windmill " + timedOut
		noFailures = simulator.FailuresPath + ": Windmill " + timedOut
	)
	for _, test := range []hanging{
		{"ServiceNow: no answer", hang, nil, timedOut, login},
		{"ServiceNow: headers only", sendHeaders, nil, timedOut, login},
		{"ServiceNow: late faults", delayed(12*time.Second, 503), nil, timedOut, login},
		{"ServiceNow: another protocol", switchProtocols, nil, "answered 101 Switching Protocols", login},
		{"ServiceNow: no answer, and a slow Windmill", hang, delayed(4*time.Second, 200), timedOut, run},
		{"Windmill: another protocol", nil, switchProtocols, "Windmill answered 101 Switching Protocols", turn},
		{"Windmill: GET cache", nil, hangFrom(1), "could not read " + noCache, turn},
		{"Windmill: GET queue", nil, hangFrom(2), "could not read the job queue: Windmill " + timedOut, turn},
		{"Windmill: GET cache again", nil, hangFrom(3), "could not read " + noCache, turn},
		{"Windmill: GET failures", nil, hangFrom(4), "could not read " + noFailures, turn},
		{"Windmill: POST failures", nil, hangFrom(5), "could not write " + noFailures, turn},
		{"Windmill: POST cache", nil, hangFrom(6), "could not write " + noCache, run},
		{"Windmill: GET failures again", nil, hangFrom(7), ok, run},
	} {
		t.Run(test.name, test.prove)
	}
}

// hanging is what one server or both of them do to a run.
type hanging struct {
	name       string
	serviceNow intercept // If not nil, the run must record a failure.
	windmill   intercept
	want       string
	limit      time.Duration
}

func (test hanging) prove(t *testing.T) {
	w := newWorld(t, 1)
	w.ServiceNow.Lifetime = 50 * time.Second
	w.expect(w.run(), ok, 10*time.Second)
	w.ServiceNow.Lifetime = 0
	before := w.Windmill.Get(simulator.CachePath)
	w.Windmill.Intercept = test.windmill
	w.ServiceNow.Intercept = test.serviceNow
	t.Parallel()
	w.expect(w.run(), test.want, test.limit)
	failures := noFailure
	if test.serviceNow != nil {
		failures = oneFailure(test.want, fault)
	}
	w.expectFailures(failures)
	if test.want == ok {
		w.expectToken()
		return
	}
	if cache := w.Windmill.Get(simulator.CachePath); !bytes.Equal(cache, before) {
		t.Errorf("the cache holds %s; want %s, as before", cache, before)
	}
}

func hangFrom(first int64) intercept {
	var calls atomic.Int64
	return func(w http.ResponseWriter, r *http.Request, n int) bool {
		return calls.Add(1) >= first && hang(w, r, n)
	}
}

func sendHeaders(w http.ResponseWriter, r *http.Request, n int) bool {
	w.WriteHeader(http.StatusOK)
	check(http.NewResponseController(w).Flush())
	return hang(w, r, n)
}

// switchProtocols keeps the connection open until the client closes it.
func switchProtocols(w http.ResponseWriter, _ *http.Request, _ int) bool {
	connection, _, err := http.NewResponseController(w).Hijack()
	check(err)
	defer connection.Close()
	_, _ = io.WriteString(connection, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	_, _ = io.Copy(io.Discard, connection)
	return true
}

// The form with the secrets goes to the instance that the servicenow resource names, and to nobody else.
func TestNobodyElseGetsTheForm(t *testing.T) {
	w := newWorld(t, 1)
	received := make(recorder, 9)
	plainURL := w.Serve(received)
	secure := httptest.NewUnstartedServer(received)     // It has a self-signed certificate.
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // It would log that the certificate is rejected.
	secure.StartTLS()
	t.Cleanup(secure.Close)
	w.ServiceNow.Intercept = func(rw http.ResponseWriter, r *http.Request, _ int) bool {
		http.Redirect(rw, r, strings.Replace(plainURL, "127.0.0.1", "localhost", 1), http.StatusTemporaryRedirect)
		return true
	}
	for _, test := range []struct {
		name, address, want string
		requests            int    // to the other server
		start               string // of each
	}{
		{"redirect", w.InstanceURL, "answered 307 Temporary Redirect. The redirect was not followed", 0, ""},
		{"self-signed certificate", secure.URL, "x509: certificate signed by unknown authority", 0, ""},
		{"proxy", "dev12345", "Bad Gateway", 2, "CONNECT dev12345.service-now.com:443 "},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := &world{World: w.World, t: t}
			w.MoveTo(test.address)
			// Go uses no proxy for a server on this machine.
			job := simulator.Job(slices.Concat(windmill.StepOfFlow, []string{"HTTPS_PROXY=" + plainURL}))
			w.expect(w.Run(context.Background(), job), test.want, 10*time.Second)
			if len(received) != test.requests {
				t.Errorf("another server got %d requests; want %d", len(received), test.requests)
			}
			for len(received) > 0 {
				request := <-received
				if !strings.HasPrefix(request, test.start) || w.SecretIn(request) != "" {
					t.Errorf("another server got\n%s\nwant %s, without secrets", request, test.start)
				}
			}
		})
	}
}

// recorder is a server, or a proxy, that keeps the whole of each request.
type recorder chan string

func (received recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	request, _ := httputil.DumpRequest(r, true) // If the request breaks off, this is what has arrived.
	received <- string(request)
	w.WriteHeader(http.StatusBadGateway)
}
