"""The JSON Schema of the settings, which editors check them with: a mistake in its eyes is one in ours."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import jsonschema_rs
import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from backends.kinds import KINDS
from core.config import SECTIONS, Config
from core.config_checks import parse_config
from core.config_help import HELP
from core.config_mistakes import mistakes_in
from core.config_schema import every_key, settings_schema
from core.errors import ConfigError
from core.yaml import read_yaml
from tests.test_config import ROOT, WRONG

SCHEMA = settings_schema(KINDS)
CHECK = jsonschema_rs.validator_for(SCHEMA)

# What only a look at several values, or at more than a pattern, can see: such mistakes are named at the start.
BEYOND_A_SCHEMA = {
    "two endpoints of one name",
    "an endpoint that is there twice",
    "an owner that is there twice",
    "a name that is there twice",
    "two names of one key",
    "a key that is the router's",
    "a pooler before a file",
    "two budgets a day",
    "a budget of nothing",
    "an end of a key on no day",
}
# JSON has no others.
NAMES_ARE_TEXT = {"a key that is no text", "a key of a section that is no text"}


def is_right(settings: Any) -> bool:
    """Whether the router takes them."""
    try:
        parse_config(settings, KINDS)
    except ConfigError:
        return False
    return True


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema_rs.meta.validate(SCHEMA)


def test_each_key_is_in_it_with_its_help_and_none_is_missing() -> None:
    assert [key.path for key in every_key()] == [
        f"{section}.{name}".lstrip(".") for section, struct in SECTIONS.items() for name in struct.__struct_fields__
    ]
    described = [value for part in (SCHEMA, *SCHEMA["$defs"].values()) for value in part["properties"].values()]
    assert len(described) >= len(HELP) - 10, "those that two sections share are there once"
    assert all(value["description"] for value in described)


FILES = [ROOT / "config.yaml", ROOT / "deploy" / "kubernetes" / "config.yaml"]


def examples() -> dict[str, Any]:
    """The settings that are shipped: files, and what they only show."""
    shown = re.sub(r"^# ([a-z_]+:(?= +#|$)| )", r"\1", (ROOT / "config.yaml").read_text(), flags=re.MULTILINE)
    manifests = yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "config.yaml").read_text())
    in_manifests = [
        read_yaml(text)
        for manifest in manifests
        if manifest["kind"] == "ConfigMap"
        for name, text in manifest["data"].items()
        if name == "config.yaml"
    ]
    assert in_manifests
    return {
        "config.yaml": read_yaml((ROOT / "config.yaml").read_text()),
        "config.yaml, all that it shows": read_yaml(shown),
        **{f"deploy/kubernetes, {number}": settings for number, settings in enumerate(in_manifests)},
    }


@pytest.mark.parametrize("settings", examples().values(), ids=examples())
def test_what_is_shipped_is_right_in_the_eyes_of_two_validators(settings: Any) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(settings)
    assert list(CHECK.iter_errors(settings)) == []


@pytest.mark.parametrize("name", [name for name in WRONG if name not in BEYOND_A_SCHEMA | NAMES_ARE_TEXT])
def test_what_stops_a_start_is_underlined_by_the_editor(name: str) -> None:
    data, _ = WRONG[name]
    assert not CHECK.is_valid(data)


@pytest.mark.parametrize("name", sorted(BEYOND_A_SCHEMA))
def test_what_is_beyond_a_schema_is(name: str) -> None:
    data, _ = WRONG[name]
    assert CHECK.is_valid(data), "it is seen after all: take it off the list"


# ── a law ────────────────────────────────────────────────────────────────────────────────────────────────────────────

BASE: dict[str, Any] = {
    "endpoints": [{"url": "http://a", "models": {}}],
    "keys": [{"name": "ann", "key": "secret-1"}],
    "owners": [{"name": "ann"}],
    "prices": {"m": {}},
    "mcp": {"servers": {"wiki": {"url": "http://a/mcp"}}},
    "tools": {"image_generation": {"url": "http://a/v1"}},
}
TEXTS = st.sampled_from(
    [
        "",
        "4",
        "-1",
        "0",
        "0.0",
        "1.5",
        "1e3",
        "-2.5",
        "true",
        "FALSE",
        "null",
        "auto",
        "off",
        "none",
        "http://b",
        "x",
        "~/a",
    ]
)
# JSON knows 0.0 as 0.
FRACTIONS = st.floats(-2, 2, allow_nan=False).filter(lambda number: not number.is_integer())
SCALARS = st.none() | st.booleans() | st.integers(-2, 70) | FRACTIONS | TEXTS | st.text(max_size=5)
VALUES = (
    SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.sampled_from(["url", "max", "a"]), SCALARS, max_size=2)
)


def every_pair() -> list[tuple[str, str]]:
    """Every section with each of its keys, and with one that it does not have."""
    return [(section, name) for section, struct in SECTIONS.items() for name in (*struct.__struct_fields__, "no")]


KEYS = st.sampled_from(every_pair())


def changed(section: str, name: str, value: Any) -> Any:
    """The settings of `BASE` with another value in one place."""
    settings = msgspec.json.decode(msgspec.json.encode(BASE))
    at = settings
    for part in section.split(".") if section else ():
        key = part.removesuffix("[]")
        at = at.setdefault(key, {})
        if part.endswith("[]"):
            at = at[0] if isinstance(at, list) else next(iter(at.values()))
    at[name] = value
    return settings


@given(KEYS, VALUES)
def test_the_schema_complains_of_nothing_that_the_router_takes(key: tuple[str, str], value: Any) -> None:
    settings = changed(*key, value)
    assert CHECK.is_valid(settings) or not is_right(settings)


@given(KEYS, VALUES)
def test_what_is_of_a_wrong_type_or_name_or_out_of_bounds_is_seen_by_the_schema(
    key: tuple[str, str], value: Any
) -> None:
    settings = changed(*key, value)
    problem = ""
    try:
        msgspec.convert(settings, Config, strict=False)
    except msgspec.ValidationError as error:
        problem = str(error)
    assert not problem or not CHECK.is_valid(settings) or is_a_number_in_quotes_above_its_bound(value, problem)


def is_a_number_in_quotes_above_its_bound(value: Any, error: str) -> bool:
    """No pattern counts."""
    texts = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
    return "<=" in error and any(isinstance(text, str) for text in texts)


def test_a_variable_may_stand_for_any_single_value() -> None:
    for key in every_key():
        section, _, name = key.path.rpartition(".")
        if not isinstance(key.default, tuple | dict | msgspec.Struct):
            settings = changed(section, name, "${A_VARIABLE:-x}")
            (settings["keys"][0] if name == "sha256" else {}).pop("key", None)
            assert CHECK.is_valid(settings), key.path


# ── ./nomyo check ────────────────────────────────────────────────────────────────────────────────────────────────────

SINGLE = [(section, name) for section, name in every_pair() if section and "[]" not in section]


@given(KEYS, VALUES)
def test_the_first_mistake_that_is_listed_is_the_one_that_stops_a_start(key: tuple[str, str], value: Any) -> None:
    settings = changed(*key, value)
    stops: list[str] = []
    try:
        parse_config(settings, KINDS)
    except ConfigError as error:
        stops.append(str(error))
    assert mistakes_in(settings, KINDS)[:1] == stops


@given(
    st.lists(st.sampled_from(SINGLE), min_size=2, max_size=4, unique_by=lambda key: key[0].partition(".")[0]), st.data()
)
def test_mistakes_in_several_places_are_all_listed(keys: list[tuple[str, str]], data: st.DataObject) -> None:
    settings, alone = dict(BASE), set()
    for section, name in keys:
        value = data.draw(VALUES)
        settings |= {section.partition(".")[0]: changed(section, name, value)[section.partition(".")[0]]}
        alone |= set(mistakes_in(changed(section, name, value), KINDS))
    assert alone <= set(mistakes_in(settings, KINDS))
