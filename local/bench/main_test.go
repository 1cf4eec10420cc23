package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const results = `goos: linux
goarch: amd64
pkg: servicenow-token
cpu: Some Processor
BenchmarkWarmJob-2         	     572	   7667371 ns/op	         4.000 floor-ms	         5.000 job-ms	         1.250 ratio
BenchmarkColdJob-2         	     489	   9266430 ns/op	         5.000 calls	         6.000 job-ms	         4.000 parts-ms	         1.500 ratio
BenchmarkJobsAtOnce/1-2    	    1189	   4034741 ns/op	       200.0 jobs/s	         3.500 slowest-ms
BenchmarkJobsAtOnce/8-2    	     277	  18849736 ns/op	       400.0 jobs/s	        14.50 slowest-ms
BenchmarkJobsAtOnce/64-2   	      32	 160497149 ns/op	       300.0 jobs/s	       125.5 slowest-ms
BenchmarkBuild/script-2    	       1	 160497149 ns/op	        10.00 binary-MB	        30.00 first-s	         3.000 next-s	       300.0 peak-MB
BenchmarkBuild/client-only-2	       1	 160497149 ns/op	         8.000 binary-MB	        20.00 first-s	         2.000 next-s	       200.0 peak-MB
BenchmarkInputCheck-2      	10711630	      5000 ns/op	     240 B/op	       3 allocs/op
BenchmarkRecordCheck-2     	 3685396	     50000 ns/op	     776 B/op	      16 allocs/op
PASS
`

func TestReport(t *testing.T) {
	var table strings.Builder
	if err := report(strings.NewReader(results), &table); err != nil {
		t.Fatal(err)
	}
	want := `WHAT                              AGAINST                           RATIO    ON THIS MACHINE
warm job                          a bare program with the same GET  1.25     5.0 ms, 4.0 ms (median of pairs)
cold job                          the sum of its parts              1.50     6.0 ms, 4.0 ms; 5 calls
input check                       a warm job                        0.00100  5.0 µs, 3 allocations
record check (seal)               a warm job                        0.01000  50.0 µs, 16 allocations
build, empty cache                a script with the client alone    1.50     30.0 s, 20.0 s
build, all but the script cached  a script with the client alone    1.50     3.0 s, 2.0 s
build's peak memory               a script with the client alone    1.50     300 MB, 200 MB
binary                            a script with the client alone    1.25     10.0 MB, 8.0 MB
8 warm jobs at once               one after the other               2.00     400 jobs/s, slowest 14.5 ms
64 warm jobs at once              one after the other               1.50     300 jobs/s, slowest 125.5 ms
`
	got, machine, _ := strings.Cut(table.String(), "\n\n")
	if diff := cmp.Diff(want, got+"\n"); diff != "" {
		t.Errorf("table mismatch (-want +got):\n%s", diff)
	}
	if !strings.HasPrefix(machine, "Some Processor, ") {
		t.Errorf("machine = %q; want the processor", machine)
	}
}

func TestAMissingBenchmarkIsAnError(t *testing.T) {
	err := report(strings.NewReader(strings.Replace(results, "BenchmarkColdJob", "FAIL", 1)), &strings.Builder{})
	if err == nil || !strings.Contains(err.Error(), "BenchmarkColdJob") {
		t.Errorf("report = %v; want an error that names BenchmarkColdJob", err)
	}
}
