# `make demo` and `make test` need Python >= 3.11 and nothing else; each makes .venv if it is missing.
PYTHON ?= python3
PIP = .venv/bin/pip --disable-pip-version-check
FILES = toto cli tests benchmarks examples

.PHONY: demo test check format

# Begins anew each time; the datasets and their tokens are made once.
demo: .venv/demo
	rm -rf runs/quickstart
	.venv/bin/toto train recipes/quickstart.yaml
	.venv/bin/toto probe runs/quickstart
	.venv/bin/toto generate runs/quickstart
	.venv/bin/toto report runs/quickstart

test: .venv/test check
	.venv/bin/pytest -n 2 --dist worksteal --durations 10

check: .venv/test
	.venv/bin/ruff check $(FILES)
	.venv/bin/ruff format --check $(FILES)
	.venv/bin/mypy

format: .venv/test
	.venv/bin/ruff check --fix $(FILES)
	.venv/bin/ruff format $(FILES)

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "toto needs Python >= 3.11; name one with: make PYTHON=python3.11 ..."; exit 2; }
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e '.[samples]'
	@touch $@

# The parity oracles go without their own requirements, which would pull torchvision (see the file).
.venv/test: .venv/bin/python pyproject.toml constraints.txt requirements-reference.txt
	$(PIP) install -q -c constraints.txt -e '.[samples,test]'
	$(PIP) install -q --no-deps -r requirements-reference.txt
	@touch $@
