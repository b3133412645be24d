"""The rounds of a turn whose tools the router runs: the model calls them, reads what they answer, until it calls none.

    ask ──▶ calls ──▶ run, side by side ──▶ ask, with their outputs ──▶ …      a slot is held within `ask` alone

It is one response: items go on behind those of the round before, and the tokens of all rounds are its usage. A call of
a tool of the client ends the turn, as does one that somebody must approve of.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from msgspec.structs import replace

from api.turns.turn import Turn, TurnRequest
from core.config import ToolsConfig
from core.errors import InvalidRequest
from core.state import AppState
from core.turn_record import ToolRun
from requests.endings import incomplete_reason
from requests.hosted_calls import HOSTED_TOOLS
from requests.params import CreateParams
from requests.responses import ID_PREFIXES, new_id
from requests.router_tools import (
    ASKED_FOR,
    RouterTools,
    call_of_router,
    called_name,
    protocol_error,
    waiting_approvals,
    with_error,
)
from requests.tool_choice import tool_choice_responses_to_chat
from requests.tools import BRINGS_TOOLS, CALLS, Item, ToolBook

log = logging.getLogger("nomyo.tools")

TIMED_OUT = -32001
# So many calls are run in one turn, whatever a model or the approvals of a client ask for: each is an item, and is
# known of the turn when it has ended. Of the name of a tool so many characters.
MOST_CALLS, MOST_NAME = 256, 128


class TurnTools(Protocol):
    """The tools of one turn that the router runs. `failed` are the names of those that could not be had or run, each
    with whether the model was not even offered them."""

    @property
    def failed(self) -> Mapping[str, bool]: ...

    def offered(self, turn: Turn) -> Awaitable[RouterTools]:
        """What the model is offered; its items are emitted where the conversation has none of them."""
        ...

    async def run(self, call: Item) -> Item:
        """The call with its output, or its error."""
        ...

    def close(self) -> None:
        """Nothing more is called. What is open is closed, without anybody waiting for it."""
        ...


async def tool_rounds(state: AppState, turn: Turn, tools: TurnTools, ask: Callable[[], Awaitable[None]]) -> None:
    """The answer to a turn, which `ask` gives round by round. Raises what `ask` raises."""
    builder, asked, limits = turn.builder, turn.request, state.config.tools
    turn.routing.affinity = [turn.id, *turn.routing.affinity]  # Each round goes where the one before was, if it can.
    runner = _Runner(turn, tools, limits, asked.params.max_tool_calls)
    try:
        approved = _approved(asked)
        _check_choice(asked)
        offered = await tools.offered(turn)
        if approved:
            begin_early(turn)
            for call in approved:
                turn.emit(builder.begin_call(call))
            await runner.run()
        usage = None
        for number in range(limits.max_rounds + 1):
            builder.begin_round()
            is_last = number == limits.max_rounds or runner.is_spent
            turn.request = _of_round(asked, builder.whole_items, offered.hidden() if is_last else offered, number)
            turn.routing.tried, turn.routing.attempts = set(), 0
            try:
                await ask()
            finally:
                builder.add_usage(usage)
            turn.emit(builder.close())
            ran = bool(builder.take_handed())
            await runner.run(is_over="The model may call no more tools in this turn." if is_last else "")
            if not ran or is_last or _ends_turn(turn):
                return
            turn.routing.attempts_made()  # The next one is another.
            usage = builder.chat_usage
    finally:
        tools.close()
        turn.request = asked
        if tools.failed:
            turn.describes_itself |= builder.emission.makes_events  # The headers have left.
            turn.note_failed_tools(tools.failed)


def _approved(asked: TurnRequest) -> list[Item]:
    """The calls that the request approves of, as they begin. Raises `InvalidRequest` for an answer to nobody."""
    answers = [(place, item) for place, item in enumerate(asked.input) if item["type"] == "mcp_approval_response"]
    if not answers:
        return []
    items = asked.items
    known = {item["id"] for item in items if item["type"] == ASKED_FOR}
    for place, item in answers:
        named = item.get("approval_request_id")
        where = f"input[{asked.places[place] if asked.places else place}]"
        if not isinstance(named, str) or named not in known:
            raise InvalidRequest(
                "There is no approval request of this id in the conversation.", param=f"{where}.approval_request_id"
            )
        if not isinstance(item.get("approve"), bool):
            raise InvalidRequest("An approval is true or false.", param=f"{where}.approve")
    return [
        call_of_router(
            "mcp_call",
            id=new_id(ID_PREFIXES["mcp_call"]),
            label=str(request.get("server_label")),
            name=str(request.get("name")),
            arguments=request["arguments"] if isinstance(request.get("arguments"), str) else "{}",
            status="in_progress",
        )
        | {"approval_request_id": request["id"]}
        for request in waiting_approvals(items)
    ]


def _check_choice(asked: TurnRequest) -> None:
    """Raises `InvalidRequest` for a choice of a tool that is not there, while an error is a status still."""
    choice = asked.params.tool_choice
    if isinstance(choice, dict) and choice["type"] not in ("mcp", "allowed_tools", *HOSTED_TOOLS):
        book = ToolBook.of(asked.body.get("tools"), (item for item in asked.items if item["type"] in BRINGS_TOOLS))
        tool_choice_responses_to_chat(choice, book)


def begin_early(turn: Turn) -> None:
    """Begins the answer before any backend was asked: what becomes of the request no header will show."""
    turn.describes_itself |= turn.builder.emission.makes_events
    turn.emit(turn.builder.begin())


def _of_round(asked: TurnRequest, output: list[Item], offered: RouterTools, number: int) -> TurnRequest:
    """What the model is asked in a round: the conversation, behind it what has come of this turn. What had to be called
    was called in the first."""
    params = asked.params if number == 0 else _after_the_first(asked.params)
    return replace(asked, params=params, input=[*asked.input, *output], router_tools=offered)


def _after_the_first(params: CreateParams) -> CreateParams:
    choice = params.tool_choice
    if choice is None or choice in ("none", "auto"):
        return params
    if isinstance(choice, dict) and choice["type"] == "allowed_tools":
        return replace(params, tool_choice={**choice, "mode": "auto"} if choice.get("mode") == "required" else choice)
    return replace(params, tool_choice="auto")


def _ends_turn(turn: Turn) -> bool:
    """Whether what came of a round is for the client to act on, or was cut off."""
    builder = turn.builder
    if incomplete_reason(builder.finish_reason) is not None:
        return True
    return any(item["type"] in CALLS or item["type"] == ASKED_FOR for item in builder.answered_items())


class _Runner:
    """Runs the calls of a turn, no more than `allowed` and `MOST_CALLS` of them."""

    def __init__(self, turn: Turn, tools: TurnTools, limits: ToolsConfig, allowed: int | None) -> None:
        self._turn = turn
        self._tools = tools
        self._limits = limits
        self._left = MOST_CALLS if allowed is None else min(allowed, MOST_CALLS)
        self._spent = "The request allows no more calls of tools (max_tool_calls)."
        if self._left == MOST_CALLS:
            self._spent = f"No more than {MOST_CALLS} calls of tools are run in one turn."

    @property
    def is_spent(self) -> bool:
        """Whether no more calls may be run."""
        return self._left == 0

    async def run(self, *, is_over: str = "") -> None:
        """Runs those that wait, and emits the end of each as it comes. `is_over`: why none is run any more."""
        builder, calls = self._turn.builder, self._turn.builder.take_handed()
        permitted: dict[int, Item] = {}
        for output_index, call in calls.items():
            if is_over or self._left == 0:
                why = is_over or self._spent
                self._turn.emit(builder.end_work(output_index, with_error(call, protocol_error(why))))
                continue
            permitted[output_index] = call
            self._left -= 1
        async with aclosing(side_by_side(permitted, self._ran, self._limits.concurrency)) as ended:
            async for output_index, item in ended:
                self._turn.emit(builder.end_work(output_index, item))

    async def _ran(self, call: Item) -> Item:
        began_s = time.monotonic()
        ran = await self._answered(call)
        has_failed = ran["status"] == "failed"
        name = called_name(call)[:MOST_NAME]
        self._turn.tools.append(ToolRun(call["type"], name, began_s, time.monotonic(), has_failed))
        return ran

    async def _answered(self, call: Item) -> Item:
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                return await self._tools.run(call)
        except TimeoutError:
            log.warning("%s: a tool has not answered within %g s", self._turn.id, self._limits.timeout_s)
            message = f"The tool has not answered within {self._limits.timeout_s:g} s."
            return with_error(call, protocol_error(message, TIMED_OUT))
        except Exception as error:
            log.error("%s: a tool failed: %s", self._turn.id, type(error).__name__)
            return with_error(call, protocol_error("The router failed to run this tool."))


async def side_by_side(
    calls: Mapping[int, Item], run: Callable[[Item], Awaitable[Item]], at_once: int
) -> AsyncGenerator[tuple[int, Item]]:
    """What comes of each call, as it comes; so many run `at_once`. Whoever leaves cancels what still runs, and that has
    ended then."""
    room = asyncio.Semaphore(at_once)

    async def ran(output_index: int, call: Item) -> tuple[int, Item]:
        async with room:
            return output_index, await run(call)

    tasks: set[asyncio.Task[Any]] = {asyncio.create_task(ran(*each), name="tool") for each in calls.items()}
    try:
        waiting = tasks
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
