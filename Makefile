# Two commands for users: `make demo` and `make test`; `make lint` and `make docs` for those who change
# the code (CONTRIBUTING.md). Each makes a virtual environment when there is none, installs into it,
# and runs. PYTHON=python3.12 takes the newer stack (jax 0.12).
PYTHON ?= python3
TAG := $(shell $(PYTHON) -c 'import sys; print("%d%d" % sys.version_info[:2])')
VENV ?= .venv$(TAG)
BIN := $(VENV)/bin
WORKDIR ?= runs/demo
PYTEST_ARGS ?=
# Test processes. Two halve the time on two cores; each needs about 3 GB.
WORKERS ?= 2

.PHONY: demo test test-all lint docs install install-test cuda-compiler oracles base-policy clean

install: $(VENV)/.core
install-test: $(VENV)/.test
cuda-compiler: $(VENV)/cuda
oracles: $(VENV)/oracles

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.test: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,report]'
	touch $(VENV)/.core $@

$(VENV)/.all: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,report,serve,trl,inspect]'
	touch $(VENV)/.core $(VENV)/.test $@

# The type checker looks into what is installed, so it gets what the tests get.
$(VENV)/.lint: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,report,lint]'
	touch $(VENV)/.core $(VENV)/.test $@

$(VENV)/.docs: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $(VENV)/.core $@

# What compiles for NVIDIA GPUs without one, for the tests marked gpu_aot (Linux, about 0.7 GB). Not
# on Python's path: where jax finds the plugin, it looks for a driver and complains.
$(VENV)/cuda: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@.part \
	  jax-cuda13-pjrt==$$($(BIN)/python -c 'import importlib.metadata as m; print(m.version("jaxlib"))') \
	  'nvidia-cuda-nvcc>=13,<14' 'nvidia-nvvm>=13,<14'
	mv $@.part $@

# LLaMA-Factory and ms-swift read what is written for them: in an environment of their own, as they
# want an older transformers (several GB, since it brings a torch for GPUs). Of ms-swift its reader
# alone is needed, and what that imports. Label Studio's labelling interface comes beside them.
$(VENV)/oracles: | $(BIN)/python
	$(PYTHON) -m venv $@.part
	$@.part/bin/python -m pip install --quiet --disable-pip-version-check 'llamafactory>=0.9.5,<0.10' \
	  'modelscope>=1.23,<2' 'json_repair<1' 'label-studio-sdk>=2.1,<3'
	$@.part/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'ms-swift>=4.6,<4.7'
	mv $@.part $@

demo: $(VENV)/.core
	$(BIN)/srpo demo --workdir=$(WORKDIR)

test: $(VENV)/.test
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not slow and not gpu' tests $(PYTEST_ARGS)

test-all: $(VENV)/.all $(VENV)/oracles $(if $(filter Linux,$(shell uname)),$(VENV)/cuda)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not gpu' tests $(PYTEST_ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/basedpyright --pythonpath $(BIN)/python

docs: $(VENV)/.docs
	JAX_PLATFORMS=cpu $(BIN)/sphinx-build -W --keep-going -q -d build/doctrees docs build/docs

# Trains the demo's base policy again from nothing (about a quarter of an hour on 2 cores).
base-policy: $(VENV)/.core
	$(BIN)/python -m srpo_jax.cli.base_policy --out=runs/base_policy

clean:
	rm -rf .venv3* runs build *.egg-info
