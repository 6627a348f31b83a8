PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Where `make model` writes, and the VQModel that it starts from in place of training one.
RUNS ?= runs/mini
BASE ?=
# Two workers for two cores: each test process computes on one thread (tests/conftest.py).
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format test-slow test-peer benchmark docs model clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

# Torch goes first and alone, so that pip takes a CPU build that the machine offers locally; resolved together with
# the rest it would weigh the builds with CUDA against it.
$(STAMP): setup.py constraints.txt
	@test -x $(BIN)/python || { \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "alit-hf needs Python 3.10 or newer")' && \
	    $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train,eval,demo,docs,dev]' --constraint constraints.txt
	@touch $@

venv: $(STAMP) ## build .venv, or bring it up to date with setup.py and constraints.txt

demo: venv ## encode three real photos, draw them at every length: outputs/demo.png
	$(BIN)/python examples/demo.py

test: lint ## lint, then the tests that every change must pass
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not benchmark"

lint: venv ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: venv ## rewrite the files in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-slow: venv test-peer ## the tests marked slow, and those of transformers
	$(BIN)/python -m pytest -m slow

test-peer: venv ## the tests that transformers has for its own models, which it downloads once
	$(BIN)/python tools/peer_mixins/run.py -n $(WORKERS)

benchmark: venv ## print timings, one process at a time
	$(BIN)/python -m pytest -s -m benchmark tests/benchmarks

docs: venv ## build the documentation: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

TRAIN := $(BIN)/python training/train.py --resume latest --config training/configs/mini

# Each line passes over what is finished, so that the same command goes on after Ctrl-C, a kill or a reboot. What the
# last stages need of the network comes first.
model: venv ## train the default model, RUNS=runs/mini [BASE=folder]; the same command goes on where it stopped
	$(BIN)/python -m alit_hf.networks.lpips
	test -n "$(BASE)" || $(TRAIN)/base.yaml --output_dir "$(RUNS)/base"
	$(TRAIN)/distill.yaml --output_dir "$(RUNS)/distill" --init_from "$(or $(BASE),$(RUNS)/base/model)"
	$(TRAIN)/finetune.yaml --output_dir "$(RUNS)/finetune" --init_from "$(RUNS)/distill/model"
	$(TRAIN)/lengths.yaml --output_dir "$(RUNS)/lengths" --init_from "$(RUNS)/finetune/model"
	$(BIN)/alit analyze lengths --model "$(RUNS)/lengths/model" --data ../shared/data/eval-photos.parquet \
	    --shifted-data ../shared/data/eval-peopleart.parquet --output "$(RUNS)/predicted-lengths"
	$(BIN)/alit evaluate --model "$(RUNS)/lengths/model" --data ../shared/data/eval-photos.parquet --lpips alex \
	    --output "$(RUNS)/results.json" --figure "$(RUNS)/results.png"
	$(BIN)/python tools/checkpoint_card.py --results "$(RUNS)/results.json" --card "$(RUNS)/README.md"

clean: ## remove .venv, caches and outputs
	rm -rf $(VENV) outputs build site .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests training examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
