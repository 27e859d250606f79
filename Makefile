# Two commands do everything on a machine that has only Python and make:
#   make demo    creates the environment, installs, runs the main job
#   make test    the same, runs the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= demo
PROCESSES ?= 2

.PHONY: demo test test-all lint types figures clean

# The stamp makes a second call skip the installation until what is to be installed changes.
$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Goes on with a demo that was interrupted, and shows one that is finished.
demo: $(VENV)/installed
	$(BIN)/tfcomp demo --out=$(OUT) --resume

test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n $(PROCESSES) --dist loadfile -m 'not long'

test-all: $(VENV)/installed
	$(BIN)/python -m pytest -q -n $(PROCESSES) --dist loadfile

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Over the package as it is installed, from outside the root: on an editable install mypy would
# skip tfcomp.callbacks without a word.
types: $(VENV)/installed
	rm -rf .build $(VENV)/types
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $(VENV)/types .
	cd $(VENV)/types && ../bin/python -m mypy --config-file ../../pyproject.toml -p tfcomp

figures: $(VENV)/installed
	$(BIN)/python -m benchmarks.figures --measure

clean:
	rm -rf $(VENV) .build dist *.egg-info demo
