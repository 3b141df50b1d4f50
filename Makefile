# Every target that needs the environment makes it first. Measuring targets print their table and, last, one JSON object.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint format types catalogue openapi train-example constraints bench-post bench-demo clean

help:            ## Show what there is.
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 18

install: $(STAMP) ## Create .venv with pinned dependencies.

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Expunge needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[service,worker,dev]'
	touch $(STAMP)

demo: $(STAMP)   ## Watch a real image generator forget a digit, end to end.
	$(BIN)/expunge demo $(ARGS)

test: $(STAMP)   ## Run the whole default suite.
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -m 'not slow and not gpu' $(ARGS)

test-slow: $(STAMP) ## Run the tests that take minutes.
	$(BIN)/python -m pytest -q -m slow $(ARGS)

lint: $(STAMP)   ## Ruff, import contracts, types.
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports && $(BIN)/mypy

format: $(STAMP) ## Format the code.
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

catalogue: $(STAMP) ## Print the engine's catalogue into the service.
	$(BIN)/python -m worker.engine catalogue > service/catalogue.json

openapi: $(STAMP) ## Print the API's description into the service.
	$(BIN)/python -m service.app > service/openapi.json

train-example: $(STAMP) ## Train the digits model again, from its seed (minutes).
	$(BIN)/python -m worker.examples.digits.train

bench-post: $(STAMP) ## Latency of POST /unlearn-requests under load.
	$(BIN)/python tests/benchmarks/bench_post.py

bench-demo: $(STAMP) ## Time and memory of the demo's run, import time of the service.
	$(BIN)/python tests/benchmarks/bench_demo.py

constraints: $(STAMP) ## Pin what is installed now.
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//' > constraints.txt

clean:           ## Remove the environment and everything the demo made.
	rm -rf $(VENV) expunge-demo expunge-data .pytest_cache .mypy_cache .ruff_cache
