PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
# What a run of these profiles records stays on this machine; DVC takes no lock file that git ignores, and
# `dvc exp run` drops this mark.
UNSEEN := git update-index --skip-worktree sample/dvc.lock quick/dvc.lock
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

help:               ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

setup: $(READY)     ## only the environment, in .venv

repro: $(READY)     ## run the pipeline of the profile sample and print its table
	@$(UNSEEN)
	@lambdanet run --profile sample

reproduce: $(READY) ## another profile: make reproduce PROFILE=quick JOBS=2; without PROFILE the paper's
	@$(UNSEEN)
	@lambdanet run --profile $(or $(PROFILE),paper) $(if $(JOBS),--jobs $(JOBS))

test: $(READY)      ## lint and run the tests
	ruff check .
	ruff format --check .
	pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(READY) ## the long tests: a whole cluster and its faults, about half an hour
	pytest -m slow

up: $(READY)        ## start Prefect (127.0.0.1:4200), MLflow (127.0.0.1:5000) and workers on this machine
	lambdanet cluster up

down: $(READY)      ## end what `make up` started
	lambdanet cluster down

ui: $(READY)        ## open MLflow's pages on the runs and models of this folder
	lambdanet ui

lock: $(READY)      ## resolve the dependencies anew
	pip install -q uv
	uv pip compile -q --universal --strip-extras --python-version 3.11 --generate-hashes --no-annotate --no-header --extra pipeline --extra dev --extra server --extra cluster --extra dask pyproject.toml -o requirements.lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@echo "installing the locked packages, 6.4 GB"
	@# as a constraint too: of `sqlalchemy[asyncio]`, which a package asks for, pip otherwise takes the newest
	$(VENV)/bin/pip install -q --require-hashes -r requirements.lock -c requirements.lock
	$(VENV)/bin/pip install -q --no-deps --no-build-isolation -e .
	@$(UNSEEN)
	@touch $@

.PHONY: help setup repro reproduce test test-slow up down ui lock
.DEFAULT_GOAL := help
