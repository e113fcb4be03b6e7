# Every target makes its environment first: .venv in this folder, exact versions from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test check lint science step-zero clean

quickstart: .venv/ready
	$(BIN)/python -m overopt quickstart $(ARGS)

test: .venv/ready
	$(BIN)/python -m pytest $(ARGS)

check: lint test

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The over-optimization claims over three seeds; about 35 minutes on two cores.
science: .venv/ready
	$(BIN)/python studies/over_optimization.py $(ARGS)

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
