# make demo, make test: each creates .venv and installs the pinned requirements first, if they are not there yet.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.ready
	rm -rf demo
	PATH="$(CURDIR)/$(RUN):$$PATH" python examples/run_readme.py README.md

test: lint
	$(RUN)/python -m pytest

lint: $(VENV)/.ready
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy

$(VENV)/.ready: requirements.txt requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "want Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) demo
