package proof

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"servicenow-token/local/lab"
	"servicenow-token/local/wire"
)

// certificate returns a certificate for names, valid for an hour, that ca signed; a
// nil ca signs itself.
func certificate(t *testing.T, ca *tls.Certificate, from time.Time, names ...string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: from, NotAfter: from.Add(time.Hour),
		DNSNames: names, BasicConstraintsValid: true, IsCA: ca == nil,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	parent, signer := template, key
	if ca != nil {
		parent, signer = ca.Leaf, ca.PrivateKey.(*ecdsa.PrivateKey)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// serveTLS serves the world's instance with a certificate, and HTTP/2 where the
// client wants it, at localhost.
func serveTLS(t *testing.T, w *lab.World, certificate *tls.Certificate) {
	t.Helper()
	server := httptest.NewUnstartedServer(w.Instance)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{*certificate}}
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that must fail
	server.StartTLS()
	t.Cleanup(server.Close)
	w.Snow.InstanceURL = strings.Replace(server.URL, "127.0.0.1", "localhost", 1)
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	now := time.Now().Add(-time.Minute)
	ca := certificate(t, nil, now)
	authorities := filepath.Join(t.TempDir(), "ca.pem")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate[0]}
	if err := os.WriteFile(authorities, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	env := "SSL_CERT_FILE=" + authorities

	t.Run("good", func(t *testing.T) {
		t.Parallel()
		w := lab.New(t)
		serveTLS(t, w, certificate(t, ca, now, "localhost"))
		checkOK(t, w.Run(t, lab.FlowStep, env))
		w.CheckCached(t)
		accessDenied := `{"error_description":"access_denied","error":"server_error"}`
		broken := func(int, http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }
		for _, f := range []failing{
			{"a refused login", wire.Reply(401, "application/json", accessDenied), 1, []string{"answered 401"}},
			{"a bad gateway", wire.Reply(502, "", ""), 3, []string{"answered 502"}},
			{"an answer without end", wire.Endless(`{"access_token":"`, strings.Repeat("a", 1<<16)), 1,
				[]string{"more than 1 MiB"}},
			{"an end before the headers", broken, 3, []string{"broke the connection off"}},
		} {
			w.Workspace.DeleteResource(lab.CachePath)
			checkFails(t, w, f, 14*time.Second, env)
		}
	})
	for _, test := range []struct {
		name        string
		certificate *tls.Certificate
		word        string
	}{
		{"expired", certificate(t, ca, now.Add(-24*time.Hour), "localhost"), "expired"},
		{"not yet valid", certificate(t, ca, now.Add(24*time.Hour), "localhost"), "not yet valid"},
		{"for another name", certificate(t, ca, now, "other.example.com"), "other.example.com"},
		{"self-signed", certificate(t, nil, now, "localhost"), "unknown authority"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := lab.New(t)
			serveTLS(t, w, test.certificate)
			checkFails(t, w, failing{words: []string{"untrusted certificate", test.word}}, 10*time.Second, env)
		})
	}
	t.Run("HTTP for HTTPS", func(t *testing.T) {
		t.Parallel()
		w := lab.New(t)
		w.Snow.InstanceURL = strings.Replace(w.Snow.InstanceURL, "http://", "https://", 1)
		checkFails(t, w, failing{words: []string{"did not answer as an HTTPS server does"}}, 10*time.Second)
	})
}

func TestProxyVariables(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 10)
	proxy := lab.Serve(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.Host
		rw.WriteHeader(http.StatusForbidden)
	}))
	const endpoint = "https://dev12345.service-now.com/oauth_token.do"
	w := lab.New(t)
	w.Snow.InstanceURL = "dev12345"
	w.Secrets = []string{"Pr0xy-password"}
	for _, address := range []string{
		strings.Replace(proxy, "http://", "http://user:Pr0xy-password@", 1),
		"http://user:Pr0xy-password@[", // no URL
	} {
		w.Workspace.DeleteResource(lab.CachePath)
		r := w.Run(t, lab.FlowStep, "HTTPS_PROXY="+address)
		if r.Result != "" {
			t.Errorf("result = %s; want a failure", r.Result)
		}
		lab.CheckWords(t, r.Log, endpoint, "proxy variables")
	}
	close(asked)
	var got []string
	for request := range asked {
		got = append(got, request)
	}
	if want := "CONNECT dev12345.service-now.com:443"; len(got) != 1 || got[0] != want {
		t.Errorf("the proxy was asked %q; want %q alone", got, want)
	}
}
