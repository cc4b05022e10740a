# A fresh machine needs only Python: each target makes the virtual environment it runs in.

PYTHON ?= python3
VENV := .venv
AUTOBAHN_ENV := .autobahn
NODE_PEER := tests/peers/node
SANITIZED := build/sanitized
FUZZED := build/fuzz
FUZZERS := native codec request response offer
FUZZ_SECONDS ?= 600
CLANG ?= clang
LOAD_BACKEND ?= uvloop
BIN := $(VENV)/bin
NATIVE := asyncwebsockets/_native asyncwebsockets/_nativeloop
PACKAGES := $(wildcard asyncwebsockets asgi_bridge)

# Where it is set, each of the processes that tests start would compile the library anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv demo test pure cancellation lint format types sanitize fuzz load soak bench docs \
	conformance conformance-server conformance-client conformance-all clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

# pip's own installer of dependency groups is newer than the pip of most Pythons.
$(VENV)/.runtime: pyproject.toml setup.py asyncwebsockets/_native.h $(NATIVE:=.c)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.tools: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --group test --group lint
	@touch $@

$(VENV)/.demo: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --group demo
	@touch $@

# Apart from the tools, for the plot takes libraries that not every Python has.
$(VENV)/.bench: $(VENV)/.tools
	$(BIN)/python -m pip install --quiet --group bench
	@touch $@

$(VENV)/.docs: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --group docs
	@touch $@

# For CPython on Linux and macOS only.
$(VENV)/.fuzz: $(VENV)/.tools
	$(BIN)/python -m pip install --quiet --group fuzz
	@touch $@

venv: $(VENV)/.tools $(VENV)/.bench ## create .venv with everything for development

demo: $(VENV)/.demo ## serve a page to try the library with (DEMO_SECONDS=5: that long)
	@$(BIN)/python examples/demo.py

# Where npm is missing or fails, the tests of ws are skipped; with CI=true they fail.
$(NODE_PEER)/node_modules/.installed: $(NODE_PEER)/package.json
	@if command -v node >/dev/null && command -v npm >/dev/null; then \
		npm install --prefix $(NODE_PEER) --loglevel error --no-audit --no-fund \
			--no-package-lock --ignore-scripts >/dev/null && touch $@; \
	fi || echo "npm has not installed what some tests need; its reason is above."

# Two a core: one leaves half of it idle.
WORKERS = $(shell $(BIN)/python -c 'import os; print(2 * (os.cpu_count() or 1))')

test: $(VENV)/.tools $(NODE_PEER)/node_modules/.installed ## run the tests (PYTEST_ARGS="-k name") and report branch coverage
	$(BIN)/pytest -n $(WORKERS) --dist worksteal --cov -r fEs $(PYTEST_ARGS)

pure: $(VENV)/.tools ## run the connections' tests without anything in C
	ASYNCWEBSOCKETS_CODEC=pure $(BIN)/pytest -q -n auto --dist worksteal \
		tests/test_connection.py tests/test_cancellation.py tests/test_every_await.py \
		tests/test_serve.py tests/test_tls.py

cancellation: $(VENV)/.tools ## cancel connections at every await there is (the tests take a sample)
	ASYNCWEBSOCKETS_EVERY_STEP=1 $(BIN)/pytest -q -n auto --dist worksteal tests/test_every_await.py

# A copy in $(1), so that what is installed stays as it is, with what is in C built by $(2).
define sanitized
	rm -rf $(1) && mkdir -p $(1)
	cp -r pyproject.toml $(PACKAGES) tests $(1)
	find $(1) -name '*.so' -delete
	for native in $(NATIVE); do \
		$(2) -std=c11 -Wall -Wextra -Werror -g -O1 -fPIC -shared -fno-omit-frame-pointer \
			-fsanitize=address,undefined -fno-sanitize-recover=all $(INCLUDE) \
			-o $(1)/$$native$$($(call sysconfig,EXT_SUFFIX)) $$native.c || exit; \
	done
endef
sysconfig = $(BIN)/python -c 'import sysconfig; print(sysconfig.get_config_var("$(1)"))'
INCLUDE = $$($(BIN)/python -c 'import sysconfig; print("-I" + sysconfig.get_path("include"))')

sanitize: $(VENV)/.tools ## run the tests of what is in C under AddressSanitizer and UndefinedBehaviorSanitizer
	$(call sanitized,$(SANITIZED),$(CC))
	cd $(SANITIZED) && LD_PRELOAD="$$($(CC) -print-file-name=libasan.so)" PYTHONMALLOC=malloc \
		ASAN_OPTIONS=detect_leaks=0 ASYNCWEBSOCKETS_CODEC=native PYTHONPATH=. \
		$(CURDIR)/$(BIN)/pytest -q -n auto --timeout 300 tests/test_native.py tests/test_nativeloop.py \
		tests/test_stepped.py tests/test_broadcast.py tests/test_bursts.py tests/test_codec.py \
		tests/test_connection.py tests/test_cancellation.py \
		-k "not trio and not uvloop and not stream and not unix and not pure"

# What they find is in build/corpora, beside what is committed; what fails, in build/fuzz.
FUZZ_OPTIONS = -max_total_time=$(FUZZ_SECONDS) -max_len=2048 -rss_limit_mb=2048 -print_final_stats=1 \
	-artifact_prefix=$(CURDIR)/$(FUZZED)/
fuzz: $(FUZZERS:%=fuzz-%) ## fuzz codecs and handshakes, each target for FUZZ_SECONDS=600

$(filter-out fuzz-native,$(FUZZERS:%=fuzz-%)): fuzz-%: $(VENV)/.fuzz
	mkdir -p $(FUZZED) build/corpora/$*
	$(BIN)/python -m tests.fuzz.guided $* $(FUZZ_OPTIONS) build/corpora/$* tests/fuzz/corpora/$*

fuzz-native: $(VENV)/.fuzz
	mkdir -p build/corpora/native
	$(call sanitized,$(FUZZED),$(CLANG) -fsanitize=fuzzer-no-link)
	$(CLANG) -std=c11 -Wall -Wextra -Werror -g -O1 -fsanitize=fuzzer,address,undefined \
		-fno-sanitize-recover=all $(INCLUDE) -o $(FUZZED)/native tests/fuzz/native.c -rdynamic \
		-L$$($(call sysconfig,LIBDIR)) -Wl,-rpath,$$($(call sysconfig,LIBDIR)) \
		-lpython$$($(call sysconfig,LDVERSION)) $$($(call sysconfig,LIBS))
	PYTHON=$(CURDIR)/$(BIN)/python PYTHONPATH=$(FUZZED) ASAN_OPTIONS=detect_leaks=0 \
		$(FUZZED)/native $(FUZZ_OPTIONS) build/corpora/native tests/fuzz/corpora/codec

lint: $(VENV)/.tools ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.tools ## repair what lint can repair
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# pyright looks for packages on PYTHONPATH, but not in an editable install.
types: $(VENV)/.tools $(VENV)/.bench ## check types, and that users get them
	$(BIN)/mypy $(PACKAGES) $(wildcard examples) tests benchmarks .ci
	for package in $(PACKAGES); do \
		PYTHONPATH="$(CURDIR):$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')" \
			$(BIN)/pyright --pythonpath "$(CURDIR)/$(BIN)/python" \
			--verifytypes $$package --ignoreexternal || exit; \
	done

docs: $(VENV)/.docs ## build the documentation as a site in build/docs; warnings are errors
	$(BIN)/sphinx-build -q -W --keep-going -n -d build/doctrees docs build/docs

load: $(VENV)/.tools ## 8000 connections, a full server, and a drain, on LOAD_BACKEND=uvloop
	for scenario in load overload drain; do \
		$(BIN)/python -m tests.load --backend $(LOAD_BACKEND) $$scenario || exit; \
	done

soak: $(VENV)/.tools ## 20 minutes of connections that come and go, on LOAD_BACKEND=uvloop
	$(BIN)/python -m tests.load --backend $(LOAD_BACKEND) soak

bench: $(VENV)/.bench ## race the library with its peers, write docs/benchmarks.md (BENCH_ARGS=--help)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

ifeq ($(AUTOBAHN),skip)
conformance conformance-all:
	@echo "Autobahn: skipped, as AUTOBAHN=skip says."
else
$(AUTOBAHN_ENV)/.installed: tests/autobahn/install.sh tests/autobahn/requirements.txt
	PYTHON="$(PYTHON)" tests/autobahn/install.sh $(AUTOBAHN_ENV)
	@touch $@

# The two sections about compression take a hundred times as long as all others: a role has one.
AUTOBAHN_CASES = '[1-9].*' '10.*'
conformance: $(VENV)/.tools $(AUTOBAHN_ENV)/.installed ## run Autobahn, one backend a role
	$(MAKE) -j 2 conformance-server conformance-client

conformance-server: $(VENV)/.tools $(AUTOBAHN_ENV)/.installed
	$(BIN)/python tests/autobahn/run.py server-asyncio --cases $(AUTOBAHN_CASES) '12.*'

conformance-client: $(VENV)/.tools $(AUTOBAHN_ENV)/.installed
	$(BIN)/python tests/autobahn/run.py client-trio --cases $(AUTOBAHN_CASES) '13.*'

conformance-all: $(VENV)/.tools $(AUTOBAHN_ENV)/.installed ## run all of Autobahn, write its results*.md
	$(BIN)/python tests/autobahn/run.py
endif

clean: ## remove everything that was made
	rm -rf $(VENV) $(AUTOBAHN_ENV) $(NODE_PEER)/node_modules build dist *.egg-info .coverage \
		test-results.xml .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
