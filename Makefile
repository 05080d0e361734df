# The commands anybody needs. Each makes .venv first where it has to; a stamp in .venv says what is installed.
#
#   make demo        train, test and predict the handwritten digits (examples/digits), about a minute
#   make test        the fast test suite, on 2 cores
#   make test-all    every test, the slow ones too
#   make lint        ruff and mypy
#   make bench       what a step costs beside a hand-written loop and Lightning, frames, calls, import time
#   make bench-full  everything that is measured, beside more frameworks: docs/performance.md, half an hour

PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell grep '^torch==' constraints.txt)

# Small tensors: more threads than one cost more than they bring, and two test workers share two cores.
export OMP_NUM_THREADS = 1

.PHONY: demo test test-all lint bench bench-full

demo: .venv/.examples
	$(BIN)/python examples/digits/train.py

test: .venv/.dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: .venv/.dev
	$(BIN)/python -m pytest -n 2

lint: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/.dev
	$(BIN)/python benchmarks/run.py --size short
	$(BIN)/python benchmarks/frames.py

bench-full: .venv/.dev .venv/.bench
	$(BIN)/python benchmarks/run.py --size full
	$(BIN)/python benchmarks/report.py full --docs

# torch first and alone: with it in place, nothing installed later pulls another, larger build of it.
.venv/.torch: constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(TORCH)
	touch $@

.venv/.%: .venv/.torch pyproject.toml
	$(BIN)/python -m pip install -c constraints.txt -e ".[$*]"
	touch $@
