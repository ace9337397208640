# What people run. A fresh Debian or Ubuntu needs: apt-get install -y make python3-venv
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest

.PHONY: setup demo test test-slow test-lowest lint bench leaderboards clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: setup  ## three methods on three concepts, attacked: the six-facet table, contact sheets, and a site that shows them
	$(BIN)/overpaint run experiment=demo engine=local
	$(BIN)/overpaint site store="$${OVERPAINT_STORE:-outputs}" out=outputs/site

test: setup  ## one process a core, each with one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-slow: setup  ## what takes minutes: kill and resume, the wheel, a full-size model; SLOW="-k wheel" selects
	$(BIN)/python -m pytest -m slow $(SLOW)

$(LOWEST)/ready: pyproject.toml
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[test,wandb]'
	touch $@

# loading and encoding, erasures and attacks against goldens, a training through transformers' attention, one grid, the commands
test-lowest: $(LOWEST)/ready  ## with the lowest version of every library that pyproject.toml allows
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n auto --dist loadfile tests/models tests/hostile/test_commands.py \
		tests/methods/test_uce.py tests/methods/test_advunlearn.py tests/attacks/test_unlearn_diff_atk.py \
		tests/metrics/test_distribution.py tests/report/test_every_tracker.py tests/images/test_grid.py \
		tests/commands/test_fetch.py tests/extractors tests/metrics/test_official_codes.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=. $(BIN)/lint-imports
	$(BIN)/mypy

leaderboards: setup  ## every table, picture and number of the pages, from leaderboards/results; no model is run
	$(BIN)/python scripts/write_leaderboards.py

bench: setup  ## measures speed and writes docs/performance.md; SECTIONS="generation planning" selects
	$(BIN)/python scripts/bench.py $(SECTIONS)

clean:
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache outputs
