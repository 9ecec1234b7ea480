PYTHON ?= python3.11
VENV = .venv
RUN = $(VENV)/bin/python

# OpenMP's threads spin while they wait for each other; where processes share cores, this makes small networks up to 90
# times slower
demo test test-slow: export GOMP_SPINCOUNT ?= 1000

.PHONY: help demo pictures train test test-slow test-install lint format bench soak package clean

help:            ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-14s%s\n", $$1, $$2}' Makefile

# make demo IMAGE=photograph.jpg TEXT="yellow bus" WEIGHTS=sam3.pt passes these variables on as the demo's options; the
# quotes keep a value as it was typed
DEMO_OPTIONS = $(foreach option,IMAGE TEXT POINT LABEL BOX BOX_LABEL MULTIMASK POINTS_PER_SIDE THRESHOLD TILE_SIZE CUDA WEIGHTS,\
	$(if $(filter command line,$(origin $(option))),\
	'--$(shell echo $(option) | tr A-Z a-z)=$(subst ','\'',$(value $(option)))'))

demo: $(VENV)/demo-ready  ## segment a synthetic scene with every kind of prompt, or IMAGE= with TEXT=, POINT=, BOX=, POINTS_PER_SIDE=; writes demo/output
	$(RUN) -m demo $(DEMO_OPTIONS)

pictures: $(VENV)/ready  ## redraw the pictures of the README and the docs in images/
	$(RUN) -m demo
	$(RUN) -m demo.panel
	$(RUN) -m demo.docs_pictures

train: $(VENV)/demo-ready  ## train the demo's network again (2.5 hours on two cores); writes demo/sam3_shapes.pt
	$(RUN) -m training demo/sam3_shapes.pt

# two processes: most tests use one core; --dist loadfile keeps the fixtures of a file in one process
TEST_PROCESSES ?= 2
PARALLEL = -n $(TEST_PROCESSES) --dist loadfile

test: $(VENV)/ready  ## run all tests except test-slow and test-install
	$(RUN) -m pytest $(PARALLEL) -m "not slow and not install"

test-slow: $(VENV)/ready  ## compare a full-size network with the sam3 package and with transformers
	$(RUN) -m pytest $(PARALLEL) -m slow

test-install: $(VENV)/ready  ## install the plugin from a local HUB into an environment with only ikomia, and use it
	$(RUN) -m pytest -m install

lint: $(VENV)/ready  ## check formatting, lint rules, spelling and types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m codespell_lib
	$(RUN) -m mypy
	$(RUN) -m mypy --platform win32 --cache-dir .mypy_cache/windows

format: $(VENV)/ready  ## format the code, and fix what lint can fix
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

bench: $(VENV)/ready  ## measure loading, encoding and prompting against direct use of sam3; writes benchmarks/RESULTS.md
	$(RUN) -m benchmarks --output benchmarks/RESULTS.md

soak: $(VENV)/ready  ## run 2,000 random prompts, valid and invalid: memory, files, threads and times must not grow
	$(RUN) -m benchmarks.soak

package:         ## build the package for the Ikomia HUB from the last commit
	mkdir -p dist
	git archive --output dist/infer_segment_anything_3.zip HEAD

clean:           ## remove everything that the other targets made
	rm -rf $(VENV) .cache/sam3_random.pt demo/output dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# in the order and with the options of Ikomia's own installer
$(VENV)/demo-ready: build_requirements.txt requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install "ikomia>=0.16.1,<0.17"
	$(RUN) -m pip install -r build_requirements.txt --no-build-isolation
	$(RUN) -m pip install -r requirements.txt --no-build-isolation
	$(RUN) -m pip check
	touch $@

$(VENV)/ready: $(VENV)/demo-ready requirements-dev.txt sam3_batch/requirements.txt
	$(RUN) -m pip install -r requirements-dev.txt -r sam3_batch/requirements.txt
	$(RUN) -m pip check
	mkdir -p $(VENV)/typing
	ln -sfn ../.. $(VENV)/typing/infer_segment_anything_3
	touch $@
