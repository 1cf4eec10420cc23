// Package proof shows what a test with a simulated clock cannot: jobs of main.go as processes that run at the same
// time, are killed or stopped, or meet a server that hangs; TLS and proxies; and the code in README.md and
// docs/operate.md with Windmill's real clients. Only the two servers are simulated.
//
//	go test -tags proof ./proof
//	go test -tags proof -run '^$' -bench . ./proof
//
// The proofs need Linux and take two minutes. WMILL_PYPI (such as wmill==1.850.0) and WMILL_NPM (such as
// windmill-client@1.818.0) say which clients to install. Without them, the code in Python or TypeScript is skipped.
package proof
