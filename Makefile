# What one does with Jishi. `make` alone lists it. Needs Python 3.11 or newer; everything else goes into .venv.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
STAMP := .venv/.installed
PORT ?= 8000
WORKERS ?= 2
INPUTS ?= 1000000
SEED ?= 1
OPERATIONS ?= 1000000

unexport PYTHONDONTWRITEBYTECODE  # else each of the many processes that a test starts compiles all anew

.PHONY: help install up test test-fast lint format load fuzz torture bench lock reference migration browser sdk clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## Make .venv with everything that the lock file names

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Jishi needs Python 3.11 or newer with venv; none was found (Debian: apt-get install python3-venv)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

up: install ## Start the product with its demo show (PORT=8000)
	$(BIN)/jishi up --port $(PORT)

test: install browser sdk ## All tests, with real engines, a real browser and the real client SDKs
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

test-fast: install ## Without properties, faults, browser and whole-product journeys
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow"

lint: install ## ruff, pyright, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: install ## Format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

load: install ## A small load test against a product of its own, then the audit of its books
	$(BIN)/python -m loadtests.run

fuzz: install ## A million wrong inputs to codecs, frames, sessions and sockets (INPUTS=, SEED=)
	$(BIN)/python -m tests.fuzz --inputs $(INPUTS) --seed $(SEED)

torture: install ## A million random operations while every process is killed, then the books (OPERATIONS=, SEED=, ARGS="--kill-every-s 8")
	$(BIN)/python -m loadtests.torture --operations $(OPERATIONS) --seed $(SEED) $(ARGS)

bench: install ## Jishi beside other servers, as ratios (ARGS="--only storm"; ARGS=--help)
	$(BIN)/python -m loadtests.bench $(ARGS)

lock: ## Resolve all dependencies again into requirements.lock
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --upgrade --quiet \
		--no-emit-index-url --no-annotate --no-header --output-file requirements.lock

reference: install ## Write docs/reference.md from the registry of commands and events
	$(BIN)/jishi reference > docs/reference.md

migration: install ## Write a migration for what changed in the tables (NAME=what)
	$(BIN)/python -m app.storage.draft_migration "$(NAME)"
	$(BIN)/ruff format --quiet migrations/versions

browser: ## A Chromium and a Chinese font for the browser tests
	@bash .ci/browser

sdk: install ## The JavaScript client SDK for the tests, under the node that the lock file names
	@bash .ci/sdk

clean: ## Remove what is generated, .venv too; the data in .jishi stays
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache tests/sdk/js/node_modules
