# Each target makes the virtual environment first, if it is not there or pyproject.toml or constraints.txt are newer.

PYTHON ?= python3
PORT ?= 5000
SWEEP ?= experiments/demo.yaml
BIN := $(CURDIR)/.venv/bin
READY := .venv/.ready

# `make sweep FILE` would run SWEEP's default and then look for a target FILE.
ifneq ($(filter %.yaml,$(MAKECMDGOALS)),)
$(error name the sweep file so: make sweep SWEEP=$(firstword $(filter %.yaml,$(MAKECMDGOALS))))
endif

.DEFAULT_GOAL := help
.PHONY: help sweep report repro push test lint ui bench

help: ## show available targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

sweep: $(READY) ## all trials of SWEEP=experiments/demo.yaml that are not done, and their table; ARGS="--plan" shows what it takes
	@PATH="$(BIN):$$PATH" $(BIN)/python -m pipeline.sweep $(SWEEP) $(ARGS)

report: $(READY) ## the page of SWEEP: table, figures, utterances to play, missing trials, provenance
	@$(BIN)/python -m pipeline.report $(SWEEP) $(ARGS)

repro: $(READY) ## the trial of params.yaml, from weights and corpus to word error rate and sinks
	@$(BIN)/python -m pipeline.stages $(ARGS)

push: $(READY) ## weights, corpora, features and done trials to the DVC remote; another clone has them after dvc pull
	@PATH="$(BIN):$$PATH" $(BIN)/python -m pipeline.push

test: $(READY) ## all tests; ARGS="-k prune" chooses, ARGS='-m "not slow"' leaves out those that train or start commands
	@$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal $(if $(filter true 1,$(CI)),-p tests.no_skips) $(ARGS)

lint: $(READY) ## style and types of the code
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(READY) ## benchmarks: a sweep against Ray Tune and MLflow alone, search, sinks, a trial of the paper's size, decoding
	@PYTHONPATH=. $(BIN)/python tests/bench_sweep.py $(ARGS)
	@PYTHONPATH=. $(BIN)/python tests/bench_search.py
	@PYTHONPATH=. $(BIN)/python tests/bench_sinks.py
	@PYTHONPATH=. $(BIN)/python tests/bench_shapes.py
	@PYTHONPATH=. $(BIN)/python tests/bench_decoding.py

ui: $(READY) ## MLflow on 127.0.0.1, over the runs tracked here; PORT=5001 chooses
	@$(BIN)/python -m pipeline.ui --port $(PORT)

# pip would compile on one core, and files that nothing imports; what is left out here is compiled when it is imported.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
		echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13; choose one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "setting up .venv: about two minutes, once"
	@began=$$(date +%s); \
	{ test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv; } && \
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-input --no-compile -c constraints.txt -e '.[dev]' && \
	{ $(BIN)/python -m compileall -qq -j 0 -x '/tests/|/transformers/models/' .venv/lib || true; } && \
	touch $@ && echo "set up .venv in $$(($$(date +%s) - began)) s"
