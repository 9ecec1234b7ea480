PYTHON ?= python3.11
VENV = .venv
RUN = $(VENV)/bin/python

.PHONY: help demo test test-fast lint format bench clean

help:            ## this list
	@grep -E '^[a-z-]+: .*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/ready  ## segment a photograph with every kind of prompt; pictures in demo/output
	$(RUN) -m demo

test: $(VENV)/ready  ## all tests
	$(RUN) -m pytest

test-fast: $(VENV)/ready  ## the tests that need no full-size network
	$(RUN) -m pytest -m "not slow"

lint: $(VENV)/ready  ## formatting, lint and types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

format: $(VENV)/ready  ## bring the code into shape
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

bench: $(VENV)/ready  ## loading, encoding and prompting against direct use of sam3
	$(RUN) -m benchmarks

clean:           ## remove what the other targets made
	rm -rf $(VENV) .cache demo/output .pytest_cache .mypy_cache .ruff_cache .hypothesis

# the way Ikomia's installer does it, then the tools for developers
$(VENV)/ready: build_requirements.txt requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install "ikomia>=0.16.1,<0.17"
	$(RUN) -m pip install -r build_requirements.txt --no-build-isolation
	$(RUN) -m pip install -r requirements.txt --no-build-isolation
	$(RUN) -m pip install -r requirements-dev.txt
	$(RUN) -m pip check
	touch $@
