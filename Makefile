# Needs Python 3.11 or newer, make and pip; everything else is set up in .venv on first use.
PYTHON ?= python3
# another Python gets an environment of its own: make test PYTHON=python3.13
VENV := .venv$(if $(filter python3,$(PYTHON)),,-$(notdir $(PYTHON)))
BIN := $(VENV)/bin

.PHONY: check test test-all test-versions test-stores test-smoke test-pythons test-oldest test-servers test-oldest-torch test-newest newest-packages campaigns coverage docs gpu-check lock demo chat bench setup clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[all,ray]" --group test
	touch $@

# an older transformers, put before the environment's own for one run
.venv-transformers4/ready: tests/reference/transformers4.txt $(VENV)/ready
	rm -rf .venv-transformers4
	$(BIN)/python -m pip install --quiet --no-deps --target .venv-transformers4 -r $<
	touch $@

# the oldest frameworks that are supported, put before the environment's own
.venv-oldest/ready: tests/oldest.txt $(VENV)/ready
	rm -rf .venv-oldest
	$(BIN)/python -m pip install --quiet --no-deps --target .venv-oldest -r $<
	touch $@

# clients of rerank servers, put before the environment's own packages for one process
.venv-clients/ready: tests/serve/clients.txt $(VENV)/ready
	rm -rf .venv-clients
	$(BIN)/python -m pip install --quiet --no-deps --target .venv-clients -r $<
	touch $@

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# the tests' models are so small that threads would only wait for each other
test test-all test-versions test-smoke test-oldest test-servers test-oldest-torch test-newest campaigns coverage: export OMP_NUM_THREADS = 1
test test-all test-versions test-smoke test-oldest test-servers test-oldest-torch test-newest campaigns coverage: export HF_HUB_OFFLINE = 1

# Processes side by side, each with whole files: one more than processors, for tests wait for servers and
# other processes. In the order of the folders, the last files are short.
PROCESSES := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
PARALLEL := -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

# PYTEST="-k cutoff" make test runs some of it
test: $(VENV)/ready
	$(BIN)/pytest $(PARALLEL) -m "not slow and not servers" $(PYTEST)

# and what takes minutes: Ray, a browser, fresh environments, a real server; these tests wait for other
# processes most of the time, so the longest run beside the others and the other versions
LONGEST := tests/batch tests/campaigns tests/examples tests/serve tests/test_packaging.py

test-all: test .venv-clients/ready .venv-servers/llama.cpp/ready
	mkdir -p build
	$(BIN)/pytest -m "slow and not servers" $(LONGEST) > build/slow.log 2>&1 & slow=$$!; \
	$(MAKE) --no-print-directory test-versions; versions=$$?; \
	$(BIN)/pytest -m "slow and not servers" $(LONGEST:%=--ignore=%); others=$$?; \
	wait $$slow; slow=$$?; cat build/slow.log; exit $$((versions + others + slow))

# older and newer releases of other libraries, other Pythons, and the stores of an example
test-versions: .venv-transformers4/ready
	PYTHONPATH=.venv-transformers4 $(BIN)/pytest tests/reference tests/folders tests/networks
	$(MAKE) --no-print-directory test-oldest
	$(MAKE) --no-print-directory test-pythons
	$(MAKE) --no-print-directory test-stores
	@if $(MAKE) --no-print-directory newest-packages; then $(MAKE) --no-print-directory test-newest; \
	  else echo "Not run: make test-newest, whose packages cannot be installed here."; fi

coverage: $(VENV)/ready
	$(BIN)/pytest $(PARALLEL) -m "not slow and not servers" --cov --cov-report=term:skip-covered

# without torch, whose builds for other Pythons come with CUDA; three files need it as they are imported
SMOKE := .venv-smoke-$(notdir $(PYTHON))

$(SMOKE)/ready: pyproject.toml constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(@D)/bin/python -m pip install --quiet -c constraints.txt \
	  -e ".[offline,llama-index,langchain-agents,remote,socks,cli,eval]" --group smoke
	touch $@

test-smoke: $(SMOKE)/ready
	$(SMOKE)/bin/python -m pytest $(PARALLEL) -m "not torch and not slow" \
	  tests/base tests/ranking tests/wrappers tests/remote tests/llama_index tests/langchain tests/evaluate \
	  tests/test_options.py tests/test_errors.py \
	  --ignore tests/base/test_interrupt.py --ignore tests/base/test_long_inputs.py \
	  --ignore tests/wrappers/test_windows.py

# on every Python that is installed besides, also by pyenv
PYTHONS := python3.12 python3.13 python3.14 $(wildcard $(HOME)/.pyenv/versions/3.1[2-4].*/bin/python3.1[2-4])

test-pythons:
	@for python in $(PYTHONS); do \
	  if $$python -c "" 2>/dev/null; then \
	    $(MAKE) --no-print-directory test-smoke PYTHON=$$python || exit 1; \
	  else echo "Not run: tests on $$python, which is not installed."; fi; \
	done

# their own pydantic models warn under a newer pydantic
test-oldest: .venv-oldest/ready
	PYTHONPATH=.venv-oldest $(BIN)/pytest -W "ignore:The 'validate_default'" \
		tests/llama_index tests/langchain tests/drop_in/test_arguments.py

# the clients of vector stores, and PostgreSQL, on top of the environment of the tests
.venv-stores/ready: tests/stores.txt $(VENV)/ready
	$(BIN)/python -m venv --clear $(@D)
	$(BIN)/python -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" \
	  > $$($(@D)/bin/python -c "import site; print(site.getsitepackages()[0])")/shared.pth
	$(@D)/bin/python -m pip install --quiet -r $<
	touch $@

test-stores: .venv-stores/ready
	.venv-stores/bin/python -m pytest tests/examples/test_vector_stores.py

.venv-newest/bin/python: $(VENV)/ready
	$(BIN)/python -m venv .venv-newest
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
	  > $$($@ -c "import site; print(site.getsitepackages()[0])")/shared.pth

newest-packages: .venv-newest/bin/python
	$< -m pip install --quiet --upgrade -r tests/newest.txt

# its result may change with every release
test-newest: .venv-newest/bin/python newest-packages
	$< -m pytest $(PARALLEL) tests/langchain tests/llama_index tests/drop_in \
	  tests/ecosystem/test_langchain_suite.py tests/ecosystem/test_llama_index_parts.py \
	  tests/ecosystem/test_embeddings.py tests/reference \
	  --deselect tests/drop_in/test_originals.py::test_flag_embedding_reranker \
	  --ignore tests/reference/test_flag_embedding.py
	@echo "Not run: comparisons with FlagEmbedding 1.4.2, which cannot be imported with transformers 5.24."

# real rerank servers on this machine alone, each in an environment of its own; without the image
# and sound libraries that some bring, whose builds may not fit the torch that is there
SERVERS := llama.cpp infinity vllm xinference

.venv-servers/%/ready: tests/servers/%.txt tests/servers/vllm_metadata.py
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(@D)/bin/python -m pip install --quiet -r $<
	$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	test $* != vllm || $(@D)/bin/python tests/servers/vllm_metadata.py
	touch $@

.venv-servers/llama.cpp/ready: tests/servers/install_llama_cpp.sh
	$< $(@D)
	test ! -d $(@D) || touch $@

# about a quarter of an hour the first time; make test-servers SERVERS=vllm for one of them
test-servers: $(VENV)/ready $(SERVERS:%=.venv-servers/%/ready)
	$(BIN)/pytest tests/servers

.venv-oldest-torch/ready: tests/oldest_torch.txt $(VENV)/ready
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --no-deps --target $(@D) -r $<
	touch $@

# not part of `make test`, for its size; an old torch wants an older transformers, and both warn
test-oldest-torch: .venv-oldest-torch/ready .venv-transformers4/ready
	PYTHONPATH=.venv-oldest-torch:.venv-transformers4 $(BIN)/pytest -W default \
	  tests/local tests/reference/test_golden.py tests/reference/test_transformers.py

# attacks at full size, each with its seed and what it counted; hours on two cores
CAMPAIGNS := folders interrupts limits numbers pages ray_data ray_serve score_cache servers texts threads
campaigns: $(VENV)/ready
	for name in $(CAMPAIGNS); do PYTHONPATH=examples $(BIN)/python -m tests.campaigns.$$name || exit 1; done

# both frameworks and the embedded models, without torch and without the tools of the tests
.venv-demo/ready: pyproject.toml constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(@D)/bin/python -m pip install --quiet -c constraints.txt -e ".[offline,llama-index,langchain]" --group demo
	touch $@

demo: .venv-demo/ready
	.venv-demo/bin/python examples/demo.py

# a web page on this machine alone; CHAT="--files FOLDER" make chat gives it options
chat: $(VENV)/ready
	PYTHONPATH=examples $(BIN)/python -m rag_chatbot $(CHAT)

# the contenders, at the versions that the published numbers name
.venv-bench/ready: benchmarks/requirements.txt constraints.txt pyproject.toml
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-bench/bin/python -m pip install --quiet -c constraints.txt -r benchmarks/requirements.txt -e ".[all]"
	touch $@

# two contenders run on an older transformers
.venv-bench-transformers4/ready: benchmarks/transformers4.txt tests/reference/transformers4.txt .venv-bench/ready
	rm -rf $(@D)
	.venv-bench/bin/python -m pip install --quiet --no-deps --target $(@D) -r $<
	touch $@

# under half an hour on two quiet cores, after building the models; make bench RACE=--smoke to try it
bench: .venv-bench/ready .venv-bench-transformers4/ready
	.venv-bench/bin/python -m benchmarks.race $(RACE)
	.venv-bench/bin/python -m benchmarks.report

# on a machine with an NVIDIA GPU, in less than nine minutes
gpu-check: $(VENV)/ready
	$(BIN)/python -m benchmarks.gpu $(GPU)

# the guides and the API reference as a site in build/site
docs: .venv-docs/ready
	.venv-docs/bin/mkdocs build --strict

.venv-docs/ready: pyproject.toml constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(@D)/bin/python -m pip install --quiet -c constraints.txt --group docs
	touch $@

# every package of this environment; pip install -r requirements-dev.lock makes the same one again
lock: $(VENV)/ready
	echo "# CPython 3.11 on Linux x86-64, written by make lock" > requirements-dev.lock
	$(BIN)/python -m pip freeze --exclude-editable | sed "s/+cpu$$//" >> requirements-dev.lock

clean:
	rm -rf .venv .venv-* build dist
