# make demo | test | table: each sets up .venv first, once; later runs start at once.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PICTURES := eval/data/tiny/pictures
ASK := $(BIN)/vtc ask --method vtc-cls --keep 0.1

.PHONY: env demo test table clean

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
	ask 0004.webp "Where is the yellow triangle?"
	@printf '\nWhat was kept of each picture is drawn in overlays/\n'

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest

# The accuracy table of the README; its answers and intervals go to runs/table.json.
table: $(STAMP)
	$(BIN)/vtc eval --blind --methods vtc-cls,divprune,todre,visionzip,pool --json runs/table.json --markdown runs/table.md
	@printf '\nThe same as Markdown: runs/table.md\n'

clean:
	rm -rf $(VENV) runs overlays build dist *.egg-info
