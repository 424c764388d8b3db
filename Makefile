# Every target is also said as plain commands in CONTRIBUTING.md, for people without make.
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test setup lint format bench bench-check

train: setup
	$(BIN)/thumbnet train

# A worker for each core: most tests start programs and wait for them.
test: setup
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# thumbnet beside TensorFlow, Keras, PyTorch and timm: 12 minutes, on a machine that does nothing else.
bench: setup
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/readme.py

# Ratios, never absolute times: the compiled kernels must be faster than plain PyTorch.
bench-check: setup
	$(BIN)/python benchmarks/check.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/ready

# constraints.txt is the lock: exact versions of everything that is installed.
$(VENV)/ready: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
