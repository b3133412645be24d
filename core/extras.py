"""Extras: packages that only some settings need. `make setup` and the image install all of them, and nothing imports
them unused."""

from __future__ import annotations

from importlib.util import find_spec

from core.errors import ConfigError

# Each extra of pyproject.toml, and the modules that it brings.
EXTRAS = {
    "postgres": ("psycopg",),
    "valkey": ("hiredis",),
    "tools": ("mcp",),
    "search": ("lxml",),
    "docs": ("fastapi_swagger",),
    "otel": ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc"),
}


def need(extra: str, *, setting: str) -> None:
    """Checks that the packages of `extra`, which `setting` (`cluster.url`) needs, are installed; imports none of them.
    Raises `ConfigError`, with the command that installs them."""
    for module in EXTRAS[extra]:
        if not _is_installed(module):
            raise ConfigError(
                f"{setting}: needs the package {module}, which is not installed; type: "
                f"uv sync --locked --inexact --extra {extra}"
            )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent of it
        return False
