# make demo   merge the LoRAs that ship with the project, draw a picture, print a table
# make test   run every test (those for ComfyUI too, where a ComfyUI is found; else the summary says how many
#             were skipped); ROOM=formats runs those of one folder
# make test-fast  every test but those that are marked slow and those that need a ComfyUI or a browser, which
#             pytest sees from their fixtures; under two minutes
# make soak   ten thousand merges through ComfyUI's server, which tell its memory; takes twenty minutes
# make bench  time every merge method beside PEFT's on the layers of SDXL; BENCH=--quick takes two minutes
# make quality  measure what every method keeps of the LoRAs that it merges; under an hour on two cores,
#             QUALITY=--quick some minutes
# make lint   format check, lint, types, and fresh docs
# Each sets up its own virtual environment first.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
TESTS = $(if $(ROOM),tests/$(ROOM))
# tests/conftest.py says which tests share a worker, and which come first
WORKERS := -n 2 --dist loadgroup --no-loadscope-reorder

.PHONY: demo test test-fast soak bench quality lint format docs clean

demo: $(READY)
	$(BIN)/lora-alloy demo -o demo-output

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) $(TESTS)

test-fast: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) -m "not slow and not comfyui" $(TESTS)

soak: $(READY)
	LORA_ALLOY_SOAK=10000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s tests/nodes/test_soak.py

bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks $(BENCH)

quality: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quality $(QUALITY)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_readme.py

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)
	$(BIN)/python -m merge_ops methods --markdown

clean:
	rm -rf $(VENV) demo-output quality-output build dist *.egg-info

$(READY): requirements-dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@
