# Everything a newcomer types. `make demo` and `make test` do their own set-up; nothing but Python 3.11-3.13 is needed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help install demo test test-slow bench lint up clean
.DEFAULT_GOAL := help

help:           ## this list
	@grep -E '^[a-z-]+: .*##' Makefile | sed -E 's/: .*##/\t/' | expand -t 12

install: $(STAMP)   ## make .venv and install Headgate with its tools

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; assert (3, 11) <= v <= (3, 13), f"Python {v} found, 3.11 to 3.13 wanted: make install PYTHON=python3.11"'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: install   ## a year of flights through the whole loop, on a real Kafka (about 4 CPU minutes)
	@$(BIN)/headgate demo

test: install lint   ## lint, types, import contracts and the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow'

test-slow: install   ## the long statistics and fault schedules
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow --timeout 7200

bench: install   ## all benchmarks, one JSON object each
	@for file in tests/benchmarks/[a-z]*.py; do $(BIN)/headgate bench $$(basename $$file .py) --json || exit 1; done

lint: install   ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

up: install   ## worker, gateway and dashboard on this machine
	$(BIN)/headgate up

clean:          ## remove what install and runs made
	rm -rf .venv var build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
