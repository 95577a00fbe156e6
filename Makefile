# SPDX-License-Identifier: GPL-2.0-or-later
# Everything happens in .venv; nothing is installed outside of it. `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip --quiet --disable-pip-version-check
BUILD_INPUTS = setup.py pyproject.toml $(wildcard xenpt/*.pyx xenpt/*.pxd xenpt/*.pxi xenpt/*.h)
# An install with more extras serves the targets that need fewer; so each touches the lesser stamps.
RUN_READY = $(VENV)/ready-run
TEST_READY = $(VENV)/ready-test
CHECK_READY = $(VENV)/ready-check

.PHONY: help run test check lint types hints debug asan fuzz bench bench-counts bench-stages oracle calibrate clean

help:
	@echo 'make run     build into $(VENV) and run the main job: the bare command xenpt'
	@echo 'make test    run all tests, and every benchmark once, untimed'
	@echo 'make check   ruff, cython-lint, mypy, stubtest and a build without performance hints'
	@echo 'make oracle  boot real Xen and Linux in QEMU and compare; CASES="512m 8g", quick or all;'
	@echo '             CASES=domu, or "domu-pae domu-endless": guests that the real toolstack builds'
	@echo 'make calibrate  count the instructions of real boots; fit the constants of the time model'
	@echo 'make debug   all tests on a build with bounds checks; make asan: with two sanitizers'
	@echo 'make fuzz    fuzz every reader of untrusted input; TIME=600 seconds each, TARGETS="elf log"'
	@echo 'make bench   measure the engine beside its peers; write docs/performance.md'
	@echo 'make bench-counts   instructions of each loop under callgrind, against the baseline'
	@echo 'make bench-stages   time each verb over sizes (pytest-benchmark)'
	@echo 'make clean   remove $(VENV) and everything that was built'

run: $(RUN_READY)
	@$(VENV)/bin/xenpt

test: $(TEST_READY)
	$(VENV)/bin/python -m pytest tests $(wildcard benchmarks) --benchmark-disable

check: lint types hints

lint: $(CHECK_READY)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	PATH="$(abspath $(VENV))/bin:$$PATH" cython-lint xenpt

types: $(CHECK_READY)
	$(VENV)/bin/mypy
	$(VENV)/bin/stubtest --concise xenpt._core

# setup.py --name runs cythonize() and no compiler: what it prints are hints and warnings.
hints: $(CHECK_READY)
	@said=$$(XENPT_BUILD=release $(VENV)/bin/python setup.py --name 2>&1); \
	case "$$said" in \
	*'performance hint'*|*'warning:'*) echo "$$said"; exit 1;; \
	*) echo 'cythonize: no performance hints, no warnings';; \
	esac

# The package built once more in another mode, beside the release build, and all tests run on it.
# Python itself is not built for LeakSanitizer; a size that is too large is a MemoryError there, too.
# libstdc++ is there for other libraries, whose exceptions the sanitizer has to know from the start.
PRELOAD_asan = LD_PRELOAD=$$(gcc -print-file-name=libasan.so):$$(gcc -print-file-name=libstdc++.so) \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
debug asan: $(CHECK_READY)
	XENPT_BUILD=$@ $(VENV)/bin/python setup.py --quiet build --build-base build/$@ --build-lib build/$@/lib
	$(PRELOAD_$@) PYTHONSAFEPATH=1 PYTHONPATH=$(abspath build/$@/lib) $(VENV)/bin/pytest tests $(wildcard benchmarks) --benchmark-disable

# On a quiet machine: the engine beside its peers, and the page that says so.
bench: $(TEST_READY)
	$(PIP) install --editable '.[bench,peers]'
	$(VENV)/bin/python benchmarks/run.py --output docs/performance.md

# Instruction counts, the same in every run of one build; and how long each verb takes over sizes.
bench-counts: $(CHECK_READY)
	$(VENV)/bin/python benchmarks/callgrind.py

bench-stages: $(TEST_READY)
	$(VENV)/bin/python -m pytest benchmarks --benchmark-only

# Coverage-guided; what crashes is kept in tests/fuzz/crashes, where `make test` tries it again.
fuzz: $(CHECK_READY)
	PYTHONPATH=tests $(VENV)/bin/python -m fuzz --time $(or $(TIME),60) $(TARGETS)

# Takes Xen, its toolstack and Linux of this machine's suite, into ~/.cache/xenpt; installs nothing.
oracle: $(TEST_READY)
	PYTHONPATH=tests $(VENV)/bin/python -m oracle $(CASES)

# Likewise; writes tests/golden/instructions, xenpt/data/constants.toml and the tables of docs/model.md.
calibrate: $(TEST_READY)
	$(VENV)/bin/python tools/calibrate.py $(CASES)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f xenpt/_core.c xenpt/_core.html xenpt/*.so
	find xenpt tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@sh tools/preflight.sh "$(PYTHON)"
	@echo 'Setting up $(VENV) (once) ...'
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(RUN_READY): $(BUILD_INPUTS) | $(VENV)/bin/python
	$(PIP) install --editable .
	@touch $(RUN_READY)

$(TEST_READY): $(BUILD_INPUTS) | $(VENV)/bin/python
	$(PIP) install --editable '.[test]'
	@touch $(RUN_READY) $(TEST_READY)

$(CHECK_READY): $(BUILD_INPUTS) | $(VENV)/bin/python
	$(PIP) install --editable '.[check]'
	@touch $(RUN_READY) $(TEST_READY) $(CHECK_READY)
