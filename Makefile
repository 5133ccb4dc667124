# Every target makes the virtual environment that it needs; nothing has to be installed by hand but Python 3.11 to 3.13.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
CLIENTS := .venv-clients/.setup-stamp
SIGNING := .venv-model-signing/.setup-stamp
PACKAGES := basemodel registry serving trainer loraplex

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-long check format bench lock clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml requirements.lock requirements-dev.lock deploy/setup.sh $(wildcard basemodel/kernels/*.cpp basemodel/kernels/*.h)
	deploy/setup.sh $(VENV)
	@touch $@

$(CLIENTS): $(STAMP) deploy/hub_clients.sh $(wildcard deploy/hub_clients/*.txt)
	deploy/hub_clients.sh $(@D)
	@touch $@

$(SIGNING): $(STAMP) deploy/model_signing.sh deploy/model_signing.txt
	deploy/model_signing.sh $(@D)
	@touch $@

setup: $(STAMP) ## create .venv and install everything, the torch build that fits this machine included

demo: $(STAMP) ## train three adapters over one 4-bit base, publish them, serve them in one batch (about 6 minutes on 2 cores)
	$(BIN)/loraplex demo $(ARGS)

serve: $(STAMP) ## serve the embedded base and the adapters of the local registry
	$(BIN)/loraplex serve --base embedded $(ARGS)

test: $(STAMP) $(CLIENTS) ## the test suite (as root on Debian or Ubuntu it installs PostgreSQL first, if there is none)
	deploy/postgresql.sh
	$(BIN)/pytest $(ARGS)

test-long: $(STAMP) $(CLIENTS) $(SIGNING) ## the tests that take minutes each
	deploy/postgresql.sh
	$(BIN)/pytest -m long --timeout 1800 $(ARGS)

check: $(STAMP) ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## decoding, mixtures, many adapters and speculation on the embedded base, measured on this machine
	$(BIN)/python -m benchmarks $(ARGS)

lock: ## write requirements.lock anew from pyproject.toml (needs uv)
	deploy/lock.sh $(ARGS)

clean: ## remove what these targets have made here (not ~/.loraplex: bases, runs, the registry)
	rm -rf $(VENV) $(dir $(CLIENTS)) $(dir $(SIGNING)) build *.egg-info basemodel/kernels/built .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
