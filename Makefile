# Two commands do everything on a fresh machine with Python 3.11 to 3.14: `make repro` and `make test`.
VENV := .venv
# The newest supported interpreter is taken; PYTHON=/some/python takes another. An environment that is there stays.
PYTHON ?=
PYTHONS := $(VENV)/bin/python python3.14 python3.13 python3.12 python3.11 python3
# A name may stand in the PATH with no interpreter behind it, and Debian's may lack venv.
FITS := import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
# Where PyTorch's own builds are (docs/install.md); empty: as the package index has it, with CUDA.
TORCH_INDEX ?=
GIT_REMOTE ?= origin
PORT ?= 5000
# Tests run in so many processes, each with one thread: two that share two cores would wait for each other.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# The stages whose outputs are enough to meta-train, tune, evaluate and report.
LEARNING := params|code|batch|batch_meta|gallery|episodes|labelled_episodes|start|metatrain|benchmark|tune|tune_meta|zero_shot|evaluate|evaluate_meta|publish|report
READY := $(VENV)/.ready
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export HF_HUB_OFFLINE ?= 1
export MLFLOW_DISABLE_TELEMETRY := true

# The commits that have experiments, as DVC names its references to them; with `--num -1` it would read every commit there is.
BASELINES := git for-each-ref --format='%(refname)' refs/exps | \
  sed -n 's|^refs/exps/\([0-9a-f]\{2\}\)/\([0-9a-f]\{38\}\)/.*|--rev \1\2|p' | sort -u

.PHONY: repro test test-quick test-slow lint docs check benchmarks dag study experiments mlflow team share fetch verify accept tag tidy clean

repro: $(READY) check  ## run whatever is stale, from captions to the report
	@python -m pipeline.tidy --cached
	@dvc repro
	@echo "report: $(CURDIR)/data/report/report.html"

check: $(READY)  ## is params.yaml sound, is something left of entries that are gone, are libraries others than those pinned?
	@python -m pipeline.schema params.yaml
	@python -m pipeline.tidy --dry
	@python -m pipeline.versions

lint: $(READY)  ## form, rules and types of the code
	@ruff format --check .
	@ruff check .
	@mypy

docs: $(VENV)/.docs  ## the documentation as a site; whatever Sphinx warns of is an error
	@python -m sphinx -q -W --keep-going -c docs/site docs site
	@echo "site: $(CURDIR)/site/index.html"

test-quick: $(READY)  ## every pure function and every error message, no demo run
	@$(PYTEST) -m "not slow and not whole"

test: $(READY)  ## everything that CI checks, one demo run included
	@$(PYTEST)

test-slow: $(VENV)/.ray  ## the minutes-long checks too
	@$(PYTEST) -m ""

benchmarks: $(READY)  ## which of the field's datasets are there, and where the others come from
	@python -m pipeline.benchmarks status

dag: $(READY)  ## draw the stages
	@dvc dag

# DVC sees the study's stages from then on, and not before: stages that never ran are in the way of its experiments.
study: $(READY) check  ## methods and ablations over seeds, hours long; `dvc repro` first
	@cp study/stages.yaml study/dvc.yaml
	@python -m pipeline.tidy --cached
	@dvc repro study/dvc.yaml
	@echo "page: $(CURDIR)/data/study/report/study.html"

experiments: $(READY)  ## experiments beside each other: what differs, and the results
	@dvc exp show --only-changed --no-pager --drop '.*/|params.yaml$$' --rev HEAD $$($(BASELINES))

mlflow: $(READY)  ## MLflow's page of all runs that this checkout has seen
	@mlflow server --backend-store-uri sqlite:///tracking/mlflow.db --port $(PORT)

# DVC's workers read git's configuration too, and cannot read a value that begins with a quote: hence `env`.
team: $(READY)  ## once per clone: git merges dvc.lock by stage
	@git config merge.dvc-lock.name "stages of dvc.lock"
	@git config merge.dvc-lock.driver "$$(python -m pipeline.merge_lock --driver)"

share: $(READY)  ## to the team's remotes: results, the run cache, experiments with theirs
	@dvc push --run-cache
	@dvc exp push --run-cache --num -1 $(GIT_REMOTE)
	@dvc exp list --num -1

fetch: $(READY)  ## from there: experiments, the run cache, and all that learning works on, but no pictures of the web
	@dvc exp pull --no-cache --num -1 $(GIT_REMOTE)
	@dvc pull --run-cache $$(dvc stage list --name-only | grep -E '^($(LEARNING))(@|$$)')

accept: $(READY)  ## an edit of the code is harmless: what is stale for its code alone is not
	@python -m pipeline.accept

tag: $(READY)  ## VERSION=v1.0.0: a version for the artifacts of this commit, which others take by name
	@tags=$$(python -m pipeline.tag "$(VERSION)") && git push $(GIT_REMOTE) $$tags

tidy: $(READY)  ## what is left of methods, benchmarks and seeds that are gone is removed
	@python -m pipeline.tidy

verify: $(READY)  ## are the files in DVC's cache what their names say? damaged ones are removed
	@python -m pipeline.verify_cache

$(READY): pyproject.toml constraints.txt
	@found=; for python in $(or $(PYTHON),$(PYTHONS)); do \
	  "$$python" -c "$(FITS)" 2>/dev/null && found="$$python" && break; \
	done; \
	if test -z "$$found"; then \
	  echo "make: none of '$(or $(PYTHON),$(PYTHONS))' is a Python 3.11 to 3.14 that runs and has venv;" \
	    "install one (Debian: python3-venv too), or name it: make PYTHON=/some/python" >&2; exit 1; \
	fi; \
	echo "environment: $$("$$found" -V), $$(command -v "$$found")"; \
	test "$$($(VENV)/bin/python -V 2>/dev/null)" = "$$("$$found" -V)" || "$$found" -m venv --clear $(VENV)
	$(if $(TORCH_INDEX),$(PIP) --no-deps --index-url $(TORCH_INDEX) torch torchvision)
	$(PIP) -e ".[pipeline,test,lint]"
	@touch $@

$(VENV)/.docs: $(READY)
	$(PIP) -e ".[pipeline,test,lint,docs]"
	@touch $@

$(VENV)/.ray: $(READY)
	$(PIP) -e ".[pipeline,test,lint,ray]"
	@touch $@

clean:  ## forget the environment; data and cache stay
	rm -rf $(VENV)
