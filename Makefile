# Each target sets up all that it needs: a virtual environment in .venv with the versions of constraints.txt.

PYTHON ?= python3
THREADS ?= $(shell nproc)
SECONDS ?= 60

BIN := .venv/bin
INSTALLED := .venv/installed
WEB := .venv-web/done
EXTRAS := train,lora,eval,space,export,scale,dev
# The extras for LoRA and export need a newer transformers or torch than everything else: with these, they say so.
LOWEST := -e ".[train,eval,space,scale,dev]" "$(shell grep -o "peft>=[0-9.]*" pyproject.toml)"
OLDER := 2026-05-01
SCENES := outputs/scenes
# All that accelerate would otherwise assume with a warning, and every core instead of one. A GPU is used if there is one.
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

# One more than cores: a third of the time goes into waiting for other processes.
PYTEST = -m pytest --numprocesses $(shell expr $(THREADS) + 1) --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(TESTS)
# Of the newest versions, torch's is the one that is pinned: its own newest brings gigabytes of CUDA along.
TORCH ?= $(shell grep ^torch== constraints.txt)

.DELETE_ON_ERROR:
.PHONY: help train test test-lowest test-older test-newest audit dist bench chaos fuzz lint space clean

# Nothing but the installation, and the audit, needs the network.
train test test-lowest test-older test-newest bench chaos space: export HF_HUB_OFFLINE := 1
train test test-lowest test-older test-newest bench chaos space: export HF_HUB_DISABLE_TELEMETRY := 1

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 16

# The two fine-tunings go side by side, a thread each: models so small gain nothing from a second one.
train: $(SCENES)/base/done  ## build scenes, train a base model, then it without and with AMC; compare the three
	@$(MAKE) --no-print-directory -j2 THREADS=1 $(SCENES)/results.json
	@echo "The numbers are in $(SCENES)/results.json, the pictures in $(SCENES)/heatmaps.png."

test: $(INSTALLED) $(WEB)  ## the tests; some of them: make test TESTS="tests/test_scenes.py -k seed"
	@OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

# Each installs gigabytes. LOWEST=1: tests/test_dependencies.py checks that every lower bound is what is installed.
test-lowest: .venv-lowest/installed  ## the tests with the lowest versions that pyproject.toml admits
	@LOWEST=1 OMP_NUM_THREADS=1 .venv-lowest/bin/python $(PYTEST)

test-older: .venv-older/installed  ## the tests with the versions of half a year ago
	@OMP_NUM_THREADS=1 .venv-older/bin/python $(PYTEST)

test-newest: .venv-newest/installed $(WEB)  ## the tests with the newest versions; of torch as well: make test-newest TORCH=torch
	@OMP_NUM_THREADS=1 .venv-newest/bin/python $(PYTEST)

# --strict: what could not be looked up would otherwise count as sound.
audit:  ## known vulnerabilities in the versions of constraints.txt, asked of the network
	@$(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python -m pip --disable-pip-version-check install -qq --upgrade pip-audit
	@.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

# Offline but for what builds, whose setuptools is the one of constraints.txt.
dist:  ## the wheel and the source distribution, checked
	@$(PYTHON) -m venv .venv-dist
	@.venv-dist/bin/python -m pip --disable-pip-version-check install -qq build twine "$$(grep ^setuptools== constraints.txt)"
	@rm -rf dist build *.egg-info && .venv-dist/bin/python -m build --no-isolation && .venv-dist/bin/twine check --strict dist/*

bench: $(INSTALLED)  ## how fast evaluation and training are (15 minutes); some of it: make bench BENCH="--only training"
	@OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m benchmarks.bench --threads $(THREADS) $(BENCH)

chaos: $(INSTALLED)  ## what the tests have no time for: kills, a full disk (as root), long runs (an hour)
	@for trial in "kills --trials 50" full_disk "ground_by_ray --trials 9" "long_run --trials 3000" "long_run_streamed --trials 3000"; do \
		OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos $$trial || exit 1; \
	done

# Atheris is made for Linux alone.
fuzz: $(INSTALLED)  ## the parsers under a fuzzer; so long each, these alone: make fuzz SECONDS=600 FUZZ="image coco/instances.json"
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip --disable-pip-version-check install -qq -e ".[fuzz]"
	@$(BIN)/python -m tests.fuzz.run --seconds $(SECONDS) $(FUZZ)

lint: $(INSTALLED)  ## style, likely mistakes, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

space: $(INSTALLED)  ## the demo, in a browser: of what `make train` made, or of MODEL_ID
	@$(BIN)/python space/app.py

clean:  ## remove .venv, caches and outputs/scenes
	rm -rf .venv .venv-* $(SCENES) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# PIP_CONSTRAINT rather than -c: so the versions also hold for what builds the package.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing the versions of constraints.txt into .venv (a few minutes)."
	@$(PYTHON) -m venv .venv
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip --disable-pip-version-check install -qq -e ".[$(EXTRAS)]"
	@touch $@

# What a content network gives to the page in space/static, which has its hashes.
$(WEB): space/static/index.html
	@mkdir -p $(@D) && rm -f $(@D)/*
	@cd $(@D) && npm pack --silent $$(grep -oE '(@[a-z-]+/)?[a-z-]+@[0-9.]+' ../$< | sort -u) >/dev/null && touch done \
		|| echo "npm gave nothing: the tests of space/static are left out."

.venv-lowest/installed: UV := --resolution lowest-direct $(LOWEST)
.venv-older/installed: UV := --exclude-newer $(OLDER) $(LOWEST)
# New versions come without a change here: remove .venv-newest for them.
.venv-newest/installed: UV := "$(TORCH)" -e ".[$(EXTRAS)]"
.venv-lowest/installed .venv-older/installed .venv-newest/installed: pyproject.toml
	@echo "Installing other versions than those of constraints.txt into $(@D)."
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check install -qq uv
	@$(@D)/bin/uv pip install -q --python $(@D)/bin/python $(UV)
	@touch $@

# The folder appears when it is complete.
$(SCENES)/data/README.md: dataset_scripts/scenes.py dataset_scripts/build.py dataset_scripts/features.py | $(INSTALLED)
	$(BIN)/albef-amc build scenes --output $(@D) --overwrite

# A run is repeated when its settings or what it starts from changed; after a change of the code, `make -B train`. Its file
# `done` appears when it has ended well.
$(SCENES)/base/done: $(SCENES)/data/README.md
$(SCENES)/without_amc/done $(SCENES)/with_amc/done: $(SCENES)/base/done
$(SCENES)/%/done: trainer/configs/scenes_%.yaml | $(INSTALLED)
	@rm -rf $@ $(@D)/checkpoint-*
	$(LAUNCH) --num_cpu_threads_per_process $(THREADS) train.py $<
	@touch $@

$(SCENES)/results.json: $(SCENES)/without_amc/done $(SCENES)/with_amc/done trainer/evaluate_grounding.py | $(INSTALLED)
	$(LAUNCH) --num_cpu_threads_per_process $(THREADS) -m albef_amc.trainer.evaluate_grounding \
		--models base=$(SCENES)/base without_amc=$(SCENES)/without_amc with_amc=$(SCENES)/with_amc \
		--dataset $(SCENES)/data --splits validation test test_relations test_unseen --output $(@D) --overwrite
