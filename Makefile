# Go and a module proxy are all that `make run` and `make test` need.
.DEFAULT_GOAL := help
.PHONY: help run test check fuzz push clean
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.7.0
WMILL       := windmill-cli@1.819.0
FUZZTIME    := 30s # for new inputs: none of it goes to shortening those found
PACKAGES    := . ./local/... ./windmill # below windmill/f is what Windmill compiles, main.go a second time
DOTS        := while sleep 4 >/dev/null && kill -0 $$$$; do echo …; done 2>/dev/null & trap "kill $$!" EXIT; # a sign of life

# In the place of the caller's, of which some stop a build. Tests compile jobs, of which go test's cache knows nothing.
export GOFLAGS := -buildvcs=false -count=1
ifneq ($(filter run test check fuzz,$(MAKECMDGOALS)),)
# The published Windmill client where the module proxy serves it, else local/client, in whose favour go.work decides.
export GOWORK := $(shell GOWORK=off timeout 10 go list -deps . >/dev/null 2>&1 && echo off)
$(info Windmill client: $(if $(GOWORK),the published one,the stand-in local/client (the published one is not served here)))
endif

help: ## say what can be made
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 8

run: ## the main job on a local Windmill and ServiceNow (SNOW=instance.json: one login on a real instance)
	@echo "Building (half a minute the first time) …"; $(DOTS) go build -o .build/run ./local && .build/run

test: ## the fast tests
	@$(DOTS) go test -short $(PACKAGES)

check: ## gofmt, vet, staticcheck, race detector, all tests and proofs, the oldest Go, fuzzing
	@test -z "$$(gofmt -l *.go local windmill)" || { gofmt -d *.go local windmill; exit 1; }
	go vet $(PACKAGES) && cd local/client && GOWORK=off go vet ./...
	go run $(STATICCHECK) $(PACKAGES)
	go test -race -short $(PACKAGES)
	WMILL_CLI=$(WMILL) go test -timeout 30m $(PACKAGES)
	GOTOOLCHAIN=go1.22.12 go test -short $(PACKAGES)
	@$(MAKE) --no-print-directory fuzz

fuzz: ## what parses foreign bytes, FUZZTIME (30s) each
	@for target in $$(sed -n 's/^func \(Fuzz[A-Za-z]*\)(.*/\1/p' main_test.go); do \
		go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x . || exit 1; done

push: ## deploy the script to the workspace that the wmill CLI is set to
	@command -v npx >/dev/null || { echo "make push needs Node.js with npx: https://nodejs.org" >&2; exit 1; }
	cd windmill && npx --yes $(WMILL) script push f/ServiceNow/get_token.go

clean: ## remove what was built
	rm -rf .build
