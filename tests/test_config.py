"""The settings: what is shipped loads, what is wrong stops the start with one clear line, and the environment has its
say."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from backends.kinds import KINDS
from core.config import CHOICES, SECTIONS, Config, EndpointConfig
from core.config_checks import parse_config
from core.config_file import load_config
from core.config_help import HELP
from core.errors import ConfigError
from core.key_settings import digest_in, expiry, limits_of, owner_in
from core.keys import UNLIMITED, Allowance, Limits
from docs.generate import pages

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "config.yaml"
OLLAMA = {"url": "http://localhost:11434", "kind": "ollama"}


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """`load(text, VARIABLE=…)`: the settings from a file with that text, and from these variables alone, as the service
    loads them."""

    def load(text: str, **environ: str) -> Config:
        file = tmp_path / "config.yaml"
        file.write_text(text)
        return load_config(file, environ, KINDS)

    return load


MINIMAL = "endpoints: [{url: 'http://localhost:11434', kind: ollama}]\n"


# ── what is shipped ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_shipped_settings_load_as_they_are_for_the_servers_of_this_machine() -> None:
    config = load_config(SHIPPED, {})
    assert config.endpoints == (), "those that answer at the usual ports"
    assert config.database.url == "sqlite:///data/router.db"
    assert config.api_key == "", "no key is asked for"


def test_the_shipped_settings_take_their_variables() -> None:
    config = load_config(SHIPPED, {"OLLAMA_URL": "http://gpu:11434", "ROUTER_API_KEY": "secret"})
    assert (config.endpoints[0].url, config.endpoints[0].kind) == ("http://gpu:11434", "ollama")
    assert config.api_key == "secret"


def test_an_ollama_of_the_environment_is_for_settings_without_endpoints(load: Any) -> None:
    environ = {"OLLAMA_URL": "http://gpu:11434"}
    assert load(MINIMAL, **environ).endpoints[0].url == "http://localhost:11434"
    named = load("{}", **environ, ROUTER_ENDPOINTS="[{url: 'http://other'}]")
    assert [endpoint.url for endpoint in named.endpoints] == ["http://other"]
    with pytest.raises(ConfigError, match=r"^OLLAMA_URL: endpoints\[0\]\.url: 'gpu' is not an http"):
        load("{}", OLLAMA_URL="gpu")


def test_what_the_shipped_settings_only_show_is_right_too(load: Any) -> None:
    shown = re.sub(r"^# ([a-z_]+:(?= +#|$)| )", r"\1", SHIPPED.read_text(), flags=re.MULTILINE)
    config = load(shown, OPENAI_API_KEY="k")
    assert [endpoint.kind for endpoint in config.endpoints] == ["ollama", "llama.cpp", "openai"]
    assert (config.endpoints[0].url, config.endpoints[0].max_concurrent) == ("http://localhost:11434", 4)


def test_the_shipped_settings_are_the_defaults() -> None:
    shipped = load_config(SHIPPED, {})
    defaults = parse_config({"endpoints": [OLLAMA]})
    for section in ("api_key", "database", "cache", "background"):
        assert getattr(shipped, section) == getattr(defaults, section), f"{section} is shipped with another value"


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_backend_is_a_kind_of_the_settings(kind: str, load: Any) -> None:
    (endpoint,) = load(f"endpoints: [{{url: 'http://x', kind: {kind}}}]\n").endpoints
    assert endpoint.kind == kind


@pytest.mark.parametrize("text", ["{}", "endpoints: []", "queue: {max: 5}"])
def test_settings_need_name_no_endpoints(load: Any, text: str) -> None:
    assert load(text).endpoints == ()


def test_a_file_need_not_be_there_unless_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(environ={"ROUTER_API_KEY": "secret"}) == parse_config({"api_key": "secret"})
    with pytest.raises(ConfigError, match=r"^mine\.yaml: cannot be read: No such file .*ROUTER_CONFIG"):
        load_config(environ={"ROUTER_CONFIG": "mine.yaml"})


def test_each_key_has_its_line_of_help_from_which_the_docs_are_made() -> None:
    keys = {f"{section}.{key}".lstrip(".") for section, of in SECTIONS.items() for key in of.__struct_fields__}
    assert keys == HELP.keys(), "add what is missing to core/config_help.py, and type: make docs"
    for file, text in pages():
        assert file.read_text() == text, f"{file.name} is out of date, type: make docs"


def test_the_first_line_of_the_shipped_settings_names_their_schema() -> None:
    first, _, _ = SHIPPED.read_text().partition("\n")
    assert (ROOT / first.removeprefix("# yaml-language-server: $schema=")).is_file()


# ── one clear line ───────────────────────────────────────────────────────────────────────────────────────────────────


def endpoint(**more: Any) -> dict[str, Any]:
    return {"endpoints": [OLLAMA | more]}


def settings(**more: Any) -> dict[str, Any]:
    return {"endpoints": [OLLAMA], **more}


def key(**more: Any) -> dict[str, Any]:
    return settings(keys=[{"name": "ann", "key": "secret-1", **more}])


def owner(**more: Any) -> dict[str, Any]:
    return settings(owners=[{"name": "team", **more}])


# The settings, and all that the line must hold: the key, and the nearest that is known.
WRONG: dict[str, tuple[Any, list[str]]] = {
    "null for endpoints": ({"endpoints": None}, ["endpoints:", "a list", "nothing"]),
    "an endpoint that is no row": (
        {"endpoints": ["http://x"]},
        ["endpoints[0]:", "keys and values", "text", "`- url: http://…`"],
    ),
    "an endpoint without its URL": ({"endpoints": [{"kind": "ollama"}]}, ["missing", "endpoints[0].url"]),
    "an endpoint without its url": ({"endpoints": [OLLAMA, {"kind": "ollama"}]}, ["missing", "endpoints[1].url"]),
    "two endpoints of one name": (
        {"endpoints": [OLLAMA | {"name": "a"}, {"url": "http://x", "name": "a"}]},
        ["endpoints[1].name", "'a' is there twice"],
    ),
    "an unknown kind": (endpoint(kind="olama"), ["endpoints[0].kind", "'olama'", "did you mean 'ollama'?"]),
    "an unknown kind, like none": (
        endpoint(kind="xyz"),
        ["endpoints[0].kind", "'xyz'", f"known: {', '.join(KINDS)}"],
    ),
    "an unknown key": (settings(databse={}), ["'databse'", "did you mean 'database'?"]),
    "an unknown key, like none": (settings(zzz=1), ["'zzz'", "known:", "endpoints", "api_key"]),
    "an unknown key of an endpoint": (endpoint(api_kye="x"), ["'endpoints[0].api_kye'", "did you mean 'api_key'?"]),
    "an unknown key of a section": (
        settings(cache={"max_entrys": 5}),
        ["'cache.max_entrys'", "did you mean 'max_entries'?"],
    ),
    "an unknown key of the queue": (settings(queue={"timeout": 5}), ["'queue.timeout'", "did you mean 'timeout_s'?"]),
    "a URL without a scheme": (endpoint(url="localhost:11434"), ["endpoints[0].url", "'localhost:11434'", "http://"]),
    "a URL of another scheme": (endpoint(url="ftp://x"), ["endpoints[0].url", "'ftp://x'", "http://"]),
    "a URL without a host": (endpoint(url="http://"), ["endpoints[0].url", "http://"]),
    "a URL that is broken": (endpoint(url="http://["), ["endpoints[0].url", "http://"]),
    "an endpoint that is there twice": (
        {"endpoints": [OLLAMA, OLLAMA | {"url": OLLAMA["url"] + "/"}]},
        ["endpoints[1].url", "twice"],
    ),
    "a word for thinking that nobody knows": (
        endpoint(reasoning_efforts=["low", "hgih"]),
        ["endpoints[0].reasoning_efforts[1]", "'hgih'", "did you mean 'high'?"],
    ),
    "no slots": (endpoint(max_concurrent=0), ["endpoints[0].max_concurrent", ">= 1"]),
    "slots in words": (endpoint(max_concurrent="many"), ["endpoints[0].max_concurrent", "a whole number", "text"]),
    "no time to connect": (endpoint(connect_timeout_s=0), ["endpoints[0].connect_timeout_s", "> 0"]),
    "a key that is a number": (settings(api_key=5), ["api_key", "text", "a whole number", "put it in quotes"]),
    "a section that is null": (settings(database=None), ["database", "keys and values", "nothing"]),
    "a section that is a text": (settings(cache="memory"), ["cache", "keys and values", "text"]),
    "an unknown cache": (settings(cache={"backend": "sqllite"}), ["cache.backend", "did you mean 'sqlite'?"]),
    "a cache that is off, which YAML reads as false": (settings(cache={"backend": False}), ["cache.backend"]),
    "a cache for nothing": (settings(cache={"max_entries": 0}), ["cache.max_entries", ">= 1"]),
    "an age before now": (settings(database={"retention_days": -1}), ["database.retention_days", ">= 0"]),
    "another database": (settings(database={"url": "mysql://x"}), ["database.url", "sqlite:///", "postgresql://"]),
    "a database with another's driver": (
        settings(database={"url": "postgresql+asyncpg://me:secret@db/router"}),
        ["database.url", "postgresql://", "without '+asyncpg'"],
    ),
    "a pooler before a file": (
        settings(database={"url": "sqlite:///r.db", "direct_url": "postgresql://db/router"}),
        ["database.direct_url", "postgresql://"],
    ),
    "a direct way to something else": (
        settings(database={"url": "postgresql://db/router", "direct_url": "db:5432"}),
        ["database.direct_url", "postgresql://"],
    ),
    "a database's path without its URL": (settings(database={"url": "router.db"}), ["database.url", "sqlite:///"]),
    "a limit of nothing": (settings(max_body_mb=0), ["max_body_mb", "> 0"]),
    "no room in the background": (settings(background={"max_concurrent": 0}), ["background.max_concurrent", ">= 1"]),
    "a URL with a port that is none": (
        endpoint(url="http://x:99999"),
        ["endpoints[0].url", "'http://x:99999'", "65535"],
    ),
    "a URL with a port in words": (endpoint(url="http://me:secret@x:abc/v1"), ["endpoints[0].url", "…@x:abc", "65535"]),
    "a URL without the port that it announces": (endpoint(url="http://x:0"), ["endpoints[0].url", "65535"]),
    "a URL with a space": (endpoint(url="http://x :80"), ["endpoints[0].url", "space"]),
    "a URL with a line end": (endpoint(url="http://x\n"), ["endpoints[0].url", "space"]),
    "a URL with a query": (
        endpoint(url="http://x/v1?key=5"),
        ["endpoints[0].url", "'?'", "the path of the server's API"],
    ),
    "a URL of one call": (
        endpoint(url="http://x/v1/chat/completions"),
        ["endpoints[0].url", "leave out '/chat/completions'"],
    ),
    "a header that is none": (endpoint(headers={"x a": "b"}), ["endpoints[0].headers", "'x a'"]),
    "a header of two lines": (endpoint(headers={"x-a": "b\nc"}), ["endpoints[0].headers", "'x-a'", "no header"]),
    "a header that is a number": (endpoint(headers={"x-a": 5}), ["endpoints[0].headers", "put it in quotes"]),
    "a key from a file, with its line end": (endpoint(api_key="k\n"), ["endpoints[0].api_key", "line end"]),
    "a key that no header can carry": (endpoint(api_key="€"), ["endpoints[0].api_key", "header"]),
    "the router's key, with spaces": (settings(api_key=" k "), ["api_key", "space"]),
    "a limit without end": (settings(max_body_mb=float("inf")), ["max_body_mb", "finite"]),
    "a wait without end": (settings(background={"drain_s": float("inf")}), ["background.drain_s", "finite"]),
    "a weight without end": (endpoint(weight=float("inf")), ["endpoints[0].weight", "finite"]),
    "a key that is no text": (settings() | {5: "x"}, ["settings", "each key must be text"]),
    "a key of a section that is no text": (
        settings(fallback_models={5: ["a"]}),
        ["fallback_models", "each key must be text"],
    ),
    "a database at home": (settings(database={"url": "sqlite:///~/router.db"}), ["database.url", "${HOME}"]),
    "a cache at home": (settings(cache={"path": "~/cache.db"}), ["cache.path", "${HOME}"]),
    "the port": (settings(port=80), ["'port'", "--port", "make serve"]),
    "the address": (settings(host="0.0.0.0"), ["'host'", "--host"]),
    "keys that are no list": (settings(keys="a"), ["keys", "a list", "text"]),
    "a key without a name": (settings(keys=[{"key": "k"}]), ["missing", "keys[0].name"]),
    "a key without a key": (settings(keys=[{"name": "a"}]), ["keys[0]", "missing key or sha256"]),
    "a key that is there in two ways": (key(sha256="0" * 64), ["keys[0]", "one of key and sha256"]),
    "a digest that is none": (settings(keys=[{"name": "a", "sha256": "abc"}]), ["keys[0].sha256", "64 hexadecimal"]),
    "a name with a space": (key(name="a b"), ["keys[0].name", "'a b'", "letters"]),
    "a name that is endless": (key(name="a" * 10_000), ["keys[0].name", "64"]),
    "a name that is empty": (key(name=""), ["keys[0].name", "letters"]),
    "an owner with a line end": (key(owner="a\nb"), ["keys[0].owner", "'a b'"]),
    "a client's key with a line end": (key(key="secret-1\n"), ["keys[0].key", "line end"]),
    "a client's key that is a number": (key(key=5), ["keys[0].key", "text", "put it in quotes"]),
    "a name that is there twice": (
        settings(keys=[{"name": "a", "key": "1"}, {"name": "a", "key": "2"}]),
        ["keys[1].name", "'a' is there twice"],
    ),
    "two names of one key": (
        settings(
            keys=[
                {"name": "a", "key": "secret-1"},
                {"name": "b", "sha256": hashlib.sha256(b"secret-1").hexdigest().upper()},
            ]
        ),
        ["keys[1]", "'b' is the same key as 'a'"],
    ),
    "a key that is the router's": (key() | {"api_key": "secret-1"}, ["keys[0]", "'ann'", "same key as api_key"]),
    "an unknown key of a key": (key(rmp=5), ["'keys[0].rmp'", "did you mean 'rpm'?"]),
    "no requests a minute": (key(rpm=0), ["keys[0].rpm", ">= 1"]),
    "tokens in words": (key(tpm="many"), ["keys[0].tpm", "a whole number", "text"]),
    "models that are no list": (key(models="qwen*"), ["keys[0].models", "a list", "text"]),
    "a model that is empty": (key(models=[""]), ["keys[0].models", "no pattern"]),
    "a budget a week": (key(budget="5/week"), ["keys[0].budget", "'5/week'", "1000000/day"]),
    "a budget of nothing": (key(budget="0/day"), ["keys[0].budget", "more than 0"]),
    "a cost that is a number": (key(cost=5), ["keys[0].cost", "put it in quotes"]),
    "two budgets a day": (key(budget="5/day, 6/day"), ["keys[0].budget", "two amounts a day"]),
    "an end of a key that is a while": (key(expires="90d"), ["keys[0].expires", "'90d'", "2027-01-31"]),
    "an end of a key on no day": (key(expires="2027-02-30"), ["keys[0].expires", "2027-02-30"]),
    "a priority in words": (key(priority="first"), ["keys[0].priority", "a whole number"]),
    "an owner without a name": (settings(owners=[{"rpm": 5}]), ["missing", "owners[0].name"]),
    "an owner that is there twice": (
        settings(owners=[{"name": "a"}, {"name": "a"}]),
        ["owners[1].name", "'a' is there twice"],
    ),
    "an owner with a key": (owner(key="k"), ["'owners[0].key'", "it is a key of keys[]"]),
    "an owner's budget that is none": (owner(budget="x"), ["owners[0].budget", "'x'"]),
    "a queue of less than none": (settings(queue={"max": -1}), ["queue.max", ">= 0"]),
}


@pytest.mark.parametrize(("data", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting_is_one_line_that_names_the_key_and_the_nearest(data: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config(data, KINDS)
    line = str(raised.value)
    assert "\n" not in line, "more than one line"
    missing = [word for word in words if word not in line]
    assert not missing, f"{line!r} does not hold {missing}"


@pytest.mark.parametrize(("data", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting_in_a_file_is_reported_with_the_name_of_the_file(
    data: Any, words: list[str], load: Any
) -> None:
    with pytest.raises(ConfigError) as raised:
        load(yaml.safe_dump(data))
    line = str(raised.value)
    assert "config.yaml: " in line
    assert all(word in line for word in words), f"{line!r} does not hold {words}"


NO_SETTINGS: dict[str, str] = {
    "an empty file": "",
    "a list": "- endpoints",
    "a text": "endpoints",
    "no YAML": "endpoints: [",
    "a tab": "endpoints:\n\t- url: x",
    "a key twice open": "a: b: c",
    "a key twice": MINIMAL + "api_key: a\napi_key: b",
    "two lists of endpoints": MINIMAL + MINIMAL,
    "a key of a row twice": "endpoints: [{url: 'http://a', kind: ollama, url: 'http://b'}]",
}


@pytest.mark.parametrize("text", NO_SETTINGS.values(), ids=NO_SETTINGS)
def test_a_file_that_holds_no_settings_is_one_line(text: str, load: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        load(text)
    assert "\n" not in str(raised.value)
    assert "config.yaml: " in str(raised.value)


def test_a_file_that_is_not_there_or_not_text_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "nowhere.yaml", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path, {})
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"is not YAML.*save it as UTF-8"):
        load_config(tmp_path / "config.yaml", {})


def test_a_file_that_is_not_there_is_named_with_the_way_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ROUTER_CONFIG"):
        load_config(tmp_path / "config.yaml", {})


def test_a_key_that_is_there_twice_is_named_with_its_line(load: Any) -> None:
    with pytest.raises(ConfigError, match=r"'api_key' is there twice in \"\S+config\.yaml\", line 3"):
        load(MINIMAL + "api_key: a\napi_key: b")


def test_clients_may_have_a_key_of_any_letters(load: Any) -> None:
    assert load(MINIMAL + "api_key: schlüssel-€").api_key == "schlüssel-€"


def test_merged_keys_of_yaml_may_be_overridden(load: Any) -> None:
    rows = "endpoints:\n  - &first {url: 'http://a', kind: vllm}\n  - {<<: *first, url: 'http://b'}\n"
    assert [(row.url, row.kind) for row in load(rows).endpoints] == [("http://a", "vllm"), ("http://b", "vllm")]


def test_no_line_holds_a_key(load: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        load(MINIMAL + "api_key: ${KEY}\nqueue: {max: x}", KEY="secret-1")
    assert "secret" not in str(raised.value)
    with pytest.raises(ConfigError) as raised:
        load("endpoints: [{url: 'http://x', kind: openai, api_key: '${KEY}', max_concurrent: x}]", KEY="secret-1")
    assert "secret" not in str(raised.value)
    for wrong in (
        "key: 'secret-1 '",
        "key: secret-1, rpm: x",
        "sha256: secret-1",
        "name: a, key: secret-1, expires: x",
    ):
        with pytest.raises(ConfigError) as raised:
            load(MINIMAL + f"keys: [{{{wrong if 'name' in wrong else f'name: a, {wrong}'}}}]")
        assert "secret" not in str(raised.value)


def test_a_key_has_what_its_settings_give(load: Any) -> None:
    config = load(
        MINIMAL
        + """
keys:
  - {name: ann, key: "${KEY}", models: ['qwen*'], rpm: 60, tpm: 100000, concurrent: 4, background: 20,
     budget: 1M/day, cost: "2.5/day, 20/month", priority: 1, expires: 2027-01-31}
  - {name: root, sha256: """
        + "ab" * 32
        + """, admin: true}
owners: [{name: ann, rpm: 100}]
""",
        KEY="nk-1",
    )
    ann, root = config.keys
    assert limits_of(ann) == Limits(
        rpm=60,
        tpm=100_000,
        concurrent=4,
        background=20,
        budget=(Allowance(1_000_000, "day"),),
        cost=(Allowance(2.5, "day"), Allowance(20, "month")),
    )
    assert (digest_in(ann), digest_in(root)) == (hashlib.sha256(b"nk-1").digest(), b"\xab" * 32)
    assert (owner_in(ann), owner_in(root)) == ("ann", ""), "what admins make belongs to all of them"
    assert expiry(ann.expires) == datetime(2027, 2, 1, tzinfo=UTC).timestamp(), "the end of that day"
    assert (limits_of(root), expiry(root.expires)) == (UNLIMITED, None)
    assert limits_of(config.owners[0]) == Limits(rpm=100)


def test_a_time_without_a_zone_is_in_utc() -> None:
    at = datetime(2027, 1, 31, 12, tzinfo=UTC).timestamp()
    assert [expiry(f"2027-01-31{form}") for form in ("T12:00", " 12:00:00", "T12:00:00Z", "T13:00:00+01:00")] == [
        at
    ] * 4


# ── variables ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_variables_are_put_into_texts_wherever_they_are(load: Any) -> None:
    text = """
        endpoints:
          - {url: "http://${HOST}:${PORT}/v1", kind: "${KIND}", api_key: "${KEY}", max_concurrent: "${SLOTS}"}
        database: {url: "sqlite:///${DIR}/router.db"}
    """
    config = load(text, HOST="gpu", PORT="8080", KIND="openai-chat", KEY="k$1{x}", SLOTS="3", DIR="/srv")
    given = msgspec.to_builtins(config.endpoints[0])
    defaults = msgspec.to_builtins(EndpointConfig(""))
    assert {key: value for key, value in given.items() if value != defaults[key]} == {
        "url": "http://gpu:8080/v1",
        "kind": "openai-chat",
        "api_key": "k$1{x}",
        "max_concurrent": 3,
    }
    assert config.database.url == "sqlite:////srv/router.db"


DEFAULTS: dict[str, tuple[str, dict[str, str], str]] = {
    "unset": ("${KEY:-d}", {}, "d"),
    "set": ("${KEY:-d}", {"KEY": "k"}, "k"),
    "set, and empty": ("${KEY:-d}", {"KEY": ""}, "d"),
    "an empty default": ("${KEY:-}", {}, ""),
    "a default with a colon and a dash": ("${KEY:-a:-b}", {}, "a:-b"),
    "empty, without a default": ("${KEY}", {"KEY": ""}, ""),
    "a variable in a variable is a text": ("${KEY}", {"KEY": "${OTHER}"}, "${OTHER}"),
    "no variable at all": ("$KEY $ {KEY} {KEY}", {"KEY": "k"}, "$KEY $ {KEY} {KEY}"),
}


@pytest.mark.parametrize(("text", "environ", "value"), DEFAULTS.values(), ids=DEFAULTS)
def test_a_variable_may_have_a_default(text: str, environ: dict[str, str], value: str, load: Any) -> None:
    assert load(MINIMAL + f"api_key: '{text}'", **environ).api_key == value


def test_a_variable_that_is_not_set_is_named_with_its_key(load: Any) -> None:
    with pytest.raises(ConfigError, match=r"endpoints\[0\]\.api_key: .*OPENAI_API_KEY is not set"):
        load("endpoints: [{url: 'http://x', kind: openai, api_key: '${OPENAI_API_KEY}'}]")
    with pytest.raises(ConfigError, match=r"database\.url: .*DIR is not set"):
        load(MINIMAL + "database: {url: '${DIR}/x'}")


def test_all_variables_that_are_not_set_are_named_at_once(load: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"api_key: .* ADMINS is not set; keys\[0\]\.key: .* ANNS is not set \(\${"
    ) as e:
        load(MINIMAL + "api_key: ${ADMINS}\nkeys: [{name: ann, key: '${ANNS}'}, {name: bob, key: '${ANNS}'}]")
    assert str(e.value).count("ANNS") == 1


# ── ROUTER_… ─────────────────────────────────────────────────────────────────────────────────────────────────────────

OVERRIDES: dict[str, tuple[dict[str, str], Any]] = {
    "a key at the top": ({"ROUTER_API_KEY": "k"}, lambda config: config.api_key == "k"),
    "the key's name of old": ({"NOMYO_ROUTER_API_KEY": "k"}, lambda config: config.api_key == "k"),
    "the key's name of old, beside an empty one": (
        {"NOMYO_ROUTER_API_KEY": "k", "ROUTER_API_KEY": ""},
        lambda config: config.api_key == "k",
    ),
    "the key's name of old, beside the same": (
        {"NOMYO_ROUTER_API_KEY": "k", "ROUTER_API_KEY": "k"},
        lambda config: config.api_key == "k",
    ),
    "the database's name of old": (
        {"NOMYO_ROUTER_DB_PATH": "/srv/r.db"},
        lambda config: config.database.url == "sqlite:////srv/r.db",
    ),
    "the folder of our workers": ({"NOMYO_WORKERS_DIR": "/tmp/x"}, lambda config: config.api_key == ""),
    "a key that looks like a number": ({"ROUTER_API_KEY": "123"}, lambda config: config.api_key == "123"),
    "a number": ({"ROUTER_MAX_BODY_MB": "1.5"}, lambda config: config.max_body_mb == 1.5),
    "a key of a section": ({"ROUTER_DATABASE__URL": "sqlite://"}, lambda config: config.database.url == "sqlite://"),
    "beside what the file says": (
        {"ROUTER_CACHE__MAX_ENTRIES": "7"},
        lambda config: (config.cache.max_entries, config.cache.max_age_s) == (7, 5.0),
    ),
    "over what the file says": ({"ROUTER_CACHE__MAX_AGE_S": "9"}, lambda config: config.cache.max_age_s == 9),
    "a list": (
        {"ROUTER_ENDPOINTS": '[{"url": "http://a", "kind": "llama.cpp"}, {"url": "http://b", "kind": "openai"}]'},
        lambda config: [endpoint.url for endpoint in config.endpoints] == ["http://a", "http://b"],
    ),
    "a list in YAML": (
        {"ROUTER_ENDPOINTS": "[{url: 'http://a', kind: openai}]"},
        lambda config: config.endpoints[0].url == "http://a",
    ),
    "a Kubernetes service that is called router": (
        {
            "NOMYO_ROUTER_PORT_80_TCP": "x",
            "NOMYO_SERVICE_HOST": "10.0.0.1",
            "NOMYO_PORT": "x",
            "ROUTER_PORT": "tcp://10.0.0.1:80",
            "ROUTER_SERVICE_HOST": "10.0.0.1",
            "ROUTER_PORT_80_TCP": "x",
        },
        lambda config: config.api_key == "",
    ),
    "other variables": ({"PATH": "/bin", "ROUTERS": "2"}, lambda config: config.api_key == ""),
}


@pytest.mark.parametrize(("environ", "holds"), OVERRIDES.values(), ids=OVERRIDES)
def test_the_environment_overrides_the_file(environ: dict[str, str], holds: Any, load: Any) -> None:
    config = load(MINIMAL + "cache: {max_age_s: 5}", **environ)
    assert holds(config), msgspec.to_builtins(config)


def test_every_key_that_is_no_list_can_be_set_by_the_environment(load: Any) -> None:
    values = {str: "sqlite://", int: "3", float: "1", bool: "False", type(None): "False"}
    for section, fields in SECTIONS.items():
        for field in msgspec.structs.fields(fields):
            is_list = field.name in (
                *("endpoints", "keys", "owners", "prices", "fallback_models", "cors_origins", "allowed_hosts"),
                *("servers", "headers"),
                *("code_interpreter", "file_search", "image_generation"),  # They need a server of `mcp.servers`.
            )
            if "[]" in section or "." in section or isinstance(field.default, msgspec.Struct) or is_list:
                continue
            name = "ROUTER_" + (f"{section}__{field.name}" if section else field.name).upper()
            value = CHOICES[field.name][-1] if field.name in CHOICES else values[type(field.default)]
            if section == "cluster" or (section, field.name) == ("cache", "url"):
                value = "valkey://host" if field.name == "url" else "host"
            if field.name == "public_url":
                value = "https://router.example"
            if (section, field.name) == ("traces", "endpoint"):
                value = "http://collector:4317"
            also = {}
            if field.name == "direct_url":  # Only of a server.
                value, also = "postgresql://direct/router", {"ROUTER_DATABASE__URL": "postgresql://pooler/router"}
            if section == "web_search":  # Each needs the others.
                also = {"ROUTER_WEB_SEARCH__PROVIDER": "searxng", "ROUTER_WEB_SEARCH__URL": "http://search"}
                value = also.pop(name, value)
            config = msgspec.to_builtins(load(MINIMAL, **also, **{name: value}))
            given = (config[section] if section else config)[field.name]
            assert str(given) in (value, f"{value}.0"), f"{name} does not set {section}.{field.name}"


WRONG_VARIABLES: dict[str, tuple[dict[str, str], list[str]]] = {
    "an unknown one": ({"ROUTER_API_KYE": "k"}, ["ROUTER_API_KYE", "did you mean 'ROUTER_API_KEY'?"]),
    "one underscore too few": (
        {"ROUTER_DATABASE_URL": "sqlite://"},
        ["ROUTER_DATABASE_URL", "did you mean 'ROUTER_DATABASE__URL'?"],
    ),
    "an unknown one of old": ({"NOMYO_ROUTER_API_KYE": "k"}, ["NOMYO_ROUTER_API_KYE", "NOMYO_ROUTER_API_KEY"]),
    "one that could be anybody's": ({"NOMYO_KEY": "k"}, ["NOMYO_KEY"]),
    "one that only begins as Kubernetes' do": ({"ROUTER_PORTS": "1"}, ["ROUTER_PORTS"]),
    "two keys": (
        {"NOMYO_ROUTER_API_KEY": "a", "ROUTER_API_KEY": "b"},
        ["NOMYO_ROUTER_API_KEY", "ROUTER_API_KEY", "differ"],
    ),
    "the port": ({"ROUTER_PORT": "8080"}, ["ROUTER_PORT", "--port"]),
    "the port by another name": ({"NOMYO_ROUTER_PORT": "8080"}, ["NOMYO_ROUTER_PORT", "--port"]),
    "the address": ({"ROUTER_HOST": "0.0.0.0"}, ["ROUTER_HOST", "--host"]),
    "one letter too few": ({"ROUTER_ALLOWED_HOST": "a"}, ["did you mean 'ROUTER_ALLOWED_HOSTS'?"]),
    "a key with a line end": ({"ROUTER_API_KEY": "k\n"}, ["api_key", "line end"]),
    "one like none": ({"NOMYO_FOO": "1"}, ["there is no such variable", "docs/settings.md"]),
    "a database that cannot be": (
        {"ROUTER_DATABASE__URL": "mysql://x", "ROUTER_API_KEY": "k"},
        ["database.url", "sqlite:///"],
    ),
    "a row with an unknown key": ({"ROUTER_ENDPOINTS": "[{url: 'http://a', knd: x}]"}, ["endpoints[0].knd"]),
    "a row without its URL": ({"ROUTER_ENDPOINTS": "[{kind: ollama}]"}, ["endpoints[0].url"]),
    "a list that is none": ({"ROUTER_ENDPOINTS": "[{url"}, ["ROUTER_ENDPOINTS", "YAML"]),
    "a wrong value": ({"ROUTER_QUEUE__MAX": "many"}, ["queue.max", "a whole number"]),
    "a wrong row": ({"ROUTER_ENDPOINTS": "[{url: 'http://a', kind: x}]"}, ["endpoints[0].kind", "'x'"]),
}


@pytest.mark.parametrize(("environ", "words"), WRONG_VARIABLES.values(), ids=WRONG_VARIABLES)
def test_a_wrong_variable_is_one_line_that_begins_with_its_name(
    environ: dict[str, str], words: list[str], load: Any
) -> None:
    with pytest.raises(ConfigError) as raised:
        load(MINIMAL, **environ)
    line = str(raised.value)
    assert "\n" not in line
    assert line.startswith(next(iter(environ)))
    assert len(line) < 160
    assert all(word in line for word in words), f"{line!r} does not hold {words}"


def test_an_error_of_the_file_begins_with_its_name_whatever_variables_are_set(load: Any) -> None:
    with pytest.raises(ConfigError, match=r"^\S*\.yaml: queue\.timeout_s"):
        load(MINIMAL + "queue: {timeout_s: many}", ROUTER_QUEUE__MAX="3", ROUTER_API_KEY="k")


def test_a_section_that_is_no_section_is_named_also_when_a_variable_sets_it(load: Any) -> None:
    with pytest.raises(ConfigError, match="database"):
        load(MINIMAL + "database: x", ROUTER_DATABASE__URL="sqlite://")


def test_router_config_names_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(MINIMAL + "api_key: here")
    (tmp_path / "other.yaml").write_text(MINIMAL + "api_key: there")
    assert load_config(environ={}).api_key == "here", "config.yaml in the current folder"
    assert load_config(environ={"ROUTER_CONFIG": "other.yaml"}).api_key == "there"
    assert load_config(environ={"NOMYO_ROUTER_CONFIG_PATH": "other.yaml"}).api_key == "there"
    assert load_config("config.yaml", {"ROUTER_CONFIG": "other.yaml"}).api_key == "here", (
        "what is asked for comes first"
    )


def test_the_settings_are_frozen() -> None:
    config = parse_config({"endpoints": [OLLAMA]})
    with pytest.raises(AttributeError):
        config.api_key = "k"  # type: ignore[misc]
