# `make` alone lists the targets. A fresh clone needs Python 3.11 or later with venv, and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=
# Properties take the same examples in every run of `make test`, new ones in every run of `make test-slow`, and the same
# again with the SEED that it printed.
SEED ?=
FRESH := $(or $(SEED),$(shell od -An -N4 -tu4 /dev/urandom | tr -d ' '))
TIMES ?= 25
ROUNDS ?= 2
# The tests wait more than they work: more of them side by side than there are processors.
SIDE_BY_SIDE := -n 6 --dist worksteal
# Percent; a little below what is reached.
CORE_FLOOR := 99
ALL_FLOOR := 94
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' sidecar/nats_backpressure/__init__.py)
IMAGE ?= nats-backpressure:$(VERSION)
SBOM := build/sbom/nats-backpressure.cdx.json
CYCLONEDX := 7.5.0
QUIETLY := --quiet --disable-pip-version-check
SHELL := /bin/bash
# Empty: Python keeps what it compiled, also where the environment forbids it. The tests start hundreds of processes.
export PYTHONDONTWRITEBYTECODE :=
.DEFAULT_GOAL := help
.PHONY: help venv demo image sbom docs examples test lint test-all test-slow test-long test-properties test-containers test-versions chaos bench bench-gate bench-overload bench-replicas clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## set up .venv with the package and everything for developing it

# Installed again only when one of these files has changed.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: venv ## show what three times the load does to a router, on a NATS server of its own
	$(BIN)/nats-backpressure demo

test: venv ## run the tests and print their branch coverage; needs only Python (SEED=123: other examples)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(if $(SEED),--hypothesis-seed=$(SEED)) --cov --cov-report= $(PYTEST_ARGS)
	$(if $(PYTEST_ARGS),,@printf 'branch coverage, percent: core ' && $(BIN)/coverage report --format=total --include='*/core/*' --fail-under=$(CORE_FLOOR))
	$(if $(PYTEST_ARGS),,@printf 'branch coverage, percent: all ' && $(BIN)/coverage report --format=total --fail-under=$(ALL_FLOOR))

image: ## build the image nats-backpressure:VERSION with Docker (BASE=IMAGE@DIGEST, IMAGE=NAME:TAG, DOCKER_ARGS=...)
	docker build -f deploy/Dockerfile $(if $(BASE),--build-arg BASE=$(BASE)) --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$(shell git rev-parse HEAD) --build-arg CREATED=$(shell date -u +%Y-%m-%dT%H:%M:%SZ) \
		$(DOCKER_ARGS) -t $(IMAGE) .

sbom: ## write what the image is made of to build/sbom/ (CycloneDX), and list the licence of each part
	rm -rf build/sbom && $(PYTHON) -m venv build/sbom/tool && $(PYTHON) -m venv --without-pip build/sbom/image
	build/sbom/tool/bin/python -m pip install $(QUIETLY) 'cyclonedx-bom==$(CYCLONEDX)'
	build/sbom/tool/bin/python -m pip --python build/sbom/image install $(QUIETLY) -c constraints.txt '.[speed]'
	build/sbom/tool/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		--output-file $(SBOM) build/sbom/image/bin/python
	$(PYTHON) deploy/licences.py $(SBOM) | tee build/sbom/licences.txt; exit $${PIPESTATUS[0]}

docs: venv ## write the generated parts of docs/ (settings, metrics, diagnoses, protocol) from the code
	PYTHONPATH=. $(BIN)/python -m docs.generate
	$(BIN)/nats-backpressure schema --out docs/schemas
	$(BIN)/nats-backpressure permissions > deploy/nats/users.conf

examples: venv ## record the examples of docs/protocol.md from a run on a real server, and write them into the page
	$(BIN)/python -m tests.docs.examples
	PYTHONPATH=. $(BIN)/python -m docs.generate

lint: venv ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-all: test test-slow test-containers test-versions ## everything: also the slow, the containers and every server version

test-slow: test-long test-properties ## only the slow ones: test-long and test-properties

test-long: venv ## whole overloads, chaos, examples in other languages, long simulations (SEED)
	CHAOS_SEED=$(FRESH) CHAOS_ROUNDS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(PYTEST_ARGS)

test-properties: venv ## every property, with 25 times the examples and a fresh seed (SEED, TIMES)
	@echo "properties: seed $(FRESH); repeat: make test-properties SEED=$(FRESH) TIMES=$(TIMES)"
	EXPLORE=$(TIMES) $(BIN)/python -m pytest -n 2 --dist worksteal -m "hypothesis and not real_server" \
		--timeout=900 --durations=10 --hypothesis-seed=$(FRESH) $(PYTEST_ARGS)

test-containers: venv ## only the container story (Docker; installed with apt where missing)
	tests/containers/run $(BIN)/python -m pytest tests/containers -n 2 --dist worksteal -m containers $(PYTEST_ARGS)

test-versions: venv ## only the tests on real servers, against each server version
	$(BIN)/python tests/versions/matrix.py $(SIDE_BY_SIDE) $(PYTEST_ARGS)

chaos: venv ## faults on real processes, some 15 minutes (SEED=123: the same again; ROUNDS=5: more; PYTEST_ARGS='-k links')
	@echo "chaos: seed $(FRESH); repeat: make chaos SEED=$(FRESH) ROUNDS=$(ROUNDS)"
	CHAOS_SEED=$(FRESH) CHAOS_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest tests/chaos -n 2 --dist worksteal -m chaos $(PYTEST_ARGS)

bench: venv ## what it costs and how fast it is, each figure beside its peer (35 minutes; QUICK=1: 3 minutes, writes nothing)
	$(BIN)/python -m benchmarks --size $(if $(QUICK),quick,full)$(if $(QUICK),,; code=$$?; PYTHONPATH=. $(BIN)/python -m docs.generate && exit $$code)

bench-overload: venv ## goodput and latency at 1, 3 and 10 times the capacity, of five systems (10 minutes)
	$(BIN)/python -m benchmarks.overload --out build/overload

bench-gate: venv ## what PullGate costs a consumer, beside a plain fetch (6 minutes; QUICK=1: half a minute, writes nothing)
	$(BIN)/python -m benchmarks gate --size $(if $(QUICK),quick,full)$(if $(QUICK),,; code=$$?; PYTHONPATH=. $(BIN)/python -m docs.generate && exit $$code)

bench-replicas: venv ## what 1, 3 and 10 replicas cost, and 200 kills of the reader (20 minutes; QUICK=1: 3 minutes, writes nothing)
	$(BIN)/python -m benchmarks replicas --size $(if $(QUICK),quick,full)$(if $(QUICK),,; code=$$?; PYTHONPATH=. $(BIN)/python -m docs.generate && exit $$code)

clean: ## remove what the other targets created here
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
