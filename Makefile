# A fresh machine needs Python 3.11 or newer and nothing else: `make demo` and `make test` set
# themselves up. `make` alone lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
BIN := .venv/bin
# Named after the folder: a virtual environment that was copied or moved here would run the
# scripts and the checkout of the folder it was made in.
READY := .venv/.ready-$(shell pwd -P | cksum | cut -d ' ' -f 1)
UNFINISHED := .venv/.unfinished
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

.PHONY: help setup demo findings gallery costs test chaos lint bench bench-engine bench-sweep bench-report bench-scale clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16
	@echo
	@echo '  make test ARGS="-k spectrum"      passes ARGS to pytest (-m slow: the proofs that take minutes)'
	@echo '  make setup PYTHON=python3.12      sets .venv up with another Python'
	@echo '  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup'
	@echo '                                    takes the small build of torch, for machines without a GPU'

setup: $(READY) ## make .venv with the pinned versions of everything (demo and test do it themselves)

# The mark of an unfinished set-up is there before the first file of .venv and until the last, so
# that an interrupted one is never taken for complete: the next run starts afresh. Later changes
# are installed in place, where pip itself mends what an interruption left.
# torch comes first and by its pinned version: unpinned, it is the newest, with several gigabytes
# of CUDA packages. Nothing is compiled before it is imported, unless Python may not keep it then: most
# modules never are, and compiling them all takes half of the time.
NO_COMPILE := $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile)
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "lyapsweep needs Python 3.11 or newer, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)" >&2; \
	  echo "If there is a newer one, name it: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; \
	  exit 1; }
	@if [ -e $(UNFINISHED) ] || [ ! -x $(BIN)/python ] || \
	    { compgen -G '.venv/.ready-*' > /dev/null && [ ! -e $(READY) ]; }; then \
	  rm -rf .venv && mkdir .venv && touch $(UNFINISHED) && \
	  echo "Setting up .venv; this takes a few minutes …" && $(PYTHON) -m venv .venv; \
	fi
	@$(PIP) install --quiet $(NO_COMPILE) --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	@$(PIP) install --quiet $(NO_COMPILE) --constraint constraints.txt --editable '.[dev]'
	@rm -f $(UNFINISHED) && touch $(READY)
	@echo ".venv is ready"

demo: $(READY) ## train a small sweep of LSTMs on text and write its report, in minutes
	@name="demo-$$(date +%Y%m%d-%H%M%S)" && \
	$(BIN)/lyapsweep sweep conf/demo.yaml --name "$$name" && \
	$(BIN)/lyapsweep report "$$name" --out "reports/$$name" && \
	echo && \
	echo "The report:            $(CURDIR)/reports/$$name/index.html" && \
	echo "All trials in MLflow:  $(BIN)/lyapsweep ui"

FINDINGS := reports/findings
KEPT := --store folder:$(FINDINGS)/store
# Pruners beside each other on a fresh sweep; `spectrum` has learned from the sweep before, and once
# more without its spectrum, at the same epochs.
PRUNERS := --pruner successive_halving --pruner hyperband --pruner median \
  --pruner spectrum:from_sweep=recall \
  --pruner 'spectrum:from_sweep=recall,groups=[settings,loss,norms],at=[1,2,4,8,16]'

findings: $(READY) ## the numbers and figures of docs/findings.md again, from its kept sweeps
	@rm -rf $(FINDINGS) && $(BIN)/python docs/findings/kept.py unpack $(KEPT)
	@for name in recall recall-fresh charlm planar; do \
	  $(BIN)/lyapsweep report $$name $(KEPT) --out $(FINDINGS)/$$name || exit 1; \
	done
	@LYAPSWEEP_STORE=folder:$(FINDINGS)/store $(BIN)/lyapsweep replay recall-fresh $(PRUNERS) \
	  > docs/findings/replay.txt
	@$(BIN)/python docs/findings/quoted.py $(KEPT) --reports $(FINDINGS)
	@git --no-pager diff --stat -- docs/findings docs/findings.md || true

# What it has trained it finds again; `rm -r $(GALLERY)` begins anew.
GALLERY := reports/gallery
SHOWN := storm_fields lorenz_closed_loop poole_phases
gallery: $(READY) ## the papers' experiments at small scale, docs/studies.md and README's pictures (half an hour)
	@LYAPSWEEP_HOME=$(GALLERY)/home $(BIN)/lyapsweep reproduce all --scale small --out $(GALLERY) \
	  --store folder:$(GALLERY)/store && cp $(GALLERY)/studies.md docs/studies.md && \
	  for name in $(SHOWN); do cp $(GALLERY)/$$name/figures/$$name.png docs/images/ || exit 1; done
	@git --no-pager diff --stat -- docs/studies.md docs/images || true

costs: $(READY) ## docs/paper_scale.md: what the studies would cost at the papers' scale (a quarter of an hour)
	@$(BIN)/lyapsweep reproduce all --scale paper --plan --costs docs/paper_scale.md > /dev/null
	@git --no-pager diff --stat -- docs/paper_scale.md || true

# A file of tests is one worker's, so that what it starts is started once; each worker has one core.
# In their own order: by default the files with few tests come last, which take the longest.
JOBS ?= $(shell cores=$$(nproc); echo $$((cores < 4 ? cores : 4)))
test: $(READY) ## run the tests, except the slow proofs
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest --numprocesses $(JOBS) --dist loadfile \
	  --no-loadscope-reorder $(ARGS)

chaos: $(READY) ## sweeps in a storm of 200 faults (twenty minutes): LYAPSWEEP_CHAOS_FAULTS, LYAPSWEEP_CHAOS_SEED
	@OMP_NUM_THREADS=1 $(BIN)/pytest -vv -m slow tests/chaos $(ARGS)

fuzz: $(READY) ## read 70,000 hostile files of every kind (FUZZ_SEED=1 other ones; ARGS="-k records")
	@nice $(BIN)/pytest -m slow tests/fuzz $(ARGS)

audit: $(READY) ## whether every pinned version is still served, and none was withdrawn
	@report=$$(mktemp) && trap 'rm -f "$$report"' EXIT && \
	$(PIP) install --dry-run --ignore-installed --no-deps --constraint constraints.txt \
	  --requirement constraints.txt > "$$report" 2>&1 || { tail -n 5 "$$report" >&2; exit 1; }; \
	if grep -i 'yanked version' "$$report"; then \
	  echo "withdrawn by their authors: change these pins in constraints.txt" >&2; exit 1; \
	fi; \
	echo "all $$(grep -c '^[^#]*==' constraints.txt) pinned versions are served, none is withdrawn"

lint: $(READY) ## ruff (check and format), mypy --strict, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## measure what we claim to be fast; prints one table
	@$(BIN)/python tests/bench/run_all.py $(ARGS)

bench-engine: $(READY) ## spectra beside the textbook way and their bare products
	@OMP_NUM_THREADS=1 $(BIN)/python tests/bench/run_all.py engine

bench-sweep: $(READY) ## whole sweeps beside Ray Tune and others (an hour; ARGS="mlp10 lstm64" for some)
	@$(BIN)/python tests/bench/bench_sweep.py $(ARGS)

bench-report: $(READY) ## a report over 10,000 trials, and over published spectra (half an hour, most of it writing)
	@$(BIN)/python tests/bench/run_all.py report

bench-scale: $(READY) ## sweeps of 1,000 and 10,000 trials beside their training (half an hour)
	@$(BIN)/python tests/bench/run_all.py scale

clean: ## remove .venv, caches and build products; sweeps and reports stay
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find pipeline tasks analysis tests -name __pycache__ -type d -prune -exec rm -rf {} +
