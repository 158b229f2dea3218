# Two commands do everything on a fresh machine: `make chat` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PY     := $(BIN)/python
WORKERS ?= -n auto --maxprocesses 8# of the tests: a process per core; WORKERS= runs all in one

.PHONY: help
help:
	@echo "make chat            install into $(VENV) and talk to the built-in model"
	@echo "make test            install into $(VENV) and run the tests"
	@echo
	@echo "make native          compile native/ in place (development)"
	@echo "make lint types      ruff and generated files; mypy, strict"
	@echo "make site pictures   the documentation into build/site; its diagrams"
	@echo "make native-suite asan suite-x86 suite-arm64 mingw"
	@echo "                     the kernels on their own, on other CPUs, for Windows"
	@echo "make parity compare  beside transformers and llama.cpp: answers, speed (slow)"
	@echo "make stress          latency of stopping, many threads (slow)"
	@echo "The Makefile has some more, with a line on each."

SOURCES := pyproject.toml setup.py $(wildcard native/*.[ch] native/*.py native/kernels/*.[ch])
# install(extras): pip shows its progress where somebody sees it.
define install
@echo "edgellm: installing into $(VENV) (a minute or two the first time)" >&2
@test -x $(PY) || $(PYTHON) -m venv $(VENV)
@$(PY) -m pip install -qq --disable-pip-version-check --upgrade pip
@test -t 2 || quiet=-qq; $(PY) -m pip install $$quiet --disable-pip-version-check --editable '.[$(1)]'
endef

# What talking needs is much less than what the tests need.
$(VENV)/installed-chat: $(SOURCES)
	$(call install,all)
	@touch $@

$(VENV)/installed: $(SOURCES)
	$(call install,dev)
	@touch $@ $(VENV)/installed-chat

.PHONY: chat
chat: $(VENV)/installed-chat
	@$(BIN)/edgellm chat

.PHONY: test
test: $(VENV)/installed
	@OPENBLAS_NUM_THREADS=1 $(PY) -m pytest $(WORKERS)

# For development: PY may point to any interpreter that has the dependencies.
.PHONY: native
native:
	@mkdir -p build
	@flock build/.lock $(PY) setup.py --quiet build_ext --inplace

.PHONY: lint
lint: $(VENV)/installed
	$(PY) -m ruff check .
	$(MAKE) gen-check PY=$(PY)

# Strict on what programs use; [tool.mypy] of pyproject.toml lists what is not clean yet.
.PHONY: types
types:
	$(PY) -m mypy

# Perplexity of a model (the built-in one) pruned by each method, into docs/sparsity.md. PRUNE: options, as --model FILE.
.PHONY: prune-table
prune-table: native
	$(PY) tools/prune_table.py --write docs/sparsity.md $(PRUNE)

# The experiment with sparse activations on MODELS (none: the built-in one), nothing else running, into docs/sparsity.md;
# SPEED_ONLY: models with random weights; SPARSE_ACT: options.
.PHONY: sparse-act
sparse-act: native
	$(PY) tools/sparse_act.py table $(MODELS) $(if $(SPEED_ONLY),--speed-only $(SPEED_ONLY)) \
	    --write docs/sparsity.md --picture docs/pictures/sparse-act.png $(SPARSE_ACT)

.PHONY: gen-check
gen-check:
	$(PY) tools/gen_blocks.py --check

# The same C for Windows: proves that nothing but os_windows.c talks to the system.
.PHONY: mingw
mingw:
	@mkdir -p build
	x86_64-w64-mingw32-gcc -shared -std=c11 -O2 -ffp-contract=off -Wall -Wextra -Werror -Inative \
	    $$($(PY) native/build.py --sources os_windows.c) -o build/edgellm.dll -lsynchronization
	@echo "build/edgellm.dll: $$(wc -c < build/edgellm.dll) bytes"

comma := ,
# The kernels on their own: every level against the portable one, beside guard pages (tests/native/suite.c).
# native-suite and asan emulate AMX (tests/native/tiles_emulated.h); suite-x86 runs the real one, where there is one.
OS_LAYER := native/os_$(if $(filter Linux,$(shell uname -s)),linux,posix).c
SUITE := tests/native/suite.c native/cpu.c native/columns.c native/dispatch.c native/selftest.c native/pack.c \
         native/pack_sparse.c native/compress.c $(OS_LAYER) $(wildcard native/kernels/*.c)
SUITE_FLAGS := -std=c11 -ffp-contract=off -fno-math-errno -Wall -Wextra -Werror -Inative -pthread
EMULATED := -DEL_TILES_EMULATED -Inative/kernels -Itests/native -Wno-psabi
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

# build-suite(name, compiler and its options) -> build/kernel-suite-name
define build-suite
@rm -rf build/suite-$(1) && mkdir -p build/suite-$(1)
@printf '%s\n' $(SUITE) | xargs -P $(JOBS) -I FILE sh -c \
    '$(2) $(SUITE_FLAGS) -c FILE -o build/suite-$(1)/$$(basename FILE .c).o || exit 255'
@$(2) build/suite-$(1)/*.o -o build/kernel-suite-$(1) -lm -pthread
endef

.PHONY: native-suite
native-suite:
	$(call build-suite,native,$(CC) -O3 $(EMULATED))
	build/kernel-suite-native

.PHONY: asan
asan:
	$(call build-suite,asan,$(CC) -O1 -g -fsanitize=address$(comma)undefined -fno-sanitize-recover=all $(EMULATED))
	build/kernel-suite-asan --quick

# Other CPUs, emulated (Debian: qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross). Each run says which level must be in
# use, and that instructions which the CPU lacks end in a refusal. qemu-user has no AVX512: that runs natively only.
ARM64_CC ?= aarch64-linux-gnu-gcc
ARM64 := qemu-aarch64 -cpu
X86   := qemu-x86_64 -cpu
.PHONY: suite-arm64
suite-arm64:
	$(call build-suite,arm64,$(ARM64_CC) -O2 -static)
	$(ARM64) cortex-a53 build/kernel-suite-arm64 --quick --expect neon --liar
	$(ARM64) cortex-a76 build/kernel-suite-arm64 --quick --expect dotprod --liar dotprod
	$(ARM64) max build/kernel-suite-arm64 --quick --expect i8mm i8mm

.PHONY: suite-x86
suite-x86:
	$(call build-suite,x86,$(CC) -O2 -static)
	build/kernel-suite-x86
	$(X86) Nehalem build/kernel-suite-x86 --quick --expect portable --liar
	$(X86) Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-rtm,-invpcid build/kernel-suite-x86 --quick --expect avx2 --liar avx2

# Slow comparisons with other programs; their last results are in docs/. PEER_PYTHON: an environment with llama-cpp-python.
PEER_PYTHON ?= python3
.PHONY: peer-check
peer-check:
	$(PY) tools/peer_check.py --peer-python $(PEER_PYTHON)

# The table of docs/benchmarks.md for all MODELS, nothing else running: builds llama.cpp the first time. COMPARE: options.
.PHONY: compare
compare:
	@mkdir -p build
	$(PY) tools/compare_peers.py $(MODELS) --json build/compare.json $(COMPARE) | tee build/compare.md

# Numba beside compiled C on MODEL (one or several files), and the time to its first token.
.PHONY: numba-ratio
numba-ratio:
	$(PY) tools/numba_ratio.py $(MODEL)

# What the page types of the KV cache cost on MODELS (none: the built-in one), for docs/kv_types.md. KV_QUALITY: options.
.PHONY: kv-quality
kv-quality:
	$(PY) tools/kv_quality.py $(MODELS) $(KV_QUALITY)

# Calls stopped at any moment, 32 threads on two models for a minute (docs/safety.md). MODELS: none, one or two; STRESS: options.
.PHONY: stress
stress:
	$(PY) tools/stress.py $(MODELS) $(STRESS)

.PHONY: convert-memory
convert-memory:
	$(PY) tools/convert_memory.py --megabytes 2048

# 1,000,000 tokens through a window of 512 (docs/streaming.md); matplotlib draws the pictures. STREAM: options.
.PHONY: stream-forever
stream-forever:
	$(PY) tools/stream_forever.py --check-model --pictures docs/pictures --write docs/streaming.md $(STREAM)

# All that is held to other programs, into docs/parity.md: here PEER_PYTHON is an environment with torch and transformers,
# LLAMA_PYTHON one with llama-cpp-python; PARITY holds further options, as --part families.
LLAMA_PYTHON ?= $(PEER_PYTHON)
.PHONY: parity
parity:
	$(PY) tools/parity_all.py --peer-python $(PEER_PYTHON) --llama-python $(LLAMA_PYTHON) --write docs/parity.md $(PARITY)

# The site, into build/site: guides, the API from its docstrings, commands from themselves. Links are checked.
.PHONY: site
site:
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet

.PHONY: site-serve
site-serve:
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs serve

# The diagrams of docs/how-it-works.md.
.PHONY: pictures
pictures:
	$(PY) tools/draw_docs.py docs/pictures

# The chat window of examples/: its picture in the docs, and how long its event loop stands still (offscreen, idle machine).
.PHONY: qt-screenshot
qt-screenshot:
	$(PY) tools/qt_window.py --picture docs/pictures/qt-chat.png

.PHONY: qt-gap
qt-gap:
	$(PY) tools/qt_window.py $(MODEL) --limit 50

# 1,000 random answers under each of thirty schemas, into docs/structured_output.md; GRAMMAR: options, as --vocab FILE.
.PHONY: grammar-check
grammar-check:
	$(PY) tools/grammar_check.py --write docs/structured_output.md $(GRAMMAR)

# Answers with speculation beside answers without: 2,000 prompts, none may differ (docs/speculation.md).
.PHONY: speculation-check
speculation-check:
	$(PY) tools/speculation_check.py --write docs/speculation.md

# How much faster, for MODEL (none: the built-in one), nothing else running. SPECULATION: options, as --speculate FILE.
.PHONY: speculation
speculation:
	$(PY) tools/speculation.py $(MODEL) --write docs/speculation.md $(SPECULATION)

# Chat with speculation beside llama.cpp with and without, on MODEL, into docs/speculation.md and README.md, nothing else
# running: builds llama.cpp's server the first time. COMPARE: options, as --speculate FILE --draft FILE.
.PHONY: compare-speculation
compare-speculation:
	$(PY) tools/compare_speculation.py $(MODEL) --write $(COMPARE)

.PHONY: clean
clean:
	rm -rf build dist *.egg-info edgellm/*.so

# Each sampler against llama.cpp's, with a Python that has llama-cpp-python.
.PHONY: sampler-parity
sampler-parity:
	$(LLAMA_PYTHON) tools/sampler_parity.py

# All tokenizers against tokenizers, sentencepiece and llama.cpp, and 10 MB of anything (docs/tokenizers.md). llama.cpp is
# in PY's environment, or in that of LLAMA_PYTHON.
.PHONY: tokenizer-parity
tokenizer-parity:
	$(PY) tools/tokenizer_parity.py
	$(if $(LLAMA_PYTHON),$(LLAMA_PYTHON) tools/tokenizer_parity.py --only llama)
