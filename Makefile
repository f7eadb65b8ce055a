# Everything starts here. `make demo` and `make test` do all their set-up themselves.

CARGO   ?= cargo
PROFILE ?= ci
SUITE   ?= core
GUESTS  := target/guests
BINARY   = target/$(PROFILE)/beamline

.PHONY: help demo test coverage faults hostile soak languages bench bench-tools release guests tools lint fmt clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: PROFILE := demo
demo: guests ## The story, told with real requests on 127.0.0.1:8080 (ONCE=1: assert each outcome and exit)
	@echo "==> building BeamLine for the demo (a few minutes the first time)"
	$(CARGO) build --profile demo -p beamline -p beamline-tests --bin beamline --bin demo
	@BEAMLINE_BIN=target/demo/beamline target/demo/demo --guests $(GUESTS) $(if $(ONCE),--once)

test: tools guests ## All tests; installs what they need
	@echo "==> building BeamLine and its tests"
	$(CARGO) test --workspace --profile $(PROFILE) --no-run
	BEAMLINE_BIN=$(CURDIR)/$(BINARY) $(CARGO) test --workspace --profile $(PROFILE)
	@echo "==> filters"
	cd wasm-filters && $(CARGO) test
	cd tests/guests && $(CARGO) test

coverage: ## Which lines of the stock filters their tests run; fails where one is not run
	@CARGO="$(CARGO)" scripts/coverage.sh

faults: tools guests ## Mixed faults from RUNS=300 seeds, kills and power cuts among them, judged by the checker; an outage of NATS (BINARY=… for another build)
	$(CARGO) test --workspace --profile $(PROFILE) --no-run
	BEAMLINE_RUNS=$(or $(RUNS),300) BEAMLINE_BIN=$(abspath $(BINARY)) $(CARGO) test --workspace --profile $(PROFILE) \
		--test faults --test durability --test powercut -- --nocapture
	BEAMLINE_OUTAGE=20 BEAMLINE_BIN=$(abspath $(BINARY)) $(CARGO) test --workspace --profile $(PROFILE) --test nats -- --nocapture outage

hostile: tools guests ## Modules that mean harm, each kind with many requests and all at once; MINUTES=10 of modules made from seeds; SEEDS=5000 of the proof that both tiers do the same
	$(CARGO) test --workspace --profile $(PROFILE) --no-run
	BEAMLINE_HOSTILE=long BEAMLINE_SMITH_MINUTES=$(or $(MINUTES),10) BEAMLINE_BIN=$(abspath $(BINARY)) \
		$(CARGO) test --workspace --profile $(PROFILE) --test hostile -- --nocapture --test-threads 1
	BEAMLINE_RESET_TIER=false BEAMLINE_BIN=$(abspath $(BINARY)) \
		$(CARGO) test --workspace --profile $(PROFILE) --test phases --test filters
	BEAMLINE_SEEDS=$(or $(SEEDS),5000) BEAMLINE_RUNS=$(or $(SEEDS),5000) \
		$(CARGO) test -p beamline-filter-host --profile $(PROFILE) --lib -- --nocapture reset::tests

soak: tools guests ## REPLACEMENTS=10000 of a module under load: nothing is left behind
	$(CARGO) build --workspace --profile $(PROFILE) --bins
	BEAMLINE_REPLACEMENTS=$(or $(REPLACEMENTS),10000) BEAMLINE_BIN=$(abspath $(BINARY)) \
		$(CARGO) test --workspace --profile $(PROFILE) --test soak -- --nocapture

languages: tools guests ## Filters in other languages, built by their own tools (npm, PyPI) and run
	$(CARGO) build --workspace --profile $(PROFILE) --bins
	BEAMLINE_BIN=$(abspath $(BINARY)) $(CARGO) test --workspace --profile $(PROFILE) --test languages -- --ignored --nocapture

bench: bench-tools guests release ## Measure against nginx and Envoy: SUITE=core|filter|density|queue|dataplane|telemetry
	$(CARGO) build --release -p beamline-tests --bin bench
	$(if $(filter filter,$(SUITE)),BEAMLINE_BIN=$(CURDIR)/target/release/beamline $(CARGO) bench --workspace --bench sandbox)
	BEAMLINE_BIN=$(CURDIR)/target/release/beamline target/release/bench $(SUITE)

bench-tools: tools
	@scripts/install-tools.sh $(if $(filter filter,$(SUITE)),envoy)

release: guests ## The binary that ships: target/release/beamline (BEAMLINE_PGO=no: quicker to build, slower)
	@CARGO="$(CARGO)" scripts/release.sh

guests: ## The stock filters and the tests' modules, as Wasm, in target/guests
	@scripts/build-guests.sh $(GUESTS)

tools: ## What the tests drive the node with: curl, wrk, nginx, nats-server, a C compiler
	@scripts/install-tools.sh

lint: ## Formatting and clippy, as CI has them
	$(CARGO) fmt --all --check
	cd wasm-filters && $(CARGO) fmt --all --check
	cd tests/guests && $(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --profile $(PROFILE) -- -D warnings
	cd wasm-filters && $(CARGO) clippy --all-targets -- -D warnings

fmt: ## Format everything
	$(CARGO) fmt --all
	cd wasm-filters && $(CARGO) fmt --all
	cd tests/guests && $(CARGO) fmt --all

clean: ## Remove what was built
	$(CARGO) clean
	rm -rf wasm-filters/target tests/guests/target
