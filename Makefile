# `make help` lists the targets. Everything is installed into .venv and built in build/; what is
# already there and newer than its sources is not made again.
PYTHON ?= python3
BUILD  := build
BIN    := .venv/bin
# Two at a time suits machines with little memory: a translation unit of torch's headers takes 1 GB.
JOBS   ?= 2

CORE_SOURCES := $(shell find csrc python cmake -type f -not -path '*/__pycache__/*') \
                CMakeLists.txt setup.py pyproject.toml
CPP_SOURCES  := $(shell find csrc python/bindings tests examples benchmarks -name '*.cpp' -o -name '*.h' | sort)
MNIST        := train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte
RAW_MNIST    := $(MNIST:%=$(BUILD)/data/mnist/%)

export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup build install demo test runtime runtime-plain arm web web-test web-serve wheel clang fuzz fuzzers fuzz-checkpoint fuzz-runtime tsan bench bench-ops bench-products docs format lint clean
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

# ---- set-up ---------------------------------------------------------------------------------------
.venv/.system: tools/system_packages.sh
	@tools/system_packages.sh $(PYTHON)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@touch $@

.venv/.requirements: requirements.txt .venv/.system
	$(BIN)/python -m pip install -q -r requirements.txt
	@touch $@

setup: .venv/.requirements ## make .venv with all pinned dependencies, and install missing Debian packages

# ---- build ----------------------------------------------------------------------------------------
$(BUILD)/build.ninja: .venv/.requirements
	cmake -S . -B $(BUILD) -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -DNSN_BUILD_PYTHON=ON -DNSN_BUILD_TESTS=ON -DNSN_BUILD_BENCHMARKS=ON \
	  -DCMAKE_EXPORT_COMPILE_COMMANDS=ON
	@touch $@

build: $(BUILD)/build.ninja ## compile the library, binding, tests, examples and benchmarks
	@cmake --build $(BUILD) -j $(JOBS)

.venv/.nsn: $(CORE_SOURCES) $(BUILD)/build.ninja
	cmake --build $(BUILD) -j $(JOBS) --target nsn nsn_runtime nsn-run _C
	$(BIN)/python -m pip install -q --no-build-isolation --no-deps --force-reinstall .
	@touch $@

install: .venv/.nsn ## install the Python package into .venv

$(BUILD)/data/.checked: data/mnist/MD5SUMS data/text/MD5SUMS
	@mkdir -p $(@D)
	@cd data/mnist && md5sum --check --quiet MD5SUMS
	@cd data/text && md5sum --check --quiet MD5SUMS
	@touch $@

$(BUILD)/data/mnist/%: data/mnist/%.gz
	@mkdir -p $(@D)
	@gunzip -c $< > $@

# ---- use ------------------------------------------------------------------------------------------
demo: install $(BUILD)/data/.checked ## train the paper's network on MNIST; ends with a table, leaves runs/demo
	$(BIN)/nsn train demo --data data/mnist --out runs/demo

test: install build runtime arm web-test tsan clang fuzz $(BUILD)/data/.checked $(RAW_MNIST) ## run ctest (with the outside project), pytest, runtime, arm, web-test, tsan, clang and fuzz
	ctest --test-dir $(BUILD) -j $(JOBS) --output-on-failure --no-tests=error
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# In front of a program of GoogleTest: runs it JOBS times side by side, each with its share of the tests.
SHARES := seq 0 $$(($(JOBS) - 1)) | xargs -P $(JOBS) -I{} env GTEST_TOTAL_SHARDS=$(JOBS) GTEST_SHARD_INDEX={}

CLANG    := $(BUILD)/clang
# LibTorch is not instrumented: containers that pass between it and nsn carry no marks of their ends.
IN_CLANG := ASAN_OPTIONS=detect_container_overflow=0

$(CLANG)/build.ninja: .venv/.requirements
	cmake -S . -B $(CLANG) -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS=-O1 \
	  -DNSN_SANITIZE=fuzzer-no-link,address,undefined -DNSN_BUILD_FUZZERS=ON -DNSN_BUILD_TESTS=ON
	@touch $@

clang: $(CLANG)/build.ninja $(RAW_MNIST) ## build all with clang; run the C++ tests and the outside project under ASan and UBSan
	cmake --build $(CLANG) -j $(JOBS) --target nsn_tests nsn_runtime nsn_runtime_tests
	@mkdir -p $(CLANG)/data && ln -sfn $(CURDIR)/$(BUILD)/data/mnist $(CLANG)/data/mnist
	$(SHARES) $(CLANG)/tests/runtime/nsn_runtime_tests --gtest_brief=1
	$(SHARES) $(IN_CLANG) OMP_NUM_THREADS=1 $(CLANG)/tests/cpp/nsn_tests --gtest_brief=1
	$(IN_CLANG) ctest --test-dir $(CLANG) -R consumer.installed --output-on-failure --no-tests=error

# LibTorch is not instrumented, so that more OpenMP threads than one would be reported for its sake.
$(BUILD)/tsan/build.ninja: .venv/.requirements
	cmake -S . -B $(BUILD)/tsan -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -DNSN_BUILD_TESTS=ON -DNSN_SANITIZE=thread -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="-O1 -Wno-tsan"
	@touch $@

# Where addresses are randomised over more bits than it knows, the sanitizer does not start.
IN_TSAN := OMP_NUM_THREADS=1 $$(setarch -R true 2>/dev/null && echo setarch -R)

tsan: $(BUILD)/tsan/build.ninja ## build the libraries under ThreadSanitizer, and run threads that switch
	@cmake --build $(BUILD)/tsan -j $(JOBS) --target nsn_thread_tests nsn_runtime_tests
	$(IN_TSAN) $(BUILD)/tsan/tests/cpp/nsn_thread_tests
	$(IN_TSAN) $(BUILD)/tsan/tests/runtime/nsn_runtime_tests --gtest_brief=1 \
	  --gtest_filter='Session.*:*Parts*'

# No torch, and no Python that has it.
ALONE   := env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=$(HOME)
RUNTIME := $(BUILD)/runtime
# Which a test writes.
SAMPLE  := $(RUNTIME)/plain/tests/runtime/sample.nsnrt

runtime-plain: .venv/.system
	$(ALONE) cmake -S . -B $(RUNTIME)/plain -G Ninja -DNSN_RUNTIME_ONLY=ON -DNSN_BUILD_TESTS=ON
	$(ALONE) cmake --build $(RUNTIME)/plain -j $(JOBS)

runtime: runtime-plain ## build the runtime without torch, and test it
	$(ALONE) ctest --test-dir $(RUNTIME)/plain -j $(JOBS) --output-on-failure --no-tests=error
	$(ALONE) tests/runtime/outside.sh $(RUNTIME)/plain $(RUNTIME)/outside $(SAMPLE)
	@# A static one, quick to build.
	$(ALONE) cmake -S . -B $(RUNTIME)/static -G Ninja -DNSN_RUNTIME_ONLY=ON -DBUILD_SHARED_LIBS=OFF \
	  -DCMAKE_BUILD_TYPE=Debug
	$(ALONE) cmake --build $(RUNTIME)/static -j $(JOBS)
	$(ALONE) tests/runtime/outside.sh $(RUNTIME)/static $(RUNTIME)/outside-static $(SAMPLE)

# How long each fuzzer runs, in seconds.
FUZZ_SECONDS ?= 60
FUZZ         := -max_total_time=$(FUZZ_SECONDS) -timeout=10 -print_final_stats=1

fuzz: ## fuzz the reading of checkpoints and of the runtime's files side by side, each for FUZZ_SECONDS
	@$(MAKE) --no-print-directory -j 2 --output-sync=target fuzz-checkpoint fuzz-runtime

fuzzers: $(CLANG)/build.ninja
	cmake --build $(CLANG) -j $(JOBS) --target fuzz_checkpoint fuzz_runtime nsn_write_sample

# A finding stays in build/clang.
fuzz-checkpoint: fuzzers
	@mkdir -p $(CLANG)/corpus/checkpoint
	$(IN_CLANG) $(CLANG)/tests/fuzz/fuzz_checkpoint $(CLANG)/corpus/checkpoint tests/fuzz/corpus \
	  -dict=tests/fuzz/checkpoint.dict -artifact_prefix=$(CLANG)/ -max_len=16384 -rss_limit_mb=2048 $(FUZZ)

fuzz-runtime: fuzzers
	@mkdir -p $(CLANG)/corpus/runtime
	for seed in 1 2 3 4 5 6 7 8 9 10; do \
	  $(CLANG)/tests/runtime/nsn_write_sample $(CLANG)/corpus/runtime/seed$$seed $$seed; done
	$(CLANG)/tests/runtime/fuzz_runtime $(CLANG)/corpus/runtime -artifact_prefix=$(CLANG)/ \
	  -max_len=65536 -rss_limit_mb=4096 $(FUZZ)

ARM := $(BUILD)/arm

.venv/.arm: tools/system_packages.sh .venv/.system
	@tools/system_packages.sh $(PYTHON) g++-aarch64-linux-gnu googletest qemu-user
	@touch $@

arm: .venv/.arm runtime-plain ## cross-compile the runtime for 64-bit ARM, and test it under qemu
	@# Of the headers in /usr/include Highway's alone: the others are this machine's.
	@mkdir -p $(ARM)/headers && ln -sfn /usr/include/hwy $(ARM)/headers/hwy
	$(ALONE) cmake -S . -B $(ARM) -G Ninja -DNSN_RUNTIME_ONLY=ON -DNSN_BUILD_TESTS=ON \
	  -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64.cmake -DNSN_HIGHWAY_INCLUDE=$(CURDIR)/$(ARM)/headers \
	  -DFETCHCONTENT_SOURCE_DIR_GOOGLETEST=/usr/src/googletest -DBUILD_GMOCK=OFF -DINSTALL_GTEST=OFF \
	  -DNSN_ELSEWHERE=$(CURDIR)/$(RUNTIME)/plain
	$(ALONE) cmake --build $(ARM) -j $(JOBS)
	$(ALONE) ctest --test-dir $(ARM) -j $(JOBS) --output-on-failure --no-tests=error
	$(ALONE) tests/runtime/outside.sh $(ARM) $(ARM)/outside \
	  $(ARM)/tests/runtime/sample.nsnrt $(CURDIR)/cmake/aarch64.cmake

# The page in build/web, and what its WebAssembly is built in.
WEB  := $(BUILD)/web
WASM := $(BUILD)/wasm
# Where node is not Debian's, it has to be told where emscripten's own modules lie.
EM   := NODE_PATH=/usr/share/nodejs
# Where node can fetch, emscripten's programs take it for a browser.
NODE := node --no-experimental-fetch

.venv/.web: tools/system_packages.sh .venv/.system
	@tools/system_packages.sh $(PYTHON) emscripten googletest chromium chromium-driver
	@touch $@

# Of the system's headers Highway's alone.
$(WASM)/build.ninja: .venv/.web .venv/.requirements
	@mkdir -p $(WASM)/include && ln -sfn /usr/include/hwy $(WASM)/include/hwy
	$(EM) emcmake cmake -S . -B $(WASM) -G Ninja -DNSN_RUNTIME_ONLY=ON -DNSN_BUILD_TESTS=ON \
	  -DNSN_HIGHWAY_INCLUDE=$(CURDIR)/$(WASM)/include \
	  -DFETCHCONTENT_SOURCE_DIR_GOOGLETEST=/usr/src/googletest
	@touch $@

# Trained once; written anew by each new nsn.
$(WEB)/digits/model.safetensors: examples/web/digits.toml $(BUILD)/data/.checked | .venv/.nsn
	$(BIN)/nsn train $< --threads 1 --out $(@D)

$(WEB)/network.nsnrt: $(WEB)/digits/model.safetensors .venv/.nsn
	@rm -rf $(WEB)/digits/runtime
	$(BIN)/nsn export $< --format runtime --out $(WEB)/digits/runtime
	@cp $(WEB)/digits/runtime/network.nsnrt $@

web: $(WASM)/build.ninja $(WEB)/network.nsnrt ## build the runtime for browsers, and a page on it in build/web
	$(EM) cmake --build $(WASM) -j $(JOBS) --target nsn_web
	@cp examples/web/*.html examples/web/*.css examples/web/*.js $(WASM)/examples/web/nsn.js \
	  $(WASM)/examples/web/nsn.wasm $(WEB)

web-serve: web ## serve the page at http://localhost:8000
	$(PYTHON) examples/web/serve.py $(WEB)

web-test: web ## run the runtime's tests as WebAssembly, and draw digits on the page in headless Chromium
	$(EM) cmake --build $(WASM) -j $(JOBS) --target nsn_runtime_tests nsn_runtime_c_test nsn_write_sample
	$(NODE) $(WASM)/tests/runtime/nsn_runtime_tests.js --gtest_brief=1
	$(NODE) $(WASM)/tests/runtime/nsn_write_sample.js $(WASM)/sample.nsnrt
	$(NODE) $(WASM)/tests/runtime/nsn_runtime_c_test.js $(WASM)/sample.nsnrt
	$(BIN)/python -m pytest tests/web

wheel: install ## make dist/nsn-*.whl, which installs where there is no compiler
	@rm -rf dist
	$(BIN)/python -m pip wheel -q --no-build-isolation --no-deps -w dist .
	@ls dist

BENCH := $(BUILD)/bench

bench: install build ## run the benchmark programs, in some 50 minutes; results in build/bench
	$(BIN)/python benchmarks/switch.py --program $(BUILD)/benchmarks/bench_switch \
	  --out $(BENCH)/switch.json
	$(BIN)/python benchmarks/step.py --library $(BUILD)/benchmarks/libbench_step.so \
	  --out $(BENCH)/step.json
	$(BIN)/python benchmarks/start.py --program $(BUILD)/benchmarks/bench_start \
	  --out $(BENCH)/start.json
	$(BIN)/python benchmarks/inference.py --library $(BUILD)/benchmarks/libbench_runtime.so \
	  --out $(BENCH)/inference.json
	$(BIN)/python benchmarks/width.py --out $(BENCH)/width.json --plot $(BENCH)/width.png

bench-ops: install ## time each block of the tests' table by itself, beside plain torch
	PYTHONPATH=tests/python $(BIN)/python benchmarks/ops.py --out $(BENCH)/ops.json

bench-products: install ## time every route of a product, by level, threads and shape
	$(BIN)/python benchmarks/products.py --out $(BENCH)/products.json

docs: install ## write the tables of docs/blocks.md and the attributes in python/nsn/blocks.py from the blocks' options
	python tools/block_docs.py

format: setup ## format C++ and Python in place
	clang-format -i $(CPP_SOURCES)
	ruff format .
	ruff check --fix .

lint: setup install $(BUILD)/build.ninja ## check layers, formats, ruff, mypy and clang-tidy
	python tools/check_layers.py
	clang-format --dry-run -Werror $(CPP_SOURCES)
	ruff format --check .
	ruff check .
	mypy
	clang-tidy -p $(BUILD) --quiet $(shell find csrc/src -name '*.cpp' | sort)

clean: ## remove what was built (not .venv)
	rm -rf $(BUILD) runs dist *.egg-info .venv/.nsn
