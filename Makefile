# make demo | test | test-browser | table | table-inside | bench | bench-gpu: each sets up .venv first, once; later runs start at once.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PICTURES := eval/data/tiny/pictures
ASK := $(BIN)/vtc ask --method vtc-cls --keep 0.1

.PHONY: env demo test test-browser table table-inside bench bench-gpu clean

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3 found: install Python 3.11 or give PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[dev]"
	@touch $@

# Three questions, each answered with all 576 visual tokens and with a tenth of them.
demo: $(STAMP)
	@set -e; ask() { \
	    printf '\n%s: %s\n' "$$1" "$$2"; \
	    $(ASK) --image $(PICTURES)/$$1 --question "$$2" --save overlays/$${1%.webp}.png; \
	}; \
	ask 0006.webp "What color is the heart?"; \
	ask 0008.webp "What word is printed?"; \
	ask 0004.webp "Where is the white square?"
	@printf '\nWhat was kept of each picture is drawn in overlays/\n'

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest

# The demo in a headless browser: Debian's, installed here where there is none (as root).
BROWSER := $(VENV)/.browser
$(BROWSER): $(STAMP)
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[browser]"
	command -v chromium >/dev/null || { apt-get update && \
	    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium; }
	@touch $@

test-browser: $(BROWSER)
	$(BIN)/python -m pytest -m browser tests/browser

# The accuracy table of the README; its answers and intervals go to runs/table.json.
table: $(STAMP)
	$(BIN)/vtc eval --blind --limit 2000 --methods vtc-cls,divprune,todre,visionzip,pool --json runs/table.json --markdown runs/table.md
	@printf '\nThe same as Markdown: runs/table.md\n'

# Methods inside the language model and in its cache: at equal average tokens, then at equal final tokens with a picture.
INSIDE := fastv,pyramiddrop,transprune,sparsevlm,dart,visiondrop,mustdrop,todre,vtc-cls,divprune
table-inside: $(STAMP)
	$(BIN)/vtc eval --limit 750 --budget average --keep 288,192 --methods $(INSIDE) \
	    --json runs/average.json --markdown runs/average.md
	$(BIN)/vtc eval --limit 750 --budget final --keep 192,64,16 --methods $(INSIDE),h2o,scissorhands,streaming \
	    --json runs/final.json --markdown runs/final.md --plot runs/pareto.png

# Speed, each table with its CSV and picture: ops by provider, then whole models against uncompressed sdpa.
BENCH = $(BIN)/vtc bench $(1) --device $(2) --csv $(3)/$(1)-$(2).csv --markdown $(3)/$(1)-$(2).md --plot $(3)/$(1)-$(2).png
bench: $(STAMP)
	$(call BENCH,ops,cpu,runs)
	$(call BENCH,model,cpu,runs)

# Everything that wants a GPU: the kernels' tests, then both tables.
bench-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu tests/kernels
	$(call BENCH,ops,cuda,runs)
	$(call BENCH,model,cuda,runs) --rounds 3

clean:
	rm -rf $(VENV) runs overlays build dist *.egg-info
