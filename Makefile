# Go, make and a module proxy are all that `make run` and `make test` need.
.DEFAULT_GOAL := help
.PHONY: help run test check fuzz mutants bench workspace push push-examples try clean

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.7.0
GREMLINS    := github.com/go-gremlins/gremlins/cmd/gremlins@v0.6.0
OLDEST_GO   := go1.22.12
FUZZTIME    := 30s

# In the place of the caller's, of which some stop a build. Git is not asked: it may be absent, or refuse.
export GOFLAGS := -buildvcs=false

ifneq ($(filter run test check fuzz mutants bench,$(MAKECMDGOALS)),)

ifeq ($(shell command -v go),)
$(error This needs Go 1.22 or newer: https://go.dev/dl)
endif

# Where Go's own folders cannot be written, they are in .build. Before GNU Make 4.4 a $(shell) does not see what is exported.
ifneq ($(shell for folder in "$$(go env GOCACHE)" "$$(go env GOMODCACHE)"; do \
	case "$$folder" in (/*) mkdir -p "$$folder" 2>&1 && test -w "$$folder" || echo no ;; (*) echo no ;; esac; done),)
export GOPATH     := $(CURDIR)/.build/go
export GOMODCACHE := $(CURDIR)/.build/go/pkg/mod
export GOCACHE    := $(CURDIR)/.build/cache
IN_BUILD := export GOPATH="$$PWD/.build/go" GOMODCACHE="$$PWD/.build/go/pkg/mod" GOCACHE="$$PWD/.build/cache";
endif

# The published Windmill client where the module proxy serves it within 10 s, else local/client through go.work.
$(info Looking for the published Windmill client …)
# Go ignores an alarm, so that perl, where there is no timeout, has to kill it.
PERL   := perl -e '$$SIG{ALRM} = sub { kill 15, $$p; exit 124 }; \
	exec @ARGV unless $$p = fork; alarm 10; wait; exit $$? >> 8'
LIMIT  := $(if $(shell command -v timeout 2>&1),timeout 10,$(PERL))
ANSWER := $(shell $(IN_BUILD) said=$$(GOWORK=off GOFLAGS=$(GOFLAGS) $(LIMIT) go list -deps . 2>&1 >/dev/null); \
	case $$? in (0) echo served ;; (124|142|143) echo no answer within 10 s ;; \
	(*) why=$$(echo "$$said" | sed -n 's/^main.go.*: //p' | head -n 1); echo "$${why:-go list failed}" ;; esac)
ifeq ($(ANSWER),served)
export GOWORK := off
$(info Windmill client: the published one)
else
export GOWORK :=
$(info Windmill client: the published one could not be had here ($(ANSWER)): using the stand-in local/client. \
	A worker behind the same module proxy could not build the script.)
endif
endif

help: ## say what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

override export SNOW := $(value SNOW)
run: ## run the job in each way on a local Windmill and ServiceNow (SNOW=instance.json: once, on a real instance)
	@echo "Building the local Windmill and ServiceNow (the first time takes half a minute) …"
	@if [ -w . ]; then go build -o .build/run ./local && exec .build/run; else exec go run ./local; fi # which does not pass SIGTERM on

test: ## run the tests that take less than a minute together
	go test -short -p 4 -parallel 16 ./... # the tests wait more than they compute

check: ## gofmt, vet, staticcheck, the race detector, all tests, the tests under the oldest Go, fuzzing
	@test -z "$$(gofmt -l *.go local windmill)" || { gofmt -d *.go local windmill; exit 1; }
	go vet ./...
	cd local/client && GOWORK=off go vet ./...
	go run $(STATICCHECK) $$(go list ./... | grep -v '^servicenow-token/windmill/f/') # whose main only a worker calls
	go test -race -short -parallel 16 ./...
	WMILL_TOOLS=1 HERD_TRIALS=20 go test -parallel 16 -timeout 40m ./... # jobs are processes: no race to detect in the long ones
	GOTOOLCHAIN=$(OLDEST_GO) go test -short -parallel 16 ./...
	$(MAKE) --no-print-directory fuzz

fuzz: ## fuzz what parses foreign bytes, FUZZTIME (30s) each
	@set -e; for target in $$(sed -n 's/^func \(Fuzz[A-Za-z]*\)(.*/\1/p' main_test.go); do \
		echo "go test -fuzz $$target"; go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) . ; done

mutants: ## change main.go in every small way; fail if the fast tests notice less than 99 % of the changes (10 minutes)
	for i in 1 2 3 4 5; do IN_PROCESS=1 go test -short -count=1 . || exit 1; done # a flaky test would count as a kill
	IN_PROCESS=1 go run $(GREMLINS) unleash --workers 2 --timeout-coefficient 2 --threshold-efficacy 99 \
		--invert-logical --invert-bitwise --invert-assignments --invert-loopctrl --exclude-files / . # main.go alone
	@rm -f go.work.sum # which it leaves behind

bench: ## what the script adds to a job, as a table; the raw results stay in .build/bench.txt, for benchstat
	@mkdir -p .build
	@go test -run '^$$' -bench Job -benchtime 5s ./local/bench > .build/bench.txt || { cat .build/bench.txt; exit 1; }
	@go test -run '^$$' -bench Build -benchtime 1x ./local/bench >> .build/bench.txt || { cat .build/bench.txt; exit 1; }
	@go test -run '^$$' -bench Check . >> .build/bench.txt || { cat .build/bench.txt; exit 1; }
	@go run ./local/bench < .build/bench.txt

# FOLDER and RESOURCE reach push.sh through the environment, whatever characters they have.
override export FOLDER   := $(value FOLDER)
override export RESOURCE := $(value RESOURCE)
workspace: ## tell the wmill CLI which Windmill workspace, and a token for it
	@windmill/push.sh workspace

push: ## deploy the script, in FOLDER (ServiceNow) of the workspace that the environment or the wmill CLI names
	@windmill/push.sh script $(WMILL_FLAGS)

push-examples: ## deploy the schedule (switched off) and the example flow, where missing
	@windmill/push.sh examples $(WMILL_FLAGS)

try: ## run the deployed script once, with RESOURCE (f/ServiceNow_login/servicenow)
	@windmill/push.sh try $(WMILL_FLAGS)

clean: ## remove what was built
	@chmod -R u+w .build 2>/dev/null || true # Go's downloads are read-only
	rm -rf .build windmill/cli/node_modules
