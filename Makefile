# Everything a newcomer needs, in one virtual environment of its own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PACKAGES := m3_backend predictor router deploy

.DEFAULT_GOAL := help
.PHONY: help serve test check format docs bench screenshots alerts fuzz soak tiny clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */\1|/' | column -t -s '|'

serve: $(INSTALLED) ## the whole system on this machine, on http://127.0.0.1:8000 (ARGS='--port 8001' and so on)
	@$(BIN)/m3-router serve $(ARGS)

test: $(INSTALLED) ## the tests (ARGS='tests/router -k policy' narrows them)
	$(BIN)/pytest -m 'not slow' --durations=25 --durations-min=2 $(ARGS)

check: $(INSTALLED) ## what CI runs: format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -m 'not slow' --durations=25 --durations-min=2 $(ARGS)

format: $(INSTALLED) ## rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(INSTALLED) ## write the tables of docs/operations.md and the Grafana dashboard again, from the code
	$(BIN)/python -m deploy.reference
	$(BIN)/python -m deploy.grafana_dashboard

bench: $(INSTALLED) ## the benchmarks; results under benchmarks/results
	$(BIN)/python -m benchmarks $(ARGS)

screenshots: $(INSTALLED) ## pictures of the page for docs/, from a service that runs (ARGS='--url http://127.0.0.1:8000')
	$(BIN)/python -m benchmarks.screenshots $(ARGS)

alerts: $(INSTALLED) ## which alerts a real Prometheus fires in scripted faults; five quiet minutes
	$(BIN)/python -m benchmarks.alerts $(ARGS)

fuzz: $(INSTALLED) ## random requests by /openapi.json, for minutes (FUZZ_EXAMPLES=N of each kind)
	FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),5000) $(BIN)/pytest tests/hostile/test_schema.py $(ARGS)

soak: $(INSTALLED) ## 20,000 requests, half of them hostile, against the whole service: memory, event loop
	$(BIN)/python -m benchmarks.soak $(ARGS)

tiny: $(INSTALLED) ## train m3-tiny from nothing into runs/tiny (hours on a CPU; stopped runs go on)
	$(BIN)/python -m m3_backend.training.train --out runs/tiny $(ARGS)

clean: ## remove caches and build outputs; the environment stays (rm -r .venv removes it)
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(PACKAGES) tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; say which with: make PYTHON=python3.12 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Installing m3-router into $(VENV); once, some minutes ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
