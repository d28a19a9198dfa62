# Two commands: `make book` and `make test`. `make help` lists the others.
# Needs Python 3.11 or newer, git, make and a package registry. Everything is installed into $(VENV), nothing elsewhere.

VENV ?= .venv
EDITION ?=
CHAPTERS ?=
# The first Python on the path that is new enough; looked for only when the environment is made.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

BIN := $(VENV)/bin
STAMP := $(VENV)/.skinbook-installed
REQUIREMENTS := --constraint constraints.txt --editable '.[book,test,lint]'
BOOK := $(BIN)/skinbook book

.DEFAULT_GOAL := help
.PHONY: help environment book test unit coverage test-alone test-browser test-oldest test-newest lint hooks format pair refresh refresh-ledger generate repository links spread bench faults held steady mutants clean

help: ## list the targets
	@export LC_ALL=C; grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1|/' | awk -F'|' '{printf "  make %-15s %s\n", $$1, $$2}'

environment: $(STAMP) ## make .venv and install the tested versions

$(STAMP): constraints.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "skinbook needs Python 3.11 or newer; none is on the path. Install one, or name it: make PYTHON=/path/to/python3 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make an environment; on Debian and Ubuntu install the package python3-venv."; exit 1; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --constraint constraints.txt uv || echo "uv could not be installed; pip will do, more slowly."
	@echo "Installing the tested versions into $(VENV) (about 6 GB with torch)"
	@{ test -x $(BIN)/uv && $(BIN)/uv pip install --python $(BIN)/python $(REQUIREMENTS); } || $(BIN)/python -m pip install $(REQUIREMENTS)
	@touch $(STAMP)

book: $(STAMP) ## build the book from the stored outputs; EDITION=ham10000 executes it on that edition first
	$(BOOK) build $(if $(EDITION),--edition $(EDITION))

test: $(STAMP) ## unit tests and every chapter; CHAPTERS="01 03" narrows the chapters
	SKINBOOK_CHAPTERS="$(CHAPTERS)" $(BIN)/python -m pytest --nbval

# Two processes with one thread each: the tests are many and small.
unit: $(STAMP) ## the unit tests alone, at most 90 s on two cores; TESTS="-k splits" narrows
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m "not slow" --numprocesses 2 --dist loadgroup $(TESTS)

# Without the tests in which no file can grow, for coverage's own would not either, and those of a package installed
# elsewhere. The path is whole, since processes are started in other folders, too.
coverage: export COVERAGE_FILE := $(CURDIR)/_build/coverage/data
coverage: $(STAMP) ## the share of the package's lines that the tests run; fails below 95 %
	mkdir -p _build/coverage
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest tests --ignore tests/test_alone.py -k "not no_more_bytes" $(TESTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-alone: $(STAMP) ## each notebook alone, as Colab has it: the wheel, an empty folder, no network; CHAPTERS="03" narrows
	SKINBOOK_ALONE="$(or $(CHAPTERS),all)" $(BIN)/python -m pytest tests/test_alone.py

test-browser: book ## the built pages and the app in Chromium: faults, links, maths, search, keyboard, phone, contrast
	@$(BIN)/python -c "import playwright, axe_playwright_python" 2>/dev/null || $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[browser]' || $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	$(BIN)/python -m pytest tests/browser/pages.py tests/browser/app.py

# The unit tests in an environment of their own, without constraints. Compiled libraries are taken as wheels: the oldest
# version of one is the lower bound of pyproject.toml, or the first that has a wheel for this Python.
COMPILED := torch torchvision numpy scipy pandas scikit-learn matplotlib pillow pyyaml pyzmq
define test_with
	@test -n "$(PYTHON)" || { echo "skinbook needs Python 3.11 or newer; none is on the path."; exit 1; }
	@test -x _build/$@/bin/uv || { $(PYTHON) -m venv _build/$@ && _build/$@/bin/python -m pip install --quiet uv; }
	_build/$@/bin/uv pip install --python _build/$@/bin/python $(1) --editable '.[book,test]'
	_build/$@/bin/python -m pytest tests $(TESTS)
endef

test-oldest: ## unit tests with the oldest libraries that pyproject.toml allows; TESTS="-k splits" narrows
	$(call test_with,--resolution lowest-direct $(addprefix --only-binary ,$(COMPILED)))

test-newest: ## unit tests with the newest libraries
	$(call test_with,--upgrade)

lint: $(STAMP) ## ruff, mypy, codespell, and the floors of the house
	$(BIN)/ruff check skinbook tests chapters
	$(BIN)/ruff format --check skinbook tests chapters
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/lint-imports --no-logo

hooks: $(STAMP) ## check each commit before it is made: ruff, codespell, chapters, workflows
	$(BIN)/pre-commit install

format: $(STAMP) ## let ruff tidy package, tests and notebooks (then the text twins)
	$(BOOK) pair
	$(BIN)/ruff check --fix --quiet skinbook tests chapters || true
	$(BIN)/ruff format skinbook tests chapters
	$(BOOK) pair --source notebook

pair: $(STAMP) ## bring notebooks in line with their text twins; FROM=notebook turns it round
	$(BOOK) pair $(if $(FROM),--source $(FROM))

refresh: $(STAMP) ## execute notebooks in place on lab/quick; CHAPTERS="03" narrows
	$(BOOK) refresh $(CHAPTERS)

refresh-ledger: $(STAMP) ## re-execute just the cells that show results of real lesions
	$(BIN)/skinbook ledger refresh

generate: $(STAMP) ## rewrite what is generated: results in README and book, references, badges, links
	$(BOOK) generate

repository: $(STAMP) ## set the public address everywhere: make repository URL=https://github.com/NAME/REPOSITORY
	$(BOOK) repository "$(URL)"

links: $(STAMP) ## list links to other places; CHECK=yes tries them
	$(BOOK) links $(if $(CHECK),--check)

spread: $(STAMP) ## measure the spread over seeds and threads that the tolerances come from
	$(BIN)/skinbook spread $(CHAPTERS)

faults: $(STAMP) ## every test that breaks something on purpose, with twenty kills of each and more damaged files
	SKINBOOK_KILLS=20 SKINBOOK_INPUTS=10 $(BIN)/python -m pytest tests -m holds

held: $(STAMP) ## the same, and write what held for the maintainers' page (data/held.json, chapters/held.md)
	SKINBOOK_KILLS=20 SKINBOOK_INPUTS=10 $(BIN)/python -m pytest tests -m holds --held data/held.json
	$(BOOK) generate

steady: $(STAMP) ## the unit tests twenty times in random order, and with other threads, places, users and clocks; STEADY="--ways order --rounds 3" narrows
	$(BIN)/python tests/steady.py $(STEADY)
	$(BOOK) generate

mutants: $(STAMP) ## does a test notice when a line is made wrong? Resumable; FILES="splits ledger" narrows
	@$(BIN)/python -c "import cosmic_ray" 2>/dev/null || $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[mutants]' || $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mutants]'
	$(BIN)/python tests/mutants.py $(FILES)

bench: $(STAMP) ## how fast training is here, beside the usual loader, timm's, and the limit (saved in _build/bench.json)
	$(BIN)/skinbook bench $(BENCH)

clean: ## remove what was built (the environment stays; rm -rf .venv removes it)
	rm -rf _build dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
