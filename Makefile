# Each target sets up .venv itself; on a fresh machine only python3 (3.11 or later) is needed.
PYTHON ?= python3
BIN := .venv/bin
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
# What pip fetches and how large it is, without a line for all that is there already.
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -r $(1) \
	| awk '!/^Requirement already satisfied/ { print; fflush() }'

.PHONY: help demo web serve docs test lint audit check faults results
.DELETE_ON_ERROR:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/installed  ## the shipped pair at work: who wrote which word, how fast, how good; offline
	@$(BIN)/python scripts/demo.py $(ARGS)
	@echo; echo "Both models are tiny; what decides the speed, and how it is at the published sizes:"
	@echo "docs/speed.md. Sentences of yours: bash scripts/python.sh show_trace.py 'Ein Satz.'"

web: .venv/installed-web  ## the live page, on this machine alone; ARGS="--port 8000" and so on
	$(BIN)/python scripts/web.py $(ARGS)

serve: .venv/installed-serve  ## the pair as an HTTP service, on this machine alone; ARGS="--port 8080"
	$(BIN)/python scripts/serve.py $(ARGS)

docs: .venv/installed-docs  ## the documentation as a site, in out/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: .venv/installed-dev  ## all tests: no network, no GPU
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/installed-dev  ## lint, format, types, secrets, large files
	$(BIN)/pre-commit run --all-files

audit: .venv/installed-dev  ## known holes in the locked packages; skipped without a network
	@$(BIN)/python .ci/audit.py

check: lint audit test  ## all three

faults: .venv/installed-dev  ## a thousand kills over all scripts that write, and full disks; up to an hour
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/injecting.py $(ARGS)

results: .venv/installed-dev  ## every record in results/ again, from one clean commit; hours
	$(BIN)/python scripts/make_results.py

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null \
	|| { echo "error: $(PYTHON) is not Python 3.11 or later; name one: make PYTHON=python3.12" >&2; exit 2; }
	@echo "Setting up .venv, once: PyTorch, transformers and the rest of requirements.txt; some minutes and"
	@echo "2 GB on disk, or several more where pip takes PyTorch's CUDA build (CPU build: docs/own-data.md)."
	$(PYTHON) -m venv .venv
	$(call INSTALL,requirements.txt)
	touch $@

.venv/installed-web: .venv/installed requirements-web.txt
	$(call INSTALL,requirements-web.txt)
	touch $@

.venv/installed-serve: .venv/installed requirements-serve.txt
	$(call INSTALL,requirements-serve.txt)
	touch $@

.venv/installed-docs: .venv/installed requirements-docs.txt
	$(call INSTALL,requirements-docs.txt)
	touch $@

.venv/installed-dev: .venv/installed requirements-web.txt requirements-serve.txt requirements-docs.txt requirements-dev.txt
	$(call INSTALL,requirements-dev.txt)
	touch $@
