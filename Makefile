# `make demo` and `make test` need only Python 3.11 or newer and make; they install everything else.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# uv is used if it is available: it installs the same packages several times faster than pip.
UV := $(shell command -v uv 2>/dev/null)
INSTALL := $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --no-compile)
ARGS ?=

# Each test computes on one thread. The tests of a file run in one process, because they share caches and runs that are
# slow to make.
PYTEST := $(BIN)/pytest -n logical --maxprocesses 8 --dist loadscope --no-loadscope-reorder

.PHONY: setup demo test test-all test-lowest soak check lint types pages docs bench notes release clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/dhkd demo $(ARGS)

test: setup
	$(PYTEST) -m 'not slow and not soak' $(ARGS)

test-all: setup
	$(PYTEST) -m 'not soak' $(ARGS)

soak: setup
	$(PYTEST) -m soak $(ARGS)

# The same tests with the oldest version of each package that pyproject.toml allows, in an environment of their own.
LOWEST ?= .venv-lowest
LOWEST_PYTHON ?= 3.11
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/pytest -n logical --maxprocesses 8 --dist loadscope --no-loadscope-reorder \
		-m 'not slow and not soak' $(ARGS)

$(LOWEST)/.installed: pyproject.toml
	@test -n "$(UV)" || { echo "make test-lowest: expected uv, found none; pip install uv" >&2; exit 1; }
	test -x $(LOWEST)/bin/python || $(UV) venv --quiet --python $(LOWEST_PYTHON) $(LOWEST)
	$(UV) pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	touch $@

check: lint types pages

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pytest -q tests/test_imports.py

# The root package and the root folders stand apart, so mypy gets a folder in which all of them have their import names.
types: setup
	mkdir -p .types/dhkd
	for folder in pipeline stages data configs benchmarks; do ln -sfn ../../$$folder .types/dhkd/$$folder; done
	for file in __init__.py py.typed; do ln -sfn ../../pipeline/package/$$file .types/dhkd/$$file; done
	MYPYPATH=.types $(BIN)/mypy -p dhkd

pages: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: setup
	$(BIN)/dhkd bench $(ARGS)

# The changelog's section of a version, "Unreleased" unless told otherwise: make notes VERSION=0.1.0
VERSION ?= Unreleased
notes:
	@awk '/^## / { inside = $$2 == "$(VERSION)"; next } inside' CHANGELOG.md

# Build the wheel and the source distribution, check both, and try each in a fresh environment.
release:
	PYTHON=$(PYTHON) .ci/release

clean:
	rm -rf $(VENV) $(LOWEST) .types build dist *.egg-info
