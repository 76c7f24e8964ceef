# `make demo` and `make test` work from a bare checkout: they create .venv and install what is missing.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
BIN := .venv/bin

.PHONY: help env demo test lint clean

help:
	@echo "make demo   find the embedded pair's plateau, merge there, and compare on nine offline benchmarks"
	@echo "make test   run the tests"
	@echo "make lint   ruff and mypy"
	@echo "make clean  remove what demo and test wrote (keeps .venv)"

env:
	@python3 tools/setup_env.py

demo: env
	$(BIN)/plam demo --output out/demo

test: env
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf out build .pytest_cache .ruff_cache .mypy_cache .hypothesis
