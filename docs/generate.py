"""Pages that are made from the code: `make docs` writes them, and tests/test_docs.py finds one that is out of date.

settings.md, settings.schema.json   core/config.py, core/config_help.py
compatibility.md                    requests/compatibility.py
metrics.md                          core/metric_names.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec

from backends.kinds import KINDS
from core.config_schema import Key, every_key, settings_schema
from core.metric_names import ALL
from requests.compatibility import TABLES

FOLDER = Path(__file__).parent
MADE = "<!-- Made by `make docs`: change docs/generate.py, or what it reads. -->"
SETTINGS = """# Settings

`config.yaml`, or the file that `ROUTER_CONFIG` names; without one every setting has its default. `${VAR}` in it is an
environment variable, `${VAR:-default}` one that may be unset. Variables also set keys: `ROUTER_API_KEY` is `api_key`,
`ROUTER_DATABASE__URL` is `database.url` (two underscores go one level down; lists are given as YAML). `OLLAMA_URL` is
the Ollama of settings that name no endpoints. `NOMYO_ROUTER_API_KEY`, `NOMYO_ROUTER_CONFIG_PATH` and
`NOMYO_ROUTER_DB_PATH` are read too.

A wrong setting, and a variable `ROUTER_…` or `NOMYO_…` that is not known, stops the start with one line that names it.
The file is read again when it changes, or on SIGHUP: servers, keys and limits come and go without a lost request, a
broken file changes nothing (`./nomyo check` and `/api/endpoints` name what is wrong with it), and the log names what
takes a restart.

Its first line, `# yaml-language-server: $schema=…`, is for editors: they complete the keys, show what is written here
and underline mistakes. In a folder of your own: `./nomyo schema > settings.schema.json`. The port and the address are
no settings: `./nomyo serve --port 8080 --host 0.0.0.0`.
"""
COMPATIBILITY = """# Compatibility

What becomes of everything that the Responses API knows, by the server that answers: one that speaks chat completions,
or one that speaks Responses itself. `GET /v1/compatibility` gives the same as JSON.

| | |
|---|---|
| carried | it reaches the server as it was given |
| adapted | it reaches the server in another form: under another name, as a function, as text |
| run here | the router does what was asked |
| ignored | nothing comes of it; its name stands in `x-nomyo-ignored`, a tool's in `x-nomyo-omitted-tools` |
| refused | a 400 that names it |
| never | of events: nothing makes one |

A name with a dot is a key of an object; `*` stands for whatever else there may be.
"""
METRICS = """# Metrics

`GET /metrics` is for Prometheus: text, or OpenMetrics where `Accept` asks for that. It takes an admin's key, unless
`metrics_open` is set. The processes of one machine are added; of replicas each shows its own, so `sum()` adds them, but
for what runs at an endpoint, which each knows of all (`max by (endpoint)`). Histograms have `_bucket`, `_sum` and
`_count`. What begins with `gen_ai_` is named by OpenTelemetry's conventions for generative AI.

`deploy/prometheus/alerts.yml` are alerts over them, each with what to do; `deploy/grafana/nomyo-router.json` is a
dashboard to import. Clients can make no labels: a model that nobody has is `other`, and so are owners beyond 200.
"""
HEADINGS = {
    "parameters": "Parameters of a request",
    "includes": "`include`",
    "items": "Items",
    "parts": "Content parts",
    "tools": "Tools",
    "choices": "`tool_choice`",
    "events": "Events of the answer",
}


def settings_page() -> str:
    """docs/settings.md."""
    lines = [MADE, "", SETTINGS]
    before = None
    for key in every_key():
        section = key.path.rpartition(".")[0]
        if section != before:
            title = f"`{section}`" if section else "The settings"
            lines += ["", f"## {title}", "", "| key | default | what it is |", "|---|---|---|"]
            before = section
        lines.append(f"| `{key.path}` | {_default(key)} | {_cell(key.help)} |")
    return "\n".join(lines) + "\n"


def _default(key: Key) -> str:
    value = key.default
    if value is msgspec.NODEFAULT:
        return "must be given"
    if isinstance(value, msgspec.Struct):
        return f"see [below](#{_anchor(key.path)})"
    if value in (None, "", (), {}):
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return f"`{_cell(json.dumps(msgspec.to_builtins(value), ensure_ascii=False).strip(chr(34)))}`"


def _anchor(path: str) -> str:
    return "".join(letter for letter in path.lower() if letter.isalnum() or letter in "_-")


def compatibility_page() -> str:
    """docs/compatibility.md."""
    lines = [MADE, "", COMPATIBILITY]
    for name, table in TABLES.items():
        lines += ["", f"## {HEADINGS[name]}", "", "| | chat completions | Responses | |", "|---|---|---|---|"]
        lines += [f"| `{of}` | {row.chat} | {row.native} | {_cell(row.note)} |" for of, row in sorted(table.items())]
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    """docs/metrics.md."""
    lines = [MADE, "", METRICS, "| metric | type | labels | what it is |", "|---|---|---|---|"]
    for metric in ALL:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.shown}` | {metric.type} | {labels} | {_cell(metric.help)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def schema_text() -> str:
    """docs/settings.schema.json."""
    return json.dumps(settings_schema(KINDS), indent=2, ensure_ascii=False) + "\n"


def pages() -> Iterator[tuple[Path, str]]:
    """Each file that is made, and what belongs in it."""
    yield FOLDER / "settings.md", settings_page()
    yield FOLDER / "settings.schema.json", schema_text()
    yield FOLDER / "compatibility.md", compatibility_page()
    yield FOLDER / "metrics.md", metrics_page()


def main() -> None:
    """Writes them."""
    for file, text in pages():
        file.write_text(text)
        print(f"{file.relative_to(FOLDER.parent)}: {len(text):,} characters")


if __name__ == "__main__":
    main()
