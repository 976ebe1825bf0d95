# Everything runs in .venv, which the first target to need it makes: Python 3.11 or newer, gcc and make are all it takes.
#
# PyTorch comes as its CPU wheel unless told otherwise. For a GPU, name the wheels of your driver, from a clean start:
#     make clean demo TORCH_INDEX=https://download.pytorch.org/whl/cu130

TORCH ?= torch==2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

BIN := .venv/bin
PIP := $(BIN)/pip install --disable-pip-version-check $(shell test -t 2 || echo -qq)# pip's own progress in a terminal
PYTEST := $(BIN)/pytest -q -n auto --dist loadscope# a process a core, each module in one of them
READY := .venv/ready

.PHONY: help demo test test-slow lint types bench setup clean

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(READY) ## the small world, from base model to report: 5 minutes on 2 cores
	$(BIN)/kleash demo

test: $(READY) ## the fast tests
	$(PYTEST) -m "not slow"

test-slow: $(READY) ## the slow tests: training to the closed form, kill and resume, the demo made small
	$(PYTEST) -m slow

lint: $(READY) ## style, format and the floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY) ## the type checker
	$(BIN)/mypy

bench: $(READY) ## ratios against the plain way, in one run each
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

setup: $(READY) ## only the set-up

# A stamp, so that the set-up is made once and again when the dependencies change. PyTorch goes first and alone: no other
# index may answer with gigabytes of CUDA. What PyTorch itself needs comes with the rest, from PyPI.
$(READY): pyproject.toml
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "kleash needs Python 3.11 or newer; install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || \
		{ echo "this Python cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "setting up .venv: PyTorch from $(TORCH_INDEX), then kleash and what it needs (minutes, once)"
	@$(PIP) --retries 2 --no-deps --index-url $(TORCH_INDEX) "$(TORCH)" || \
		{ echo "no $(TORCH) from $(TORCH_INDEX); name another: make TORCH=torch==VERSION TORCH_INDEX=URL" >&2; exit 1; }
	@$(PIP) -e ".[dev]"
	@touch $@

clean: ## the set-up and every cache, not the runs
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
