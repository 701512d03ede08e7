PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo check lint types test test-long chaos bench demo-weights real clean

.venv/ready: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

demo: .venv/ready  ## the main job on synthetic hospitals
	$(BIN)/nvflare simulator jobs/pfedsam -w runs/pfedsam -t 4

check: lint types test  ## all that must pass before a commit

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

test: .venv/ready
	$(BIN)/python -m pytest -m "not long"

test-long: .venv/ready  ## all tests, with those of minutes: provisioned federations, POC, kills, outages
	$(BIN)/python -m pytest

chaos: .venv/ready  ## N random kills of a provisioned federation's processes; prints a table
	$(BIN)/python benchmarks/chaos.py --kills $(or $(N),6) --lanes $(or $(LANES),1)

bench: .venv/ready  ## speed and memory beside stock SAM; appends to benchmarks/RESULTS.md; about 10 minutes
	for batch in 1 4; do $(BIN)/python benchmarks/training_step.py --batch $$batch --append benchmarks/RESULTS.md; done
	$(BIN)/python benchmarks/training_step.py --size 512 --append benchmarks/RESULTS.md
	$(BIN)/python benchmarks/memory.py --append benchmarks/RESULTS.md

demo-weights: .venv/ready  ## pretrain the demo backbone anew, about 12 minutes
	$(BIN)/python scripts/pretrain_demo.py

real: .venv/ready  ## one seed of the real results; needs PFEDSAM_DATA_ROOT and PFEDSAM_WEIGHTS
	PATH="$(CURDIR)/$(BIN):$$PATH" benchmarks/real.sh runs/real $(or $(SEED),0) brain_mri nuclei

clean:
	rm -rf .venv runs build
