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

.PHONY: help demo test test-slow test-docs kills fuzz nightly programs lint types bench setup clean

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(READY) ## the small world, from base model to report: 5 minutes on 2 cores
	$(BIN)/kleash demo
	@$(BIN)/python -c 'import json; s = json.load(open("runs/demo/summary.json")); print("seconds:", \
		", ".join(f"{name} {value:.0f}" for name, value in s["stages"].items()), "· total", round(s["seconds"]))'

test: $(READY) ## the fast tests
	$(PYTEST) -m "not slow and not docs"

test-slow: $(READY) ## the slow tests: closed forms, kill and resume, the small demo; PART=2/3 runs every third file
	KLEASH_TEST_PART=$(PART) $(PYTEST) -m "slow and not docs"

test-docs: $(READY) ## every command and snippet of README and docs, as printed
	$(PYTEST) -m docs tests/docs

kills: $(READY) ## 300 kills of tiny runs, each compared with one that was left alone: 10 minutes
	$(BIN)/python -m tests.nightly.kills --kills 300

fuzz: $(READY) ## 100,000 damaged inputs to every reader: 20 minutes
	$(BIN)/python -m tests.nightly.fuzz --inputs 100000

nightly: lint types test demo test-slow test-docs kills fuzz ## everything that CI runs in rotation, at once, and more

programs: $(READY) ## what some tests need besides: Chromium, PostgreSQL, TRL and trackio
	@.ci/programs

lint: $(READY) ## style, format and the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY) ## the type checker
	$(BIN)/mypy

bench: $(READY) ## ratios against the plain way, in one run each
	@for file in benchmarks/*.py; do echo "== $$file"; $(firstword $(wildcard .venv-extra/bin/python) $(BIN)/python) $$file || exit 1; done

setup: $(READY) ## only the set-up

# A stamp, so that the set-up is made once and again when the dependencies change. PyTorch goes first and alone: no other
# index may answer with gigabytes of CUDA, unless its own cannot be reached. What PyTorch itself needs comes with the
# rest, from PyPI.
$(READY): pyproject.toml
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "kleash needs Python 3.11 or newer; install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || \
		{ echo "this Python cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "setting up .venv: PyTorch from $(TORCH_INDEX), then kleash and what it needs (minutes, once)"
	@rm -f .venv/torch.log; \
	if $(PIP) --log .venv/torch.log --retries 0 --timeout 15 --no-deps --index-url $(TORCH_INDEX) "$(TORCH)" 2>/dev/null; then \
		! grep -q "Could not fetch URL" .venv/torch.log || \
			echo "no answer from $(TORCH_INDEX), so $(TORCH) was taken from this machine's pip configuration"; \
	elif grep -q "Could not fetch URL" .venv/torch.log; then \
		echo "no answer from $(TORCH_INDEX), so $(TORCH) is taken from pip's own index"; \
		$(PIP) --no-deps "$(TORCH)" 2>/dev/null || \
			{ echo "no $(TORCH) there either; name another: make TORCH=torch==VERSION TORCH_INDEX=URL" >&2; exit 1; }; \
	else \
		echo "no $(TORCH) from $(TORCH_INDEX); name another: make TORCH=torch==VERSION TORCH_INDEX=URL" >&2; exit 1; \
	fi
	@$(PIP) -e ".[dev]" 2>.venv/pip.log || \
		{ grep ERROR .venv/pip.log >&2; echo "pip cannot install what kleash needs; all it said is in .venv/pip.log" >&2; exit 1; }
	@touch $@

clean: ## the set-up and every cache, not the runs
	rm -rf .venv .venv-extra dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
