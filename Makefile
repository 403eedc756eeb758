# `make demo` and `make test` each do all their own set-up, in either order, and leave nothing outside this folder
# but pip's cache. Choose a build of torch with `make TORCH_INDEX=<index URL> demo` (see the README).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX) ,)torch

export MPLCONFIGDIR := $(CURDIR)/$(VENV)/matplotlib
export HF_HOME := $(CURDIR)/$(VENV)/huggingface
export MPLBACKEND := Agg
# Two cores: more threads than that only fight each other.
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-slow torture lint types format clean

demo: $(VENV)/.core
	@$(BIN)/probe demo

test: lint types
	@mkdir -p $(VENV)/tmp
	@TMPDIR=$(CURDIR)/$(VENV)/tmp OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(VENV)/.dev
	@mkdir -p $(VENV)/tmp
	@TMPDIR=$(CURDIR)/$(VENV)/tmp $(BIN)/python -m pytest -m slow

# The store under faults at full counts, up to ten minutes; as root it also fills a disk and cuts a power.
torture: $(VENV)/.dev
	@mkdir -p $(VENV)/tmp
	@TMPDIR=$(CURDIR)/$(VENV)/tmp OMP_NUM_THREADS=1 $(BIN)/python tests/store/torture.py

lint: $(VENV)/.dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: $(VENV)/.dev
	@$(BIN)/mypy

format: $(VENV)/.dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "persona-probe needs Python 3.11 or newer; none was found. Install one, or name it: make PYTHON=/path/to/python3 demo"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu install python3-venv"; rm -rf $(VENV); exit 1; }

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing persona-probe into $(VENV) (a minute or two the first time) ..."
	@$(PIP) install --quiet --constraint constraints.txt $(TORCH)
	@$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@$(PIP) install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
