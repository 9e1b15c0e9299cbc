# SPDX-License-Identifier: MIT
# Needs python3 (3.11 or newer, with venv), gcc and make. Everything else comes by pip into .venv.
#
# Two builds that never mix: the release build is installed into .venv (demo, bench); the build with
# fault hooks and assertions lies in build/test-site, which the tests put first on PYTHONPATH.
# Stamp files make a second run quick; a changed file in core/ or src/ rebuilds what it touches.

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell \
	$(p) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))) python3)
VENV   ?= .venv
BUILD  ?= build
TESTS  ?=
JOBS   ?=
LINTERS ?= spdx ruff ruff-format clang-format mypy pyright workflows
PYTHONS ?= 3.12 3.13
CPYTHONS ?= 3.11 3.12 3.13
SUITES ?=
TEST_EXTRAS ?= numpy lab test
AARCH64_TESTS := test_word test_lock test_magazine test_run test_alloc test_lease test_find
ADAPTER_TESTS := tests/api/test_frames.py tests/api/test_joblib.py tests/api/test_torch.py \
	tests/api/test_dask.py tests/api/test_examples.py tests/simulate/test_sweep_on_dask.py

PY   := $(VENV)/bin/python
PIP  := $(PY) -m pip --quiet --disable-pip-version-check
SITE := $(BUILD)/test-site
WITH_SITE := PYTHONPATH=$(CURDIR)/$(SITE)
PYTEST := $(WITH_SITE) $(PY) -m pytest $(if $(JOBS),-n $(JOBS))

SOURCES := pyproject.toml meson.build meson.options \
	$(shell find core src \( -name __pycache__ -prune \) -o -print)
C_FILES := $(shell find core src benchmarks tests/core -name '*.[ch]')

# pip builds without isolation, so meson, ninja and cython are found here
export PATH := $(abspath $(VENV))/bin:$(PATH)

# Prints requirement lines of pyproject.toml: those of the build, those of the package, then the
# extras and dependency groups named.
define REQUIREMENTS
import sys, tomllib
toml = tomllib.load(open("pyproject.toml", "rb"))
named = toml["project"]["optional-dependencies"] | toml["dependency-groups"]
print(*toml["build-system"]["requires"], *toml["project"]["dependencies"], sep="\n")
print(*(line for name in sys.argv[1:] for line in named[name]), sep="\n")
endef
export REQUIREMENTS

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test adapters adapters-suites joblib-suites aarch64 aarch64-build aarch64-machine soak bench docs lint format pythons cpython cpython-suites dist sdist wheels clean spin

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-16s%s\n", $$1, $$2 }' Makefile

# ---- what to run -------------------------------------------------------------------------------

demo: $(VENV)/.release ## the patch's result on this machine; photographs between processes
	$(PY) -m vmalloc.demo

test: $(SITE)/.installed $(if $(TESTS),$(if $(findstring spin,$(TESTS)),spin),spin) ## all tests, under 10 minutes; TESTS=tests/api for some, JOBS=2 in parallel
	$(PYTEST) $(TESTS)

adapters: ## the tests of adapters, with their libraries in an environment of their own, or VENV=; PyTorch is large
	$(MAKE) --no-print-directory test BUILD=$(BUILD)/adapters \
		VENV=$(if $(filter command line,$(origin VENV)),$(VENV),$(BUILD)/adapters/venv) \
		TEST_EXTRAS="numpy test adapters torch dask beside" TESTS="$(or $(TESTS),$(ADAPTER_TESTS))"

adapters-suites: ## joblib's own tests, with our backend in loky's place as with loky; 10 minutes
	$(MAKE) --no-print-directory joblib-suites BUILD=$(BUILD)/adapters \
		VENV=$(if $(filter command line,$(origin VENV)),$(VENV),$(BUILD)/adapters/venv) \
		TEST_EXTRAS="numpy test adapters torch dask beside"

joblib-suites: $(SITE)/.installed
	$(WITH_SITE) $(PY) tests/joblib_suites/compare.py --logs $(BUILD)/joblib $(SUITES)

aarch64: aarch64-build ## some C tests for aarch64 under emulation, by hand: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user
	meson test -C $(BUILD)/aarch64 --timeout-multiplier 4 $(AARCH64_TESTS)

aarch64-machine: aarch64-build ## all C tests on an emulated aarch64 machine with its own kernel, by hand: qemu-system-arm, cpio; hours
	$(PY) tests/core/aarch64_machine.py $(BUILD)/aarch64 $(notdir $(TESTS))

aarch64-build: $(VENV)/.tools-test
	@test -f $(BUILD)/aarch64/build.ninja || meson setup --cross-file tests/core/aarch64.ini \
		-Dhooks=true -Dtests=true -Dbuildtype=debugoptimized $(BUILD)/aarch64
	ninja -C $(BUILD)/aarch64

soak: $(SITE)/.installed spin ## the long runs
	$(PYTEST) -m soak -o timeout=0 -o faulthandler_timeout=0 $(TESTS)

bench: $(VENV)/.release ## every benchmarks/bench_*.py; results in build/bench
	@mkdir -p $(BUILD)/bench
	@for bench in benchmarks/bench_*.py; do \
		echo "== $$bench"; \
		$(PY) $$bench --json $(BUILD)/bench/$$(basename $$bench .py).json || exit 1; \
	done

docs: $(SITE)/.installed $(VENV)/.tools-docs ## the documents as a site in build/site; strictly, without the network
	NO_MKDOCS_2_WARNING=1 $(WITH_SITE) $(PY) -m mkdocs build --quiet --strict --site-dir $(BUILD)/site
	@echo "$(BUILD)/site/index.html; with the search: $(PY) -m http.server -d $(BUILD)/site"

lint: $(VENV)/.tools-lint $(VENV)/.tools-test ## all linters, strictly; LINTERS="ruff mypy" for some
	@failed=; for linter in $(LINTERS); do \
		echo "== $$linter"; \
		$(MAKE) --no-print-directory lint-$$linter || failed="$$failed $$linter"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

format: $(VENV)/.tools-lint ## put the files in order: licence lines, ruff, clang-format
	$(PY) .ci/spdx.py --fix
	ruff check --fix .
	ruff format .
	clang-format -i $(C_FILES)

# $(call ON_PYTHONS,VERSIONS,ARGUMENTS OF MAKE): with each Python found, in a build directory of its own.
define ON_PYTHONS
	@failed=; for version in $(1); do \
		python=; \
		for candidate in python$$version ~/.pyenv/versions/$$version.*/bin/python; do \
			if $$candidate -c "import sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$$version')" \
				2>/dev/null; then python=$$candidate; break; fi; \
		done; \
		if [ -z "$$python" ]; then echo "== Python $$version: not found, skipped"; continue; fi; \
		echo "== Python $$version"; \
		$(MAKE) --no-print-directory $(2) PYTHON=$$python VENV=$(BUILD)/python$$version/venv \
			BUILD=$(BUILD)/python$$version TEST_EXTRAS="numpy test" || failed="$$failed $$version"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed on:$$failed"; exit 1; fi
endef

pythons: ## the api tests on every other Python found
	$(call ON_PYTHONS,$(PYTHONS),test TESTS="$(or $(TESTS),tests/api)")

cpython: ## CPython's own multiprocessing tests, with us installed as without; an hour for each Python
	$(call ON_PYTHONS,$(CPYTHONS),cpython-suites)

cpython-suites: $(SITE)/.installed
	$(WITH_SITE) $(PY) tests/cpython/compare.py --logs $(BUILD)/cpython $(SUITES)

dist: $(VENV)/.tools-dist ## sdist and manylinux wheel in dist/, from what is committed
	rm -rf dist $(BUILD)/dist
	$(PY) -m build --outdir $(BUILD)/dist
	auditwheel repair --wheel-dir dist $(BUILD)/dist/*.whl
	cp $(BUILD)/dist/*.tar.gz dist/
	@ls dist

sdist: $(VENV)/.tools-dist ## the sdist alone
	$(PY) -m build --sdist --outdir dist

wheels: $(VENV)/.tools-wheels ## a manylinux wheel for each Python, built and tested in containers (docker)
	cibuildwheel --output-dir dist

clean: ## forget all builds; .venv stays
	rm -rf build dist $(VENV)/.release
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# ---- one linter each; .pre-commit-config.yaml runs the same ------------------------------------

lint-%: | $(VENV)/.tools-lint $(VENV)/.tools-test
	$(LINT.$*)

LINT.spdx         = $(PY) .ci/spdx.py
LINT.ruff         = ruff check .
LINT.ruff-format  = ruff format --check .
LINT.clang-format = @clang-format --dry-run --Werror $(C_FILES)
LINT.mypy         = mypy
LINT.pyright      = pyright --pythonpath $(PY)
define LINT.workflows
check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
pre-commit validate-config
@if command -v actionlint >/dev/null; then actionlint; else \
	echo "note: actionlint is not installed; the workflows were checked against their schema only"; fi
endef

# ---- how it gets there -------------------------------------------------------------------------

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "Python 3.11 or newer is needed; say which: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@$(PIP) install 'pip>=23.1' # older ones, as Debian 12's, know no -C

$(VENV)/.tools-test: TOOLS = $(TEST_EXTRAS)
$(VENV)/.tools-%: TOOLS = $*
$(VENV)/.tools-%: pyproject.toml | $(PY)
	@echo "installing what pyproject.toml lists for: $(TOOLS)"
	@$(PY) -c "$$REQUIREMENTS" $(TOOLS) > $@.txt
	@$(PIP) install -r $@.txt
	@touch $@

# spin is the one tool that pip cannot bring; the tests that want it skip without it.
spin:
	@if ! command -v spin >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing spin, which tests/spin needs"; \
		(apt-get update -qq && apt-get install -y -qq --no-install-recommends spin) >/dev/null 2>&1 || true; \
	fi; \
	command -v spin >/dev/null || echo "note: the tests of tests/spin are skipped, for want of spin:" \
		"sudo apt-get install spin (or your distribution's package of it)"

$(SITE)/.installed: $(SOURCES) $(VENV)/.tools-test
	@echo "building vmalloc with hooks and assertions into $(SITE)"
	@rm -rf $(SITE)
	@$(PIP) install --no-deps --no-build-isolation --target $(SITE) -Cbuild-dir=$(BUILD)/test \
		-Csetup-args=-Dhooks=true -Csetup-args=-Dbuildtype=debugoptimized .
	@touch $@

$(VENV)/.release: $(SOURCES) $(VENV)/.tools-demo
	@echo "building vmalloc into $(VENV)"
	@$(PIP) install --no-deps --no-build-isolation --force-reinstall -Cbuild-dir=$(BUILD)/release .
	@touch $@
