PYTHON ?= python3.11
VENV = .venv
RUN = $(VENV)/bin/python

.PHONY: help demo pictures test test-fast lint format bench clean

help:            ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s%s\n", $$1, $$2}' Makefile

# the demo's options as make's, if they are given to make: make demo IMAGE=photograph.jpg TEXT="yellow bus" WEIGHTS=sam3.pt
# (the quotes keep a value as it was typed)
DEMO_OPTIONS = $(foreach option,IMAGE TEXT POINT LABEL BOX MULTIMASK THRESHOLD CUDA WEIGHTS,\
	$(if $(filter command line,$(origin $(option))),\
	'--$(shell echo $(option) | tr A-Z a-z)=$(subst ','\'',$(value $(option)))'))

demo: $(VENV)/ready  ## segment a drawn scene by every kind of prompt, or IMAGE= by TEXT=, POINT=, BOX=; pictures in demo/output
	$(RUN) -m demo $(DEMO_OPTIONS)

pictures: $(VENV)/ready  ## the README's pictures
	$(RUN) -m demo
	mkdir -p images
	cp demo/output/all.png images/demo.png

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

bench: $(VENV)/ready  ## the table of benchmarks/RESULTS.md: loading, encoding, prompting against direct use of sam3
	$(RUN) -m benchmarks --output benchmarks/RESULTS.md

clean:           ## remove what the other targets made
	rm -rf $(VENV) .cache/sam3_random.pt demo/output .pytest_cache .mypy_cache .ruff_cache .hypothesis

# the way Ikomia's installer does it, then the tools for developers
$(VENV)/ready: build_requirements.txt requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install "ikomia>=0.16.1,<0.17"
	$(RUN) -m pip install -r build_requirements.txt --no-build-isolation
	$(RUN) -m pip install -r requirements.txt --no-build-isolation
	$(RUN) -m pip install -r requirements-dev.txt
	$(RUN) -m pip check
	touch $@
