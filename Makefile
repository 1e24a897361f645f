# `make` lists the targets. Everything happens in .venv, from pinned packages (constraints.txt).

PYTHON ?= python3
BIN := .venv/bin
DEMO := demo

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than Python 3.11; say make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

install: .venv/installed ## create .venv with everything that the other targets need

demo: install ## the main job on the embedded corpus: train, score, evaluate, report (about 2 minutes)
	$(BIN)/syscall-lm demo --output=$(DEMO)

lint: install ## style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@rm -rf .typing && mkdir -p .typing/syscall_lm && ln -s $(CURDIR)/syscall_lm/* $(CURDIR)/kernels $(CURDIR)/experiments .typing/syscall_lm/
	$(BIN)/basedpyright

test: lint ## lint, types and all tests
	$(BIN)/python -m pytest -q -n auto --dist=loadfile --no-loadscope-reorder

clean: ## remove what the other targets made
	rm -rf .venv .typing $(DEMO) build *.egg-info .pytest_cache .ruff_cache .hypothesis

.PHONY: help install demo lint test clean
.DEFAULT_GOAL := help
