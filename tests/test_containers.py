"""The Dockerfile, .dockerignore and docker-compose.yml, checked without a container engine.

They are read and held against the source and config.yaml; then the image's steps are followed in a folder: the same
`uv sync`, the same copied files, the same entry command and health check.
"""

import ast
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest
import yaml

from tests.turns import SOON_S

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
CONFIG_TEXT = (ROOT / "config.yaml").read_text()
CONFIG = yaml.safe_load(CONFIG_TEXT)


# Readers of the two Docker formats ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    name: str
    flags: dict[str, str]
    text: str

    @property
    def words(self) -> list[str]:
        return self.exec_form or shlex.split(self.text)

    @property
    def exec_form(self) -> list[str] | None:
        return json.loads(self.text) if self.text.startswith("[") else None


def read_dockerfile(text: str) -> list[list[Instruction]]:
    """The stages, each a list that starts with its FROM."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    stages: list[list[Instruction]] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, rest = line.split(None, 1)
        flags = {}
        while flag := re.match(r"--([a-z-]+)=(\S+)\s+", rest):
            flags[flag[1]] = flag[2]
            rest = rest[flag.end() :]
        if name == "FROM":
            stages.append([])
        stages[-1].append(Instruction(name, flags, rest.strip()))
    return stages


def ignored(path: str) -> bool:
    """As Docker decides it: a pattern holds for a path and all below it, and the last one that matches wins."""
    parents = [str(parent) for parent in PurePosixPath(path).parents if parent.name]
    result = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        regex = glob_regex(pattern.removeprefix("!").strip("/"))
        if any(regex.fullmatch(candidate) for candidate in (path, *parents)):
            result = not pattern.startswith("!")
    return result


def glob_regex(pattern: str) -> re.Pattern[str]:
    wildcards = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(wildcards.get(piece, re.escape(piece)) for piece in pieces))


STAGES = read_dockerfile((ROOT / "Dockerfile").read_text())
IMAGE = STAGES[-1]


def last(name: str) -> Instruction:
    found = [instruction for instruction in IMAGE if instruction.name == name]
    assert found, f"the Dockerfile's last stage has no {name}"
    return found[-1]


def copies(stages: list[list[Instruction]]) -> list[tuple[list[str], str]]:
    """What comes out of the project's folder: sources and destination."""
    return [
        (instruction.words[:-1], instruction.words[-1])
        for stage in stages
        for instruction in stage
        if instruction.name == "COPY" and "from" not in instruction.flags
    ]


def healthcheck_command() -> list[str]:
    return json.loads(last("HEALTHCHECK").text.removeprefix("CMD"))


def workdir() -> PurePosixPath:
    return PurePosixPath(last("WORKDIR").text)


# The Dockerfile -------------------------------------------------------------------------------------------------------


def test_every_copied_path_exists_and_reaches_the_build() -> None:
    for sources, _ in copies(STAGES):
        for source in sources:
            path = ROOT / source
            assert path.exists(), f"the Dockerfile copies {source}, which is not there"
            for file in path.rglob("*.py") if path.is_dir() else [path]:
                assert not ignored(file.relative_to(ROOT).as_posix())


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        ".env",
        "data/router.db",
        "tests/conftest.py",
        "api/__pycache__/x.pyc",
    ],
)
def test_nothing_else_reaches_the_build(path: str) -> None:
    assert ignored(path)


@pytest.mark.heavy
def test_the_image_holds_every_module_that_the_router_imports() -> None:
    copied = {PurePosixPath(source) for sources, _ in copies([IMAGE]) for source in sources}
    needed = {file for start in ("router.py", "serve.py") for file in first_party_files(ROOT / start)}
    needed |= {PurePosixPath("nomyo"), PurePosixPath("commands/__main__.py"), PurePosixPath("commands/backup.py")}
    assert len(needed) > 5, "the walk over the imports lost its way"
    missing = [file for file in needed if not copied & {file, *file.parents}]
    assert not missing


def first_party_files(start: Path) -> set[PurePosixPath]:
    """Every file of ours that an import can reach, wherever in a module it stands; a package counts as a whole."""
    found: set[PurePosixPath] = set()
    todo = [start]
    while todo:
        file = todo.pop()
        name = PurePosixPath(file.relative_to(ROOT).as_posix())
        if name in found:
            continue
        found.add(name)
        for module in imported_modules(ast.parse(file.read_text())):
            todo += [path for path in [ROOT / f"{module}.py"] if path.exists()]
            todo += (ROOT / module).rglob("*.py")
    return found


def imported_modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_both_stages_have_the_same_python_since_the_environment_moves_between_them() -> None:
    images = {stage[0].words[0] for stage in STAGES}
    assert len(images) == 1


def test_the_image_runs_as_an_ordinary_user_who_owns_its_data() -> None:
    user = last("USER").text
    assert user not in ("root", "0")
    assert any(f"--owner={user} {last('VOLUME').text}" in run.text for run in IMAGE if run.name == "RUN")


def test_signals_reach_the_server_because_the_command_is_in_exec_form() -> None:
    assert last("CMD").exec_form


def test_the_database_of_the_shipped_config_lies_in_the_volume() -> None:
    volume = PurePosixPath(last("VOLUME").text)
    database = workdir() / CONFIG["database"]["url"].removeprefix("sqlite:///")
    assert volume in database.parents


def test_one_port_everywhere() -> None:
    port = last("EXPOSE").text
    command = last("CMD").words
    assert command[command.index("--port") + 1] == port
    assert f"127.0.0.1:{port}/health" in healthcheck_command()[-1]
    assert COMPOSE["services"]["router"]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_the_image_is_built_with_the_uv_that_developers_use() -> None:
    version = re.search(r"^UV_VERSION = (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert version
    assert f"uv=={version[1]}" in (ROOT / "Dockerfile").read_text()


# docker-compose.yml ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_is_watched_restarted_and_pinned(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"
    assert "build" in service or re.search(r":\d+\.\d+\.\d+$", service["image"])


def test_compose_and_the_image_ask_the_same_health_question() -> None:
    assert COMPOSE["services"]["router"]["healthcheck"]["test"] == ["CMD", *healthcheck_command()]


def test_every_variable_that_compose_sets_is_one_that_the_config_reads() -> None:
    read = set(re.findall(r"\$\{(\w+)", CONFIG_TEXT))
    assert set(COMPOSE["services"]["router"]["environment"]) <= read


def test_the_router_is_pointed_at_the_ollama_beside_it() -> None:
    default = re.search(r"\$\{OLLAMA_URL:-http://localhost(:\d+)\}", CONFIG_TEXT)
    assert default
    assert COMPOSE["services"]["router"]["environment"]["OLLAMA_URL"] == f"http://ollama{default[1]}"
    assert "ollama" in COMPOSE["services"]["router"]["depends_on"]


def test_every_mount_has_its_source_and_the_data_outlive_the_container() -> None:
    for service in COMPOSE["services"].values():
        for mount in service["volumes"]:
            source = mount.partition(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
    mounts = COMPOSE["services"]["router"]["volumes"]
    assert f"data:{last('VOLUME').text}" in mounts
    assert f"./config.yaml:{workdir()}/config.yaml:ro" in mounts


def test_compose_leaves_a_shutdown_the_time_that_the_config_gives_it() -> None:
    grace = COMPOSE["services"]["router"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > CONFIG["background"]["drain_s"]


# The image, followed step by step -------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_the_image_starts_is_healthy_writes_only_its_data_and_stops(tmp_path: Path) -> None:
    app = tmp_path / "app"
    (app / "data").mkdir(parents=True)
    for sources, destination in copies(STAGES):
        for source in sources:
            copy(ROOT / source, app / destination)
    environment = image_environment(app)
    install(app)
    before = files(app)

    port = free_port()
    with running(replace_port(last("CMD").words, port), app, environment) as server:
        wait_until_healthy(replace_port(healthcheck_command(), port), server, environment)
        subprocess.run([app / "nomyo", "backup", "data/copy.db"], cwd=app, env=environment, check=True)
        server.send_signal(signal.SIGTERM)
        assert server.wait(15) in (0, -signal.SIGTERM)

    written = files(app) - before
    assert {Path("data/router.db"), Path("data/copy.db")} <= written
    # compose mounts everything but /app/data and /tmp read-only.
    assert {path for path in written if path.parts[0] != "data"} == set()


def copy(source: Path, destination: Path) -> None:
    """As COPY does: of a folder its contents, a file into a folder or onto a name."""
    if source.is_dir():
        shutil.copytree(source, destination, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, destination)


def image_environment(app: Path) -> dict[str, str]:
    """The last stage's ENV, moved to `app`, and nothing of this process's: no ROUTER_ variable of yours decides
    here."""
    environment = dict(word.split("=", 1) for word in last("ENV").words)
    for name, value in environment.items():
        environment[name] = value.replace(str(workdir()), str(app)).replace("$PATH", os.defpath)
    # Nobody is there: the router must not need its backends to start. Without a key it starts as compose has it.
    opened = COMPOSE["services"]["router"]["environment"]["ROUTER_ALLOW_OPEN"]
    return environment | {"OLLAMA_URL": "http://127.0.0.1:9", "ROUTER_ALLOW_OPEN": opened}


def install(app: Path) -> None:
    (sync,) = [run for stage in STAGES for run in stage if run.name == "RUN" and run.words[:2] == ["uv", "sync"]]
    uv = Path(sys.executable).with_name("uv")
    assert uv.exists(), f"{uv} is missing: `make setup` installs it"
    # With this machine's registry, certificates and cache, but into the folder's own environment.
    settings = {
        "UV_PROJECT_ENVIRONMENT": ".venv",
        "UV_PYTHON": sys.executable,
        "UV_PYTHON_DOWNLOADS": "never",
    }
    subprocess.run([uv, *sync.words[1:]], cwd=app, env={**os.environ, **settings}, check=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def replace_port(command: list[str], port: int) -> list[str]:
    return [word.replace(last("EXPOSE").text, str(port)) for word in command]


@contextmanager
def running(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(located(command, environment), cwd=folder, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until_healthy(check: list[str], server: subprocess.Popen[bytes], environment: dict[str, str]) -> None:
    deadline = time.monotonic() + SOON_S
    while subprocess.run(located(check, environment), env=environment, capture_output=True).returncode:
        assert server.poll() is None, f"the entry command ended with status {server.returncode}"
        assert time.monotonic() < deadline, f"not healthy after {SOON_S:g} s"
        time.sleep(0.1)


def located(command: list[str], environment: dict[str, str]) -> list[str]:
    # Popen would look along this process's PATH.
    program = shutil.which(command[0], path=environment["PATH"])
    assert program, f"{command[0]} is not in the image"
    return [program, *command[1:]]


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
