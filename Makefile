# Go, make and git are all that `make run` and `make test` need.
.DEFAULT_GOAL := help
.PHONY: help run test check fuzz mutants bench push push-examples clean client

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.7.0
GREMLINS    := github.com/go-gremlins/gremlins/cmd/gremlins@v0.6.0
OLDEST_GO   := go1.22.12
FUZZTIME    := 30s

# The published Windmill client where the module proxy serves it, else local/wmill through go.work.
ifneq ($(filter run test check fuzz mutants bench,$(MAKECMDGOALS)),)
ifeq ($(shell GOWORK=off go list -deps . >/dev/null 2>&1 && echo served),served)
export GOWORK := off
CLIENT_IN_USE := the published one
else
CLIENT_IN_USE := local/wmill, for the module proxy does not serve the published one
endif
endif

help: ## say what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

client:
	@echo "Windmill client: $(CLIENT_IN_USE)"

run: client ## run the job in its three uses on a local Windmill and ServiceNow (SNOW=instance.json: once, on a real instance)
	@go run ./local $(if $(SNOW),-snow '$(SNOW)')

test: client ## run the tests that take less than a minute together
	go test -short -parallel 16 ./...

check: client ## gofmt, vet, staticcheck, all tests with the race detector, the tests under the oldest Go, fuzzing
	@test -z "$$(gofmt -l .)" || { gofmt -d . ; exit 1; }
	go vet ./...
	cd local/wmill && GOWORK=off go vet ./...
	go run $(STATICCHECK) $$(go list ./... | grep -v /windmill/f/) # whose main only a worker calls
	WMILL_TOOLS=1 go test -race -timeout 30m -parallel 16 ./...
	GOTOOLCHAIN=$(OLDEST_GO) go test -short -parallel 16 ./...
	$(MAKE) --no-print-directory fuzz

fuzz: client ## fuzz what parses foreign bytes, FUZZTIME (30s) each
	@set -e; for target in $$(sed -n 's/^func \(Fuzz[A-Za-z]*\)(.*/\1/p' main_test.go); do \
		echo "go test -fuzz $$target"; go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) . ; done

mutants: client ## change main.go in every small way, and see that a fast test fails each time (3 minutes)
	IN_PROCESS=1 go run $(GREMLINS) unleash --workers 2 --timeout-coefficient 10 --threshold-efficacy 95 \
		--invert-logical --invert-bitwise --invert-assignments --invert-loopctrl --exclude-files / . # main.go alone
	@rm -f go.work.sum # which it leaves behind

bench: client ## what the script adds to a job, as a table; the raw results stay in .build/bench.txt, for benchstat
	@mkdir -p .build
	@go test -run '^$$' -bench 'Job|Check' -benchtime 5s . > .build/bench.txt || { cat .build/bench.txt; exit 1; }
	@go test -run '^$$' -bench Build -benchtime 1x . >> .build/bench.txt || { cat .build/bench.txt; exit 1; }
	@go run ./local/bench < .build/bench.txt

push: ## deploy the script to a Windmill workspace: WMILL_FLAGS, else the wmill CLI's active one
	@windmill/push.sh script $(WMILL_FLAGS)

push-examples: ## deploy the schedule (switched off) and the example flow, where missing
	@windmill/push.sh examples $(WMILL_FLAGS)

clean: ## remove what was built
	rm -rf .build windmill/cli/node_modules
