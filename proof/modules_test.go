//go:build proof

package proof

import (
	"archive/zip"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"servicenow-token/simulator"
)

const (
	clientModule  = "github.com/windmill-labs/windmill-go-client"
	clientVersion = "v1.501.4"
)

// Where a module proxy serves the published client, jobs use it. They trust the module's go.sum, so the checksum
// database may be out of reach. Here, the proxy is a folder, and the stand-in plays the published client.
func TestPublishedClient(t *testing.T) {
	module := t.TempDir()
	for name, value := range map[string]string{
		"GOWORK": "off", "GOPROXY": "file://" + serveClient(t), "GOPATH": t.TempDir(), "GOMODCACHE": "",
		"GONOSUMDB": "", "GOPRIVATE": "", "GOSUMDB": "off",
	} {
		t.Setenv(name, value)
	}
	t.Cleanup(func() { shell(t, module, os.Environ(), "go clean -modcache") }) // The files are write-protected.
	source := readFile("../main.go")
	requirement := "module m\n\ngo 1.22\n\nrequire " + clientModule + " " + clientVersion + "\n"
	writeFile(filepath.Join(module, "main.go"), source)
	writeFile(filepath.Join(module, "go.mod"), requirement)
	shell(t, module, os.Environ(), "go mod tidy") // This writes go.sum.

	t.Setenv("GOSUMDB", "sum.golang.org http://127.0.0.1:1")
	w := &world{World: simulator.New(time.Now, t.TempDir(), 1), t: t}
	t.Cleanup(w.Close)
	check(w.Worker.Deploy(context.Background(), simulator.ScriptPath, source, module))
	w.expect(w.run(), ok, 10*time.Second)

	writeFile(filepath.Join(module, "go.sum"), "")
	err := w.Worker.Deploy(context.Background(), simulator.ScriptPath, source, module)
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("a build without go.sum ended with %v; want it to ask the checksum database", err)
	}
}

// serveClient writes the stand-in into a folder as a module proxy serves the published client.
func serveClient(t *testing.T) (folder string) {
	folder = t.TempDir()
	versions := filepath.Join(folder, clientModule, "@v")
	check(os.MkdirAll(versions, 0o755))
	archive, err := os.Create(filepath.Join(versions, clientVersion+".zip"))
	check(err)
	defer archive.Close()
	writer := zip.NewWriter(archive)
	for _, name := range []string{"go.mod", "windmill.go", "api/api.go"} {
		file, err := writer.Create(clientModule + "@" + clientVersion + "/" + name)
		check(err)
		_, err = file.Write([]byte(readFile("../simulator/client/" + name)))
		check(err)
	}
	check(writer.Close())
	writeFile(filepath.Join(versions, clientVersion+".info"), `{"Version": "`+clientVersion+`"}`)
	writeFile(filepath.Join(versions, clientVersion+".mod"), readFile("../simulator/client/go.mod"))
	return folder
}
