# Everything happens in .venv; PYTHON chooses the interpreter that makes it (3.11.4 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo serve check test test-all docs build clean

install: $(STAMP)

# Repeated only when what is required has changed: the package itself is installed in place.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4) and "tunescope needs Python 3.11.4 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 " + "install")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,lm-eval,oracles,quantize,ray,serve]'
	@touch $@

demo: install
	$(BIN)/tunescope compare --base smollm2-135m --data reuters-r8 --budget 15m --max-length 128 \
		--test-rows 200 --generate-rows 24 --out runs/demo

# The studio of what the demo made.
serve: install
	test -d runs/demo/bank || $(MAKE) demo
	$(BIN)/tunescope serve --bank runs/demo/bank --reports runs/demo --work runs/studio

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --quiet

# The documentation as a site, in build/site; nothing is fetched for it, and a warning is an error.
docs: install
	$(BIN)/mkdocs build

# A wheel and a source archive, in dist.
build: install
	$(BIN)/hatchling build --clean

# Two workers of one thread each: torch would otherwise start a thread per core in each of them.
test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not browser"

# Everything that make test runs, and the pages in a real browser.
test-all: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
