# Two commands on a fresh machine: `make up` runs it all, `make test` passes its tests. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
PARTS := $(wildcard libs/*/pyproject.toml services/*/pyproject.toml)
READY := .venv/.ready
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONUNBUFFERED = 1
PIN := uv pip compile --quiet --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
  $(foreach name,proto core client ingest rules scheduler notify gateway,--no-emit-package aemos-$(name))

.PHONY: help up demo test check proto lock bench bench-large test-faults format infra

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(READY): requirements.lock $(PARTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "AEMOS needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	  $(foreach part,$(PARTS),-e ./$(patsubst %/,%,$(dir $(part))))
	touch $(READY)

up: $(READY) ## run everything here, on embedded defaults, until Ctrl-C
	@exec $(BIN)/aemos up

demo: $(READY) ## simulate the demo devices over HTTP, MQTT and CoAP, and print notifications (beside `make up`)
	@exec $(BIN)/aemos demo

infra: $(READY)
	@$(BIN)/python tests/support/infra.py

test: infra ## unit, contract, integration, e2e and hard cases, on databases that it starts itself
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/unit tests/contract tests/integration tests/e2e

test-faults: infra ## break processes, Redis, MariaDB, network and disk under load, and count; ROUNDS=30, SEED=... repeats
	$(BIN)/python -m pytest tests/faults

bench: infra ## the figures under docs/measured, on MariaDB and Redis of its own; ONLY="ingest rules" measures some
	$(BIN)/python -m tests.bench $(ONLY)

bench-large: infra ## history over 50,000,000 readings, and ingest on them (10 minutes)
	$(BIN)/python -m tests.bench large

check: $(READY) ## format, lint, types, contract, generated code, architecture
	ruff format --check libs services tests
	ruff check libs services tests
	mypy libs/aemos_core/aemos_core libs/aemos_client/aemos_client
	$(foreach service,gateway ingest rules scheduler notify,mypy services/$(service)/aemos_$(service) &&) true
	$(BIN)/python tests/support/generate.py --check
	$(BIN)/python -m pytest tests/unit/test_architecture.py

format: $(READY) ## format the code
	ruff format libs services tests && ruff check --fix --quiet libs services tests && buf format -w proto

proto: $(READY) ## generate the contract's code
	$(BIN)/python tests/support/generate.py

lock: $(READY) ## pin what the pyprojects ask for
	$(PYTHON) -m pip install --quiet uv
	$(PIN) $(PARTS) --group pyproject.toml:dev -o requirements.lock
	$(PIN) $(filter-out libs/aemos_client/%,$(PARTS)) --constraint requirements.lock -o deploy/requirements.lock
