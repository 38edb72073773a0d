# Two commands: `make demo` and `make test`. Everything they need they set up themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test proof bench check slow clean setup

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	scripts/setup $(PYTHON) $(VENV)
	@touch $@

demo: setup
	$(BIN)/selfloop demo

test: setup
	# Files in their order: by number of tests, those with few long ones would all come last.
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

proof: setup
	scripts/proof

check: setup
	scripts/check

bench: setup
	scripts/bench

slow: setup
	scripts/test-slow

clean:
	rm -rf $(VENV) runs dist
