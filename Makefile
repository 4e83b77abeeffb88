# make demo   set up an environment and make the first table (downloads packages, no data and no weights)
# make test   set up an environment and run linters, type checks and tests
# make bench  measure the speed claims of results/benchmarks; PARTS="probe heads" measures some of them
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench build clean

$(VENV)/demo: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[cpu]'
	touch $@

$(VENV)/dev: $(VENV)/demo
	$(BIN)/python -m pip install --quiet --editable '.[cpu,dev]'
	touch $@

demo: $(VENV)/demo
	$(BIN)/bench quickstart

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest

bench: $(VENV)/dev
	$(BIN)/python tests/benchmarks/run.py $(if $(PARTS),--only $(PARTS))

build: $(VENV)/dev
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
