# make demo, make test, make torture (random jobs against an independent reference, 500 kills, a flipped bit at every
# seventh byte of a file, and a fault at every single write), make bench, make slurm (array jobs of a SLURM that it starts
# here, which has to be installed: apt install slurm-wlm munge): each creates .venv and installs the pinned requirements
# first, if they are not there yet.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

.PHONY: demo test lint torture bench slurm clean

demo: $(VENV)/.ready
	$(RUN)/python examples/run_page.py README.md --folder demo

test: lint
	$(RUN)/python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder

lint: $(VENV)/.ready
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy

torture: $(VENV)/.ready
	PYTHONPATH="$(CURDIR):$(CURDIR)/tests" $(RUN)/python tests/torture_differential.py --cases 2000
	PYTHONPATH="$(CURDIR):$(CURDIR)/tests" $(RUN)/python tests/crash/torture.py
	PYTHONPATH="$(CURDIR):$(CURDIR)/tests" $(RUN)/python tests/crash/flips.py
	CURATION_EVERY_WRITE=1 $(RUN)/python -m pytest tests/crash/test_writes.py

bench: $(VENV)/.ready
	$(RUN)/pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	$(RUN)/python benchmarks/bench.py bench
	$(RUN)/python benchmarks/box_costs.py bench

slurm: $(VENV)/.ready
	$(RUN)/python -m pytest -rs tests/slurm/test_slurm.py

$(VENV)/.ready: requirements.txt requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "want Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) demo walk
