# slasha-init. The two commands that a newcomer needs: make demo, make test.

SHELL      := /bin/bash
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo v0.0.0-dev)
CACHE      := .cache/bin
TOOLS      := versitygw toxiproxy litestream litestream3
LINTERS    := staticcheck golangci-lint
HOSTARCH   := $(shell go env GOARCH)

# One static binary: cgo for go-sqlite3, with the C library inside. The tags
# keep the parts of both that would ask for shared libraries at run time.
TAGS       := netgo,osusergo,sqlite_omit_load_extension
LDFLAGS    := -s -w -X main.version=$(VERSION) -linkmode external -extldflags "-static"
# Go's newer collector touches every page of a young heap, which a start pays
# for: 22 ms to main with it, 16 without, on the machine of docs/pid1.md. Where
# the toolchain no longer has the choice, it is built as it is.
GOEXP      := $(shell GOEXPERIMENT=nogreenteagc go version >/dev/null 2>&1 && echo GOEXPERIMENT=nogreenteagc)
GOWITH     := -trimpath -tags=$(TAGS)
GOBUILD    := $(GOEXP) CGO_ENABLED=1 go build $(GOWITH) -ldflags '$(LDFLAGS)'

# Tests wait most of their time, for a bucket, an app or a lease, so more of them run at
# once than there are cores (Go's default). They are compiled as the release is, and so are
# the linters' packages: it is the same program, and Go compiles it once for all.
GOTEST     := $(GOEXP) go test $(GOWITH) -count=1 -parallel 8
LINT       := $(GOEXP) GOFLAGS="$$GOFLAGS $(GOWITH)"
# What the race run does not repeat, because the detector can't find anything in it:
#   TestModel                      one goroutine walks through all states of the lease,
#                                  for a minute of CPU time, and many with the detector
#   ...InDocker..., ...InAnEmptyRoot  they run the released binary in images without a
#                                  libc, which the detector's needs: the same run again
#   TestRequestsOfAnIdleDatabase   counts for two minutes how little an idle container
#                                  does; all others do more of the same
#   TestLinkedPackages             runs go list
# Other inits are examined by make conformance only, benchmarks by their own targets.
NORACE     := ^(TestModel|Test.*InDocker|TestDocker.*|Test.*InAnEmptyRoot|TestRequestsOfAnIdleDatabase|TestLinkedPackages)$$

# What each architecture's C compiler is called in Debian: natively, and as a
# cross compiler.
CC_amd64   := $(if $(filter amd64,$(HOSTARCH)),gcc,x86_64-linux-gnu-gcc)
CC_arm64   := $(if $(filter arm64,$(HOSTARCH)),gcc,aarch64-linux-gnu-gcc)

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

.PHONY: setup
setup: ## install the C compiler and what else the distribution must give
	@.ci/setup

.PHONY: demo
demo: setup ## run the main job: write, lose the volume, get it back
	@$(MAKE) --no-print-directory bin/slasha-init bin/guestbook
	@testdata/demo.sh

.PHONY: test
test: setup tools ## build what the tests need, and run them all
	@$(MAKE) --no-print-directory binaries
	$(GOTEST) -timeout 20m ./...

.PHONY: race
race: setup tools ## the tests again, with the race detector in the tests and in the binary
	@$(MAKE) --no-print-directory binaries
	$(GOEXP) CGO_ENABLED=1 go build $(GOWITH) -race -o bin/slasha-init-race .
	SLASHA_TEST_BINARY=$(CURDIR)/bin/slasha-init-race $(GOTEST) -race -skip '$(NORACE)' -timeout 30m ./...

.PHONY: fuzz
fuzz: setup ## fuzz each parser for a moment
	.ci/fuzz

.PHONY: conformance
conformance: setup ## examine us and other inits as PID 1, and write docs/pid1.md
	@.ci/setup inits
	@$(MAKE) --no-print-directory binaries
	$(GOTEST) -timeout 30m ./internal/conformance -args -peers -write

.PHONY: faults
faults: setup tools ## let the bucket fail in every way under every workload, and write docs/faults.md
	@$(MAKE) --no-print-directory binaries
	SLASHA_FAULTS=all SLASHA_FAULTS_OUTAGE=2m $(GOTEST) -v -run '^TestFaults$$' -timeout 60m ./e2e

.PHONY: bench
bench: setup $(CACHE)/litestream ## start and memory, compared with tini, dumb-init and litestream
	@.ci/setup inits
	@$(MAKE) --no-print-directory binaries
	go run ./testdata/bench -o docs/bench-start.md

.PHONY: bench-replicate
bench-replicate: setup tools ## replication compared with litestream's, on a bucket 30 ms away (takes a quarter of an hour)
	@$(MAKE) --no-print-directory binaries
	$(GOTEST) -run '^$$' -bench '^BenchmarkReplicate$$' -benchtime 1x -timeout 30m ./e2e -args -replicate-table $(CURDIR)/.cache/bench-replicate.md

.PHONY: bench-restore
bench-restore: setup tools ## restores compared with litestream's and a plain download (takes half an hour)
	@$(MAKE) --no-print-directory binaries
	$(GOTEST) -run '^$$' -bench '^BenchmarkRestore$$' -benchtime 1x -timeout 60m ./e2e -args -table $(CURDIR)/.cache/bench-restore.md

.PHONY: lint
lint: $(addprefix $(CACHE)/,$(LINTERS)) ## vet, staticcheck and the linter
	test -z "$$(gofmt -l $$(git ls-files '*.go'))"
	$(LINT) go vet ./... ./testdata/guestbook ./testdata/bench
	$(LINT) $(CACHE)/staticcheck ./... ./testdata/guestbook ./testdata/bench
	$(LINT) $(CACHE)/golangci-lint run ./... ./testdata/guestbook ./testdata/bench

.PHONY: build
build: setup ## static binaries for amd64 and arm64, in bin/
	$(MAKE) --no-print-directory bin/slasha-init-linux-amd64 bin/slasha-init-linux-arm64

.PHONY: image
image: setup bin/slasha-init bin/guestbook ## build the sample app's image (needs Docker)
	testdata/image.sh slasha-init-guestbook

.PHONY: clean
clean: ## remove what was built; caches of Go stay
	rm -rf bin .cache

# Binaries. Go decides what is out of date, so they are always asked for.
.PHONY: binaries
binaries: bin/slasha-init bin/guestbook bin/probe

.PHONY: bin/slasha-init bin/guestbook bin/slasha-init-linux-amd64 bin/slasha-init-linux-arm64
bin/slasha-init:
	$(GOBUILD) -o $@ .
bin/guestbook:
	$(GOBUILD) -o $@ ./testdata/guestbook
bin/probe: testdata/probe/probe.c
	@mkdir -p bin
	$(CC) -O2 -Wall -Wextra -Werror -static -o $@ $<
bin/slasha-init-linux-amd64 bin/slasha-init-linux-arm64: bin/slasha-init-linux-%:
	GOOS=linux GOARCH=$* CC=$(CC_$*) $(GOBUILD) -o $@ .

# Tools for tests and checks, each from a module of its own, so that it never
# moves the versions that our binary is built with.
.PHONY: tools
tools: $(addprefix $(CACHE)/,$(TOOLS)) ## build the servers and peers that the tests use

$(CACHE)/%: testdata/tools/%/go.mod testdata/tools/%/go.sum
	@echo "building $* (once)"
	@mkdir -p $(CACHE)
	cd testdata/tools/$* && go build -trimpath -ldflags '-s -w' -o $(CURDIR)/$@ "$$(awk '$$1 == "tool" { print $$2 }' go.mod)"
	@touch $@
