# `make demo` and `make test` each work alone in a fresh clone: they need Python >= 3.11, git and make.
#
#   PYTHON=python3.12 make demo          use another Python
#   make demo ARGS="--minutes 1"         more words for the command (also for test and bench)
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#                                        Linux without an NVIDIA GPU: the CPU build of torch, gigabytes smaller

PYTHON ?= python3
PIP_FLAGS ?=
ARGS ?=

# Containers often set this, and pip is told below to compile nothing: each process would compile all that it imports
# anew, torch's and transformers' thousands of files too. Empty, as here, it is not set.
export PYTHONDONTWRITEBYTECODE :=

BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)

.PHONY: help demo chat test check docs bench gpu luggage clean
.DELETE_ON_ERROR:

help:  ## say what there is
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

demo: .venv/.demo  ## train a small model on real English in minutes, and read what it writes
	$(BIN)/python -m mini_llm demo $(ARGS)

chat: .venv/.demo  ## the same, then teach it to answer, and talk with it
	$(BIN)/python -m mini_llm demo --chat $(ARGS)

# One process a core, each with one thread: threads that wait for each other's cores are slower than none. Each takes
# a half of the files, whose models are then made once, and from the other's half when it is done.
test: .venv/.test  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

check: .venv/.dev  ## lint, format, types, import layers
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest tests/contracts/test_layers.py

docs: .venv/.test  ## write the file maps and docs/cli.md from the code
	$(BIN)/python tools/generate_docs.py

bench: .venv/.test  ## run every benchmark, in its quick mode unless ARGS says otherwise
	@set -e; for file in benchmarks/[!_]*.py; do \
	    echo "== $$file"; $(BIN)/python "$$file" $(if $(ARGS),$(ARGS),--quick); \
	done

# With the environment that is there; a machine without one has its own Python (GPU_PYTHON=...).
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
REHEARSE ?=
ONLY ?=
CORPUS ?=

gpu:  ## all that a GPU must show, in nine minutes; REHEARSE=1 on a CPU at toy size, ONLY=NAMES some of it
	$(GPU_PYTHON) benchmarks/gpu $(if $(REHEARSE),--rehearse) $(if $(ONLY),--only "$(ONLY)") $(ARGS)

luggage:  ## what a GPU machine without a network must be brought; CORPUS=FILE is the flagship's text
	$(GPU_PYTHON) benchmarks/gpu/luggage.py $(if $(CORPUS),--corpus "$(CORPUS)") $(ARGS)

clean:  ## remove the environment and caches, never runs/ or data/
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist *.egg-info
	find mini_llm tests -name __pycache__ -prune -exec rm -rf {} +

# .venv/.EXTRA marks that the extra of that name is installed, as pyproject.toml and constraints.txt have it now.
# Python compiles what it imports by itself; to compile all that is installed takes pip longer than to install it.
.venv/.%: pyproject.toml constraints.txt | .venv/.made
	$(BIN)/python -m pip install --no-compile --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[$*]'
	@touch $@

.venv/.made:
	@command -v $(PYTHON) >/dev/null || \
	    { echo "error: $(PYTHON) is not there; install Python 3.11 or newer, or name it: PYTHON=python3.12 make" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), and 3.11 or newer is needed; name another: PYTHON=python3.12 make" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	    { echo "error: $(PYTHON) cannot make environments; on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@
