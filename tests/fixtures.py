"""Exchanges recorded from real model servers (see data/README.md), and their loader.

    @pytest.mark.parametrize("name", recordings(path="/v1/chat/completions", stream=True))
    def test_…(name): exchange = recorded(name)

FIXTURES names another folder that holds a llama-server/, such as the full set in ../shared/fixtures.
"""

import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import orjson

ROOT = Path(os.environ.get("FIXTURES") or Path(__file__).parent / "data") / "llama-server"


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its answer. Header names are in lower case; a status of 0 means that nobody answered."""

    name: str
    method: str
    path: str
    request: Any  # the JSON that was sent; None if it was none
    request_body: bytes
    status: int
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    is_stream: bool

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """What the data lines of a stream hold, without [DONE]."""
        lines = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: ")]
        return [orjson.loads(line) for line in lines if line != b"[DONE]"]


def recordings(
    prefix: str = "", *, path: str | None = None, status: int | None = None, stream: bool | None = None
) -> list[str]:
    """The names that begin with the prefix and have that path, status and form, in order."""
    return [
        name
        for name in _names()
        if name.startswith(prefix)
        and path in (None, recorded(name).path)
        and status in (None, recorded(name).status)
        and stream in (None, recorded(name).is_stream)
    ]


@cache
def recorded(name: str) -> Exchange:
    """The exchange of that name, such as "01-chat" or "llama-cpp-python/tool-named-stream"."""
    request_line, status, headers = _head(name)
    body = _file(name, ".response.")
    sent = _file(name, ".request.").read_bytes()
    # A request without a body was recorded as its request line.
    method, path = (request_line or sent.decode()).split()[:2]
    request_body = sent if request_line else b""
    return Exchange(
        name=name,
        method=method,
        path=path,
        request=_json_or_none(request_body),
        request_body=request_body,
        status=status,
        headers=headers,
        body=body.read_bytes(),
        is_stream=body.suffix == ".sse",
    )


@cache
def _names() -> list[str]:
    return sorted(str(file.relative_to(ROOT).with_suffix("")) for file in ROOT.rglob("*.headers"))


def _file(name: str, kind: str) -> Path:
    (file,) = (ROOT / name).parent.glob(Path(name).name + kind + "*")
    return file


def _head(name: str) -> tuple[str, int, dict[str, str]]:
    """The request line ("" if there is none), the status and the headers of a recorded .headers file."""
    lines = (ROOT / f"{name}.headers").read_text().splitlines()
    request_line = lines.pop(0)[2:] if lines and lines[0].startswith("# ") else ""
    status = int(lines.pop(0).split()[1]) if lines and lines[0].startswith("HTTP/") else 0
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    return request_line, status, {key.lower(): value.strip() for key, value in pairs}


def _json_or_none(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
