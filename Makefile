# The two commands that matter: `make demo` and `make test`. Both set the machine up first.
# Everything is built into CARGO_TARGET_DIR (default: target), with one profile.

CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup guests build demo test sim chaos bench deny fmt dist

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what the build needs (Debian 12), or name what is missing
	@scripts/setup

guests: setup ## build the Wasm guests
	@scripts/build-guests

build: guests ## build everything, host and guests
	@cargo build --locked --workspace

demo: build ## start a cluster on this machine and run the demo on it
	@scripts/demo

test: ## set up, build and run every test; prints the time of each tier
	@scripts/test

SEEDS ?= 5000
FROM ?= 1

sim: setup ## run so many seeds of the simulation, going on where it was: SEEDS=5000 FROM=1
	@scripts/sim $(SEEDS) $(FROM)

chaos: build ## masters and agents under faults: MINUTES=10 SEED=… MASTERS=3, or FAILOVERS=30
	@scripts/chaos

bench: build ## measure, and write docs/benchmarks.md; FULL=1 measures longer
	@cargo run --locked -p tessera-cluster --bin bench -- $(if $(FULL),--full)

dist: setup ## make release archives: a tarball and a Debian package, in <target>/dist
	@scripts/dist

deny: ## check dependencies: bans, licences, sources, advisories where reachable
	@scripts/deny

fmt: ## format the Rust code of host and guests
	@cargo fmt --all
	@cargo fmt --all --manifest-path frameworks/Cargo.toml
