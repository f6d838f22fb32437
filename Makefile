# The project's commands. Everything they need is installed by `make tools`, which each of them runs first.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
ENV := . tools/env.sh &&

.PHONY: help tools build demo test lint bench fuzz chaos clean

help: ## what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

tools: ## install system packages, nats-server, Envoy and RocksDB's archive where they are missing
	@tools/install.sh

build: tools ## the three programs, in the profile that demo and tests share
	@$(ENV) cargo build --locked --workspace --bins

demo: build ## issue a token, use it through Envoy, revoke it, see it refused
	@$(ENV) examples/walkthrough.sh

test: build ## every suite, on a real nats-server and a real Envoy
	@$(ENV) cargo build --locked --manifest-path operator/Cargo.toml
	@$(ENV) cargo test --locked --quiet --manifest-path operator/Cargo.toml
	@$(ENV) if command -v cargo-nextest >/dev/null; then cargo nextest run --locked --workspace --no-fail-fast; else cargo test --locked --workspace --no-fail-fast; fi

lint: tools ## formatting, and clippy with warnings denied
	@$(ENV) cargo fmt --all --check
	@$(ENV) cargo clippy --locked --workspace --all-targets -- -D warnings
	@$(ENV) cargo fmt --manifest-path operator/Cargo.toml --check
	@$(ENV) cargo clippy --locked --manifest-path operator/Cargo.toml --all-targets -- -D warnings

bench: tools ## the figures of docs/benchmarks.md
	@$(ENV) cargo build --locked --release --workspace --bins
	@$(ENV) ATM_BIN_DIR=$$CARGO_TARGET_DIR/release cargo bench --locked --workspace --bench '*'

fuzz: tools ## each fuzz target for a few seconds (SECONDS_EACH=10)
	@$(ENV) tools/fuzz.sh $${SECONDS_EACH:-10}

chaos: build ## the failure suite for MINUTES=10, from SEED if one is given; prints the seed
	@$(ENV) ATM_CHAOS_SECONDS=$$(( $${MINUTES:-10} * 60 )) $${SEED:+ATM_CHAOS_SEED=$$SEED} cargo test --locked -p atm-tests --test chaos -- --nocapture

clean: ## remove what builds made in this clone (the cache in ~/.cache/atm stays)
	@rm -rf target .tools {core,proto}/fuzz/{target,artifacts,corpus}
