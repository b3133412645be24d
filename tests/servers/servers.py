"""The real model servers that the suite is run against: how each is started, and what it was seen to do.

model server (llama.cpp, demo/) ◀── the router, LiteLLM, OGX ◀── the router under test
the model's file, converted     ◀── transformers serve, vLLM, llama-cpp-python ◀── the router under test
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import gateways
from demo.demo import bound_port
from demo.model_server import CHAT_TEMPLATE, MODEL, model_file
from demo.processes import ROOT, Child, stop

# `make servers` installs there what it can.
INSTALLED = ROOT / ".servers"
CONVERTED = INSTALLED / "model"
START_TIMEOUT_S = 180.0
CASES = (
    "JSON",
    "stream",
    "chain",
    "tools",
    "forced tool",
    "schema",
    "cancel",
    "overflow",
    "errors",
    "counting",
    "embeddings",
)


@dataclass(frozen=True)
class RealServer:
    """A server: `start(port, model_server, folder)` is its command. `python` is that of its environment, whose absence
    leaves it out; `kind` is what the router is told of it, `found` what it is recognised as."""

    name: str
    start: Callable[[int, str, Path], list[str]]
    python: Path
    model: str = MODEL
    found: str = "openai-chat"
    environment: Mapping[str, str] = field(default_factory=dict)
    # The model server that it asks is ours to look at: whether it has stopped working.
    is_proxy: bool = False

    @property
    def is_installed(self) -> bool:
        return self.python.exists()

    @contextmanager
    def running(self, model_server: str) -> Iterator[str]:
        """Its base URL, without `/v1`, until the block is left."""
        with tempfile.TemporaryDirectory(prefix="nomyo-server-") as folder:
            port = bound_port(0)
            command = self.start(port, model_server, Path(folder))
            log = Path(folder) / "log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT if self.python == Path(sys.executable) else folder,
                    env={**os.environ, "HF_HUB_OFFLINE": "1", **self.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            with process:
                try:
                    url = f"http://127.0.0.1:{port}"
                    Child(self.name, process, log).wait_until(lambda: _lists_models(url), START_TIMEOUT_S)
                    yield url
                finally:
                    stop(process)
                    with contextlib.suppress(ProcessLookupError):  # Whom it has started itself, as vLLM its engine.
                        os.killpg(process.pid, signal.SIGKILL)


def _lists_models(url: str) -> bool | None:
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=2) as reply:
            return bool(json.load(reply)["data"]) or None
    except (OSError, ValueError):
        return None


def of(name: str) -> Path:
    return INSTALLED / name / "bin" / "python"


# ── how each is started ──────────────────────────────────────────────────────────────────────────────────────────────


def router(port: int, model_server: str, folder: Path) -> list[str]:
    settings = {"endpoints": [{"url": model_server}], "database": {"url": f"sqlite:///{folder}/router.db"}}
    (folder / "config.yaml").write_text(json.dumps(settings))
    return ["env", f"ROUTER_CONFIG={folder}/config.yaml", sys.executable, "serve.py", "--port", str(port)]


def litellm(port: int, model_server: str, folder: Path) -> list[str]:
    return gateways.litellm(port, int(model_server.rpartition(":")[2]), folder, model=MODEL)


def ogx(port: int, model_server: str, folder: Path) -> list[str]:
    return gateways.ogx(port, int(model_server.rpartition(":")[2]), folder)


def transformers(port: int, model_server: str, folder: Path) -> list[str]:
    serve = str(of("transformers").with_name("transformers"))
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    return [str(of("transformers")), serve, "serve", str(CONVERTED), *options]


def vllm(port: int, model_server: str, folder: Path) -> list[str]:
    options = ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "4096"]
    tools = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    serve = [str(of("vllm")), "-m", "vllm.entrypoints.openai.api_server", "--model", str(CONVERTED), *options]
    return [*serve, "--dtype", "bfloat16", "--enforce-eager", *tools]


def llama_cpp_python(port: int, model_server: str, folder: Path) -> list[str]:
    options = ["--host", "127.0.0.1", "--port", str(port), "--n_ctx", "4096", "--n_threads", "1"]
    serve = [str(of("llama-cpp-python")), "-m", "llama_cpp.server", "--model", str(model_file())]
    return [*serve, "--model_alias", MODEL, *options]


# ── all of them ──────────────────────────────────────────────────────────────────────────────────────────────────────

SERVERS = (
    RealServer("router", router, Path(sys.executable), found="nomyo", is_proxy=True),
    RealServer(
        "litellm",
        litellm,
        gateways.GATEWAYS / "litellm" / "bin" / "python",
        environment=gateways.LITELLM_ENVIRONMENT,
        is_proxy=True,
    ),
    RealServer(
        "ogx",
        ogx,
        gateways.GATEWAYS / "ogx" / "bin" / "python",
        model=f"vllm/{MODEL}",
        environment=gateways.OGX_ENVIRONMENT,
        is_proxy=True,
    ),
    RealServer("transformers", transformers, of("transformers"), model=str(CONVERTED)),
    RealServer("vllm", vllm, of("vllm"), found="vllm", environment={"VLLM_CPU_KVCACHE_SPACE": "1"}),
    RealServer("llama-cpp-python", llama_cpp_python, of("llama-cpp-python")),
)
# What the last one that is converted is read with.
TEMPLATE = CHAT_TEMPLATE
