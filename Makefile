# One command each; every target sets up what it needs. Only Python 3.11+, make and a C++ compiler are assumed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# make TORCH=cuda: PyTorch's CUDA build instead of the one for CPUs.
TORCH  ?= cpu
SETUP  := $(PYTHON) scripts/setup.py --torch $(TORCH)

.PHONY: demo test bench check lock canary wheel clean setup setup-demo

# Read about a million tokens of real text and answer from the middle. N=131072 for a quick one, TEXT=file for your own.
demo: setup-demo
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

# Install what locks/python.txt says and build the kernels: everything, or only what the demo takes.
setup:
	$(SETUP) dev

setup-demo:
	$(SETUP) demo

# Write the locks anew after a change in pyproject.toml. UPGRADE=1 raises every package to the newest its bound allows.
lock: setup
	$(BIN)/python scripts/lock.py $(if $(UPGRADE),--upgrade)

# Run the tests with every package as new as its bound allows, and name what broke and by which package.
canary: setup
	$(BIN)/python scripts/canary.py $(TESTS)

# dist/: the sdist, and from it a wheel for every Python and any Linux with glibc 2.31 or newer.
wheel: setup
	$(BIN)/python scripts/wheel.py

clean:
	rm -rf $(VENV) .canary build dist demo-out
