# The commands of people and CI. They need make, a POSIX shell and Python 3.11 or newer, and install
# into their own environment, .venv. Written for GNU make 3.81, which macOS ships.

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check -qq

# Stamps: this part of pyproject.toml is installed in $(VENV).
RUNTIME = $(VENV)/.runtime
QUICK = $(VENV)/.quick
TESTING = $(VENV)/.testing

.DEFAULT_GOAL = help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory
.PHONY: help run test quick lint type pytest check-wheel check-app docs bench clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{printf "%-18s%s\n", $$1, $$2}'

run: $(RUNTIME) ## chat with the embedded demo pair; piped lines are questions
	@$(BIN)/mgm chat

# mypy and the wheel need one core each, so they run together.
test: lint ## everything that CI checks
	@$(MAKE) check-wheel & wheel=$$!; $(MAKE) type; type=$$?; wait $$wheel && exit $$type
	@$(MAKE) pytest

quick: $(QUICK) ## the quick tests, without torch; ARGS="-k name" to choose
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow and not torch" $(ARGS)

lint: $(TESTING) ## ruff, rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# mypy cannot follow an editable install that maps folders, so these links make the package.
type: $(TESTING) ## mypy, and pyright for what users write; both strict
	@rm -rf $(VENV)/types && mkdir -p $(VENV)/types/mlx_gemma_mtp
	@ln -s "$(CURDIR)"/mlx_gemma_mtp/* "$(CURDIR)/convert" "$(CURDIR)/bench" $(VENV)/types/mlx_gemma_mtp
	@ln -s "$(CURDIR)/examples" $(VENV)/types
	cd $(VENV)/types && ../bin/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache
	$(BIN)/basedpyright --pythonpath $(BIN)/python

pytest: $(TESTING) ## all tests; ARGS="-k name" to choose
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# The wheel holds all of the package and nothing else of the repository, and the dependencies that it
# declares are enough.
check-wheel: $(TESTING) ## build the wheel and try it in an empty environment
	@set -e; \
	tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; trap 'exit 130' HUP INT TERM; \
	$(BIN)/python -m build --outdir "$$tmp" . > "$$tmp/log" 2>&1 || { cat "$$tmp/log" >&2; exit 1; }; \
	$(BIN)/python -m venv --without-pip "$$tmp/env"; \
	$(PIP) --python "$$tmp/env/bin/python" install --no-compile "$$tmp"/*.whl; \
	site=$$(cd "$$tmp" && env/bin/python -c 'import mlx_gemma_mtp as m; print(m.__path__[0])'); \
	not="-x __pycache__ -x .DS_Store -x *.svg"; set -f; \
	diff -r $$not -x recipe -x convert -x bench mlx_gemma_mtp "$$site" >&2; \
	diff -r $$not -x README.md convert "$$site/convert" >&2; \
	diff -r $$not -x peers -x results -x plots -x README.md bench "$$site/bench" >&2; \
	for path in demo/recipe bench/peers bench/results ../tests ../helpers ../convert ../bench; do \
	    test ! -e "$$site/$$path" || { echo "check-wheel: unwanted $$path" >&2; exit 1; }; \
	done; \
	cd "$$tmp"; \
	env/bin/python -c 'import mlx_gemma_mtp.convert, mlx_gemma_mtp.bench'; \
	! env/bin/python -c 'import transformers' 2> /dev/null || \
	    { echo 'check-wheel: transformers is installed' >&2; exit 1; }; \
	env/bin/mgm --version; \
	answer=$$(env/bin/mgm generate 'What is 17 + 25?' --max-tokens 32); \
	echo "What is 17 + 25? $$answer"; \
	case $$answer in *42*) ;; *) echo 'check-wheel: wrong answer' >&2; exit 1 ;; esac

# Not part of `make test`: PyInstaller takes half a minute or more.
check-app: $(VENV)/.created ## build an app with PyInstaller and try it elsewhere
	@set -e; \
	tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; trap 'exit 130' HUP INT TERM; \
	$(BIN)/python -m venv --without-pip "$$tmp/env"; \
	$(PIP) --python "$$tmp/env/bin/python" install . pyinstaller; \
	"$$tmp/env/bin/pyinstaller" --log-level ERROR --distpath "$$tmp" --workpath "$$tmp/work" \
	    --specpath "$$tmp" examples/hello.py; \
	rm -rf "$$tmp/env" "$$tmp/work"; \
	du -sh "$$tmp/hello"; \
	cd /; answer=$$(env -i HOME="$$tmp" "$$tmp/hello/hello"); \
	echo "$$answer"; \
	case $$answer in *42*) ;; *) echo 'check-app: wrong answer' >&2; exit 1 ;; esac

docs: $(RUNTIME) ## write docs/api.md from the docstrings
	$(BIN)/python docs/api.py > docs/api.md

bench: $(RUNTIME) ## benchmark the demo pair; ARGS="--model NAME" for another
	@$(BIN)/mgm bench $(ARGS)

clean: ## remove everything that make made, with the environment
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find mlx_gemma_mtp convert bench tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up writes to stderr only: the stdout of `make -s run` is the model's output.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo 'Python 3.11 or newer is required; "$(PYTHON)" is older.' \
	        'Choose another: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) >&2
	@touch $@

$(RUNTIME): pyproject.toml $(VENV)/.created
	@echo 'Installing into $(VENV) ...' >&2
	@$(PIP) install -e . >&2
	@touch $@

$(QUICK): pyproject.toml $(VENV)/.created
	@echo 'Installing into $(VENV), with the quick tests ...' >&2
	@$(PIP) install -e '.[quick]' >&2
	@touch $(RUNTIME) $@

$(TESTING): pyproject.toml $(VENV)/.created
	@echo 'Installing into $(VENV), with all tests ...' >&2
	@$(PIP) install -e '.[test]' >&2
	@touch $(RUNTIME) $(QUICK) $@
