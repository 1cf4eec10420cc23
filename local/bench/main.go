// Command bench reads what `go test -bench` printed from standard input and prints
// it as one table for people: ratios to what a job costs anyway rather than times,
// which are those of one machine.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
)

func main() {
	if err := report(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// metrics are a benchmark's numbers by their units.
type metrics map[string]float64

// read returns the metrics of each benchmark, by its name without "Benchmark" and
// the number of processors, and the machine's processor.
func read(from io.Reader) (results map[string]metrics, processor string, err error) {
	results = make(map[string]metrics)
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		if name, found := strings.CutPrefix(lines.Text(), "cpu: "); found {
			processor = name
		}
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(fields[0], "Benchmark")
		if i := strings.LastIndex(name, "-"); i > 0 {
			if _, err := strconv.Atoi(name[i+1:]); err == nil {
				name = name[:i]
			}
		}
		results[name] = make(metrics)
		for i := 2; i+1 < len(fields); i += 2 {
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, "", fmt.Errorf("%s: %w", fields[0], err)
			}
			results[name][fields[i+1]] = value
		}
	}
	return results, processor, lines.Err()
}

// report prints the table, or an error that names the benchmark that is missing.
func report(from io.Reader, to io.Writer) error {
	results, processor, err := read(from)
	if err != nil {
		return err
	}
	for _, name := range []string{
		"WarmJob", "ColdJob", "JobsAtOnce/1", "JobsAtOnce/8", "JobsAtOnce/64", "Build/script", "Build/client-only", "InputCheck", "RecordCheck",
	} {
		if results[name] == nil {
			return fmt.Errorf("no result of Benchmark%s", name)
		}
	}
	warm, cold := results["WarmJob"], results["ColdJob"]
	one, eight, many := results["JobsAtOnce/1"], results["JobsAtOnce/8"], results["JobsAtOnce/64"]
	script, client := results["Build/script"], results["Build/client-only"]
	input, record := results["InputCheck"], results["RecordCheck"]

	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	row := func(what, against, ratio, detail string, args ...any) {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", what, against, ratio, fmt.Sprintf(detail, args...))
	}
	times := func(a, b float64) string { return fmt.Sprintf("%.2f", a/b) }
	row("WHAT", "AGAINST", "RATIO", "ON THIS MACHINE")
	row("warm job", "a bare program with the same GET", fmt.Sprintf("%.2f", warm["ratio"]), "%.1f ms, %.1f ms (median of pairs)", warm["job-ms"], warm["floor-ms"])
	row("cold job", "the sum of its parts", fmt.Sprintf("%.2f", cold["ratio"]), "%.1f ms, %.1f ms; %.0f calls", cold["job-ms"], cold["parts-ms"], cold["calls"])
	row("input check", "a warm job", fmt.Sprintf("%.5f", input["ns/op"]/1e6/warm["job-ms"]), "%.1f µs, %.0f allocations", input["ns/op"]/1000, input["allocs/op"])
	row("record check (seal)", "a warm job", fmt.Sprintf("%.5f", record["ns/op"]/1e6/warm["job-ms"]), "%.1f µs, %.0f allocations", record["ns/op"]/1000, record["allocs/op"])
	row("build, empty cache", "a script with the client alone", times(script["first-s"], client["first-s"]), "%.1f s, %.1f s", script["first-s"], client["first-s"])
	row("build, all but the script cached", "a script with the client alone", times(script["next-s"], client["next-s"]), "%.1f s, %.1f s", script["next-s"], client["next-s"])
	row("build's peak memory", "a script with the client alone", times(script["peak-MB"], client["peak-MB"]), "%.0f MB, %.0f MB", script["peak-MB"], client["peak-MB"])
	row("binary", "a script with the client alone", times(script["binary-MB"], client["binary-MB"]), "%.1f MB, %.1f MB", script["binary-MB"], client["binary-MB"])
	row("8 warm jobs at once", "one after the other", times(eight["jobs/s"], one["jobs/s"]), "%.0f jobs/s, slowest %.1f ms", eight["jobs/s"], eight["slowest-ms"])
	row("64 warm jobs at once", "one after the other", times(many["jobs/s"], one["jobs/s"]), "%.0f jobs/s, slowest %.1f ms", many["jobs/s"], many["slowest-ms"])
	if err := table.Flush(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(to, "\n%s, %d processors, %s/%s, %s\n", processor, runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	return err
}
