# Moorline: `make demo` shows it working, `make test` runs every test, `make check` the quick part.
SHELL := /bin/bash
CARGO ?= cargo
export CARGO_TERM_COLOR ?= auto

.PHONY: help build cross check test test-long demo docs bench fmt clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | column -t -s '	'

build: ## the moorline binary, ./target/release/moorline
	@tests/deps.sh build
	$(CARGO) build --release --locked -p moorline-cli

check: ## formatting, lints, unit and simulation tests: a few minutes
	@tests/deps.sh build
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) test --locked --workspace --exclude moorline-e2e --exclude moorline-netsim --exclude moorline-logins-tests

test: check ## everything: installs what is missing, then unit tests and a real Kubernetes control plane end to end
	@tests/deps.sh test
	$(CARGO) build --locked -p moorline-cli -p moorline-pack
	$(CARGO) test --locked -p moorline-apiserver --test etcd -- --ignored
	$(CARGO) test --locked -p moorline-hub --test it -- --ignored f35_
	$(CARGO) test --locked -p moorline-netsim
	$(CARGO) test --locked -p moorline-logins-tests
	$(CARGO) test --locked -p moorline-e2e

cross: ## release binaries for every platform, images, bills of materials, the air-gap bundle: into target/dist
	cross/release.sh

test-long: test ## the long ones too: properties with many more cases, the scenes several times
	tests/long.sh

demo: ## installs what is missing, builds, shows kubectl through the hub on a real cluster, cleans up
	@demo/demo.sh

docs: ## writes the reference pages of docs/ from the code
	MOORLINE_WRITE_DOCS=1 $(CARGO) test --locked -p moorline-cli --test it -- book::

bench: ## speed and memory, as ratios against direct and nginx in one run
	@tests/deps.sh test
	bench/run.sh

fmt: ## formats the code
	$(CARGO) fmt --all

clean: ## removes what was built in this tree
	$(CARGO) clean
