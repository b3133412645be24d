"""The grammar of a Responses stream, as the strictest clients read it.

    created → [queued] → in_progress → items → [error] → completed | incomplete | failed      keepalive anywhere between

    an item   output_item.added → its parts or arguments → output_item.done
    a part    content_part.added → delta* → its .done → content_part.done
    a summary reasoning_summary_part.added → delta* → .done → reasoning_summary_part.done

Items may be open side by side, but for calls, of which clients know the last alone. `check_stream` says what broke and
where; `parse_sse` reads the wire; `fold` puts a response together from its deltas, so that `fold(events) ==
events[-1]["response"]` is a law.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.response_grammar import STATUS, check_response

Json = dict[str, Any]

PREFIXES = {
    "message": "msg_",
    "function_call": "fc_",
    "reasoning": "rs_",
    "custom_tool_call": "ctc_",
    "tool_search_call": "tsc_",
    "local_shell_call": "lsh_",
    "shell_call": "sh_",
    "apply_patch_call": "apc_",
    "compaction": "cmp_",
}

# What an item holds before its first delta.
ZERO_VALUES: dict[str, Json] = {
    "message": {"content": []},
    "function_call": {"arguments": ""},
    "reasoning": {"summary": []},
    "custom_tool_call": {"input": ""},
}

# Content part type → the events that fill it, and the key of its text.
PARTS = {
    "output_text": ("response.output_text", "text"),
    "refusal": ("response.refusal", "refusal"),
    "reasoning_text": ("response.reasoning_text", "text"),
    "summary_text": ("response.reasoning_summary_text", "text"),
}
PARTS_OF = {"message": ("output_text", "refusal"), "reasoning": ("reasoning_text",)}

# Item type → the events that fill it as a whole, and the key of its text.
TEXTS = {
    "function_call": ("response.function_call_arguments", "arguments"),
    "custom_tool_call": ("response.custom_tool_call_input", "input"),
}

# Items that have no events of their own between added and done: they come whole. What they must hold, and its type.
WHOLE: dict[str, dict[str, type]] = {
    "tool_search_call": {"call_id": str, "execution": str, "arguments": dict},
    "local_shell_call": {"call_id": str, "action": dict},
    "shell_call": {"call_id": str, "action": dict},
    "apply_patch_call": {"call_id": str, "operation": dict},
    "compaction": {"encrypted_content": str},
}

# Events of hosted tools that only have to belong to an open item.
BYSTANDERS = (
    "response.audio.",
    "response.code_interpreter_call",
    "response.compaction.",
    "response.file_search_call.",
    "response.image_generation_call.",
    "response.mcp_",
    "response.shell_call_",
    "response.web_search_call.",
)

TERMINAL = ("response.completed", "response.incomplete", "response.failed")

# Clients accept these absent, and not as null.
NEVER_NULL = ("phase", "content", "encrypted_content", "logprobs", "annotations", "status")


# ── the wire ─────────────────────────────────────────────────────────────────


def parse_sse(data: bytes) -> list[tuple[str, Json]]:
    """The frames of a whole event stream as (event, data); comments are skipped. Asserts how they are written."""
    assert b"\r" not in data, "a CR: lines end in LF"
    assert not data or data.endswith(b"\n\n"), f"the last frame is not complete: {data[-80:]!r}"
    pairs = []
    for number, frame in enumerate(data.decode().split("\n\n")[:-1]):
        lines = [line for line in frame.split("\n") if not line.startswith(":")]
        if not any(lines):
            continue
        at = f"frame {number}: {frame[:120]!r}"
        assert [line.split(": ")[0] for line in lines] == ["event", "data"], f"not an event: and a data: line, {at}"
        event, text = (line.split(": ", 1)[1] for line in lines)
        assert text != "[DONE]", f"[DONE] is not sent, {at}"
        body = orjson.loads(text)
        assert isinstance(body, dict), f"the data is not an object, {at}"
        assert event == body.get("type"), f"event: is {event!r}, type is {body.get('type')!r}, {at}"
        pairs.append((event, body))
    return pairs


# ── the law ──────────────────────────────────────────────────────────────────


def fold(events: list[Json]) -> Json:
    """The final response, its output from the items' own events and not from the terminal snapshot.

    Texts, arguments, annotations and logprobs come from the deltas alone. An item that was not done is incomplete.
    """
    items: dict[int, Json] = {}
    codes: dict[int, str] = {}
    for event in events:
        index = event.get("output_index")
        match event["type"].removeprefix("response."):
            case "output_item.added":
                items[index] = orjson.loads(orjson.dumps(event["item"]))
                if "status" in event["item"]:
                    items[index]["status"] = "incomplete"
            case "output_item.done":
                streamed = ("content", "summary", "arguments", "input")
                _same_keys(items[index], event["item"], streamed)
                items[index] |= {key: value for key, value in event["item"].items() if key not in streamed}
            case "content_part.added":
                items[index].setdefault("content", []).append(dict(event["part"]))
            case "reasoning_summary_part.added":
                items[index]["summary"].append(dict(event["part"]))
            case "content_part.done":
                part = items[index]["content"][event["content_index"]]
                _same_keys(part, event["part"], ("annotations", "logprobs"))
            case "output_text.annotation.added":
                part = items[index]["content"][event["content_index"]]
                part["annotations"] = [*part["annotations"], event["annotation"]]
            case "output_text.delta":
                part = items[index]["content"][event["content_index"]]
                part["text"] += event["delta"]
                if event["logprobs"]:
                    part["logprobs"] = part.get("logprobs", []) + event["logprobs"]
            case "refusal.delta":
                items[index]["content"][event["content_index"]]["refusal"] += event["delta"]
            case "reasoning_text.delta" | "reasoning.delta":
                items[index]["content"][event["content_index"]]["text"] += event["delta"]
            case "reasoning_summary_text.delta":
                items[index]["summary"][event["summary_index"]]["text"] += event["delta"]
            case "function_call_arguments.delta" | "mcp_call_arguments.delta":
                items[index]["arguments"] += event["delta"]
            case "custom_tool_call_input.delta":
                items[index]["input"] += event["delta"]
            case "code_interpreter_call_code.delta":
                codes[index] = codes.get(index, "") + event["delta"]
                items[index]["code"] = codes[index]
            case "code_interpreter_call_code.done":
                assert event["code"] == codes.get(index, ""), "the deltas are not the code"
    response = events[-1]["response"] | {"output": [items[index] for index in sorted(items)]}
    if "output_text" in response:
        response["output_text"] = _output_text(response["output"])
    return response


def _same_keys(folded: Json, done: Json, keys: tuple[str, ...]) -> None:
    """An empty value may be written down or left out: `folded` does as `done`."""
    for key in keys:
        if key in done:
            folded.setdefault(key, type(done[key])())
        elif not folded.get(key):
            folded.pop(key, None)


def _output_text(output: list[Json]) -> str:
    parts = [part for item in output if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts if part["type"] == "output_text")


# ── the grammar ──────────────────────────────────────────────────────────────


def check_stream(events: list[Json], *, prefixes: bool = True) -> None:
    """Raise AssertionError unless these events, in order, are one whole and proper stream.

    Without `prefixes`, item ids may have any form: a native backend makes its own.
    """
    checker = _Checker(prefixes)
    for number, event in enumerate(events):
        try:
            checker.feed(event)
        except AssertionError as problem:
            raise AssertionError(f"event {number}, {event.get('type')}: {problem}") from None
        except (AttributeError, KeyError, TypeError) as problem:
            raise AssertionError(f"event {number} is malformed: {problem!r} in {event}") from problem
    assert checker.ended, f"no terminal event; the last of {len(events)} is {events[-1]['type'] if events else None}"


@dataclass(slots=True)
class _Open:
    """What the events of a thing hold so far."""

    added: Json
    fragments: list[str] = field(default_factory=list)
    text: str | None = None  # since the .done of its text, arguments or input
    done: Json | None = None  # since its own .done

    @property
    def so_far(self) -> str:
        return "".join(self.fragments)


@dataclass(slots=True)
class _Part(_Open):
    """A content or summary part."""

    logprobs: list[Json] = field(default_factory=list)
    annotations: list[Json] = field(default_factory=list)

    @property
    def key(self) -> str:
        return PARTS[self.added["type"]][1]


@dataclass(slots=True)
class _Item(_Open):
    content: list[_Part] = field(default_factory=list)
    summary: list[_Part] = field(default_factory=list)


def _is_open_call(item: _Item) -> bool:
    return item.done is None and item.added["type"] in TEXTS


class _Checker:
    def __init__(self, prefixes: bool) -> None:
        self.prefixes = prefixes
        self.items: list[_Item] = []
        self.seen: list[str] = []
        self.response: Json = {}
        self.next_number: int | None = None
        self.error: Json | None = None

    @property
    def ended(self) -> bool:
        return bool(self.seen) and self.seen[-1] in TERMINAL

    def feed(self, event: Json) -> None:
        type_ = event.get("type")
        assert isinstance(type_, str), "no type"
        assert not self.ended, f"it comes after the terminal {self.seen[-1]}"
        self._check_number(event)
        if self.error is not None:
            assert type_ == "response.failed", "only response.failed may follow an error event"
        if type_ in STATUS:
            self._lifecycle(type_, event)
        elif type_ == "error":
            self._error(event)
        elif type_ == "keepalive":
            assert self.seen, "it comes before response.created"
            assert event.keys() == {"type", "sequence_number"}, event
        else:
            assert "response.in_progress" in self.seen, "it comes before response.in_progress"
            self._handler(type_)(event)
        self.seen.append(type_)

    def _check_number(self, event: Json) -> None:
        number = event.get("sequence_number")
        assert type(number) is int, f"sequence_number is {number!r}"
        assert self.next_number in (None, number), f"sequence_number is {number}, not {self.next_number}"
        self.next_number = number + 1

    def _handler(self, type_: str) -> Callable[[Json], None]:
        name = type_.removeprefix("response.").replace("reasoning.", "reasoning_text.")
        base, _, verb = name.rpartition(".")
        exact: dict[str, Callable[[Json], None]] = {
            "output_item.added": self._item_added,
            "output_item.done": self._item_done,
            "content_part.added": self._content_part_added,
            "content_part.done": lambda event: self._part_done(event, "content"),
            "reasoning_summary_part.added": self._summary_part_added,
            "reasoning_summary_part.done": lambda event: self._part_done(event, "summary"),
            "output_text.annotation.added": self._annotation_added,
        }
        if name in exact:
            return exact[name]
        for kind, (events, _) in PARTS.items():
            if events == f"response.{base}" and verb in ("delta", "done"):
                act = self._text_delta if verb == "delta" else self._text_done
                return lambda event: act(event, kind)
        for kind, (events, _) in TEXTS.items():
            if events == f"response.{base}" and verb in ("delta", "done"):
                whole = self._whole_delta if verb == "delta" else self._whole_done
                return lambda event: whole(event, kind)
        assert type_.startswith(BYSTANDERS), "no client knows this event"
        return lambda event: self._bystander(event)

    # The response.

    def _lifecycle(self, type_: str, event: Json) -> None:
        response = event.get("response")
        assert isinstance(response, dict), "no response"
        before = {
            "response.created": ([],),
            "response.queued": (["response.created"],),
            "response.in_progress": (["response.created"], ["response.created", "response.queued"]),
        }
        if type_ in before:
            steps = [seen for seen in self.seen if seen != "keepalive"]
            assert steps in before[type_], f"it comes after {self.seen[-3:]}"
        elif type_ == "response.failed":
            assert self.seen, "it comes before response.created"
        else:
            assert "response.in_progress" in self.seen, "it comes before response.in_progress"
        check_response(type_, response)
        for key in ("id", "created_at"):
            before = self.response.setdefault(key, response[key])
            assert response[key] == before, f"response.{key} was {before!r}, and is {response[key]!r}"
        if type_ in TERMINAL:
            self._check_output(type_, response)
        else:
            assert response["output"] == [], "the output is not empty yet"

    def _check_output(self, type_: str, response: Json) -> None:
        output = response["output"]
        if type_ == "response.failed":
            self._check_partial_output(output)
        else:
            for index, item in enumerate(self.items):
                assert item.done, f"item {index} is still open"
            done = [item.done for item in self.items]
            assert output == done, f"the output is not the done items: {_difference(output, done)}"
        if type_ == "response.completed":
            statuses = [item.get("status", "completed") for item in output]
            assert "incomplete" not in statuses, "an incomplete item in a completed response"
        if isinstance(response.get("output_text"), str):
            text = _output_text(output)
            assert response["output_text"] == text, f"output_text is {response['output_text']!r}, not {text!r}"

    def _check_partial_output(self, output: list[Json]) -> None:
        """Every done item, and of the open ones those that it likes, as far as they came."""
        expected = {item.added["id"]: item for item in self.items}
        ids = [item.get("id") for item in output]
        in_order = [id_ for id_ in expected if id_ in ids]
        assert ids == in_order, f"the output has the items {ids}, not {in_order}"
        for id_, item in expected.items():
            assert item.done is None or id_ in ids, f"the done item {id_!r} is not in the output"
        for given in output:
            item = expected[given["id"]]
            if item.done is not None:
                assert given == item.done, f"item {given['id']!r}: {_difference(given, item.done)}"
                continue
            assert given.get("status", "incomplete") == "incomplete", f"an open item is {given['status']!r}"
            _check_same(given, item.added)
            if given["type"] in TEXTS:
                key = TEXTS[given["type"]][1]
                assert given[key] == item.so_far, f"{key} {given[key]!r} is not what the deltas said: {item.so_far!r}"
            for key, parts in (("content", item.content), ("summary", item.summary)):
                texts = [part[PARTS[part["type"]][1]] for part in given.get(key, [])]
                said = [part.so_far for part in parts]
                assert texts == said[: len(texts)], f"{key} {texts} is not what the deltas said: {said}"

    def _error(self, event: Json) -> None:
        assert self.seen, "it comes before response.created"
        nested = event.get("error")
        assert isinstance(nested, dict), "no nested error"
        for name, error in (("the event", event), ("its error", nested)):
            missing = [key for key in ("type", "code", "message", "param") if key not in error]
            assert not missing, f"{name} misses {missing}"
            assert isinstance(error["message"], str), f"the message is {error['message']!r}"
            assert isinstance(error["code"], str | None), f"the code is {error['code']!r}"
        for key in ("code", "message", "param"):
            assert event[key] == nested[key], f"flat and nested {key} differ: {event[key]!r}, {nested[key]!r}"
        self.error = event

    # Items.

    def _item_added(self, event: Json) -> None:
        assert event.get("output_index") == len(self.items), (
            f"output_index is {event.get('output_index')!r}, not {len(self.items)}"
        )
        item = _given(event, "item")
        kind, id_ = item.get("type"), item.get("id")
        assert isinstance(kind, str), f"the item's type is {kind!r}"
        assert _is_name(id_), f"the item's id is {id_!r}"
        assert all(id_ != other.added["id"] for other in self.items), f"the id {id_!r} is taken"
        if kind in TEXTS and self.prefixes:
            still_open = [number for number, other in enumerate(self.items) if _is_open_call(other)]
            assert not still_open, f"the calls {still_open} are still open: clients take one for the other"
        prefix = PREFIXES.get(kind, "") if self.prefixes else ""
        assert id_.startswith(prefix), f"the id of a {kind} is {id_!r}, without {prefix}"
        _check_nulls(item)
        required = kind in ("message", "function_call")
        assert item.get("status", "absent" if required else "in_progress") == "in_progress", (
            f"the item's status is {item.get('status')!r}"
        )
        for key, zero in ZERO_VALUES.get(kind, {}).items():
            assert item.get(key) == zero, f"{key} is {item.get(key)!r}, not {zero!r}"
        assert item.get("content", []) == [], f"content is {item['content']!r}"
        if kind == "message":
            assert item.get("role") == "assistant", f"the role is {item.get('role')!r}"
        if kind in TEXTS:
            for key in ("call_id", "name"):
                assert _is_name(item.get(key)), f"{key} is {item.get(key)!r}"
        _check_whole(item)
        self.items.append(_Item(item))

    def _open_item(self, event: Json) -> _Item:
        index = event.get("output_index")
        assert index in range(len(self.items)), f"output_index is {index!r}, of {len(self.items)} items"
        item = self.items[index]
        assert item.done is None, f"item {index} is done"
        return item

    def _item_of(self, event: Json, *kinds: str) -> _Item:
        item = self._open_item(event)
        id_, kind = item.added["id"], item.added["type"]
        assert event.get("item_id") == id_, f"item_id is {event.get('item_id')!r}, not {id_!r}"
        assert not kinds or kind in kinds, f"it is not for a {kind}"
        return item

    def _item_done(self, event: Json) -> None:
        item, done = self._open_item(event), _given(event, "item")
        _check_nulls(done)
        _check_same(done, item.added)
        kind = done["type"]
        # An apply_patch_call knows no other end.
        statuses = ("completed",) if kind == "apply_patch_call" else ("completed", "incomplete")
        if kind in WHOLE:
            _check_whole(done)
            changed = [key for key in WHOLE[kind] if done[key] != item.added[key]]
            assert not changed, f"{changed} are not what was added"
        if kind in ("message", "function_call"):
            assert done.get("status") in statuses, f"the item's status is {done.get('status')!r}"
        elif kind in PREFIXES:
            assert done.get("status", "completed") in statuses, f"the item's status is {done['status']!r}"
        for name, parts in (("content", item.content), ("summary", item.summary)):
            for index, part in enumerate(parts):
                assert part.done is not None, f"{name} part {index} is still open"
            if kind in PARTS_OF:
                ended = [part.done for part in parts]
                assert done.get(name, []) == ended, f"{name}: {_difference(done.get(name), ended)}"
        if kind in TEXTS:
            events, key = TEXTS[kind]
            assert item.text is not None, f"{events}.done did not come"
            assert done.get(key) == item.text, f"{key} is {done.get(key)!r}, not {item.text!r}"
        if kind == "reasoning":
            assert "summary" in done, "no summary"
        item.done = done

    def _bystander(self, event: Json) -> None:
        if "item_id" in event:
            self._item_of(event)
        elif "output_index" in event:
            self._open_item(event)

    # What fills an item as a whole.

    def _whole_delta(self, event: Json, kind: str) -> None:
        item = self._item_of(event, kind)
        assert item.text is None, "a delta after its .done"
        item.fragments.append(_text(event, "delta"))

    def _whole_done(self, event: Json, kind: str) -> None:
        item = self._item_of(event, kind)
        assert item.text is None, "a second .done"
        key = TEXTS[kind][1]
        text = _text(event, key)
        assert text == item.so_far, f"{key} is {text!r}, the deltas join to {item.so_far!r}"
        if "name" in event:
            assert event["name"] == item.added["name"], f"name is {event['name']!r}, not {item.added['name']!r}"
        item.text = text

    # Parts.

    def _content_part_added(self, event: Json) -> None:
        item = self._item_of(event, *PARTS_OF)
        self._add_part(event, item.content, "content_index", PARTS_OF[item.added["type"]])

    def _summary_part_added(self, event: Json) -> None:
        self._add_part(event, self._item_of(event, "reasoning").summary, "summary_index", ("summary_text",))

    def _add_part(self, event: Json, parts: list[_Part], index_key: str, kinds: tuple[str, ...]) -> None:
        assert event.get(index_key) == len(parts), f"{index_key} is {event.get(index_key)!r}, not {len(parts)}"
        part = _given(event, "part")
        kind = part.get("type")
        assert kind in kinds, f"the part's type is {kind!r}"
        key = PARTS[kind][1]
        assert part.get(key) == "", f"the part's {key} is {part.get(key)!r}, not ''"
        if kind == "output_text":
            assert part.get("annotations") == [], f"annotations is {part.get('annotations')!r}, not []"
            assert part.get("logprobs", []) == [], f"logprobs is {part['logprobs']!r}, not []"
        parts.append(_Part(part))

    def _part_of(self, event: Json, kind: str) -> _Part:
        if kind == "summary_text":
            return _at(self._item_of(event, "reasoning").summary, event, "summary_index")
        item = self._item_of(event, *(name for name, kinds in PARTS_OF.items() if kind in kinds))
        part = _at(item.content, event, "content_index")
        assert part.added["type"] == kind, f"the part is a {part.added['type']}"
        return part

    def _text_delta(self, event: Json, kind: str) -> None:
        part = self._part_of(event, kind)
        assert part.text is None, "a delta after its .done"
        part.fragments.append(_text(event, "delta"))
        if kind == "output_text":
            part.logprobs += _logprobs(event)

    def _text_done(self, event: Json, kind: str) -> None:
        part = self._part_of(event, kind)
        assert part.text is None, "a second .done"
        text = _text(event, part.key)
        assert text == part.so_far, f"{part.key} is {text!r}, the deltas join to {part.so_far!r}"
        if kind == "output_text":
            assert _logprobs(event) == part.logprobs, "logprobs are not those of the deltas"
        part.text = text

    def _annotation_added(self, event: Json) -> None:
        part = self._part_of(event, "output_text")
        index = event.get("annotation_index")
        assert index == len(part.annotations), f"annotation_index is {index!r}, not {len(part.annotations)}"
        part.annotations.append(_given(event, "annotation"))

    def _part_done(self, event: Json, name: str) -> None:
        item = self._item_of(event, *(PARTS_OF if name == "content" else ("reasoning",)))
        parts = item.content if name == "content" else item.summary
        part, done = _at(parts, event, f"{name}_index"), _given(event, "part")
        kind = part.added["type"]
        assert part.text is not None, f"{PARTS[kind][0]}.done did not come"
        assert done.get("type") == kind, f"the part's type was {kind!r}, and is {done.get('type')!r}"
        assert done.get(part.key) == part.text, f"the part's {part.key} is {done.get(part.key)!r}, not {part.text!r}"
        if kind == "output_text":
            annotations = done.get("annotations")
            assert annotations == part.annotations, f"annotations is {annotations!r}, not {part.annotations!r}"
            assert done.get("logprobs", []) == part.logprobs, "the part's logprobs are not those of the deltas"
        part.done = done


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _given(event: Json, key: str) -> Json:
    value = event.get(key)
    assert isinstance(value, dict), f"{key} is {value!r}"
    return value


def _text(event: Json, key: str) -> str:
    value = event.get(key)
    assert isinstance(value, str), f"{key} is {value!r}"
    return value


def _logprobs(event: Json) -> list[Json]:
    value = event.get("logprobs")
    assert isinstance(value, list), f"logprobs is {value!r}, not a list"
    return value


def _at(parts: list[_Part], event: Json, index_key: str) -> _Part:
    index = event.get(index_key)
    assert index in range(len(parts)), f"{index_key} is {index!r}, of {len(parts)} parts"
    part = parts[index]
    assert part.done is None, f"the part at {index_key} {index} is done"
    return part


def _check_same(item: Json, added: Json) -> None:
    for key in ("id", "type", "role", "call_id", "name", "namespace"):
        assert item.get(key) == added.get(key), f"{key} was {added.get(key)!r}, and is {item.get(key)!r}"


def _check_whole(item: Json) -> None:
    for key, type_ in WHOLE.get(item["type"], {}).items():
        assert isinstance(item.get(key), type_), f"{key} is {item.get(key)!r}"
        assert item[key] != "", f"{key} is empty"


def _check_nulls(item: Json) -> None:
    parts = [*(item.get("content") or []), *(item.get("summary") or [])]
    for thing in (item, *parts):
        nulls = [key for key in NEVER_NULL if key in thing and thing[key] is None]
        assert not nulls, f"{nulls} may be absent, and not null"


def _difference(given: Any, expected: Any, at: str = "") -> str:
    """Where two JSON values first differ."""
    if isinstance(given, dict) and isinstance(expected, dict):
        for key in [*expected, *given]:
            if given.get(key, ...) != expected.get(key, ...):
                return _difference(given.get(key, ...), expected.get(key, ...), f"{at}.{key}")
    if isinstance(given, list) and isinstance(expected, list) and len(given) == len(expected):
        for index, (one, other) in enumerate(zip(given, expected, strict=True)):
            if one != other:
                return _difference(one, other, f"{at}[{index}]")
    absent = {id(...): "absent"}
    return f"{at} is {absent.get(id(given), repr(given))}, not {absent.get(id(expected), repr(expected))}"
