# What people and CI run. It needs make, a POSIX shell and Python 3.11 or newer, and makes its own
# environment in .venv, with pip. Written for GNU make 3.81, which macOS ships.

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check -qq

# Each stamp says: this much is installed in $(VENV), as pyproject.toml now asks for it.
RUNTIME = $(VENV)/.runtime
TESTING = $(VENV)/.testing

.DEFAULT_GOAL = help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help run test lint type pytest check-wheel bench clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{printf "%-18s%s\n", $$1, $$2}'

run: $(RUNTIME) ## chat with the embedded demo pair; lines can be piped in
	@$(BIN)/mgm chat

test: lint type pytest check-wheel ## everything CI checks

lint: $(TESTING) ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# mypy cannot follow an editable install that maps folders. These links are the package as installed.
type: $(TESTING) ## mypy, strict
	@rm -rf $(VENV)/types && mkdir -p $(VENV)/types/mlx_gemma_mtp
	@ln -s "$(CURDIR)"/mlx_gemma_mtp/* "$(CURDIR)/convert" "$(CURDIR)/bench" $(VENV)/types/mlx_gemma_mtp
	cd $(VENV)/types && ../bin/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache

pytest: $(TESTING) ## the tests; ARGS="-k name" to choose
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# Proves that a wheel holds all of the package, and that the dependencies it declares are enough.
check-wheel: $(TESTING) ## build the wheel; try it in an empty environment, away from here
	@set -e; \
	tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; trap 'exit 130' HUP INT TERM; \
	$(BIN)/python -m build --outdir "$$tmp" . > "$$tmp/log" 2>&1 || { cat "$$tmp/log" >&2; exit 1; }; \
	$(BIN)/python -m venv --without-pip "$$tmp/env"; \
	$(PIP) --python "$$tmp/env/bin/python" install --no-compile "$$tmp"/*.whl; \
	site=$$(cd "$$tmp" && env/bin/python -c 'import mlx_gemma_mtp as m; print(m.__path__[0])'); \
	diff -r -x __pycache__ -x .DS_Store -x convert -x bench mlx_gemma_mtp "$$site" >&2; \
	diff -r -x __pycache__ -x .DS_Store convert "$$site/convert" >&2; \
	diff -r -x __pycache__ -x .DS_Store -x results -x plots -x peers -x README.md bench "$$site/bench" >&2; \
	cd "$$tmp"; \
	env/bin/python -c 'import mlx_gemma_mtp.convert, mlx_gemma_mtp.bench'; \
	env/bin/mgm --version; \
	answer=$$(env/bin/mgm generate 'What is 17 + 25?' --max-tokens 32); \
	echo "What is 17 + 25? $$answer"; \
	case $$answer in *42*) ;; *) echo 'check-wheel: not the right answer' >&2; exit 1 ;; esac

bench: $(RUNTIME) ## what drafts gain here, with the demo pair; ARGS="--model NAME" for another
	@$(BIN)/mgm bench $(ARGS)

clean: ## remove all that make made, the environment too
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find mlx_gemma_mtp convert bench tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Setting up speaks on stderr only: the stdout of `make -s run` is the model's text.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo 'This needs Python 3.11 or newer, and "$(PYTHON)" is none.' \
	        'Say which to use: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) >&2
	@touch $@

$(RUNTIME): pyproject.toml $(VENV)/.created
	@echo 'Installing into $(VENV), this once ...' >&2
	@$(PIP) install -e . >&2
	@touch $@

$(TESTING): pyproject.toml $(VENV)/.created
	@echo 'Installing into $(VENV), with what the tests need, this once ...' >&2
	@$(PIP) install -e '.[test]' >&2
	@touch $(RUNTIME) $@
