// Package windmill_test checks the sync folder: the steps of its flows run on a simulated Windmill, its files name each
// other, the error tables of README.md and docs/operate.md quote main.go, and the CLI pushes everything (with the tag
// proof). A new error text belongs in one of the tables.
package windmill_test

import (
	"regexp"
	"strings"
	"testing"
)

// The first cell of a row in an error table, and the errors that it quotes.
var (
	errorCell = regexp.MustCompile("(?m)^\\| (`.*?) \\|")
	quotation = regexp.MustCompile("`([^`]+)`")
)

// The error tables quote main.go, except in rows about Windmill's own errors.
func TestTheErrorTables(t *testing.T) {
	source := readFile(t, "../main.go")
	for file, minimum := range map[string]int{"../README.md": 3, "../docs/operate.md": 5} {
		_, table, _ := strings.Cut(readFile(t, file), "| the error says")
		quotes := 0
		for _, cell := range errorCell.FindAllStringSubmatch(table, -1) {
			if strings.HasSuffix(cell[1], "(Windmill's own)") {
				continue
			}
			for _, quote := range quotation.FindAllStringSubmatch(cell[1], -1) {
				quotes++
				if !strings.Contains(source, quote[1]) {
					t.Errorf("%s quotes %q, but main.go does not say it", file, quote[1])
				}
			}
		}
		if quotes < minimum {
			t.Errorf("%s quotes %d errors; want at least %d", file, quotes, minimum)
		}
	}
}

func TestTheFilesNameEachOther(t *testing.T) {
	const snow, cache = "$res:f/ServiceNow_login/servicenow", "$res:f/ServiceNow/snow_token_cache"
	const getToken = "path: f/ServiceNow/get_token\n"
	for file, wants := range map[string][]string{
		"f/ServiceNow/get_token.script.yaml":         {readFile(t, "../script.yaml")},
		"f/ServiceNow/warm_token.schedule.yaml":      {getToken, snow},
		"f/ServiceNow/open_incidents.flow/flow.yaml": {getToken, snow, cache, "!inline count_open_incidents.go"},
		"f/ServiceNow/token_alarm.flow/flow.yaml":    {getToken, snow},
		"f/ServiceNow/token_alarm.schedule.yaml":     {"path: f/ServiceNow/token_alarm\n"},
	} {
		for _, want := range wants {
			if !strings.Contains(readFile(t, file), want) {
				t.Errorf("%s does not contain %q", file, want)
			}
		}
	}
}
