# `make demo` and `make test` work from a bare checkout: they create .venv and install what is missing.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
BIN := .venv/bin
PYTHON ?= python3
PLAM_FUZZ ?= 200

.PHONY: help env demo test test-long fuzz readme fresh bench lint gpu docs resolve lock-gpu clean

help:
	@echo "make demo   find the embedded pair's plateau, merge there, and compare on nine offline benchmarks"
	@echo "make test   run the tests; what they need and cannot have is named, and skipped"
	@echo "make test-long  the same, and further cases of what they show"
	@echo "make fuzz   damaged inputs for every reader, PLAM_FUZZ=$(PLAM_FUZZ) of them each, other ones each time"
	@echo "make readme run the demo afresh and hold README.md against what it prints"
	@echo "make fresh  README's commands in bare clones, and a wheel with the time of plam --help, for each Python"
	@echo "            of 3.10 to 3.13 that is found (an hour for each; ARGS='--python 3.12 --only wheel')"
	@echo "make bench  measure time and memory, and write benchmarks/RESULTS.md (about 40 minutes; ARGS=--help)"
	@echo "make lint   ruff and mypy"
	@echo "make gpu    check every path that runs on a device, at 7B shape on a GPU (PYTHON=python3, or .venv; ARGS=--help)"
	@echo "make docs   the documentation as a site, in build/site"
	@echo "make resolve   resolve what docs/install.md claims, for every Python and platform (needs an index)"
	@echo "make lock-gpu  write tools/lock-gpu.txt anew (needs an index)"
	@echo "make clean  remove what demo and test wrote (keeps .venv)"

env:
	@python3 tools/setup_env.py test

demo:
	@python3 tools/setup_env.py demo
	$(BIN)/plam demo --output out/demo

test: env
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: env
	PLAM_LONG=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# A run is had again with the PLAM_FUZZ_SEED that it prints at its end.
fuzz: env
	PLAM_LONG=1 PLAM_FUZZ=$(PLAM_FUZZ) $(BIN)/python -m pytest tests/fuzzing

# What README.md quotes of the demo, held against what it prints now (some minutes).
readme: env
	mkdir -p out
	COLUMNS=190 $(BIN)/plam demo --output out/demo --fresh > out/demo.txt
	$(BIN)/python -m tools.readme_rows out/demo.txt

# From what is committed, with every Python that is found, or named; fetches torch for each.
fresh:
	@python3 tools/fresh.py $(ARGS)

# One call per section; a section that has ended is kept, and the same command goes on.
bench: env
	$(BIN)/python -m benchmarks.bench $(ARGS)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# With a python that has torch already, as on most GPU machines: nothing is installed for it.
gpu:
	@python=$(PYTHON); $$python -m tools.gpu_check.needed 2>/dev/null || \
	    ! test -x $(BIN)/python || python=$(BIN)/python; \
	$$python -m tools.gpu_check.needed && exec $$python -m tools.gpu_check $(ARGS)

docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(BIN)/uv: | env
	$(BIN)/python -m pip install --quiet uv

resolve: $(BIN)/uv
	PLAM_RESOLVE=$${PLAM_RESOLVE:-1} $(BIN)/python -m pytest tests/test_versions.py

lock-gpu: $(BIN)/uv
	$(BIN)/uv pip compile --quiet --no-annotate --python-platform x86_64-manylinux_2_35 --python-version 3.12 \
	    --extra vllm --extra ray --custom-compile-command "make lock-gpu" --output-file tools/lock-gpu.txt \
	    pyproject.toml tools/lock-gpu.in

clean:
	rm -rf out build .pytest_cache .ruff_cache .mypy_cache .hypothesis
