# Everything runs from .venv, which is made on demand: Python >= 3.10 and make are all that is needed.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo pictures test coverage terrain reactions lint format wheel docs clean

demo: .venv/ready  ## the bundled diffusion checkpoint becomes a few-step generator
	$(BIN)/fewstep demo

pictures: .venv/ready  ## the README's pictures and figures are made anew of what the demo left
	$(BIN)/python scripts/pictures.py demo

test: .venv/dev  ## all tests, a process a CPU, at most four; no network
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

coverage: .venv/dev  ## all tests, and the lines that none of them runs
	rm -f .coverage*
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

terrain: .cache/terrain/reference.npz  ## a real consistency model from PyPI, which the tests read if it is there

.cache/terrain/reference.npz: tests/terrain.txt scripts/terrain.py
	rm -rf .cache/terrain
	$(PYTHON) -m venv .cache/terrain/venv
	.cache/terrain/venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
	  --requirement tests/terrain.txt --dest .cache/terrain
	.cache/terrain/venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  onnx onnxruntime safetensors
	.cache/terrain/venv/bin/python scripts/terrain.py .cache/terrain/adaptive_terrain_diffusion-*.whl .cache/terrain

reactions: .cache/reactions/test.jsonl  ## a real masked language model from PyPI, which the tests read if it is there

.cache/reactions/test.jsonl: tests/reactions-wheel.txt tests/reactions.txt scripts/reactions.py | .venv/ready
	rm -rf .cache/reactions
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
	  --requirement tests/reactions-wheel.txt --dest .cache/reactions
	$(BIN)/python scripts/reactions.py .cache/reactions/rxnmapper-*.whl .cache/reactions

lint: .venv/dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: .venv/ready  ## the built wheel, alone in a clean environment, runs the demo
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt build/wheel/*.whl
	cd build/wheel && venv/bin/fewstep demo --images 256 --n 100

docs: .venv/docs  ## the site, in build/site; a broken link or a missing name fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf .venv build demo

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/ready: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

.venv/dev: .venv/ready
	$(PIP) --editable '.[dev]'
	touch $@

.venv/docs: .venv/ready
	$(PIP) --editable '.[docs]'
	touch $@
