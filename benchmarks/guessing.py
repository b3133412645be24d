"""Whether the time of an answer shows that an id is somebody else's: of what another owner has stored or is running,
beside ids that never were.

    python -m benchmarks.guessing [--rounds 2000]

The router runs in this process, with a file for its database. Each question is asked about three kinds of id, one after
the other in random order: another owner's, and two that never were, whose difference is the noise. It ends with 1 where
the medians of the first and the second differ by more than three times that, or three standard errors.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import httpx2

from core.config_checks import parse_config
from core.errors import APIError
from core.state import AppState
from requests.responses import new_id, response_resource, whole_item

URL = "/v1/responses"
ASKED = {"model": "test", "input": "Hi."}
# Of the owner's responses.
STORED, RUNNING = 200, 20


@dataclass(frozen=True)
class Question:
    name: str
    method: str
    path: str
    body: dict[str, Any] | None = None

    def about(self, id: str) -> tuple[str, str, Any]:
        body = self.body and {name: _with(value, id) for name, value in self.body.items()}
        return self.method, self.path.replace("ID", id), body


def _with(value: Any, id: str) -> Any:
    return [{**item, "id": id} for item in value] if isinstance(value, list) else id if value == "ID" else value


REFERENCE = {**ASKED, "input": [{"type": "item_reference", "id": "ID"}]}
QUESTIONS = (
    Question("read", "GET", f"{URL}/ID"),
    Question("follow", "GET", f"{URL}/ID?stream=true"),
    Question("its input", "GET", f"{URL}/ID/input_items"),
    Question("cancel", "POST", f"{URL}/ID/cancel"),
    Question("delete", "DELETE", f"{URL}/ID"),
    Question("go on", "POST", URL, {**ASKED, "previous_response_id": "ID"}),
    Question("count", "POST", f"{URL}/input_tokens", {**ASKED, "previous_response_id": "ID"}),
    Question("refer to an item", "POST", URL, REFERENCE),
)


class Runs:
    """A background turn of an owner that does not end."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.owner = "ann"

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def stop(self, reason: APIError | None) -> None:
        pass


async def store_all(state: AppState) -> tuple[list[str], list[str], list[str]]:
    """The ids of what the owner has: responses, those that run, items."""
    stored, items = [], []
    for _ in range(STORED):
        item = whole_item({"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi."}]})
        response = response_resource(ASKED, response_id=new_id("resp"), created_at=int(time.time()), status="completed")
        given: dict[str, Any] = {"previous_response_id": None, "model": "test", "status": "completed"}
        await state.db.store_response(
            response["id"], **given, created_at=1, input_messages=[item], response=response, owner="ann"
        )
        stored.append(response["id"])
        items.append(item["id"])
    running = [new_id("resp") for _ in range(RUNNING)]
    for id in running:
        state.tasks.submit(Runs(id))
    return stored, running, items


async def times_of(http: httpx2.AsyncClient, question: Question, ids: list[str], rounds: int) -> list[list[float]]:
    """The microseconds of each answer: about these ids, and about ids that never were, twice."""
    times: list[list[float]] = [[], [], []]
    prefix = ids[0].partition("_")[0]
    for _ in range(rounds):
        kinds = [(0, random.choice(ids)), (1, new_id(prefix)), (2, new_id(prefix))]
        random.shuffle(kinds)
        for kind, id in kinds:
            method, path, body = question.about(id)
            request = http.build_request(method, path, json=body)
            began = time.perf_counter_ns()
            answer = await http.send(request)
            times[kind].append((time.perf_counter_ns() - began) / 1000)
            assert answer.status_code in (400, 404), answer.text
    return times


def differs(times: list[list[float]]) -> tuple[float, float, bool]:
    """By how much the answers about another's ids differ, what is noise, and whether the one is more than the other."""
    theirs, never, again = map(statistics.median, times)
    low, _, high = statistics.quantiles(times[1], n=4)
    error = 1.253 * (high - low) / 1.349 / math.sqrt(len(times[1])) * math.sqrt(2)
    noise = 3 * max(abs(never - again), error)
    return theirs - never, noise, abs(theirs - never) > noise


async def measure(rounds: int) -> bool:
    """Prints what is seen. Whether no question shows anything."""
    from router import create_app  # Which reads the settings of this folder when it is loaded.

    keys = [{"name": "ann", "key": "nk-ann"}, {"name": "eve", "key": "nk-eve"}]
    with tempfile.TemporaryDirectory(prefix="nomyo-guessing-") as folder:
        settings = {
            "endpoints": [{"url": "http://127.0.0.1:9", "kind": "openai-chat", "models": {"names": ["test"]}}],
            "database": {"url": f"sqlite:///{folder}/router.db"},
            "background": {"max_concurrent": RUNNING, "drain_s": 0},
            "keys": keys,
        }
        app = create_app(parse_config(settings))
        async with app.router.lifespan_context(app):
            logging.disable()
            stored, running, items = await store_all(app.state)
            transport = httpx2.ASGITransport(app=app)
            headers = {"Authorization": "Bearer nk-eve"}
            fine = True
            print("| | of | another's, µs | one that never was | noise | |\n|---|---|---|---|---|---|")
            async with httpx2.AsyncClient(transport=transport, base_url="http://router", headers=headers) as http:
                for question in QUESTIONS:
                    of = {"an item": items} if "item" in question.name else {"a response": stored, "a turn": running}
                    for what, ids in of.items():
                        times = await times_of(http, question, ids, rounds)
                        difference, noise, shows = differs(times)
                        fine = fine and not shows
                        theirs, never = statistics.median(times[0]), statistics.median(times[1])
                        verdict = "shows" if shows else ""
                        print(
                            f"| {question.name} | {what} | {theirs:.1f} | {never:.1f} ({difference:+.1f}) "
                            f"| {noise:.1f} | {verdict} |"
                        )
    return fine


def main() -> None:
    """Measures, and exits with 1 where something shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000, help="questions of each kind (2000)")
    sys.exit(0 if asyncio.run(measure(parser.parse_args().rounds)) else 1)


if __name__ == "__main__":
    main()
