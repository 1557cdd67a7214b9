# Everything on a fresh machine with Python 3.11+: `make demo` runs the main job, `make test` the checks.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: env demo test test-all check-code format bench clean

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt tools/env.sh
	PYTHON="$(PYTHON)" bash tools/env.sh $(VENV)
	@touch $(STAMP)

demo: env
	$(BIN)/modelwright run recipes/quickstart.yaml

check-code: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check-code
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-all: check-code
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not gpu"

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env
	$(BIN)/python -m benchmarks all

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
