# Everything that people do here. 'make help' lists it.
CARGO ?= cargo

.PHONY: help
help: ## Lists the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 12

.PHONY: packages
packages: ## Installs the system packages that are missing
	@hack/install-packages.sh

.PHONY: build
build: packages ## Builds everything
	$(CARGO) build --workspace --all-targets

.PHONY: demo
demo: build ## From the seeds' manifests to a server that sees the floating IP; needs root
	target/debug/egressnat-lab --name demo demo

.PHONY: test
test: build ebpf-check ## All tests; needs root
	hack/test.sh

.PHONY: lint
lint: packages ## rustfmt and clippy, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings

.PHONY: doc
doc: packages ## API documentation, warnings denied
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --all-features

.PHONY: crds
crds: ## Writes deploy/crds anew from the Rust types
	$(CARGO) run --quiet --package egressnat-kube --features crd --example crds -- deploy/crds

.PHONY: ebpf
ebpf: packages ## Rebuilds the eBPF objects from their sources
	egressnat-dataplane/bpf/build.sh
	egressnat-dataplane/bpf/build.sh egressnat-dataplane/bpf/departure.bpf.c
	egressnat-dataplane/bpf/build.sh benches/bpf/bench.bpf.c

.PHONY: ebpf-check
ebpf-check: packages ## Compares the committed eBPF objects with their sources
	egressnat-dataplane/bpf/build.sh --check
	egressnat-dataplane/bpf/build.sh --check egressnat-dataplane/bpf/departure.bpf.c
	egressnat-dataplane/bpf/build.sh --check benches/bpf/bench.bpf.c

.PHONY: bench
bench: packages ## Benchmarks; those of packets need root
	$(CARGO) bench --package egressnat-benches

.PHONY: fuzz
fuzz: ## Fuzzes each target for FUZZ_SECONDS (default 10)
	hack/fuzz.sh
