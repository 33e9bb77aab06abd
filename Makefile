# Everything lives in .venv; the stamp makes every target safe to repeat without a reinstall.
VENV := .venv
PYTHON ?= python3.11
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
APT := $(if $(filter 0,$(shell id -u)),,sudo) env DEBIAN_FRONTEND=noninteractive apt-get --quiet -o Acquire::Retries=3
HARDWARE := $(if $(shell command -v nvidia-smi 2>/dev/null),gpu,cpu)
# Where this variable is set, every process would compile torch, transformers, vLLM and Ray anew: 20 to 60 s each.
export PYTHONDONTWRITEBYTECODE :=
# uv does not read pip's own variable; without a local index of wheels, ask for PyTorch's CPU builds.
BACKEND := $(if $(filter cpu,$(HARDWARE)),$(if $(PIP_FIND_LINKS),,--torch-backend cpu),)

.PHONY: install install-browser install-docs quickstart test test-all lint docs bench gpu-check install-nf4

install: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python $(BACKEND) --editable ".[$(HARDWARE),dev]"
	touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/online-dpo quickstart

PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: $(STAMP)
	$(PYTEST)

# Also the exhaustive repetitions, such as a crash at every single change of the disk.
test-all: $(STAMP)
	$(PYTEST) -m "exhaustive or not exhaustive"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# For the tests of pages; `make test` leaves them out without it. Debian's package, unless a browser is there or named.
install-browser:
	test -n "$(ONLINE_DPO_CHROMIUM)" || command -v chromium || { $(APT) update; \
	  $(APT) install --yes --no-install-recommends chromium fonts-liberation; }

# Builds the site into docs/_build/html. A warning, such as a link that leads nowhere, is an error.
docs: $(DOCS_STAMP)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html

install-docs: $(DOCS_STAMP)

$(DOCS_STAMP): $(STAMP)
	UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(BIN)/uv pip install --quiet --python $(BIN)/python $(BACKEND) --requirements pyproject.toml --extra docs
	touch $(DOCS_STAMP)

# Weights in 4 bits (`model.quantization: nf4`), for a machine with a GPU.
install-nf4: $(STAMP)
	UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(BIN)/uv pip install --quiet --python $(BIN)/python $(BACKEND) --requirements pyproject.toml --extra nf4

# All that is measured on a CPU, as one table: about 35 minutes, with nothing else on the machine.
bench: $(STAMP)
	$(BIN)/python benchmarks/everything.py

# Installs, then tries everything on one GPU and measures it, in 8 minutes; gpu-check/report.md has the table. What fails
# hides nothing of the rest, so this needs no $(STAMP): a failed installation is reported like any other step.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py --install
