# Bulkhead. "make help" lists what there is to make. Everything made is below
# build/, which "make clean" removes.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Go keeps its caches below HOME, which a service or a container may lack.
HOME ?= $(or $(shell getent passwd $$(id -u) | cut -d: -f6),/var/cache/bulkhead)
export HOME

GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=
# How long "make soak-random" goes on; BULKHEAD_SEED in the environment repeats a run.
SOAK    ?= 5m
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)

# -trimpath and no cgo: the same source gives the same programs.
BUILD := CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION) -X bulkhead/cli.Version=$(VERSION)"

# The same flags as BUILD, so that what that compiled is not compiled again.
VET := CGO_ENABLED=0 $(GO) vet -trimpath

CLI_TARGETS := linux-amd64 linux-arm64 darwin-amd64 darwin-arm64 windows-amd64 windows-arm64

# Tools of the linter and the generator: run at a version, so that they stay out of go.mod.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.1.4
PROTOC_GEN_GO      := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
PROTOC_GEN_GO_GRPC := google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.0

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: demo
demo: setup programs ## start a platform, deploy an app, show it answering over HTTPS from its sandbox
	scripts/demo

.PHONY: check
check: ## format, vet and the quick tests of every package, in two minutes (no root)
	scripts/check

.PHONY: test
test: setup setup-tests programs failpoints clock cli-darwin-arm64 cli-windows-amd64 vet ## build and pass every test (root)
	scripts/test

.PHONY: fresh
fresh: ## run "make demo" and "make test" on a machine that has never seen the project (root, empty caches)
	scripts/fresh

.PHONY: setup
setup: ## install the Debian packages that are missing
	scripts/setup

.PHONY: setup-build
setup-build: ## install the Debian packages that the programs and bulkheadd need, if they are missing
	scripts/setup ca-certificates gcc libc6-dev passwd

.PHONY: setup-tests
setup-tests: ## download what only tests need: a browser, an identity provider, packages for images
	scripts/setup-tests

.PHONY: build
build: programs cli ## build all programs into build/bin, the CLI for all systems into build/cli

# go build decides itself what is up to date.
.PHONY: programs
programs: ## build the programs of this machine into build/bin
	mkdir -p build/bin
	$(BUILD) -o build/bin/ ./cmd/...
	cd cmd/bulkhead-sandbox && $(BUILD) -o ../../build/bin/ .
	scripts/build-init $(CURDIR)/build/bin/bulkhead-init

# The same programs, but with places at which tests kill them (package failpoint).
.PHONY: failpoints
failpoints: programs ## build the programs with failpoints, for tests, into build/failpoints
	mkdir -p build/failpoints
	$(BUILD) -tags failpoints -o build/failpoints/ ./cmd/...
	ln -sf ../bin/bulkhead-sandbox ../bin/bulkhead-init build/failpoints/

# The same roles once more, with a clock that tests can set (internal/clockshift). Only the roles:
# what is confined or runs inside a sandbox could not read the setting.
CLOCK_ROLES := bulkheadd bulkhead-controller bulkhead-worker bulkhead-warden bulkhead-edge
.PHONY: clock
clock: programs ## build the roles with a clock that can be set, for tests, into build/clock
	mkdir -p build/clock
	$(GO) run ./internal/clockshift build/clock/_overlay
	$(BUILD) -tags failpoints -overlay build/clock/_overlay/overlay.json -o build/clock/ $(CLOCK_ROLES:%=./cmd/%)
	for p in build/bin/*; do test -e build/clock/$${p##*/} || ln -s ../bin/$${p##*/} build/clock/; done

.PHONY: cli $(CLI_TARGETS:%=cli-%)
cli: $(CLI_TARGETS:%=cli-%) ## build the CLI for Linux, macOS and Windows into build/cli

$(CLI_TARGETS:%=cli-%): cli-%:
	mkdir -p build/cli
	GOOS=$(word 1,$(subst -, ,$*)) GOARCH=$(word 2,$(subst -, ,$*)) $(BUILD) -o build/cli/bulkhead-$*$(if $(findstring windows,$*),.exe) ./cmd/bulkhead

.PHONY: vet
vet: ## gofmt and go vet
	scripts/gofmt
	$(VET) ./...
	cd cmd/bulkhead-sandbox && $(VET) ./...

.PHONY: lint
lint: vet ## vet, staticcheck, and govulncheck where its database can be reached
	$(GO) run $(STATICCHECK) ./...
	cd cmd/bulkhead-sandbox && $(GO) run $(STATICCHECK) ./...
	GOVULNCHECK=$(GOVULNCHECK) scripts/vulncheck

# make test ends with the same check, of what it ran: FROM=build/test reads that again.
.PHONY: claims
claims: setup programs failpoints clock ## run the tests that the threat model names, print claim, test, pass or fail
	$(GO) run ./internal/claims $(if $(FROM),-results $(FROM)/*.json)

.PHONY: bench-edge
bench-edge: ## processor time per request of the edge, against nginx in the same run
	scripts/setup nghttp2-client
	$(GO) test ./edge -run '^$$' -bench AgainstNginx -benchtime 20000x

.PHONY: bench-routes
bench-routes: setup programs ## how long a change takes from the API call to the edge
	$(GO) test ./world -run '^$$' -bench 'Route$$' -benchtime 300x

.PHONY: bench-start
bench-start: setup programs ## how long a machine takes from the API call to its first answer, against runc and the bare sandbox
	scripts/setup runc
	$(GO) test ./world -run '^$$' -bench 'Start$$' -benchtime 20x
	$(GO) test ./world -run '^$$' -bench 'Trace$$' -benchtime 15x
	$(GO) test ./world -run '^$$' -bench 'Route$$' -benchtime 100x

.PHONY: bench-wake
bench-wake: setup programs ## how long a request to a sleeping app waits for its answer
	$(GO) test ./world -run '^$$' -bench 'Wake$$' -benchtime 40x

.PHONY: bench-token
bench-token: ## what verifying a token costs a request
	$(GO) test ./token -run '^$$' -bench Verify -count 5

.PHONY: bench-audit
bench-audit: ## the audit log with a million records: appends, pages, start, verification (500 MB below TMPDIR)
	BULKHEAD_AUDIT_RECORDS=1000000 $(GO) test ./audit/auditlog -run '^$$' -bench Large -benchtime 1x -timeout 60m

.PHONY: bench-recovery
bench-recovery: setup programs ## how long fifty machines take to run again after a power cut
	$(GO) test ./world -run '^$$' -bench 'Recovery$$' -benchtime 5x

.PHONY: soak-power
soak-power: setup programs ## power cuts by the dozen: fifty machines, and under load
	BULKHEAD_ROUNDS=30 $(GO) test ./world -run 'TestPowerCut' -count=1 -v -timeout 60m

.PHONY: soak-crash
soak-crash: setup failpoints ## kill roles at every place of every operation in every mode, one by one (an hour)
	BULKHEAD_CRASH=all $(GO) test ./supervisor ./world ./registry -run 'TestCrash|TestKillAtEveryStep' -count=1 -p 1 -timeout 4h -v

# Not a prerequisite of "make test": emulation takes minutes.
.PHONY: test-guest
test-guest: setup programs ## boot a Debian guest (systemd, cgroup v2) in QEMU, install Bulkhead there with its unit, deploy, restart, destroy
	scripts/test-guest

.PHONY: soak-states
soak-states: ## break everything below a worker under all pairs of wishes in every state (two minutes)
	BULKHEAD_STATES=all $(GO) test ./worker -run 'TestNoStateIsForEver$$' -count=1 -v

.PHONY: soak-calls
soak-calls: ## cut every call of the API off at every instant, not at a sample of them
	BULKHEAD_CUTS=all $(GO) test -race ./controller -run 'TestCallsThatAreCutOff$$' -count=1 -v -timeout 30m

.PHONY: soak-damage
soak-damage: ## damage every page of a database in every way, and a store's log in many places
	BULKHEAD_DAMAGE=all $(GO) test ./boltcheck ./store/etcd -run 'TestEveryPage$$|TestTornLog$$' -count=1 -v

.PHONY: soak
soak: test-guest soak-random soak-power soak-crash soak-states soak-calls soak-damage ## everything that tries faults for minutes, one after the other

.PHONY: soak-random
soak-random: setup programs ## kill processes at random for SOAK (5m) under several clients, and check what they saw
	BULKHEAD_SOAK=$(SOAK) $(GO) test ./world -run 'TestSoak$$' -count=1 -v -timeout 60m

.PHONY: fuzz
fuzz: ## feed every parser of what strangers send with made-up input, for FUZZTIME (60s) each
	scripts/fuzz

.PHONY: generate
generate: ## generate api/internalpb from its .proto file
	scripts/setup protobuf-compiler
	GOBIN=$(CURDIR)/build/tools $(GO) install $(PROTOC_GEN_GO)
	GOBIN=$(CURDIR)/build/tools $(GO) install $(PROTOC_GEN_GO_GRPC)
	PATH=$(CURDIR)/build/tools:$$PATH protoc --go_out=. --go_opt=paths=source_relative \
	  --go-grpc_out=. --go-grpc_opt=paths=source_relative api/internalpb/internal.proto

.PHONY: install
install: setup-build programs ## install the programs, the unit and the example configuration below PREFIX (/usr/local)
	install -d $(DESTDIR)$(PREFIX)/lib/bulkhead $(DESTDIR)$(PREFIX)/bin $(DESTDIR)/etc/bulkhead $(DESTDIR)/etc/systemd/system
	install -m 0755 -t $(DESTDIR)$(PREFIX)/lib/bulkhead build/bin/*
	ln -sf ../lib/bulkhead/bulkheadd ../lib/bulkhead/bulkhead $(DESTDIR)$(PREFIX)/bin/
	test -e $(DESTDIR)/etc/bulkhead/bulkhead.toml || install -m 0644 packaging/bulkhead.toml $(DESTDIR)/etc/bulkhead/bulkhead.toml
	sed 's|/usr/local|$(PREFIX)|g' packaging/bulkhead.service >$(DESTDIR)/etc/systemd/system/bulkhead.service

.PHONY: uninstall
uninstall: ## stop the service, end all Machines, remove what make install put there; data stays (docs/uninstall.md)
	DESTDIR=$(DESTDIR) PREFIX=$(PREFIX) scripts/uninstall

.PHONY: clean
clean: ## remove build/
	rm -rf build
