# The project in a few commands; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# A process a core, of one thread each: what is tested is too small for more. Each takes 2 GB.
TESTS := -m pytest -n logical --maxprocesses 4 --dist loadfile

.PHONY: help setup run test test-lowest test-newest bench format docs lock
.DEFAULT_GOAL := help

help: ## list these commands
	@grep -E '^[a-z -]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-22s %s\n", $$1, $$2}'
	@echo 'Settings: ARGS="--data.batch_size 64" with make run; PYTHON=python3.12 with make setup.'

setup: $(STAMP) ## create .venv from requirements.lock

run: $(STAMP) ## train with config/hparams.py (first: set up)
	$(RUN) main.py $(ARGS)

test: $(STAMP) ## ruff, types and tests, about ten minutes on two cores
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy .
	OMP_NUM_THREADS=1 $(RUN) $(TESTS)

test-lowest: RESOLUTION := lowest-direct
test-newest: RESOLUTION := highest
test-lowest test-newest: ## the tests with the lowest or newest versions allowed (needs uv)
	uv venv --quiet --allow-existing --python $(PYTHON) .venv-$@
	uv pip install --python .venv-$@ --upgrade --resolution $(RESOLUTION) \
	  -r requirements.txt -r requirements-dev.txt
	OMP_NUM_THREADS=1 .venv-$@/bin/python $(TESTS)

bench: $(STAMP) ## time loading and training beside other libraries; IMAGES=, MASKS=: folders of JPEGs and PNGs
	$(RUN) benchmarks/pipeline.py $(IMAGES) $(if $(MASKS),--masks $(MASKS)) --out bench-pipeline.json
	$(RUN) benchmarks/steps.py --out bench-steps.json
	$(RUN) benchmarks/chart.py bench-pipeline.json bench-steps.json

format: $(STAMP) ## let ruff mend what it can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs: $(STAMP) ## build the documentation into site/, without network
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet
	@echo 'site/index.html; with search: $(RUN) -m http.server --directory site'

# Hashes and no address: whoever installs takes the same files from PyPI, or from a mirror of their own.
lock: ## write requirements.lock anew (needs uv)
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-annotate \
	  --custom-compile-command "make lock" \
	  --python-version 3.11 --upgrade requirements.txt requirements-dev.txt -o requirements.lock

$(STAMP): requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON). Install Python 3.11 or newer."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, $(PYTHON) is older: make setup PYTHON=python3.12"; exit 1; }
	@if command -v uv >/dev/null; then \
	  uv venv --quiet --allow-existing --seed --python $(PYTHON) $(VENV) && \
	  uv pip install --python $(VENV) --require-hashes -r requirements.lock; \
	else \
	  $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	    echo "This Python has no venv module. Debian, Ubuntu: sudo apt install python3-venv"; exit 1; }; \
	  $(PYTHON) -m venv $(VENV) && \
	  echo "Installing into $(VENV): about 6 GB, some minutes." && \
	  $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	    -r requirements.lock; \
	fi
	@touch $@
