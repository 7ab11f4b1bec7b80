# Each target sets up .venv itself; on a fresh machine only python3 (3.11 or later) is needed.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo web test check
.DELETE_ON_ERROR:

demo: .venv/installed  ## the shipped pair translates the shipped sentences, offline
	PYTHON=$(BIN)/python bash run_demo.sh unaligned --max-eval-samples 100

web: .venv/installed-web  ## the live page, on this machine alone; ARGS="--port 8000" and so on
	$(BIN)/python scripts/web.py $(ARGS)

test: .venv/installed-dev  ## all tests: no network, no GPU
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/installed-dev  ## lint, format, types, secrets, large files; then the tests
	$(BIN)/pre-commit run --all-files
	$(MAKE) test

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-web: .venv/installed requirements-web.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-web.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-web.txt requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
