# demo   the main job on this machine alone: no Internet, no engine, nothing but Python
# test   every kind of test; as root also the ones that need a lab of their own (tests/lab)
# bench  throughput and connections per second, as ratios to no relay at all
# lint   what tests/test_linters.py runs, without the tests

PYTHON ?= python3
VENV   ?= .venv

.PHONY: demo test bench lint clean

demo: $(VENV)/bin/netns-graft
	$(VENV)/bin/netns-graft demo

test:
	tests/run

bench:
	bench/run

lint: $(VENV)/bin/ruff
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

$(VENV)/bin/netns-graft: pyproject.toml $(shell find netns_graft -name '*.py')
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -qq --disable-pip-version-check .
	touch $@

$(VENV)/bin/ruff: pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -qq --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
