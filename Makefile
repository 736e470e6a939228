# make demo and make test do all of the set-up by themselves; the next time it is there already.
#
#   PYTHON       the interpreter that .venv is made with (3.10 to 3.13), e.g. make PYTHON=python3.12
#   VENV         the environment; one with Detectron2 main in it keeps that Detectron2
#   GPU_ARGS     options of microplastics gpu-check, e.g. make gpu GPU_ARGS="--minutes 4"
#   PYTEST_ARGS  arguments for pytest, e.g. make test PYTEST_ARGS="-x tests/data"; "-n 2" adds the slow
#                tests: a whole demo, the notebook, killed and distributed trainings

PYTHON ?= python3
VENV ?= .venv
GPU_ARGS ?=
PYTEST_ARGS ?= -n 2 -m 'not slow'

BIN := $(VENV)/bin
RUN := $(BIN)/python
PIP := $(RUN) -m pip --disable-pip-version-check
NEEDS := requirements.txt setup.py pyproject.toml tools/install_detectron2.py
# The environment is ready for these very files, in this very folder: the stamp's name says which.
KEY := $(shell { cat $(NEEDS); pwd; } | cksum | cut -d ' ' -f 1)
STAMP := $(VENV)/.microplastics-$(KEY)

CHECK_PYTHON = import sys; v = sys.version_info[:2]; \
	sys.exit(0 if (3, 10) <= v <= (3, 13) else "error: Python 3.10 to 3.13 is needed, but " \
	+ sys.executable + " is %d.%d: name another one, as in make PYTHON=python3.12" % v)

.DEFAULT_GOAL := help
.PHONY: help setup test demo gpu docs lint format clean

help:
	@echo "make demo    render particles, train, evaluate, then find, measure and count particles"
	@echo "make test    run the tests (with the slow ones: make test PYTEST_ARGS='-n 2')"
	@echo "make gpu     test and time training and prediction on a GPU, in at most eight minutes"
	@echo "make setup   only the environment ($(VENV)): Python packages, Detectron2, this package"
	@echo "make docs    build the documentation (output/site/index.html)"
	@echo "make lint    check the style; make format fixes it"
	@echo "make clean   remove caches and build files (not $(VENV), not output)"

setup: $(STAMP)
	@echo "$(VENV) is ready"

# pip's -qq prints errors but no warnings, such as those about missing local indexes.
# Every step can be done again, and the stamp comes last: what was interrupted goes on next time.
$(STAMP):
	@command -v $(PYTHON) >/dev/null || \
		{ echo "error: $(PYTHON) is not there: name an interpreter, as in make PYTHON=python3.12" >&2; \
		exit 2; }
	@test -x $(RUN) || $(PYTHON) -c '$(CHECK_PYTHON)'
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(RUN) -c '$(CHECK_PYTHON)'
	$(PIP) install -qq $$(grep -E '^(setuptools|wheel)==' requirements.txt)
	@# A compiled Detectron2 works only with the torch that it was built against, which stays.
	@if $(RUN) -c 'import torch, detectron2._C' 2>/dev/null; \
		then grep -vE '^torch(vision)?==' requirements.txt; else cat requirements.txt; \
		fi > $(VENV)/requirements.txt
	$(PIP) install -qq --no-build-isolation -r $(VENV)/requirements.txt
	$(RUN) tools/install_detectron2.py
	$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.microplastics-*
	@touch $@

# Two processes, one thread an operation: the tests' arrays are small, and threads only get in each
# other's way.
test: $(STAMP)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN) -m pytest -q $(PYTEST_ARGS)

demo: $(STAMP)
	$(BIN)/microplastics demo --output output/demo

gpu: $(STAMP)
	$(BIN)/microplastics gpu-check $(GPU_ARGS)

# A warning of the build is an error.
docs: $(STAMP)
	$(RUN) -m sphinx -q -W --keep-going -b html docs output/site
	@echo "output/site/index.html"

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m black --check --quiet .

format: $(STAMP)
	$(RUN) -m ruff check --fix .
	$(RUN) -m black --quiet .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find microplastics benchmarks tools tests -name __pycache__ -type d -prune -exec rm -rf {} +
