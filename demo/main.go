// Command demo shows on this machine what the script does in Windmill. Windmill and ServiceNow are simulated. If the
// environment variable SNOW names a file, it logs in once to the real instance that the file describes.
//
// Run it in the root of the repository, as "make run" does.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"servicenow-token/simulator"
)

const (
	workers = 12
	columns = 160
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Stdout, os.Getenv("SNOW"))
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run shows what the script does or, if snowFile is not empty, logs in to a real instance.
func run(ctx context.Context, out io.Writer, snowFile string) error {
	args := ""
	if snowFile != "" {
		var err error
		if args, err = readSnow(snowFile); err != nil {
			return err
		}
	}
	d, err := newDemo(out)
	if err != nil {
		return err
	}
	defer d.close()
	if err := d.deployScript(ctx); err != nil {
		return err
	}
	if snowFile != "" {
		return d.logIn(ctx, args)
	}
	return d.showAll(ctx)
}

// demo is a simulated Windmill and ServiceNow, and where to print what happens in them.
type demo struct {
	*simulator.World
	out io.Writer
	dir string // holds all files that the demo makes
}

func newDemo(out io.Writer) (*demo, error) {
	dir, err := os.MkdirTemp("", "servicenow-token")
	if err != nil {
		return nil, err
	}
	// A go command that is interrupted leaves its temporary files behind. In dir, the demo removes them.
	if err := os.Setenv("GOTMPDIR", dir); err != nil {
		return nil, err
	}
	return &demo{World: simulator.New(time.Now, dir, workers), out: out, dir: dir}, nil
}

// close stops both servers and removes all files.
func (d *demo) close() {
	d.Close()
	_ = os.RemoveAll(d.dir) // What cannot be removed stays in the system's temporary folder.
}

func (d *demo) deployScript(ctx context.Context) error {
	d.print("", "Building main.go as a worker does, but with simulator/client. "+
		"Real workers need the published Windmill client. This demo does not.")
	return d.deploy(ctx, simulator.ScriptPath, "main.go")
}

// deploy builds the script in a file of this repository, and deploys it at path.
func (d *demo) deploy(ctx context.Context, path, file string) error {
	source, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return d.Worker.Deploy(ctx, path, string(source), ".")
}

// print prints text as one paragraph, each line of which begins with indent.
func (d *demo) print(indent, text string) {
	line := indent
	for _, word := range strings.Fields(text) {
		isFull := utf8.RuneCountInString(line+word) > columns
		if isFull {
			fmt.Fprintln(d.out, strings.TrimRight(line, " "))
			line = indent
		}
		line += word + " "
	}
	if line != indent {
		fmt.Fprintln(d.out, strings.TrimRight(line, " "))
	}
}
