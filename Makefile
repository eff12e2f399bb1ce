# Everything a person or CI runs, by name; `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
# Package index for torch alone; PyTorch's own CPU index spares a Linux machine without a GPU the CUDA libraries.
TORCH_INDEX ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# One process more than a small machine has cores, for tests wait for servers a third of their time; files stay
# whole, so their servers are started once.
PARALLEL := -n 3 --dist loadfile
TEST_ARGS ?=
BENCH_ARGS ?=
# Kills of `make faults` with the timed engine.
KILLS ?= 300
# Trials of each gate, and processes that make them.
N ?= 400
JOBS ?= 2
MINUTES ?= 30

setup: .venv/.installed  ## install into .venv; afterwards .venv/bin/stillmotion works
demo: setup  ## make both videos of the README over HTTP, with the small weights, on the CPU
	$(BIN)/python examples/demo.py
serve: setup  ## run the server on http://127.0.0.1:8000
	$(BIN)/stillmotion serve
test: .venv/.installed-dev lint types  ## all checks and tests; what CI runs
	$(BIN)/python tests/js/setup
	$(BIN)/python -m pytest $(PARALLEL) $(TEST_ARGS)
check: .venv/.installed-dev  ## quick tests (no server processes), for before each commit
	$(BIN)/python -m pytest -q $(PARALLEL) tests/unit tests/store tests/http $(TEST_ARGS)
lint: .venv/.installed-dev  ## ruff, import floors, house rules, generated docs up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python checks/house.py
	$(BIN)/python checks/settings_page.py --check
types: .venv/.installed-dev  ## pyright
	$(BIN)/pyright
# BASE and KEY: the same clients against somebody else's server, or fal itself.
conformance: export CONFORMANCE_BASE = $(BASE)
conformance: export CONFORMANCE_KEY = $(KEY)
conformance: .venv/.installed-dev  ## every fal client by every door, as a table (BASE=URL KEY=id:secret: there)
	@$(BIN)/python tests/js/setup
	@$(BIN)/python -m pytest tests/conformance$(if $(BASE),/test_matrix.py) $(TEST_ARGS)
bench: .venv/.installed-dev  ## ready time, stopwatches, seconds per video, status reads, memory; prints a table
	$(BIN)/python -m bench.serve
soak: .venv/.installed-dev  ## half an hour at full rate with 1 % faults: does anything grow? (MINUTES=30)
	$(BIN)/python -m bench.soak --minutes $(MINUTES)
bench-gpu: setup  ## full-size networks with random weights on CUDA (BENCH_ARGS="--results FILE --minutes 6")
	$(BIN)/python -m bench.gpu $(BENCH_ARGS)
faults: .venv/.installed-dev  ## kill the server or its runner 300 times under load, 20 with the small weights (KILLS=300)
	KILLS=$(KILLS) $(BIN)/python -m pytest tests/faults -s $(TEST_ARGS)
	KILLS=20 KILL_ENGINE=pocket $(BIN)/python -m pytest tests/faults/test_kills.py -s $(TEST_ARGS)
docs: .venv/.installed-dev  ## write docs/settings.md anew from the settings
	$(BIN)/python checks/settings_page.py
train-pocket: .venv/.installed-dev  ## train the small weights from nothing (about 12 hours on one core); goes on with the part it stopped at
	state=$${POCKET_STATE:-.pocket}; mkdir -p $$state; for step in codec text vision picture video decoder; do \
		test -e $$state/$$step.done || { $(BIN)/python -m training.train_$$step && touch $$state/$$step.done; } || exit; done
	$(BIN)/python -m training.export
gates: .venv/.installed-dev  ## hold the small weights against their gates; goes on where it stopped (N=400 JOBS=2)
	$(BIN)/python -m training.gates --n $(N) --jobs $(JOBS)
help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup demo serve test check lint types conformance bench soak bench-gpu faults docs train-pocket gates help

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and none is on the PATH."; exit 1; }
	@echo "Installing into .venv; the downloads take a minute or several."
	$(PYTHON) -m venv .venv

# Torch goes first and alone, so that TORCH_INDEX decides its build and nothing else.
.venv/.torch: constraints.txt | .venv/bin/python
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) --only-binary torch torch
	@touch $@

.venv/.installed: pyproject.toml constraints.txt .venv/.torch
	$(PIP) -e .
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt .venv/.torch
	$(PIP) -e '.[dev,postgres,train]'
	@touch $@ .venv/.installed
