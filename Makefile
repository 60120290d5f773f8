# Every target builds the virtual environment it needs from `python3` and the package index alone.
#   make demo        train on real images; pictures, report and figures under runs/demo
#   make test        the suite, with coverage; of the zoo, a set that covers all pairs and refusals
#   make test-full   the suite with every combination of model, guide and bound
#   make test-oldest the core of the suite on the oldest versions that pyproject.toml admits
#   make test-all    the ArviZ part of the suite on every other CPython >= 3.11 found here
#   make lint        ruff, mypy, import contract, and that no file reads worse than it did
#   make papers      each paper's experiment in seconds; one at length: NAME=linear_collapse BUDGET=cpu
#   make notebooks   execute the notebooks on a small budget, leaving the files as they are
#   make bench       seconds per training step against hand-written loops

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUDGET ?= smoke
DEMO ?= $(BIN)/python -m pyro_vaes.cli demo --out runs/demo
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8
# One thread per process: the processes already fill the cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# -qq keeps errors and drops pip's progress and warnings.
INSTALL := -m pip install -qq --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-full test-oldest test-all lint papers notebooks bench clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.installed
	$(DEMO)

test: $(VENV)/.installed-test
	$(ONE_THREAD) $(PYTEST) --cov --cov-report=term --cov-fail-under=95

test-full: $(VENV)/.installed-test
	PYRO_VAES_ZOO=full $(ONE_THREAD) $(PYTEST)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/reading.py --check

# Every experiment by name, or the one that NAME says; results lie under runs/papers.
papers: $(VENV)/.installed
	@for name in $${NAME:-$$($(BIN)/python -c 'import papers; print(*papers.STUDIES)')}; do \
		$(BIN)/python -m papers $$name --budget $(BUDGET) || exit 1; \
	done

notebooks: $(VENV)/.installed-dev
	PYRO_VAES_BUDGET=smoke $(ONE_THREAD) $(PYTEST) --nbmake --nbmake-timeout=600 notebooks

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/step.py

test-oldest:
	@PYTHON="$(PYTHON)" INSTALL="$(INSTALL)" WORKERS="$(WORKERS)" bash .ci/test-oldest

test-all:
	@PYTHON="$(PYTHON)" INSTALL="$(INSTALL)" bash .ci/test-all

clean:
	rm -rf .venv .venv-* dist build .coverage .coverage.* htmlcov
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "pyro_vaes needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing pyro_vaes into $(VENV) (torch is large: this takes a minute or two)"
	@$(BIN)/python $(INSTALL) -e .
	@touch $@

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "Installing pyro_vaes[$*] into $(VENV) (torch is large: this takes a minute or two)"
	@$(BIN)/python $(INSTALL) -e ".[$*]"
	@touch $@
