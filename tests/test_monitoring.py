"""deploy/prometheus and deploy/grafana: every expression is PromQL, over metrics and labels that the router has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml

from core.metric_names import ALL
from tests.test_containers import ROOT

FOLDER = ROOT / "deploy"
ALERTS = yaml.safe_load((FOLDER / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((FOLDER / "grafana" / "nomyo-router.json").read_text())
# What Prometheus itself adds to each series.
ADDED = {"instance", "job", "le"}
ENDINGS = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}
LABELS = {metric.name + ending: {*metric.labels, *ADDED} for metric in ALL for ending in ENDINGS[metric.type]}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    for rule in ALERTS:
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            # Grafana puts in the variables.
            filled = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            yield f"{panel['title']} {target['refId']}", filled


def parts(node: Any) -> Iterator[Any]:
    """An expression, and all that is in it."""
    yield node
    inner = [getattr(node, name, None) for name in ("lhs", "rhs", "expr", "param", "vector_selector")]
    for each in [*inner, *(getattr(node, "args", None) or [])]:
        if each is not None:
            yield from parts(each)


@pytest.mark.parametrize(("name", "expression"), [*expressions()])
def test_every_expression_asks_for_what_there_is(name: str, expression: str) -> None:
    tree = promql_parser.parse(expression)
    selectors = [part for part in parts(tree) if isinstance(part, promql_parser.VectorSelector)]
    assert selectors, f"{name} asks for nothing"
    labels = set.intersection(*(LABELS[selector.name] for selector in selectors))
    for selector in selectors:
        assert {matcher.name for matcher in selector.matchers.matchers} <= LABELS[selector.name]
    grouped = re.findall(r"\bby \(([^)]*)\)", expression)
    assert {label.strip() for group in grouped for label in group.split(",")} <= labels


def test_every_counter_and_histogram_is_asked_for_as_what_it_is() -> None:
    for name, expression in expressions():
        for selector in (part for part in parts(promql_parser.parse(expression)) if hasattr(part, "matchers")):
            if selector.name.endswith(("_total", "_bucket")):
                assert re.search(rf"(rate|increase)\({selector.name}", expression), f"{name}: of a counter its rate"


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_has_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["annotations"].keys() == {"summary", "action"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert re.fullmatch(r"\d+m", rule["for"])
    named = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    by = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", rule["expr"]) for label in group.split(",")}
    assert named <= by, "a label that the expression has not"


def test_the_panels_of_the_dashboard_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_metric_but_few_is_on_the_dashboard() -> None:
    shown = "\n".join(expression for _, expression in expressions())
    absent = {metric.name for metric in ALL if metric.name not in shown}
    assert absent <= {
        *("nomyo_endpoint_draining", "nomyo_requests", "nomyo_queued", "nomyo_queue_wait_seconds"),
        "gen_ai_client_token_usage",
    }
