package wire

import (
	"bytes"
	"compress/gzip"
	"io"
	"net"
	"net/http"
	"time"
)

// Reply answers with this status, content type ("" for none) and body; headers are
// pairs of name and value.
func Reply(status int, contentType, body string, headers ...string) Fault {
	return func(_ int, w http.ResponseWriter, _ *http.Request) bool {
		w.Header()["Content-Type"] = nil
		if contentType != "" {
			w.Header().Set("Content-Type", contentType)
		}
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
		return true
	}
}

// Nth lets fault answer the nth request alone.
func Nth(n int, fault Fault) Fault {
	return func(i int, w http.ResponseWriter, r *http.Request) bool { return i == n && fault(i, w, r) }
}

// Reset breaks the connection before an answer.
func Reset(_ int, w http.ResponseWriter, _ *http.Request) bool {
	connection, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	if tcp, ok := connection.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // a reset rather than an orderly end
	}
	_ = connection.Close()
	return true
}

// Half breaks the connection in the middle of a 200 with JSON.
func Half(_ int, w http.ResponseWriter, _ *http.Request) bool {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", "100")
	_, _ = io.WriteString(w, `{"access_token":"abc`)
	return true
}

// Raw writes text to the bare connection, and holds it open if hold says so until
// the other side ends it.
func Raw(text string, hold bool) Fault {
	return func(_ int, w http.ResponseWriter, _ *http.Request) bool {
		connection, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer connection.Close()
		_, _ = io.WriteString(connection, text)
		if hold {
			_, _ = io.Copy(io.Discard, connection)
		}
		return true
	}
}

// Endless sends beginning, then text again and again until the other side has enough.
func Endless(beginning, text string) Fault {
	return func(_ int, w http.ResponseWriter, _ *http.Request) bool {
		_, err := io.WriteString(w, beginning)
		for err == nil {
			_, err = io.WriteString(w, text)
		}
		return true
	}
}

// Bomb sends a gibibyte of blanks as a mebibyte of gzip.
func Bomb(_ int, w http.ResponseWriter, _ *http.Request) bool {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Encoding", "gzip")
	zip := gzip.NewWriter(w)
	blanks := bytes.Repeat([]byte(" "), 1<<20)
	for range 1 << 10 {
		if _, err := zip.Write(blanks); err != nil {
			return true
		}
	}
	_ = zip.Close()
	return true
}

// Hang answers nothing, after beginning, until the other side ends the connection.
func Hang(beginning string) Fault {
	return func(_ int, w http.ResponseWriter, r *http.Request) bool {
		if beginning != "" {
			_, _ = io.WriteString(w, beginning)
			_ = http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
		return true
	}
}

// Drip sends a byte of text each tenth of a second.
func Drip(text string) Fault {
	return func(_ int, w http.ResponseWriter, _ *http.Request) bool {
		for i := range text {
			if _, err := io.WriteString(w, text[i:i+1]); err != nil {
				return true
			}
			_ = http.NewResponseController(w).Flush()
			time.Sleep(100 * time.Millisecond)
		}
		return true
	}
}
