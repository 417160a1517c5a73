# Penstock. `make help` lists the targets.
GO      ?= go
PKGS    := ./...
# Packages whose tests make namespaces and programs of their own run one at a
# time, so that a 2-core machine measures and times out nothing by accident.
# Never from the cache: the end-to-end tests run a binary that it does not know of.
GOTEST  := $(GO) test -p 2 -count 1

# What `make install` and `make deb` make of it.
PREFIX  ?= /usr/local
DESTDIR ?=
SYSCONFDIR ?= /etc
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.0)

.PHONY: help build release demo test test-vm check unit race bench fuzz generate docs page packages install install-data deb deb-test clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/penstock
	$(GO) build -trimpath -o bin/penstock ./cmd/penstock

install: release install-data ## install below PREFIX (/usr/local), DESTDIR before it: binary, unit, configurations, documents, dashboard and alerts, manual pages, completion
	install -D -m 0755 bin/release/penstock $(DESTDIR)$(PREFIX)/bin/penstock

install-data: # all but the binary
	install -D -m 0755 dist/prepare $(DESTDIR)$(PREFIX)/lib/penstock/prepare
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(SYSCONFDIR)/penstock $(DESTDIR)$(PREFIX)/share/doc/penstock
	sed 's#/usr/bin/penstock#$(PREFIX)/bin/penstock#; s#/usr/lib/penstock#$(PREFIX)/lib/penstock#' 'dist/penstock@.service' >'$(DESTDIR)$(PREFIX)/lib/systemd/system/penstock@.service'
	for f in configs/*.toml; do t=$(DESTDIR)$(SYSCONFDIR)/penstock/$${f##*/}; [ -e $$t ] || install -m 0644 $$f $$t; done
	install -m 0644 CHANGELOG.md LICENSE docs/*.md docs/*.svg docs/*.png $(DESTDIR)$(PREFIX)/share/doc/penstock
	for f in prometheus/penstock.rules.yml grafana/penstock.json; do install -D -m 0644 dist/$$f $(DESTDIR)$(PREFIX)/share/penstock/$$f; done
	for f in $(wildcard dist/man/*.[1-9]); do install -D -m 0644 $$f $(DESTDIR)$(PREFIX)/share/man/man$${f##*.}/$${f##*/}; done
	for f in $(wildcard dist/completion/penstock); do install -D -m 0644 $$f $(DESTDIR)$(PREFIX)/share/bash-completion/completions/penstock; done

release: # a static binary that knows its version
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/release/penstock ./cmd/penstock

deb: ## build a Debian package into bin/
	rm -rf bin/deb && mkdir -p bin/deb
	$(MAKE) --no-print-directory install DESTDIR=$(CURDIR)/bin/deb PREFIX=/usr >/dev/null
	dist/deb/build.sh bin/deb $(VERSION) bin/penstock_$(VERSION)_$$(dpkg --print-architecture).deb
	rm -rf bin/deb

deb-test: deb ## install the package into a clean Debian under systemd, use it there, and let it die (root; a minute, and three more the first time, for debootstrap)
	PENSTOCK_DEB=$(CURDIR)/bin/penstock_$(VERSION)_$$(dpkg --print-architecture).deb $(GO) test -count 1 -v -timeout 10m -run 'TestPackage$$|TestUnderSystemd$$' ./test/e2e

demo: build ## build and run the demo: client, appliance and server in namespaces (root)
	bin/penstock demo

test: packages check ## everything: formatting, vet, staticcheck, unit, replay, privileged and end-to-end tests
	$(GOTEST) -timeout 12m $(PKGS)
	PENSTOCK_VM=1 $(GOTEST) -v -timeout 9m -run 'TestZeroCopy$$/^zero-copy$$|TestKernels$$/^6.1$$' ./test/vm -rows '^Test(InstructionCeiling|Fragments|RewrittenFlow|Offload)$$'

check: ## formatting, vet and staticcheck
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "not gofmt-ed:"; echo "$$out"; exit 1; fi
	$(GO) vet $(PKGS)
	$(GO) tool staticcheck $(PKGS)

race: ## the packages with threads of their own, under the race detector
	$(GOTEST) -race -timeout 12m ./pipeline/... ./xsk/... ./stack/... ./stages/... ./internal/...

test-vm: ## zero-copy on a virtual NIC, and old and new kernels (root; QEMU and kernels by apt-get download); VM="-run TestKernels" and other flags
	PENSTOCK_VM=1 $(GO) test -count 1 -v -timeout 25m ./test/vm $(VM)

.PHONY: test-arm64
test-arm64: ## vet for arm64, and the tests of all packages as arm64 binaries, emulated, without privileges (qemu-user by apt-get download; minutes, so not in `make test`); ARM64="./xsk ./stack": these only
	GO=$(GO) ./test/vm/arm64.sh $(ARM64)

bench: build ## Penstock and its peers side by side, in one run (root); BENCH="-quick" and other flags
	@./test/packages.sh bench
	./test/bench/run.sh $(BENCH)

.PHONY: pgo
pgo: build ## profile the gateways under the bench's loads, for the compiler: cmd/penstock/default.pgo (root)
	@./test/packages.sh bench
	rm -rf bin/pgo
	./test/bench/run.sh -rounds 1 -seconds 4 -xsk=false -cpuprofile $(CURDIR)/bin/pgo -gateways forward,terminate,splice,inspect+http -workloads keepalive,close,download,upload
	./test/bench/run.sh -rounds 2 -seconds 4 -xsk=false -cpuprofile $(CURDIR)/bin/pgo -gateways inspect+tls,splice+tls -workloads tls-1kib
	@# Where the binary lay is nobody's business: field 6 of a Profile is a string, with its length before it.
	$(GO) tool pprof -proto bin/pgo/*.pprof | gunzip | perl -0777 -pe '$$p = "$(CURDIR)/bin/penstock"; $$l = chr length $$p; s/2\Q$$l$$p\E/2\x08penstock/' | gzip -n9 >cmd/penstock/default.pgo

fuzz: ## each fuzz target for FUZZTIME (default 30s)
	./test/fuzz.sh $(or $(FUZZTIME),30s)

generate: ## regenerate the XDP objects (needs clang-14)
	$(GO) generate ./bpf

docs: ## write what is made from the code: pages of docs, manual pages, the completion, the description of the API
	$(GO) run ./docs/gen
	$(GO) test -count 1 -run 'TestManualPages|TestCompletion' ./cmd/penstock -update
	$(GO) test -count 1 -run 'TestDescription$$' ./internal/control -update

page: ## the live page in headless Chromium, which is installed if it is missing (root)
	@command -v chromium >/dev/null || { apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; }
	REQUIRE_BROWSER=1 $(GOTEST) -run TestPage ./internal/control

packages: ## install what the tests need, if root and missing
	@./test/packages.sh

clean: ## remove what was built
	rm -rf bin bench-out
