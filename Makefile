# One command each; every target sets up what it needs. Only Python 3.11+, make and a C++ compiler are assumed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SOURCES := pyproject.toml CMakeLists.txt $(wildcard csrc/*)

.PHONY: demo test bench check clean setup

# Read about a million tokens of real text and answer from the middle. N=131072 for a quick one, TEXT=file for your own.
demo: setup
	$(BIN)/longsight demo $(if $(N),--tokens $(N)) $(if $(TEXT),--text $(TEXT)) $(DEMO_ARGS)

test: setup
	$(BIN)/python -m pytest -m "not slow" $(TEST_ARGS)

# Speed and memory, every figure a ratio against a named peer measured in the same run (bench/results/*.json), then the
# known-answer tests at a million tokens and ten minutes of random load.
bench: setup
	$(BIN)/python -m bench $(BENCH_ARGS)
	$(BIN)/python -m pytest -m slow
	LONGSIGHT_SOAK_SECONDS=600 $(BIN)/python -m pytest tests/test_engine_soak.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# `setup` alone installs and builds.
setup: $(STAMP)

$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch>=2.10,<2.14"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist demo-out
