"""code_interpreter: code that a model writes runs at the tool that the settings have for it, which keeps it from doing
harm. A container is what that tool makes of its id: one that takes it can keep files and variables."""

from __future__ import annotations

from hashlib import sha256

from api.turns.hosted.mcp_server import serves
from api.turns.hosted.stand_in import StandIn
from api.turns.hosted.tool import HostedTool
from api.turns.turn import Turn
from backends.mcp.server import ServerFailed
from core.errors import InvalidRequest
from core.json import Json
from core.state import AppState
from requests.hosted_calls import CODE
from requests.responses import new_id
from requests.router_tools import RouterTool, with_error, with_outcome
from requests.stand_ins import outputs_of, taken_of
from requests.tools import Item

KIND = "code_interpreter"
OUTPUTS = "code_interpreter_call.outputs"
DESCRIPTION = "Runs Python code, and gives what it prints and the pictures that it shows. Print what you want to know."
PARAMETERS: Json = {
    "type": "object",
    "properties": {"code": {"type": "string", "description": "The code to run."}},
    "required": ["code"],
    "additionalProperties": False,
}
NO_OUTPUT = "(It has printed nothing.)"


class CodeInterpreter:
    """That of one turn (`HostedRunner`)."""

    heeded = frozenset({f"include.{OUTPUTS}"})

    def __init__(self, state: AppState, turn: Turn, where: str, entry: Json) -> None:
        container = entry.get("container")
        self._container = _container(container, f"{where}.container") or _last_container(turn) or new_id("cntr")
        self.ignored = frozenset(
            f"tools.container.{key}" for key in ("memory_limit", "network_policy") if _holds(container, key)
        )
        self._include = turn.request.params.include or ()
        self._owner = turn.owner
        self._tool = StandIn(state, turn.owner, KIND, state.config.tools.code_interpreter)
        facts = {"container_id": self._container}
        self.tools = [RouterTool("", KIND, DESCRIPTION, PARAMETERS, kind=CODE, facts=facts)]

    def begin(self, turn: Turn) -> None:
        """Nothing is to be done."""

    async def run(self, call: Item) -> Item:
        """The call with its outputs."""
        there = _of_owner(self._container, self._owner)
        given = {"container_id": there, "session_id": there}
        try:
            answer = await self._tool.ask(call["code"], lambda tool: taken_of(tool, given))
        except ServerFailed as error:
            return with_error(call, error.error)
        outputs = outputs_of(answer.blocks, answer.structured)
        text = "\n".join(output["logs"] for output in outputs if output["type"] == "logs") or NO_OUTPUT
        if answer.has_failed:
            text = f"The code failed:\n{text}"
        ran = with_outcome(call, {"text": text}, {"outputs": outputs}, self._include)
        return {**ran, "status": "failed" if answer.has_failed else "completed"}

    def close(self) -> None:
        """Nothing more is called."""
        self._tool.close()


def _container(given: object, where: str) -> str:
    """The id of the container that a request names; empty where one is to be made. Raises `InvalidRequest`."""
    if isinstance(given, dict):
        if given.get("type") != "auto":
            raise InvalidRequest("A container is an id, or an object of the type 'auto'.", param=f"{where}.type")
        if given.get("file_ids"):
            raise InvalidRequest("The router has no files that a container could have.", param=f"{where}.file_ids")
        return ""
    if not isinstance(given, str) or not given:
        words = "A code_interpreter needs a 'container': an id, or an object of the type 'auto'."
        raise InvalidRequest(words, param=where)
    return given


def _of_owner(container: str, owner: str) -> str:
    """What the tool knows a container by: clients name theirs as they like, and two owners may choose one name."""
    return f"{container}-{sha256(owner.encode()).hexdigest()[:16]}" if owner else container


def _holds(container: object, key: str) -> bool:
    return isinstance(container, dict) and bool(container.get(key))


def _last_container(turn: Turn) -> str:
    """That of the last call in the conversation; empty where there is none."""
    calls = (item for item in reversed(turn.request.items) if item.get("type") == CODE)
    return next((container for item in calls if isinstance(container := item.get("container_id"), str)), "")


def _is_set_up(state: AppState, owner: str) -> bool:
    return serves(state, state.config.tools.code_interpreter, owner)


def _runner(state: AppState, turn: Turn, where: str, tool: Json) -> CodeInterpreter:
    return CodeInterpreter(state, turn, where, tool)


CODE_INTERPRETER = HostedTool(call=CODE, types=(KIND,), is_set_up=_is_set_up, runner=_runner)
