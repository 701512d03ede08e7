PYTHON ?= python3.11
BIN := .venv/bin
SUITE ?= methods
TASKS ?= brain_mri
SEEDS ?= 0 1 2
DIST ?= dist
UV ?= $(shell command -v uv)
WHAT := --quiet --constraint constraints.txt --editable
# Without bytecode: what is imported is compiled at its first import, which is less than half of what is installed.
install = $(if $(UV),$(UV) pip install --python $(BIN)/python $(WHAT) $(1) ||) $(BIN)/pip install --no-compile $(WHAT) $(1)

.PHONY: demo check lint types test test-long fuzz chaos bench scan sbom licences release sign-release check-release demo-weights bench-gpu table tables reference constraints clean

.venv/ready: pyproject.toml requirements.txt constraints.txt
	$(if $(UV),$(UV) venv --quiet --seed --allow-existing --python $(PYTHON) .venv ||) $(PYTHON) -m venv .venv
	$(call install,.)
	touch $@

.venv/tests: .venv/ready  # what the tests and the checks need besides
	$(call install,'.[test]')
	touch $@

demo: .venv/ready  ## the main job on synthetic hospitals
	$(BIN)/nvflare simulator jobs/pfedsam -w runs/pfedsam -t 4

check: lint types test  ## all that must pass before a commit

lint: .venv/tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/tests
	$(BIN)/mypy

test: .venv/tests
	$(BIN)/python -m pytest -m "not long" --numprocesses auto --maxprocesses 4 --dist worksteal

test-long: .venv/tests  ## all tests, with those of minutes: provisioned federations, POC, kills, outages
	$(BIN)/python -m pytest

fuzz: .venv/tests  ## MINUTES of CPU (60) on hostile messages, settings, model files, datalists, stores and images
	nice $(BIN)/python tests/fuzz/campaign.py --minutes $(or $(MINUTES),60)

chaos: .venv/ready  ## N random kills of a provisioned federation's processes; prints a table
	$(BIN)/python benchmarks/chaos.py --kills $(or $(N),6) --lanes $(or $(LANES),1)

bench: .venv/tests  ## speed, memory, rounds, start, growth, scale and the doctor; each a record in benchmarks/results/systems; about an hour
	for batch in 1 4; do $(BIN)/python benchmarks/training_step.py --batch $$batch --keep; done
	$(BIN)/python benchmarks/training_step.py --size 512 --keep
	for work in attention memory rounds startup growth scale doctor; do $(BIN)/python benchmarks/$$work.py --keep; done
	$(BIN)/python benchmarks/pages.py

bench-gpu: .venv/ready  ## a step on a GPU, every way of taking it; about ten minutes; needs PFEDSAM_WEIGHTS
	$(BIN)/python benchmarks/gpu.py --keep
	$(BIN)/python benchmarks/recording.py --keep

.venv-tools/ready: pyproject.toml  # on their own, so that they are not in the list of what is installed
	$(PYTHON) -m venv .venv-tools
	.venv-tools/bin/python scripts/extra.py security | xargs -d '\n' .venv-tools/bin/pip install --quiet
	touch $@

scan: .venv-tools/ready  ## bandit for the code, picklescan for the files that ship; both must be clean
	.venv-tools/bin/bandit -q -r custom -ll
	.venv-tools/bin/picklescan -p custom

sbom: .venv/ready .venv-tools/ready  ## sbom.json: what is installed in .venv, with versions and licences, as CycloneDX
	.venv-tools/bin/cyclonedx-py environment --pyproject pyproject.toml --of JSON -o sbom.json .venv/bin/python

licences: .venv/ready  ## licences.md: every package that pfedsam runs on, with version and licence
	$(BIN)/python scripts/licences.py licences.md

release: .venv/ready  ## the wheel and constraints.txt in DIST, and SHA256SUMS signed with the SSH key KEY
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir $(DIST) .
	cp constraints.txt $(DIST)
	$(MAKE) sign-release

sign-release:  ## SHA256SUMS of the wheels and constraints.txt in DIST, and its signature by the SSH key KEY
	cd $(DIST) && sha256sum *.whl constraints.txt > SHA256SUMS && rm -f SHA256SUMS.sig
	ssh-keygen -q -Y sign -f $(KEY) -n pfedsam-release $(DIST)/SHA256SUMS

check-release:  ## whether the wheels in DIST are those that WHO signed, by the file SIGNERS of public keys
	ssh-keygen -Y verify -f $(SIGNERS) -I $(WHO) -n pfedsam-release -s $(DIST)/SHA256SUMS.sig < $(DIST)/SHA256SUMS
	cd $(DIST) && sha256sum --check --strict SHA256SUMS

demo-weights: .venv/ready  ## pretrain the demo backbone anew, about 12 minutes
	$(BIN)/python scripts/pretrain_demo.py

table: .venv/ready  ## SUITE (of benchmarks/suites.py) on TASKS with SEEDS, resumed; needs PFEDSAM_DATA_ROOT and PFEDSAM_WEIGHTS
	$(BIN)/python benchmarks/sweep.py runs/sweep --suite $(SUITE) --tasks $(TASKS) --seeds $(SEEDS) --lanes $(or $(LANES),2)
	$(BIN)/python benchmarks/tables.py runs/sweep --suite $(SUITE) --tasks $(TASKS)

tables: .venv/ready  ## write the pages of benchmarks/results anew from what is kept, and the picture
	$(BIN)/python benchmarks/pages.py
	$(BIN)/python benchmarks/figures.py --kept docs/pictures

reference: .venv/ready  ## write docs/settings.md and docs/cli.md again from the code
	$(BIN)/python scripts/reference.py

constraints: .venv/tests  ## write down the set that is installed, once the tests have passed with it
	{ sed '/^[^#]/,$$d' constraints.txt; $(BIN)/pip freeze --exclude pfedsam; } > constraints.new && mv constraints.new constraints.txt

clean:
	rm -rf .venv .venv-tools runs build
