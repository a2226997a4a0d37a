# Every target makes .venv by itself when it is missing or older than what it is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Torch on a CPU spends half its time on page faults when glibc gives freed memory back at once; `calotype up` sets the
# same for its workers.
TENSORS := OMP_WAIT_POLICY=passive MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=8589934592 \
  MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456

.DEFAULT_GOAL := help
.PHONY: help demo up test unit check bench format clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## the main job: real images from real jobs, in demo-output/
	@$(BIN)/calotype demo

up: $(STAMP) ## start the whole stack on this machine, until Ctrl-C
	@$(BIN)/calotype up

test: $(STAMP) ## all tests, on real services that the tests start themselves
	$(TENSORS) $(BIN)/python -m pytest

unit: $(STAMP) ## the unit tests alone
	$(TENSORS) $(BIN)/python -m pytest tests/unit

check: $(STAMP) ## style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## the project's own measurements, as ratios
	$(TENSORS) $(BIN)/python -m benchmarks

format: $(STAMP) ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what the targets have made
	rm -rf $(VENV) build dist demo-output *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Calotype needs Python 3.11 or newer and $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Name another: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --editable '.[api,worker,tracking,local,dev,bench]'
	@touch $@
