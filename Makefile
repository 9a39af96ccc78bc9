# Every target sets up what it needs in .venv and builds what has changed. `make` alone lists them.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
TOOLS := $(VENV)/.tools
LISTED := $(VENV)/.listed
BUILT := $(VENV)/.built
PYTHON_FILES := benchmarks examples fastssl tests
NATIVE := CMakeLists.txt $(shell find csrc -type f)

# Bars where a person is looking, errors alone elsewhere.
PIP_INSTALL = $(PY) -m pip install --disable-pip-version-check -c constraints.txt \
              $(shell [ -t 2 ] || echo --quiet)
WITH_EXTRAS := -e '.[train,test,bench]'
PYTEST := $(PY) -m pytest

.NOTPARALLEL:
.PHONY: help demo test bench lint gpu-check build format clean FORCE

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: $(BUILT) ## pretrain SimCLR on handwritten digits and show what it learned
	$(PY) -m fastssl demo

# Triton decides at import whether to interpret: a process of its own.
test: $(BUILT) ## all tests that need no GPU
	@failed=; \
	FASTSSL_REQUIRE=cpu $(PYTEST) tests || failed=1; \
	FASTSSL_REQUIRE=cpu TRITON_INTERPRET=1 $(PYTEST) tests/triton_interpret || failed=1; \
	[ -z "$$failed" ]

bench: $(BUILT) ## measure every operator against its baselines and write benchmarks/results
	@mkdir -p out
	$(PYTEST) benchmarks --benchmark-only --benchmark-json=out/bench.json
	$(PY) -m benchmarks.report out/bench.json

lint: $(TOOLS) ## formatting, linting and the rules of the house
	@failed=; \
	$(PY) -m ruff check $(PYTHON_FILES) || failed=1; \
	$(PY) -m ruff format --check $(PYTHON_FILES) || failed=1; \
	find csrc -type f | xargs $(VENV)/bin/clang-format --dry-run -Werror || failed=1; \
	$(PYTEST) --noconftest tests/test_house.py || failed=1; \
	[ -z "$$failed" ]

gpu-check: ## build, test and measure on this machine's GPU; goes on where a call was cut off
	@PYTHON=$(PYTHON) .ci/gpu-check

format: $(TOOLS) ## what `make lint` can mend by itself
	$(PY) -m ruff check --fix $(PYTHON_FILES)
	$(PY) -m ruff format $(PYTHON_FILES)
	find csrc -type f | xargs $(VENV)/bin/clang-format -i

build: $(BUILT) ## the environment and the native libraries

clean: ## forget what was built; .venv keeps its packages
	rm -rf build dist .benchmarks .pytest_cache .ruff_cache $(BUILT)
	find benchmarks examples fastssl tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and pinned: left to a range, pip may fetch another build of several gigabytes.
$(TOOLS): constraints.txt
	@$(check_host)
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing packages into $(VENV) (once, a few minutes)"
	@$(PIP_INSTALL) torch==2.13.0
	@$(PIP_INSTALL) clang-format cmake ninja numpy pybind11 pytest pytest-benchmark ruff \
	  scikit-build-core
	@touch $@

# The installation lists the package's files: it is made again when one comes or goes.
$(LISTED): FORCE | $(TOOLS)
	@find fastssl -name '*.py' | sort | cmp -s - $@ || find fastssl -name '*.py' | sort >$@
FORCE:

# The build folder is kept: only what changed is compiled. Edited Python files need no build.
$(BUILT): $(TOOLS) $(LISTED) $(NATIVE) pyproject.toml
	@echo "building the native libraries"
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" \
	  $(PIP_INSTALL) --no-build-isolation \
	  $(if $(filter $(TOOLS) pyproject.toml,$?),$(WITH_EXTRAS),--no-deps -e .)
	@ls build/*/libfastssl_cuda.so >/dev/null 2>&1 \
	  || echo "no CUDA library: nvcc is missing or does not work here; the rest is built"
	@touch $@

# One line that says what is missing and which Debian package brings it.
define check_host
fail() { echo "error: $$*" >&2; exit 1; }; \
command -v $(PYTHON) >/dev/null || fail "$(PYTHON) not found; try: apt-get install python3"; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
  || fail "$(PYTHON) is older than Python 3.10; name a newer one: make PYTHON=python3.11"; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
  || fail "$(PYTHON) cannot create environments; try: apt-get install python3-venv"; \
$(PYTHON) -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")' 2>/dev/null \
  || fail "Python.h of $(PYTHON) not found; try: apt-get install python3-dev"; \
command -v $(CXX) >/dev/null || fail "no C++ compiler ($(CXX)); try: apt-get install g++"
endef
