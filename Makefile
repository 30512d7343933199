# `make help` lists the targets. ARGS goes to the program behind a target: make train ARGS="env=acrobot seed=3"

PYTHON ?= python3
WORKERS ?= 2
ARGS ?=
# the version that `make lock` pins; within the range in pyproject.toml
TORCH ?= 2.13.0
# what the extra ray asks of packages that others bring too, so that one lock file fits both
RAY := 'cloudpickle<3' 'python-dateutil<3'

VENV := .venv
PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check
LOCK := build/lock

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup train ablation test test-slow test-torch lint format type docs check benchmark wheel lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s  %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.installed ## create .venv and install the pinned packages

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not one: make setup PYTHON=<path of one>" >&2; exit 1; }
	@echo "Setting up $(VENV) (a few minutes, once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) -r requirements.lock
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

# Settings for CartPole, unless ARGS names others; they are for the network mlp.
EXPERIMENT := $(if $(filter experiment=% network=% agent=stream_q,$(ARGS)),,experiment=cartpole)

# Threads of CartPole's cohort, which change no bits. Those of other environments may be PyTorch's, which do.
THREADS ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
SHARED := $(if $(strip $(foreach name,env experiment trainer multirun -m,$(findstring $(name),$(ARGS)))),,trainer.threads=$(THREADS))

train: setup ## train DQN on CartPole-v1, five seeds as one cohort; any override in ARGS
	@$(PY) scripts/train.py $(SHARED) $(ARGS) $(EXPERIMENT)

ablation: setup ## run what is missing of an ablation, then report: NAME=cartpole_components
	@test -n "$(NAME)" || { echo "Which one? make ablation NAME=<a file in conf/ablation>" >&2; exit 2; }
	@$(PY) scripts/train.py -m ablation=$(NAME) hydra/launcher=joblib $(ARGS)
	@$(PY) scripts/report.py ablation=$(NAME)

test: setup ## run the tests
	@$(PY) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-slow: setup ## run the slow tests: learning and matrices, minutes each
	@$(PY) -m pytest -m slow -n $(WORKERS) --dist worksteal $(ARGS)

# The exactness tests with another torch, in an environment of its own.
test-torch: ## run the exactness tests with another torch: TORCH=2.14.1
	@$(PYTHON) -m venv --clear build/torch-$(TORCH)
	@sed -E '/^(torch|setuptools)==/d' requirements.lock > build/torch-$(TORCH)/requirements.txt
	@build/torch-$(TORCH)/bin/python -m pip install --quiet --disable-pip-version-check \
		'torch==$(TORCH)' 'setuptools>=77' -r build/torch-$(TORCH)/requirements.txt
	@build/torch-$(TORCH)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--ignore-requires-python --editable .
	@build/torch-$(TORCH)/bin/python -m pytest -n $(WORKERS) -m "" tests/test_exactness.py tests/test_cohort.py \
		tests/test_optimizer.py tests/test_agents.py $(ARGS)

wheel: setup ## build a wheel in build/wheel
	@$(PY) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .

lint: setup ## check style and layers: ruff, import-linter
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(VENV)/bin/lint-imports --no-logo

format: setup ## put the style right: ruff
	@$(PY) -m ruff check --fix-only
	@$(PY) -m ruff format

type: setup ## check types: mypy
	@$(PY) -m mypy

docs: setup ## build the manual in build/site: mkdocs, strict
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

check: lint type docs test ## lint, types, docs and tests

$(VENV)/.benchmark: $(VENV)/.installed
	@$(PIP_INSTALL) --no-build-isolation --editable '.[benchmark]' --constraint requirements.lock
	@touch $@

build/jax/.installed: benchmarks/jax_requirements.txt
	@$(PYTHON) -m venv --clear build/jax
	@build/jax/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/jax_requirements.txt
	@touch $@

benchmark: $(VENV)/.benchmark build/jax/.installed ## measure speed beside Stable-Baselines3 and JAX
	@$(PY) benchmarks/speed.py $(ARGS)

# Installs the newest versions within pyproject.toml's ranges and writes down what came. Left out: what pip takes by
# itself with torch where there is a GPU (torch pins those), local version labels such as +cpu, and pip.
lock: ## re-make requirements.lock with the newest versions (TORCH=... for another torch)
	@$(PYTHON) -m venv --clear $(LOCK)
	@$(LOCK)/bin/python -m pip install --quiet --disable-pip-version-check setuptools wheel 'torch==$(TORCH)' \
		--editable '.[atari,dev,box2d,export,joblib,minatar,slurm,tensorboard,tune]' $(RAY)
	@$(LOCK)/bin/python -m pip check
	@{ printf '%s\n' \
		"# Every package that Qohort was tested with. Re-made with: make lock" \
		"# For: the base dependencies, the extras atari, dev, box2d, export, joblib, minatar, slurm, tensorboard and tune, and an editable install." \
		"# Its versions fit the extra ray too: pip install --constraint requirements.lock --editable '.[ray]'"; \
		$(LOCK)/bin/python -m pip --disable-pip-version-check freeze --all --exclude-editable --exclude pip | \
		grep -viE '^(cuda-|nvidia-|triton)' | sed -E 's/^([^+ ]+)[+].*/\1/'; } > $(LOCK)/requirements.lock
	@mv $(LOCK)/requirements.lock requirements.lock
	@rm -rf $(LOCK)
	@echo "Wrote requirements.lock; next: make check"

clean: ## remove caches and build output; never outputs/ or .venv
	@rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	@find . \( -path ./.git -o -path ./$(VENV) -o -path ./outputs \) -prune -o -type d -name __pycache__ -exec rm -rf {} +
