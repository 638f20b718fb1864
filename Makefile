# The commands of this project.  `make help` lists them.
#
# Everything is installed into .venv.  Stamp files in it say how far that has come: a first try that
# broke goes on where it stopped, and once all is there no command needs the network.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SIZE ?= 2048
SEEDS ?= 0:10000
MODEL ?= sequential
JOBS ?= $(shell nproc)
CHAOS_SEED ?=
CHAOS_EVENTS ?= 200
FUZZ_SECONDS ?= 60
PYTEST_ARGS ?=
BENCH_ARGS ?= basic

SHIM_SOURCES := $(wildcard dsm/_native/*.c dsm/_native/*.h dsm/_native/*.cdef dsm/_native/build_shim.py)
LINTED := dsm tests examples setup.py

# Somebody else's environment must not decide what our interpreter imports.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A .venv that belongs to another directory (the clone was moved), another interpreter or one that is
# gone is made anew.
IDENTITY := $(CURDIR) $(PYTHON)
ifneq ($(wildcard $(VENV)/.identity),)
ifneq ($(IDENTITY),$(file < $(VENV)/.identity))
STALE := stale
endif
ifeq ($(wildcard $(BIN)/python),)
STALE := stale
endif
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test matrix lint simulate chaos fuzz bench clean stale

help:  ## list these commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18
	@echo "Variables: PYTHON=$(PYTHON) SIZE=$(SIZE) MODEL=$(MODEL) SEEDS=$(SEEDS) JOBS=$(JOBS) FUZZ_SECONDS=$(FUZZ_SECONDS) CHAOS_SEED= CHAOS_EVENTS=$(CHAOS_EVENTS) PYTEST_ARGS= BENCH_ARGS=$(BENCH_ARGS)"

$(VENV)/.identity: $(STALE)
	$(if $(lacking),$(error $(lacking)))
	@echo "making $(VENV) ..."
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@printf '%s' '$(IDENTITY)' > $@

# Evaluated only where it is used: nobody pays for it once .venv is there.
lacking = $(shell sh .ci/prerequisites.sh '$(PYTHON)')

# The shim is built here too (an editable install builds it in place).
$(VENV)/.packages: $(VENV)/.identity pyproject.toml setup.py
	$(if $(lacking),$(error $(lacking)))
	@echo "installing into $(VENV) (the first time this takes a minute or two) ..."
	@$(BIN)/python -m pip install -qq 'setuptools>=77' 'cffi>=1.16' wheel
	@$(BIN)/python -m pip install -qq --no-build-isolation --editable '.[dev]'
	@touch $@ $(VENV)/.fresh

$(VENV)/.shim: $(VENV)/.packages $(SHIM_SOURCES)
	$(if $(lacking),$(error $(lacking)))
	@rm $(VENV)/.fresh 2>/dev/null || { echo "building the shim ..."; $(BIN)/python setup.py --quiet build_ext --inplace --force; }
	@touch $@

setup: $(VENV)/.shim  ## make .venv, install dsm and its tools into it, build the shim

demo: setup  ## smooth and shade a real terrain on two nodes and four workers, check it, write terrain.png
	@$(BIN)/dsm run -n 4 --nodes 2 examples/terrain.py --check --size $(SIZE)

test: setup  ## run the whole test suite (PYTEST_ARGS="-k name" for a part)
	@$(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

matrix: setup  ## run the examples over all combinations of nodes, workers and options, and their commands
	@DSM_MATRIX=1 $(BIN)/python -m pytest -n auto tests/examples $(PYTEST_ARGS)

lint: setup  ## check style, format and types
	@$(BIN)/ruff check $(LINTED)
	@$(BIN)/ruff format --check --quiet $(LINTED)
	@$(BIN)/mypy

simulate: setup  ## run the simulator over many seeds (MODEL=release SEEDS=from:to JOBS=2)
	@$(BIN)/python -m dsm.testing.simulation --model $(MODEL) --seeds $(SEEDS) --jobs $(JOBS)

chaos: setup  ## kill, stop and cut off parts of real jobs at random (CHAOS_EVENTS=200 CHAOS_SEED=)
	@$(BIN)/python -m dsm.testing.chaos --events $(CHAOS_EVENTS) $(if $(CHAOS_SEED),--seed $(CHAOS_SEED))

fuzz: $(VENV)/.fuzzer  ## let a coverage-guided fuzzer talk to every decoder (FUZZ_SECONDS=60)
	@FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python tests/fuzz/run.py

$(VENV)/.fuzzer: $(VENV)/.shim
	@$(BIN)/python -m pip install -qq --no-build-isolation --editable '.[fuzz]'
	@touch $@

bench: setup  ## measure (BENCH_ARGS="fault --write --json FILE")
	@$(BIN)/dsm bench $(BENCH_ARGS)

clean:  ## remove everything that make made
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis terrain.png
	@rm -f dsm/_native/*.so dsm/_native/*.o dsm/_native/_shim.c
	@find dsm tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
