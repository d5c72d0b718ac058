# `make` lists the targets. Each does the set-up it needs, in .venv.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MODEL := smollm2-135m
GPU := $(shell { command -v nvidia-smi || test -e /dev/nvidia0; } >/dev/null 2>&1 && echo yes)
CONSTRAINTS := $(if $(GPU),,-c constraints-cpu.txt) -c constraints-dev.txt
UNBUILT := kernels/native/unbuilt.txt
PYTEST := pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
FAST := $(wildcard tests/test_*.py) tests/cli/keys tests/cli/trace tests/common/api \
	tests/common/config tests/common/text tests/docs tests/services/gateway tests/services/kvdir tests/services/scheduler
TYPED := cli common kernels services

.PHONY: help setup demo test test-fast test-arm chaos chaos-ci fuzz coverage lint format docs bench bench-links bench-boxes evaluate bench-gpu lock peers clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

setup: $(READY)  ## install everything into .venv

$(READY): pyproject.toml setup.py constraints-cpu.txt constraints-dev.txt $(wildcard kernels/native/*.cpp kernels/native/*.inc)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints-dev.txt
	$(if $(GPU),,$(BIN)/python -m pip install --quiet torch $(CONSTRAINTS))
	@rm -f kernels/native/_attention*.so
	$(BIN)/python -m pip install --quiet --editable '.[dev]' $(CONSTRAINTS)
	@test ! -e $(UNBUILT) || printf '%s\n' "warning: the C++ kernels could not be built:" "  $$(cat $(UNBUILT))" \
		'All works without them, slower: torch does their work. `spsctl doctor` says what is used.' \
		'When g++ can build them: touch setup.py && make setup' >&2
	@touch $@

demo: $(READY)  ## ask a cluster of four shards about a long document
	$(BIN)/python examples/demo.py

test: $(READY)  ## pull the test model and run all tests
	@$(BIN)/spsctl pull $(MODEL)
	$(BIN)/python -m $(PYTEST) $(ARGS)

test-fast: $(READY)  ## run the tests that need no cluster and no model: under a minute
	$(BIN)/python -m $(PYTEST) $(FAST) $(ARGS)

test-arm: $(READY)  ## compile the CPU kernels for ARM and run their tests in qemu (Debian, root)
	tests/acceptance/arm/run.sh $(ARGS)

chaos: $(READY)  ## break clusters on purpose, by 200 seeds: about an hour
	$(BIN)/python -m tests.chaos.run --seeds 1-200 --table $(ARGS)

chaos-ci: $(READY)  ## the same by 20 seeds: some minutes
	$(BIN)/python -m tests.chaos.run --seeds 1-20 $(ARGS)

fuzz: $(READY)  ## feed changed inputs to every parser, 10 minutes each: about 3 hours
	$(BIN)/python -m tests.fuzz.run $(ARGS)

coverage: $(READY)  ## run all tests, and list the files with lines that no test runs
	@$(BIN)/spsctl pull $(MODEL)
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m $(PYTEST) $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

lint: $(READY)  ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p build/typed/sps2
	@ln -sf ../../../sps2/__init__.py build/typed/sps2/__init__.py
	@for folder in $(TYPED); do ln -sfn ../../../$$folder build/typed/sps2/$$folder; done
	$(BIN)/mypy -p sps2
	MYPYPATH=benchmarks $(BIN)/mypy --explicit-package-bases docs examples benchmarks
	MYPYPATH=benchmarks:tests/acceptance $(BIN)/mypy --explicit-package-bases tests

format: $(READY)  ## fix style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## build the documentation site in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(READY)  ## compare with vLLM, llama.cpp and transformers here
	@$(BIN)/spsctl pull $(MODEL)
	$(BIN)/python benchmarks/bench.py $(ARGS)

bench-links: $(READY)  ## compare prefill methods over slow links (Linux, root)
	@$(BIN)/spsctl pull $(MODEL)
	$(BIN)/python benchmarks/links.py $(ARGS)

bench-boxes: $(READY)  ## boxes that are not alike: slow processors, slow links (Linux, root)
	@$(BIN)/spsctl pull $(MODEL)
	$(BIN)/python benchmarks/boxes.py $(ARGS)

evaluate: $(READY)  ## compare policies on simulated GPUs, and the simulator with a live cluster
	@$(BIN)/spsctl pull $(MODEL)
	$(BIN)/python benchmarks/evaluate.py $(ARGS)

bench-gpu:  ## check and time the GPU kernels (NVIDIA GPU, torch, Triton; installs nothing)
	@$(PYTHON) benchmarks/gpu.py $(ARGS)

lock: $(READY)  ## pin the releases that are installed, for everyone's setup and CI
	@echo '# The releases that `make setup` and CI install, so that a new one changes nothing by itself.' >constraints-dev.txt
	@echo '# `make lock` writes this file; torch and Triton are in constraints-cpu.txt.' >>constraints-dev.txt
	$(BIN)/python -m pip freeze --all --exclude-editable --exclude torch --exclude triton >>constraints-dev.txt

peers:  ## install vLLM and llama.cpp in .peers, for bench
	PYTHON=$(PYTHON) benchmarks/peers/install.sh .peers

clean:  ## remove what was built and installed here
	rm -rf $(VENV) .peers build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*
