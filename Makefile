# Two commands do everything on a machine with Python 3.11, pip, make and git: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One worker a core, each with one thread: threads of several workers would only wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto
NODE := tests/node/node_modules/.ready

# What checks and describes a release, apart from what it describes.
TOOLS := .venv-release
MATRIX := cli,figures,hub,serve,onnx,offline
# Without test_combined.py: torch 2.8 exports an ensemble of several sizes with answers of its own, which is refused.
QUICK := tests/test_golden.py tests/test_stable.py tests/test_images.py tests/model --ignore=tests/model/test_combined.py \
	tests/training/test_trainer.py \
	tests/runs/test_run.py tests/hub/test_repository.py tests/inference/test_predictor.py tests/data/test_oct.py

.PHONY: demo test test-all test-faults test-live test-matrix lint types docs benchmark wheel dist hashed licences audit sbom clean

demo: $(READY)
	@# A finished demo is made anew; one that was stopped goes on.
	@if grep -qs '"status": "done"' runs/demo/run.json; then rm -rf runs/demo; fi
	$(BIN)/oct-hf finetune demo --out runs/demo
	$(BIN)/python scripts/publish_locally.py runs/demo

test: lint $(NODE)
	$(PYTEST) -m "not slow and not live"

test-all: lint $(NODE)
	$(PYTEST) -m "not live"

# Every case of each promise in SECURITY.md, and a table of them.
test-faults: $(READY) $(NODE)
	$(PYTEST) -m "promise and not live" --every-case

# On the real Hub, with a token that may write; makes one private repository and deletes it.
# HF_TOKEN=... OCT_HF_LIVE_REPO=you/name make test-live
test-live: $(READY)
	@test -n "$$HF_TOKEN" && test -n "$$OCT_HF_LIVE_REPO" || { echo "make test-live needs HF_TOKEN (may write) and OCT_HF_LIVE_REPO=you/name"; exit 2; }
	$(BIN)/python -m pytest -m live tests/hub/test_live.py

# A quick part of the tests with the lowest versions that pyproject.toml allows, and with the newest that pip finds.
# The environments are made anew: what is the newest is another one tomorrow. 13 GB and some minutes.
test-matrix: matrix-lowest matrix-newest

matrix-%:
	rm -rf .venv-$*
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python scripts/supply_chain.py $* > .venv-$*/bounds.txt
	.venv-$*/bin/python -m pip install --disable-pip-version-check -q -c .venv-$*/bounds.txt -e ".[$(MATRIX)]" pytest pytest-xdist hypothesis
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -n auto -m "not slow and not live" $(QUICK)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The documents as a site that needs no network; its search needs a server (python -m http.server -d site).
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo site/index.html
# Apart from lint: it takes a minute, and fetches Node once where there is none.
types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

benchmark: $(READY)
	$(BIN)/python scripts/benchmark.py

wheel: $(READY)
	$(BIN)/python -m build --wheel

dist: $(READY)
	$(BIN)/python -m build

# The versions of constraints.txt from the very files that were tested: Linux on x86-64, Python 3.11. The package as a
# wheel: an editable one would need a package to build it that no hash is known of.
hashed:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q --require-hashes --no-deps -r hashes.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation .
	@touch $(READY)

licences: $(READY)
	$(BIN)/python scripts/supply_chain.py licences

# Ends with 2 where the advisory service can't be asked: that nobody knew of a fault isn't that there is none.
audit: $(TOOLS)/.ready licences
	$(TOOLS)/bin/python scripts/supply_chain.py audit

sbom: $(TOOLS)/.ready $(READY)
	$(TOOLS)/bin/python scripts/supply_chain.py sbom build/oct-hf.cdx.json $(BIN)/python

clean:
	rm -rf build dist site .pytest_cache .ruff_cache

# Installed once; again only when what is wanted has changed.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "oct-hf needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[all,docs,test]"
	@touch $@

$(TOOLS)/.ready: pyproject.toml
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --disable-pip-version-check -q $$($(PYTHON) scripts/supply_chain.py tools)
	@touch $@

# transformers.js and the Hub's task schemas, for the tests that use them; skipped where there is no Node.
# No install scripts: one of them only fetches CUDA libraries.
$(NODE): tests/node/package.json
	@if command -v npm >/dev/null; then \
		cd tests/node && npm install --ignore-scripts --no-package-lock --no-audit --no-fund --loglevel=error && touch node_modules/.ready; \
	else echo "no npm here: the tests that need Node are skipped"; fi
