"""Tools: as the client names them, and as a chat backend is offered them.

    request.tools, additional_tools, tool_search_output ──ToolBook──▶ chat functions, each with a name of its own
    a call of the backend ──ToolBook.call_of──▶ function_call, custom_tool_call, shell_call, … as the client expects it

A chat backend knows functions and nothing else. Whatever the client runs itself can be offered as one: custom tools
become a function with one text, the tools of a namespace get the namespace in front, the shells and `apply_patch` get
parameters of their own. What only OpenAI can run (web_search and the like) is left out, and named to the client.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ClassVar

from core.errors import InvalidRequest
from core.json import decode_json, whole_text
from requests.bounded_json import check_bounds
from requests.compatibility import ITEMS, TOOLS
from requests.hosted_calls import CODE, HOSTED_CALLS, HOSTED_TOOLS
from requests.patches import operation_in, patch_in, unwrapped
from requests.router_tools import ASKED_FOR, ROUTER_CALLS, RouterTool, RouterTools, call_of_router, hosted_call

Tool = dict[str, Any]
Item = dict[str, Any]

MAX_NAME = 64
# A type that is not among these is a client's own text: not for the log.
KNOWN_TOOLS = frozenset(TOOLS)
# Items that bring tools of their own along.
BRINGS_TOOLS = frozenset(name for name, row in ITEMS.items() if row.brings_tools)


@dataclass(frozen=True, slots=True)
class Call:
    """How a call of an offered tool is shown to the client."""

    type: str
    name: str
    namespace: str | None = None
    # What its items have besides; they are no other call for that.
    facts: Tool | None = field(default=None, compare=False)


def _object(**properties: Any) -> dict[str, Any]:
    required = [name for name, schema in properties.items() if not schema.pop("optional", False)]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _shells() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Tools that clients run under a type instead of a name: the type of their calls, what they do, what they take."""
    text = {"type": "string"}
    texts = {"type": "array", "items": text}
    milliseconds = {"type": "integer", "description": "How long it may run.", "optional": True}
    return {
        "local_shell": (
            "local_shell_call",
            "Runs a command on the user's computer.",
            _object(
                command={**texts, "description": "The program and its arguments."},
                working_directory={**text, "optional": True},
                timeout_ms=milliseconds,
            ),
        ),
        "shell": (
            "shell_call",
            "Runs shell commands, each as if typed at a prompt.",
            _object(
                commands={**texts, "description": "One or more commands."},
                timeout_ms=dict(milliseconds),
                max_output_length={"type": "integer", "optional": True},
            ),
        ),
        "apply_patch": (
            "apply_patch_call",
            "Creates, updates or deletes one file.",
            _object(
                type={"type": "string", "enum": ["create_file", "update_file", "delete_file"]},
                path={**text, "description": "The file."},
                diff={
                    **text,
                    "description": "What changes, as a V4A diff: lines that begin with a space stay, with - go, with + "
                    "come, @@ names the place. For a new file every line begins with +. Empty for a deletion.",
                },
            ),
        ),
    }


TYPED_TOOLS = _shells()
# What of a tool reaches the model; `false` and the like mean nothing.
FUNCTION_KEYS = frozenset({"type", "name", "description", "parameters", "strict"})
CUSTOM_KEYS = frozenset({"type", "name", "description", "format"})


class ToolBook:
    """The tools of a turn. `chat` is what the backend is offered, `omitted` what it cannot be, as `type` or
    `type:name`; `ignored` are the settings of tools of which nothing comes, as `tools.key`."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self.chat: list[Tool] = []
        self.omitted: list[str] = []
        self.ignored: set[str] = set()
        self._calls: dict[str, Call] = {}
        self._names: dict[Call, str] = {}
        for tool in tools:
            self._add(tool, None)

    @classmethod
    def of(cls, tools: list[Tool] | None, items: Iterable[Item], ours: RouterTools | None = None) -> ToolBook:
        """The tools of a request, and those that its items bring along; and `ours`, which the router runs, under names
        that the client has left."""
        brought = [tool for item in items if item.get("type") in BRINGS_TOOLS for tool in item.get("tools") or []]
        if ours is None:
            return cls([*(tools or []), *brought]) if tools or brought else NO_BOOK
        book = cls(tool for tool in [*(tools or []), *brought] if not ours.stand_for(tool))
        for tool in ours.tools:
            book._add_ours(tool, is_hidden=ours.are_hidden)
        return book

    def wire_name(self, name: str) -> str:
        """The offered name that a backend means: some leave marks of their model's format before or behind it."""
        if name in self._calls:
            return name
        plain = name.partition("<|")[0].strip()
        own = plain.removeprefix("functions.")
        return own if own in self._calls else plain

    def begins(self, name: str) -> bool:
        """Whether an offered name begins with this, or is this."""
        return any(offered.startswith(name) for offered in self._calls)

    def may_go_on(self, name: str) -> bool:
        """Whether an offered name is longer than this, and begins so."""
        return any(offered.startswith(name) and offered != name for offered in self._calls)

    def call_of(self, name: str) -> Call:
        """What the client gets when the backend calls `name`. A name that was not offered is a function."""
        return self._calls.get(name) or Call("function_call", name)

    def name_of(self, call: Call) -> str:
        """What the backend knows a tool as, also one of an earlier turn that is not offered any more."""
        return self._names.get(call) or _flat_name(call.name, call.namespace)

    def names_of(self, choice: Tool) -> list[str]:
        """The backend's names of what an entry of a tool choice means: a tool, or all of a namespace."""
        kind, name = choice.get("type"), _name_of(choice)
        if kind == "mcp":
            return [
                wire
                for call, wire in self._names.items()
                if call.type == "mcp_call"
                and call.namespace == choice.get("server_label")
                and name in (None, call.name)
            ]
        if kind in HOSTED_TOOLS:
            return [wire for call, wire in self._names.items() if call.type == HOSTED_TOOLS[kind]]
        if kind == "namespace":
            return self._of_namespaces.get(name, []) if isinstance(name, str) else []
        call_type = "custom_tool_call" if kind == "custom" else f"{kind}_call"
        call = Call(call_type, name if isinstance(name, str) else str(kind), choice.get("namespace"))
        return [self._names[call]] if call in self._names else []

    @cached_property
    def _of_namespaces(self) -> dict[str | None, list[str]]:
        """The backend's names of the tools of each namespace."""
        names: dict[str | None, list[str]] = {}
        for call, wire in self._names.items():
            if call.type not in ROUTER_CALLS and call.type != ASKED_FOR:
                names.setdefault(call.namespace, []).append(wire)
        return names

    def names_in(self, tools: Iterable[Tool]) -> list[str]:
        """The backend's names of those of the tools that it was offered."""
        return [name for tool in tools for name in self.names_of(tool)]

    def _add(self, tool: Tool, namespace: str | None) -> None:
        kind = tool["type"]
        if kind == "namespace":
            self._add_namespace(tool)
        elif kind == "function":
            self._ignore(tool, FUNCTION_KEYS)
            self._offer(
                Call("function_call", tool["name"], namespace), tool.get("description"), tool.get("parameters"), tool
            )
        elif kind == "custom":
            self._ignore(tool, CUSTOM_KEYS)
            self._offer(
                Call("custom_tool_call", tool["name"], namespace), _custom_description(tool), _custom_parameters(tool)
            )
        elif kind == "tool_search" and tool.get("execution") == "client":
            self._offer(Call("tool_search_call", "tool_search"), tool.get("description"), tool.get("parameters"))
        elif kind in TYPED_TOOLS and (place := _place_of(tool)) == "local":
            call_type, description, parameters = TYPED_TOOLS[kind]
            self._offer(Call(call_type, kind), description + _skills_of(tool), parameters)
        else:
            name = tool.get("name") or tool.get("server_label") or (place if kind in TYPED_TOOLS else None)
            self.omitted.append(f"{kind}:{name}" if name else str(kind))

    def _add_ours(self, tool: RouterTool, *, is_hidden: bool) -> None:
        run = Call(tool.kind, tool.name, tool.label or None, tool.facts)
        if run in self._names:
            return
        call = Call(ASKED_FOR, tool.name, run.namespace) if tool.needs_approval else run
        self._offer(call, tool.description, tool.parameters)
        self._names[run] = self._names[call]  # By that one the model has called it in earlier turns.
        if is_hidden:
            self.chat.pop()

    def _add_namespace(self, tool: Tool) -> None:
        """The tools of a namespace. Its description stands before the first: a chat server knows no groups."""
        first = len(self.chat)
        for inner in tool.get("tools") or []:
            self._add(inner, tool["name"])
        if (about := tool.get("description")) and len(self.chat) > first:
            function = self.chat[first]["function"]
            own = function.get("description")
            function["description"] = f"{tool['name']}: {about}" + (f"\n\n{own}" if own else "")

    def _ignore(self, tool: Tool, heeded: frozenset[str]) -> None:
        if not tool.keys() <= heeded:
            self.ignored |= {f"tools.{key}" for key in tool.keys() - heeded if tool[key]}

    def _offer(self, call: Call, description: str | None, parameters: Any, function: Tool | None = None) -> None:
        if call in self._names:
            return  # The same tool again: a later request names it, and an earlier item brought it.
        wire = _flat_name(call.name, call.namespace)
        if wire in self._calls:
            wire = _hashed_name(call.name, f"{call.type} {call.namespace}")
        self._calls[wire] = call
        self._names[call] = wire
        chat = {"name": wire}
        if description is not None:
            chat["description"] = description
        if parameters is not None:
            chat["parameters"] = parameters
        if function is not None and function.get("strict") is not None:
            chat["strict"] = function["strict"]
        self.chat.append({"type": "function", "function": chat})


def _place_of(tool: Tool) -> str:
    """Where a typed tool runs: `local` is with the client, anything else at OpenAI."""
    return str((tool.get("environment") or {}).get("type") or "local")


def _skills_of(tool: Tool) -> str:
    """What a shell can be used for beyond what everybody knows: folders that describe how something is done."""
    skills = (tool.get("environment") or {}).get("skills") or []
    lines = [f"- {skill.get('name')}: {skill.get('description')} ({skill.get('path')})" for skill in skills]
    return "\n\n".join(["", SKILLS, "\n".join(lines)]) if lines else ""


SKILLS = "There are skills, each a folder: when one fits what is to be done, read the SKILL.md in it first."
NO_BOOK = ToolBook(())


def tools_responses_to_chat(tools: list[Tool]) -> list[Tool]:
    """The chat form of all tools that a chat backend can be offered."""
    return ToolBook(tools).chat


def _flat_name(name: str, namespace: str | None) -> str:
    """The name of a tool as chat servers take one."""
    if len(name) <= MAX_NAME and (namespace is None or len(namespace) <= MAX_NAME):
        return _flat_name_kept(name, namespace)
    return _flattened(name, namespace)


@lru_cache(maxsize=4096)
def _flat_name_kept(name: str, namespace: str | None) -> str:
    """The same again in every turn of an agent."""
    return _flattened(name, namespace)


def _flattened(name: str, namespace: str | None) -> str:
    whole = f"{namespace}__{name}" if namespace else name
    flat = re.sub(r"[^a-zA-Z0-9_-]", "_", whole)
    fits = len(flat) <= MAX_NAME and (flat == whole or not namespace)
    return flat if fits else _hashed_name(name, namespace)


def _hashed_name(name: str, namespace: str | None) -> str:
    """A name for what would collide or be too long: readable, and always the same."""
    digest = hashlib.sha256(f"{namespace}\0{name}".encode()).hexdigest()[:8]
    readable = re.sub(r"[^a-zA-Z0-9_-]", "_", name)
    return f"{readable[: MAX_NAME - 9]}_{digest}"


# ── custom tools ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _custom_description(tool: Tool) -> str:
    """A chat backend cannot be held to a grammar here, but the model can read it."""
    description: str = tool.get("description") or ""
    format = tool.get("format") or {}
    if format.get("type") == "grammar":
        grammar = f"The text must follow this {format.get('syntax')} grammar:\n{format.get('definition')}"
        description = f"{description}\n\n{grammar}" if description else grammar
    return description


def _custom_parameters(tool: Tool) -> dict[str, Any]:
    text = {"type": "string", "description": "The whole text for the tool, as it is."}
    format = tool.get("format") or {}
    if format.get("syntax") == "regex" and isinstance(format.get("definition"), str):
        # Servers that hold a model to a schema (llama.cpp, vLLM) hold it to this as well.
        definition = re.sub(r"(?<!\\)((?:\\\\)*)\$\Z", r"\1", format["definition"].removeprefix("^"))
        text["pattern"] = f"^({definition})$"
    return _object(input=text)


INPUT, CODE_KEY = (re.compile(rf'\s*\{{\s*"{key}"\s*:\s*"') for key in ("input", "code"))


class TextOfJSON:
    """Gives the text of `{"input": "…"}` while its JSON is still arriving; `start` is what comes before that text. It
    reads what models write, not only what is JSON: raw line ends, escapes that there are not, halves of characters.
    Anything else than such an object has no `text`."""

    __slots__ = ("_at", "_json", "_start", "is_open", "text")

    _PIECE = re.compile(
        r"""(?P<plain>[^"\\]+) | \\u(?P<high>[dD][89abAB][0-9a-fA-F]{2})\\u(?P<low>[dD][c-fC-F][0-9a-fA-F]{2})
        | \\u(?P<code>[0-9a-fA-F]{4}) | \\(?P<escape>[^u]) | (?P<unicode>\\u)""",
        re.VERBOSE,
    )
    # What may still become a whole escape, or a pair of them.
    _PARTIAL = re.compile(r"\\(u([0-9a-fA-F]{0,3}|[dD][89abAB][0-9a-fA-F]{2}(\\(u[0-9a-fA-F]{0,3})?)?))?\Z")
    _ESCAPES: ClassVar = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "/": "/"}

    def __init__(self, start: re.Pattern[str] = INPUT) -> None:
        self._start = start
        self._json = ""
        self._at = 0
        self.is_open = False
        self.text = ""

    def feed(self, fragment: str) -> str:
        """What `fragment` adds to the text."""
        self._json += fragment
        if not self._at and (start := self._start.match(self._json)):
            self._at, self.is_open = start.end(), True
        if not self.is_open:
            return ""
        added: list[str] = []
        while self._at < len(self._json) and not self._PARTIAL.match(self._json, self._at):
            piece = self._PIECE.match(self._json, self._at)
            if piece is None:  # the closing quote
                self.is_open = False
                break
            added.append(self._decoded(piece))
            self._at = piece.end()
        self.text += (text := "".join(added))
        return text

    @property
    def begun(self) -> bool:
        """Whether the text has begun."""
        return self._at > 0

    def _decoded(self, piece: re.Match[str]) -> str:
        match piece.lastgroup:
            case "low":
                return chr(0x10000 + ((int(piece["high"], 16) - 0xD800) << 10) + int(piece["low"], 16) - 0xDC00)
            case "code":
                code = int(piece["code"], 16)
                return "\ufffd" if 0xD800 <= code < 0xE000 else chr(code)
            case "escape":
                return self._ESCAPES.get(piece["escape"], piece[0])
            case _:
                return piece[0]


def custom_input(arguments: str, *, whole: bool = True) -> str:
    """The text for a custom tool, out of the arguments of the function that stands for it. Of a call that was cut off,
    only what surely is text."""
    reader = TextOfJSON()
    reader.feed(arguments)
    if reader.begun or not whole:
        return unwrapped(reader.text) if whole else reader.text
    try:
        given = decode_json(arguments)
    except ValueError:
        return unwrapped(arguments)
    if isinstance(given, dict):
        texts = [value for value in given.values() if isinstance(value, str)]
        if isinstance(given.get("input"), str):
            return unwrapped(given["input"])
        if len(given) <= 1 and len(texts) == len(given):
            return unwrapped("".join(texts))
    if (patch := patch_in(given)) is not None:
        return patch
    return given if isinstance(given, str) else arguments


def code_in(arguments: str) -> str:
    """The code in the arguments of the function that runs it, as far as they have come; or all of them, where a model
    has written nothing else."""
    reader = TextOfJSON(CODE_KEY)
    reader.feed(arguments)
    if reader.begun:
        return reader.text
    if (given := arguments_of(arguments)) is None:
        return "" if arguments.lstrip()[:1] == "{" else arguments
    texts = [value for value in given.values() if isinstance(value, str)]
    return given["code"] if isinstance(given.get("code"), str) else texts[0] if len(texts) == 1 else ""


# ── calls, as items ──────────────────────────────────────────────────────────────────────────────────────────────────

# The items that are calls, and those that answer one.
CALLS = frozenset(name for name, row in ITEMS.items() if row.is_call)
OUTPUTS = frozenset(name for name, row in ITEMS.items() if row.is_output)


def call_id_of(item: Item) -> str | None:
    """The id that ties a call to its output. A local shell's output has had it as its own."""
    return item.get("call_id") or (item.get("id") if item.get("type") == "local_shell_call_output" else None)


def call_item(call: Call, *, id: str, call_id: str, arguments: str, status: str) -> Item:
    """A backend's call, as the item that the client expects."""
    if call.type in HOSTED_CALLS:
        given = {"code": code_in(arguments)} if call.type == CODE else arguments_of(arguments) or {}
        return hosted_call(call.type, id=id, name=call.name, arguments=given, status=status) | (call.facts or {})
    if call.type in ROUTER_CALLS or call.type == ASKED_FOR:
        label = call.namespace or ""
        return call_of_router(call.type, id=id, label=label, name=call.name, arguments=arguments, status=status)
    item: Item = {"type": call.type, "id": id, "call_id": call_id, "status": status}
    if call.type == "function_call":
        item |= {"name": call.name, "arguments": arguments}
    elif call.type == "custom_tool_call":
        item |= {"name": call.name, "input": custom_input(arguments, whole=status == "completed")}
    else:
        given = object_of(call, arguments) or {}
        if call.type == "tool_search_call":
            item |= {"execution": "client", "arguments": given}
        elif call.type == "local_shell_call":
            action = {"type": "exec", "command": _texts(given.get("command")), "env": {}}
            item["action"] = action | {key: given[key] for key in ("timeout_ms", "working_directory") if given.get(key)}
        elif call.type == "shell_call":
            commands = _texts(given.get("commands") or given.get("command"))
            limits = {key: given.get(key) for key in ("timeout_ms", "max_output_length")}
            item["action"] = {"commands": commands, **limits}
        else:
            item["operation"] = _operation(given)
    return item | ({"namespace": call.namespace} if call.namespace else {})


def object_of(call: Call, arguments: str) -> dict[str, Any] | None:
    """The arguments of a call that is an object: also those of a patch that a model has written as it knows it. None
    for any others."""
    given = arguments_of(arguments)
    if given is None and call.type == "apply_patch_call" and (patch := patch_in(arguments)) is not None:
        return {"patch": patch}
    return given


def _operation(given: dict[str, Any]) -> dict[str, Any]:
    """What an `apply_patch_call` does, by the parameters that it was offered, by these in an object (OpenAI's
    `operation`), or by a patch in others."""
    if not given.get("path"):
        given = next((inner for inner in given.values() if isinstance(inner, dict) and inner.get("path")), given)
    patch = None if given.get("path") else patch_in(given)
    if patch is not None and (operation := operation_in(patch)) is not None:
        return operation
    operation = {"type": str(given.get("type") or "update_file"), "path": str(given.get("path") or "")}
    if operation["type"] != "delete_file":
        operation["diff"] = str(given.get("diff") or "")
    return operation


def call_of_item(item: Item) -> tuple[Call, Any]:
    """The other way: the call that an item was, and its arguments."""
    kind = item["type"]
    match kind:
        case "function_call":
            return Call(kind, item["name"], item.get("namespace")), item.get("arguments")
        case "custom_tool_call":
            return Call(kind, item["name"], item.get("namespace")), {"input": item.get("input") or ""}
        case "tool_search_call":
            return Call(kind, "tool_search"), item.get("arguments")
        case "apply_patch_call":
            return Call(kind, "apply_patch"), item.get("operation")
        case _:
            action = {key: value for key, value in (item.get("action") or {}).items() if value and key != "type"}
            return Call(kind, kind.removesuffix("_call")), action


def output_of(item: Item, book: ToolBook) -> Any:
    """What there is to read in a call's output: a text, or content parts."""
    match item["type"]:
        case "function_call_output" | "custom_tool_call_output":
            return item.get("output")
        case "tool_search_output":
            names = book.names_in(item.get("tools") or [])
            return f"These tools can be called now: {', '.join(names)}" if names else "No tool was found."
        case "shell_call_output" if isinstance(item.get("output"), list):
            return "\n".join(_shell_output(output) for output in item["output"])
        case "apply_patch_call_output":
            return f"{item.get('status') or 'completed'}: {item.get('output') or ''}".rstrip(": ")
        case _:
            return item.get("output")


def _shell_output(output: Any) -> str:
    if not isinstance(output, dict):
        return str(output)
    outcome = output.get("outcome")
    end = "it took too long"
    if isinstance(outcome, dict) and outcome.get("type") == "exit":
        end = f"exit code {outcome.get('exit_code')}"
    printed = (output.get("stdout"), output.get("stderr"))
    return "\n".join([*(str(text) for text in printed if text), f"({end})"])


def arguments_of(arguments: str) -> dict[str, Any] | None:
    """Arguments as an object; None for anything else, and for what is nested too deeply."""
    try:
        data = whole_text(arguments).encode() or b"{}"
        check_bounds(data, "arguments")
        given = decode_json(data)
    except (InvalidRequest, ValueError):
        return None
    return given if isinstance(given, dict) else None


def is_cut_off(arguments: str) -> bool:
    """Whether arguments have begun, and are no JSON."""
    try:
        decode_json(whole_text(arguments).encode() or b"{}")
    except ValueError:
        return True
    return False


def _texts(value: Any) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else [value] if isinstance(value, str) else []


# ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_tools(tools: list[Any], where: str = "tools") -> None:
    """Raises `InvalidRequest` for tools that are none: no type, or a function, custom tool or namespace without a
    name."""
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
            raise InvalidRequest("A tool is an object with a 'type'.", param=f"{where}[{index}].type")
        if tool["type"] in ("function", "custom", "namespace") and not (
            isinstance(tool.get("name"), str) and tool["name"]
        ):
            hint = " Chat completions has it in 'function', Responses beside the type." if "function" in tool else ""
            raise InvalidRequest(f"A {tool['type']} tool needs a 'name'.{hint}", param=f"{where}[{index}].name")
        if not isinstance(tool.get("description") or "", str):
            raise InvalidRequest("The description of a tool is a string.", param=f"{where}[{index}].description")
        if (parameters := tool.get("parameters")) is not None and not isinstance(parameters, dict):
            raise InvalidRequest("The parameters of a tool are an object.", param=f"{where}[{index}].parameters")
        if (strict := tool.get("strict")) is not None and not isinstance(strict, bool):
            raise InvalidRequest("Whether a tool is strict is true or false.", param=f"{where}[{index}].strict")
        if tool["type"] == "namespace":
            if not isinstance(tool.get("tools") or [], list):
                raise InvalidRequest("The tools of a namespace are a list.", param=f"{where}[{index}].tools")
            check_tools(tool.get("tools") or [], f"{where}[{index}].tools")
        if not isinstance(tool.get("format") or {}, dict):
            raise InvalidRequest("The format of a custom tool is an object.", param=f"{where}[{index}].format")
        if tool["type"] in TYPED_TOOLS:
            _check_environment(tool.get("environment") or {}, f"{where}[{index}].environment")


def _check_environment(environment: Any, where: str) -> None:
    if not isinstance(environment, dict):
        raise InvalidRequest("The environment of a shell is an object.", param=where)
    skills = environment.get("skills") or []
    if not (isinstance(skills, list) and all(isinstance(skill, dict) for skill in skills)):
        raise InvalidRequest("The skills of a shell are a list of objects.", param=f"{where}.skills")


def _name_of(tool: dict[str, Any]) -> Any:
    """The name of a tool, also where it is given in the chat form."""
    function = tool.get("function")
    return (function if isinstance(function, dict) else tool).get("name")
