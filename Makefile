# Every command is shown as it runs; nothing is hidden.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help serve test test-gpu check bench migrate clean
help: ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip

# The stamp files say what is installed: packages to run, and packages to test.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet -c constraints.txt -e '.[structured]'
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/.installed

serve: $(VENV)/.installed ## Install, migrate, start; prints the URL and a curl line
	$(BIN)/headgate serve

migrate: $(VENV)/.installed ## Bring the database to the newest version
	$(BIN)/headgate db upgrade

check: $(VENV)/.installed-test ## Format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(VENV)/.installed-test ## All tests, with a real Redis and PostgreSQL, without root
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-gpu: $(VENV)/.installed-test ## Kernels and decode graphs on this machine's GPU; writes a report with its name
	$(BIN)/python -m tests.benchmarks.run_gpu

bench: $(VENV)/.installed-test ## The figures that the README quotes, as JSON
	$(BIN)/python -m tests.benchmarks.run

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .hypothesis
