# Every target that needs the environment makes it first. Measuring targets print their table and, last, one JSON object.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Test processes side by side, each on one thread: two small networks on two cores beat one network on both, and while the journeys
# through the whole service wait, a third one works. Files in their order, so that these, minutes each, do not come last.
JOBS   ?= 3
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test attacks faults chaos fuzz test-slow lint format types catalogue configuration references openapi train-example constraints bench-post bench-ledger bench-service bench-demo bench-digits bench-sfron bench-sfron-gpu bench-sfron-random bench-i2i bench-i2i-full gate-matrix clean

help:            ## Show what there is.
	@grep -hE '^[a-z0-9-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 20

install: $(STAMP) ## Create .venv with pinned dependencies.

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Expunge needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[service,worker,dev]'
	touch $(STAMP)

demo: $(STAMP)   ## Watch a real image generator forget a digit, end to end.
	$(BIN)/expunge demo $(ARGS)

test: $(STAMP)   ## Run the whole default suite.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder -m 'not slow and not gpu' $(ARGS)

attacks: $(STAMP) ## Every attack on a ledger, a certificate, a receipt and a dossier; the last line counts what went unseen.
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.attacks $(ARGS)

faults: $(STAMP) ## Fifteen fault-injection tests on both stacks, and three controls; 35 minutes (QUICK=1: small, SEEDS=5: five seeds).
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --seeds $(or $(SEEDS),1) $(if $(QUICK),--short) $(ARGS)

chaos: $(STAMP)  ## 200 faults at random moments over 50 requests, on each stack; 60 minutes (QUICK=1: 10; ARGS='--story 10': one of the stories).
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos $(if $(QUICK),--quick) $(ARGS)

fuzz: $(STAMP)   ## Schemathesis against a real server, as each role; 5 minutes (ARGS='--seconds 1800' for more).
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(ARGS)

test-slow: $(STAMP) ## Run the tests that take minutes.
	$(BIN)/python -m pytest -q -m slow $(ARGS)

lint: $(STAMP)   ## Ruff, import contracts, types.
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports && $(BIN)/mypy

format: $(STAMP) ## Format the code.
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

catalogue: $(STAMP) ## Print the engine's catalogue into the service.
	$(BIN)/python -m worker.engine catalogue > .catalogue.new && mv .catalogue.new service/catalogue.json

configuration: $(STAMP) ## Print the reference of all settings.
	$(BIN)/python -m service.config > docs/reference/configuration.md

references: $(STAMP) ## Print the references of metrics and errors.
	$(BIN)/python -m service.telemetry.catalogue > docs/reference/metrics.md
	$(BIN)/python -m service.errors.reference > docs/reference/errors.md

openapi: $(STAMP) ## Print the API's description into the service, and its types into the client.
	$(BIN)/python -m service.app > .openapi.new && mv .openapi.new service/openapi.json
	$(BIN)/python -m datamodel_code_generator --output service/client/bodies.py

train-example: $(STAMP) ## Train the digits model again, from its seed (minutes).
	$(BIN)/python -m worker.examples.digits.train

bench-post: $(STAMP) ## Latency of POST /unlearn-requests under load.
	$(BIN)/python tests/benchmarks/bench_post.py

bench-ledger: $(STAMP) ## The audit ledger: appends a second, a million entries, signing 200 MB; 10 minutes.
	$(BIN)/python -m tests.benchmarks.bench_ledger $(ARGS)

bench-service: $(STAMP) ## POST, pages over a million entries, 500 listeners, downloads, claims, first steps, memory; 6 minutes (ARGS=--small: 2).
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.bench_service $(ARGS)

bench-demo: $(STAMP) ## Time and memory of the demo's run, import time of the service.
	$(BIN)/python tests/benchmarks/bench_demo.py

bench-digits: $(STAMP) ## Every digit forgotten in turn: forget rate, retained accuracy, feature distance (QUICK=1: three digits).
	$(BIN)/python -m tests.benchmarks.bench_sfron --only digits $(if $(QUICK),--quick) $(ARGS)

bench-sfron: $(STAMP) ## SFR-on: speed, quality, ranks; 90 minutes (QUICK=1: 10). CIFAR-10 needs EXPUNGE_DATA.
	$(BIN)/python -m tests.benchmarks.bench_sfron $(if $(QUICK),--quick) $(ARGS)

bench-sfron-gpu: $(STAMP) ## The same on one NVIDIA H200, and a CIFAR-10 DDPM of its own; 25 minutes. Needs EXPUNGE_DATA.
	$(BIN)/python -m tests.benchmarks.bench_sfron_gpu $(if $(QUICK),--quick) $(ARGS)

bench-sfron-random: $(STAMP) ## A random 10 % forgotten by every method, beside retraining; 3 hours (QUICK=1: less). Needs EXPUNGE_DATA.
	$(BIN)/python -m tests.benchmarks.bench_sfron_random $(if $(QUICK),--quick) $(ARGS)

bench-i2i: $(STAMP) ## Image-to-image: what is forgotten and kept, and how fast; 60 minutes (QUICK=1: 10). CIFAR-10 needs EXPUNGE_DATA.
	$(BIN)/python -m tests.benchmarks.bench_i2i $(if $(QUICK),--quick) $(ARGS)

bench-i2i-full: $(STAMP) ## The same on both splits, under every corruption, with 3 seeds; hours. Needs EXPUNGE_DATA.
	$(BIN)/python -m tests.benchmarks.bench_i2i --full $(ARGS)

gate-matrix: $(STAMP) ## Does the gate refuse every fake and pass every retrain? 90 minutes (QUICK=1: digits, 15). CIFAR-10 needs EXPUNGE_DATA.
	$(BIN)/python -m tests.benchmarks.bench_gate $(if $(QUICK),--quick) $(ARGS)

constraints: $(STAMP) ## Pin what is installed now.
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//' > constraints.txt

clean:           ## Remove the environment and everything the demo made.
	rm -rf $(VENV) expunge-demo expunge-data .pytest_cache .mypy_cache .ruff_cache
