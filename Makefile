# Penstock. `make help` lists the targets.
GO      ?= go
PKGS    := ./...
# Packages whose tests make namespaces and programs of their own run one at a
# time, so that a 2-core machine measures and times out nothing by accident.
# Never from the cache: the end-to-end tests run a binary that it does not know of.
GOTEST  := $(GO) test -p 2 -count 1

.PHONY: help build demo test test-vm check unit race bench fuzz generate packages clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/penstock
	$(GO) build -trimpath -o bin/penstock ./cmd/penstock

demo: build ## build and run the demo: client, appliance and server in namespaces (root)
	bin/penstock demo

test: packages check ## everything: formatting, vet, staticcheck, unit, replay, privileged and end-to-end tests
	$(GOTEST) -timeout 12m $(PKGS)
	PENSTOCK_VM=1 $(GOTEST) -v -timeout 9m -run 'TestZeroCopy$$/^zero-copy$$' ./test/vm

check: ## formatting, vet and staticcheck
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "not gofmt-ed:"; echo "$$out"; exit 1; fi
	$(GO) vet $(PKGS)
	$(GO) tool staticcheck $(PKGS)

race: ## the packages with threads of their own, under the race detector
	$(GOTEST) -race -timeout 12m ./pipeline/... ./xsk/... ./stack/... ./stages/... ./internal/...

test-vm: ## zero-copy on a virtual NIC, and old and new kernels (root; QEMU and kernels by apt-get download); VM="-run TestKernels" and other flags
	PENSTOCK_VM=1 $(GO) test -count 1 -v -timeout 25m ./test/vm $(VM)

bench: build ## Penstock and its peers side by side, in one run (root); BENCH="-quick" and other flags
	@./test/packages.sh bench
	./test/bench/run.sh $(BENCH)

fuzz: ## each fuzz target for FUZZTIME (default 30s)
	./test/fuzz.sh $(or $(FUZZTIME),30s)

generate: ## regenerate the XDP objects (needs clang-14)
	$(GO) generate ./bpf

packages: ## install what the tests need, if root and missing
	@./test/packages.sh

clean: ## remove what was built
	rm -rf bin bench-out
