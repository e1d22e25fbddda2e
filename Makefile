# make serve   install if needed, build the sample data, start the server (Ctrl-C stops it)
# make test    install if needed; lint, types and all tests
# make help    the rest

VENV := .venv
BIN := $(VENV)/bin
# The exact set of requirements.txt needs 3.11 or newer; monailabel stops before 3.13.
USABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c '$(USABLE)' 2>/dev/null && command -v $$p && break; done)
SAMPLES ?= sample_data/built
STUDIES ?= $(SAMPLES)/studies
# more options for `esp-medsam serve`, e.g. make serve SERVE_ARGS="--port 8001"
SERVE_ARGS ?=
# more options for pytest, e.g. make test PYTEST_ARGS="-m 'not e2e' -x"
PYTEST_ARGS ?=
# processes that share the tests, a file each; one thread each, as tests wait for servers a lot
WORKERS ?= 2

# sam2 would compile a CUDA extension that nothing here uses
export SAM2_BUILD_CUDA := 0
# pinned set: pip's own age is no news
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install reinstall serve samples doctor test lint types unit format lock manifest wheel clean distclean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## install     .venv with the exact set of requirements.txt; .venv/bin/esp-medsam is the command line
install: $(VENV)/installed

# Stamps: written last, so that an installation that was stopped goes on at the next call.
$(VENV)/installed: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" && "$(PYTHON)" -c '$(USABLE)' || { \
		echo "Python 3.11 or 3.12 is needed and was not found (found: $(or $(PYTHON),none))."; \
		echo "Install it, or name it: make $(or $(MAKECMDGOALS),install) PYTHON=/path/to/python3.11"; \
		exit 1; }
	@echo "== Installing into $(VENV): 8 GB on disk, some minutes the first time"
	"$(PYTHON)" -m venv $(VENV)
	@echo "== 1 of 3: torch"
	$(BIN)/python -m pip install --constraint requirements.txt setuptools torch
	@echo "== 2 of 3: everything else"
	$(BIN)/python -m pip install --no-build-isolation --requirement requirements.txt
	@echo "== 3 of 3: esp-medsam-app"
	$(BIN)/python -m pip install --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/python -m pip install --no-build-isolation --requirement requirements-dev.txt
	@touch $@

## serve       sample data, then the server on http://127.0.0.1:8000; SERVE_ARGS="..." adds options
serve: $(VENV)/installed
	@$(BIN)/esp-medsam sample-data --output "$(SAMPLES)"
	@$(BIN)/esp-medsam serve --studies "$(STUDIES)" $(SERVE_ARGS)

## samples     build the sample data only
samples: $(VENV)/installed
	@$(BIN)/esp-medsam sample-data --output "$(SAMPLES)"

## doctor      check the installation
doctor: $(VENV)/installed
	@$(BIN)/esp-medsam doctor

## test        lint, types and all tests; PYTEST_ARGS="..." adds options
test: lint types unit

## lint        ruff: format and rules
lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

## types       mypy
types: $(VENV)/installed-dev
	$(BIN)/mypy

## unit        pytest only
unit: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(PYTEST_ARGS)

## format      let ruff mend what it can
format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

## lock        write requirements*.txt from what is installed in .venv
lock: $(VENV)/installed-dev
	$(BIN)/python scripts/lock_requirements.py

## manifest    write sample_data/manifest.json after a change of the sample cases
manifest: $(VENV)/installed
	$(BIN)/python -c "from esp_medsam_app.samples import *; import sys; \
		sys.stdout.buffer.write(to_json(description()))" > sample_data/manifest.json

## wheel       a wheel of the package in dist/
wheel: $(VENV)/installed
	$(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

## reinstall   remove .venv and install anew
reinstall:
	rm -rf $(VENV)
	$(MAKE) install

## clean       remove what builds and tests made
clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

## distclean   clean, and remove .venv and the sample data with all labels made on it
distclean: clean
	rm -rf $(VENV) sample_data/built
