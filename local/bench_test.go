package main

import (
	"context"
	"testing"
	"time"

	"servicenow-token/local/windmill"
)

// bareSource is a script that makes a warm run's one call, and nothing else.
const bareSource = `package inner

import ("io"; "net/http"; "os")

func main(snow map[string]string) (string, error) {
	request, _ := http.NewRequest("GET", os.Getenv("BASE_INTERNAL_URL")+"/api/w/local/resources/get_value/f%2FServiceNow%2Fsnow_token_cache", nil)
	request.Header.Set("Authorization", "Bearer "+os.Getenv("WM_TOKEN"))
	response, err := http.DefaultClient.Do(request)
	if err == nil {
		_, err = io.ReadAll(response.Body)
	}
	return "OK", err
}
`

func BenchmarkWarm(b *testing.B) {
	p := newProof(b)
	p.check(`"OK"`, 30, p.steps(1))
	b.Run("script", func(b *testing.B) { p.measure(b, script(), "") })
	b.Run("bare", func(b *testing.B) { p.measure(b, build(bareSource), "") })
}

// A cold run has a pause of 0.3 s.
func BenchmarkCold(b *testing.B) { newProof(b).measure(b, script(), cachePath) }

// measure runs a job again and again, each time without the resource at path, and gives the time of its process alone.
func (p proof) measure(b *testing.B, binary, path string) {
	var took time.Duration
	for range b.N {
		p.workspace.Delete(path)
		p.workspace.Delete(loginsPath)
		all := p.run(context.Background(), 1, func(int) windmill.Job { return getToken(binary, windmill.StepOfFlow) })
		p.check(`"OK"`, 30, all)
		took += all[0].Took
	}
	b.ReportMetric(float64(took.Nanoseconds())/float64(b.N), "ns/op")
}
