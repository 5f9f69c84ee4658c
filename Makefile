# The commands of the project. `make demo` and `make test` do all their set-up themselves.

CARGO ?= cargo
ORDERS ?= 1000000
PYTHON ?= python3
TARGET ?= decoder
FUZZ_SECONDS ?= 60
# Tests at a time. Most wait for brokers and servers, so at least four.
RUST_TEST_THREADS ?= $(shell n=$$(nproc 2>/dev/null || echo 4); echo $$((n > 4 ? n : 4)))

RUNS ?= 200
SEED ?= 1

.PHONY: help demo test campaign fuzz bench lint setup build

help:
	@echo 'make demo    build, generate $(ORDERS) orders with a flash sale, run them through the whole job, print the reports'
	@echo 'make test    run every test'
	@echo 'make campaign  kill the job over $(RUNS) runs, at each fault point and at any time, and compare every sink; SEED=$(SEED)'
	@echo 'make fuzz    try to bring down readers: TARGET=$(TARGET) for $(FUZZ_SECONDS) s; needs cargo-fuzz'
	@echo 'make bench   run every bench (an idle machine gives steadier figures)'
	@echo 'make lint    check format, lints and documentation'
	@echo 'make setup   install what the build needs, or name it'

# Release build, generator, job with Delta Lake and a real ClickHouse, reports: see `orderflow demo --help`.
demo: build
	$(CARGO) run --quiet --release -p orderflow -- demo --orders $(ORDERS) $(DEMO_ARGS)

build: setup
	$(CARGO) build --release -p orderflow

# The Rust tests, then the checks with somebody else's readers where Python is there.
test: setup
	RUST_TEST_THREADS=$(RUST_TEST_THREADS) $(CARGO) test --workspace
	@deploy/dev/python-checks.sh $(PYTHON)

# The seed says which input, settings, points and kills. It prints a line a run and a table of the points.
campaign: setup
	CAMPAIGN_RUNS=$(RUNS) ORDERFLOW_TEST_SEED=$(SEED) $(CARGO) test --workspace --test campaign -- --ignored --exact campaign --nocapture

# Targets: operators/fuzz (decoder), pipeline/fuzz (settings, manifest, epoch_log, plan). The first build takes long: all is built with coverage.
FUZZ_DIR = $(if $(filter decoder,$(TARGET)),operators/fuzz,pipeline/fuzz)
FUZZ_SEEDS = $(if $(filter plan,$(TARGET)),../../sql/stages ../../sql/tests/stages ../../sql/tests/nexmark,$(if $(wildcard $(FUZZ_DIR)/seeds/$(TARGET)),seeds/$(TARGET)))
fuzz: setup
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { echo 'cargo-fuzz is missing: cargo install cargo-fuzz'; exit 1; }
	mkdir -p $(FUZZ_DIR)/corpus/$(TARGET)
	cd $(FUZZ_DIR) && $(CARGO) fuzz run --sanitizer none $(TARGET) corpus/$(TARGET) $(FUZZ_SEEDS) -- \
	  -max_total_time=$(FUZZ_SECONDS) -max_len=16384 -timeout=20 $(if $(wildcard $(FUZZ_DIR)/$(TARGET).dict),-dict=$(TARGET).dict)

bench: setup
	$(CARGO) bench --workspace

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps

setup:
	@deploy/dev/setup.sh
