"""What `make demo` runs: a model server, the router in front of it, and OpenAI's own SDK as the client of the router.

Three turns, and then it stays up for you to try more, until Ctrl-C. With `--once` it ends there, with status 0 only if
all of them worked.
"""

import argparse
import json
import os
import signal
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import yaml
from openai.types.responses import (
    FunctionToolParam,
    Response,
    ResponseCompletedEvent,
    ResponseFailedEvent,
    ResponseFunctionToolCall,
    ResponseIncompleteEvent,
    ResponseInputParam,
    ResponseTextDeltaEvent,
)
from openai.types.responses.response_input_param import FunctionCallOutput

from demo.model_server import MODEL, running_model_server
from demo.processes import Child, ChildFailed, running

HOST = "127.0.0.1"
PORT = 12434
ROUTER_START_TIMEOUT_S = 30.0
TURN_TIMEOUT_S = 120.0

GET_WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city now.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class DemoFailed(Exception):
    """A step did not do what it is there to show."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="do not stay up afterwards")
    parser.add_argument("--port", type=int, default=PORT, help="the router's (default: %(default)s)")
    arguments = parser.parse_args()
    # A closed terminal and a polite kill end the demo as Ctrl-C does: through the blocks that stop the children.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        run(arguments.port, once=arguments.once)
    except KeyboardInterrupt:
        sys.exit(130)
    except (DemoFailed, ChildFailed) as error:
        sys.exit(f"\nThe demo failed: {error}")
    except openai.OpenAIError as error:
        sys.exit(f"\nThe demo failed: {type(error).__name__}: {error}")


def run(port: int, *, once: bool) -> None:
    print(bold("nomyo-router: a real model behind it, OpenAI's SDK in front of it"))
    start = time.monotonic()
    with running_model_server() as model_url:
        started("model", model_url, "SmolLM2 135M in llama.cpp's server", start)
        start = time.monotonic()
        with running_router(model_url, free_port(port)) as (router, router_url):
            started("router", router_url, "serve.py", start)
            client = openai.OpenAI(
                base_url=f"{router_url}/v1", api_key="not-asked-for", timeout=TURN_TIMEOUT_S, max_retries=0
            )
            first = show_stream(client)
            show_memory(client, first)
            show_tool(client)
            if not once:
                show_commands(router_url, first)
                stay_up(router, router_url)


# The three turns ------------------------------------------------------------------------------------------------------


def show_stream(client: openai.OpenAI) -> Response:
    heading("1. A streamed answer")
    question = "What is the capital of France, and what is it known for?"
    asked(question)
    return stream_answer(client, question)


def show_memory(client: openai.OpenAI, first: Response) -> None:
    heading("2. A follow-up", "previous_response_id is the memory")
    question = "And of Italy?"
    asked(question)
    stream_answer(client, question, previous_response_id=first.id)


def show_tool(client: openai.OpenAI) -> None:
    heading("3. A function tool", "the model calls it, it runs here, the model reads its result")
    question = "What is the weather in Paris?"
    asked(question)
    turn = client.responses.create(model=MODEL, input=question, tools=[GET_WEATHER])
    calls = [item for item in turn.output if item.type == "function_call"]
    if not calls:
        raise DemoFailed(f"the model called no tool; it answered {turn.output_text!r}")
    results: ResponseInputParam = [run_tool(call) for call in calls]
    stream_answer(client, results, previous_response_id=turn.id, tools=[GET_WEATHER])


def run_tool(call: ResponseFunctionToolCall) -> FunctionCallOutput:
    output = get_weather(**json.loads(call.arguments))
    print(dim(f"  {call.name}({call.arguments}) → {output}"))
    return {"type": "function_call_output", "call_id": call.call_id, "output": output}


def get_weather(city: str) -> str:
    return f"18 degrees and sunny in {city}"


def stream_answer(
    client: openai.OpenAI,
    turn_input: str | ResponseInputParam,
    *,
    previous_response_id: str | None = None,
    tools: Sequence[FunctionToolParam] = (),
) -> Response:
    """Prints each piece of the answer as it arrives. Gives the finished response."""
    start = time.monotonic()
    first_after_s = None
    finished = None
    print("  ", end="", flush=True)
    for event in client.responses.create(
        model=MODEL,
        input=turn_input,
        previous_response_id=previous_response_id,
        tools=tools,
        stream=True,
    ):
        if isinstance(event, ResponseTextDeltaEvent):
            first_after_s = first_after_s or time.monotonic() - start
            print(event.delta.replace("\n", "\n  "), end="", flush=True)
        elif isinstance(event, ResponseCompletedEvent | ResponseIncompleteEvent | ResponseFailedEvent):
            finished = event.response
    total_s = time.monotonic() - start
    print()
    if finished is None:
        raise DemoFailed("the stream ended without a terminal event")
    if finished.error:
        raise DemoFailed(f"the response failed: {finished.error.message}")
    if first_after_s is None or not finished.output_text.strip():
        raise DemoFailed("the answer is empty")
    tokens = f"{finished.usage.output_tokens} tokens in " if finished.usage else ""
    print(dim(f"  {finished.id}: {tokens}{total_s:.2f} s, the first after {first_after_s:.2f} s"))
    return finished


# The router -----------------------------------------------------------------------------------------------------------


@contextmanager
def running_router(model_url: str, port: int) -> Iterator[tuple[Child, str]]:
    with tempfile.TemporaryDirectory(prefix="nomyo-demo-") as folder:
        config = Path(folder) / "config.yaml"
        settings = {
            "endpoints": [{"url": model_url, "kind": "llama.cpp", "max_concurrent": 2}],
            "database": {"url": f"sqlite:///{folder}/router.db"},
            "background": {"drain_s": 1},
        }
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        # Settings of your own router (ROUTER_API_KEY, …) are not meant for this one.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("ROUTER_", "NOMYO_"))}
        environment["ROUTER_CONFIG"] = str(config)
        options = f"--host {HOST} --port {port} --no-access-log --log-level warning".split()
        with running("router", "serve", *options, environment=environment) as child:
            url = f"http://{HOST}:{port}"
            child.wait_until(lambda: healthy(url), ROUTER_START_TIMEOUT_S)
            yield child, url


def healthy(url: str) -> bool | None:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as reply:
            return True if reply.status == 200 else None
    except OSError:  # refused, cut, timed out, or a status such as 503
        return None


def free_port(wanted: int) -> int:
    try:
        return bound_port(wanted)
    except OSError:
        port = bound_port(0)
        print(f"  Port {wanted} is taken, so the router gets {port}.")
        return port


def bound_port(port: int) -> int:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        return int(listener.getsockname()[1])


def stay_up(router: Child, url: str) -> None:
    try:
        print(f"\n{bold('The router stays up')} at {url}/v1 until Ctrl-C.")
        router.process.wait()
    except KeyboardInterrupt:
        print("\nStopped.")
    else:
        raise router.failed(f"ended with status {router.process.returncode}")


# What is printed ------------------------------------------------------------------------------------------------------


def show_commands(router_url: str, first: Response) -> None:
    responses = f"{router_url}/v1/responses"

    def create(body: dict[str, Any], options: str = "-s") -> str:
        return f"curl {options} {responses} -H 'Content-Type: application/json' \\\n    -d '{json.dumps(body)}'"

    story = {"model": MODEL, "input": "Write a story about a lighthouse.", "background": True}
    commands = (
        ("the models", f"curl -s {router_url}/v1/models"),
        ("a response", create({"model": MODEL, "input": "What is the capital of Japan?"})),
        (
            "streamed",
            create({"model": MODEL, "input": "What is the capital of Japan?", "stream": True}, "-sN"),
        ),
        ("the first answer again", f"curl -s {responses}/{first.id}"),
        ("what was asked", f"curl -s {responses}/{first.id}/input_items"),
        (
            "in the background",
            f"ID=$({create(story)} \\\n    | grep -o 'resp_[A-Za-z0-9_-]*' | head -n 1); echo $ID",
        ),
        ("how far it is", f"curl -s {responses}/$ID"),
        ("stop it", f"curl -s -X POST {responses}/$ID/cancel"),
        ("forget it", f"curl -s -X DELETE {responses}/$ID"),
    )
    heading("Try next", "in another terminal")
    print(f"  {dim('# the live page, in a browser')}\n  {router_url}/")
    for title, command in commands:
        print(dim(f"  # {title}"))
        print("  " + command.replace("\n", "\n  "))


def started(name: str, url: str, what: str, start: float) -> None:
    print(f"  {name:<7} {url}  {dim(f'{what}, {time.monotonic() - start:.1f} s')}")


def heading(title: str, detail: str = "") -> None:
    print(f"\n{bold(title)}  {dim(detail)}".rstrip())


def asked(question: str) -> None:
    print(f"  {dim('>')} {question}")


def bold(text: str) -> str:
    return styled(text, 1)


def dim(text: str) -> str:
    return styled(text, 2)


def styled(text: str, code: int) -> str:
    if not text or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{code}m{text}\033[0m"


if __name__ == "__main__":
    main()
