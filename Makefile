# Two commands do everything on a fresh machine with Python 3.11: `make repro` and `make test`.
PYTHON ?= python3.11
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export HF_HUB_OFFLINE ?= 1

.PHONY: repro test test-slow check benchmarks dag clean

repro: $(READY) check  ## run whatever is stale, from captions to the report
	@dvc repro
	@echo "report: $(CURDIR)/data/report/report.html"

check: $(READY)  ## is params.yaml sound?
	@python -m pipeline.schema params.yaml

test: $(READY)  ## everything that CI checks, one demo run included
	@python -m pytest

test-slow: $(VENV)/.ray  ## the minutes-long checks too
	@python -m pytest -m ""

benchmarks: $(READY)  ## which of the field's datasets are there, and where the others come from
	@python -m pipeline.benchmarks status

dag: $(READY)  ## draw the stages
	@dvc dag

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

$(VENV)/.ray: $(READY)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,ray]"
	@touch $@

clean:  ## forget the environment; data and cache stay
	rm -rf $(VENV)
