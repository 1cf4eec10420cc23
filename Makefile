# make run and make test need Go 1.22 or newer, and a Go module proxy. .ci/run installs the rest.
.PHONY: help run test check fuzz push clean
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.7.0
WMILL_CLI   := windmill-cli@1.819.0
FUZZTIME    := 30s
# The proofs test the README's code with these clients.
export WMILL_PYPI := wmill==1.850.0
export WMILL_NPM  := windmill-client@1.818.0
# The caller's settings may break a build. With -count=1, go test also notices changes in what the tests build.
export GOFLAGS := -buildvcs=false -count=1
export GOWORK  :=
# BUSY shows every 4 s that the command behind it is still running.
BUSY := while sleep 4 >/dev/null && kill -0 $$$$; do echo "Still working …"; done 2>&- & trap "kill $$!" EXIT;

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 8

run: ## show what the script does, all simulated (SNOW=file.json: log in to a real instance)
	@echo "Building the demo, which takes longer the first time."; $(BUSY) go build -o .build/demo ./demo
	@.build/demo

test: ## run the fast tests
	@echo "Running the fast tests."; $(BUSY) go test ./...

check: ## gofmt, vet, staticcheck, race detector, proofs, Go 1.22, fuzzing (10 minutes)
	@echo "== gofmt"; test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }
	@echo "== vet"; go vet -tags proof ./... && cd simulator/client && GOWORK=off go vet ./...
	@echo "== staticcheck"; go run $(STATICCHECK) -tags proof $$(go list ./... | grep -v /windmill/f/)
	@echo "== race detector"; go test -race ./...
	@echo "== proofs, and a year"; SIMULATED_DAYS=364 go test -tags proof -timeout 30m ./...
	@echo "== Go 1.22"; GOTOOLCHAIN=go1.22.12 go test ./...
	@$(MAKE) --no-print-directory fuzz

fuzz: ## run each fuzz target for FUZZTIME (30s)
	@for target in $$(sed -n 's/^func \(Fuzz[A-Za-z]*\)(.*/\1/p' main_test.go); do echo "== $$target"; \
		go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x . || exit 1; done

push: ## deploy the script to the workspace that the Windmill CLI uses
	@cmp -s main.go windmill/f/ServiceNow/get_token.go || { echo "In windmill/f/ServiceNow, get_token.go" \
		"is not main.go. Copy main.go there, and script.yaml to get_token.script.yaml." >&2; exit 1; }
	@command -v npx >/dev/null || { echo "make push needs Node.js 20 (npx): https://nodejs.org" >&2; exit 1; }
	cd windmill && npx --yes $(WMILL_CLI) script push f/ServiceNow/get_token.go

clean: ## remove what was built
	rm -rf .build
