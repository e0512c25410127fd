# Two commands do everything: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKDIR ?= workdirs/quickstart
EXTRAS ?= dev,tts
PIP_FLAGS ?= --quiet --disable-pip-version-check

comma := ,
.PHONY: help install quickstart quickstart-short test test-fast test-oldest lint format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 20

install: $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))  ## virtual environment with everything the quickstart and the tests need

$(VENV)/.installed-%: requirements.txt pyproject.toml constraints/pinned.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_FLAGS) -c constraints/pinned.txt -e ".[$(EXTRAS)]"
	@touch $@

quickstart: install  ## weights, spoken corpus, training, evaluation, a user's copy of a base, one answered recording (below 10 minutes on two cores)
	$(BIN)/python -m experiments.quickstart --workdir=$(WORKDIR)

quickstart-short: install  ## the same with a smaller corpus and fewer steps
	$(BIN)/python -m experiments.quickstart --short --workdir=$(WORKDIR)-short

test: install  ## all tests; parity tests need `make test EXTRAS=dev,tts,parity`
	$(BIN)/python -m pytest -n auto -q

test-fast: install  ## without the slow ones
	$(BIN)/python -m pytest -n auto -q -m "not slow"

OLDEST = .venv-oldest
# What the frozen models, training, answering and the plans are made of; the rest calls these.
OLDEST_TESTS ?= tests/encoders tests/llms tests/quantize tests/features tests/weights tests/data tests/train tests/memory \
  tests/aligner_test.py tests/attention_test.py tests/contracts_test.py tests/ctc_test.py tests/decode_test.py \
  tests/evaluate_test.py tests/lora_test.py tests/personalize_test.py tests/transcribe_test.py

test-oldest:  ## the fast tests of the core with the oldest versions (constraints/oldest.txt), in an environment of their own
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install $(PIP_FLAGS) -c constraints/oldest.txt -r requirements.txt pytest pytest-xdist hypothesis
	$(OLDEST)/bin/python -m pytest -n auto -q -m "not slow and not parity and not weights and not data" $(OLDEST_TESTS)

lint: install  ## what CI checks before it tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: install  ## let ruff put things in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## environment and runs
	rm -rf $(VENV) $(OLDEST) workdirs build
