# What people run. A fresh Debian or Ubuntu needs: apt-get install -y make python3-venv
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-slow lint bench clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: setup  ## four methods, three concepts, the attacks: the six-facet table and contact sheets
	$(BIN)/overpaint run experiment=demo

test: setup  ## one process a core, each with one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-slow: setup  ## what takes minutes: kill and resume, the wheel, a full-size model; SLOW="-k wheel" selects
	$(BIN)/python -m pytest -m slow $(SLOW)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=. $(BIN)/lint-imports
	$(BIN)/mypy

bench: setup  ## speed against a bare diffusers loop, of attacks side by side, and start-up times
	$(BIN)/python scripts/bench.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache outputs
