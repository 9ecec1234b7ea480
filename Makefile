PYTHON ?= python3.11
VENV = .venv
RUN = $(VENV)/bin/python

.PHONY: help demo pictures train test test-fast test-install lint format bench soak package clean

help:            ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-14s%s\n", $$1, $$2}' Makefile

# the demo's options as make's, if they are given to make: make demo IMAGE=photograph.jpg TEXT="yellow bus" WEIGHTS=sam3.pt
# (the quotes keep a value as it was typed)
DEMO_OPTIONS = $(foreach option,IMAGE TEXT POINT LABEL BOX BOX_LABEL MULTIMASK THRESHOLD CUDA WEIGHTS,\
	$(if $(filter command line,$(origin $(option))),\
	'--$(shell echo $(option) | tr A-Z a-z)=$(subst ','\'',$(value $(option)))'))

demo: $(VENV)/demo-ready  ## segment a drawn scene by every kind of prompt, or IMAGE= by TEXT=, POINT=, BOX=; pictures in demo/output
	$(RUN) -m demo $(DEMO_OPTIONS)

pictures: $(VENV)/ready  ## the README's pictures
	$(RUN) -m demo
	$(RUN) -m demo.panel
	cp demo/output/all.png images/demo.png
	cp demo/output/panel_filled.png images/panel.png
	cd demo/output && cp text_red_circle.png texts_star_and_circle.png example_box.png text_circle_box_of_what_not.png \
		point_three_candidates.png point_background_point.png box.png three_boxes.png box_background_point.png ../../images

train: $(VENV)/demo-ready  ## train the network of the demo again: 2.5 hours on two cores; writes demo/sam3_shapes.pt
	$(RUN) -m training demo/sam3_shapes.pt

test: $(VENV)/ready  ## all tests but test-install
	$(RUN) -m pytest

test-fast: $(VENV)/ready  ## the tests that need no full-size network
	$(RUN) -m pytest -m "not slow and not install"

test-install: $(VENV)/ready  ## install the plugin from a HUB into an environment that has only ikomia, and use it
	$(RUN) -m pytest -m install

lint: $(VENV)/ready  ## formatting, lint and types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

format: $(VENV)/ready  ## bring the code into shape
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

bench: $(VENV)/ready  ## the table of benchmarks/RESULTS.md: loading, encoding, prompting against direct use of sam3
	$(RUN) -m benchmarks --output benchmarks/RESULTS.md

soak: $(VENV)/ready  ## 2,000 runs by random prompts, good and bad: does memory grow, do files, threads or times?
	$(RUN) -m benchmarks.soak

package:         ## the zip for the Ikomia HUB, of what is committed
	mkdir -p dist
	git archive --output dist/infer_segment_anything_3.zip HEAD

clean:           ## remove what the other targets made
	rm -rf $(VENV) .cache/sam3_random.pt demo/output dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# the order and the options of Ikomia's own installer
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
	touch $@
