"""Servers in Python answer with the text of an exception: what it complains of is read out of it, and where it was
raised stays there."""

import time
from pathlib import Path
from typing import Any, Literal

import pytest
from fastapi.exceptions import RequestValidationError, ResponseValidationError
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from backends.wire.errors import ServerErrors
from backends.wire.python_errors import complaints, without_places
from backends.wire.reports import report_of
from core.errors import BackendError, BackendRefused

RECORDED = Path(__file__).parent / "data" / "llama-server" / "llama-cpp-python"
KEYS = st.from_regex(r"[a-z][a-z_]{0,12}", fullmatch=True).filter(
    lambda key: (
        key not in ("str", "int", "float", "bool", "list", "dict", "none", "any", "nullable", "body", "role", "type")
    )
)
PROBLEMS = st.lists(
    st.builds(
        lambda kind, place, words, given: {"type": kind, "loc": ("body", *place), "msg": words, "input": given},
        st.sampled_from(["missing", "string_type", "int_parsing", "literal_error"]),
        st.lists(KEYS | st.integers(0, 99), min_size=1, max_size=4),
        st.sampled_from(["Field required", "Input should be 'system'", 'Input should be "a"', "It\\is"]),
        st.none() | st.text(max_size=20) | st.dictionaries(st.text(max_size=3), st.text(max_size=9)),
    ),
    min_size=1,
    max_size=4,
)
CONTEXT = {"file": "/srv/secret/app.py", "line": 376, "function": "create", "path": "POST /v1/chat/completions"}


@given(PROBLEMS)
def test_what_fastapi_complains_of_is_read_out_of_its_text(problems: list[dict[str, Any]]) -> None:
    text = str(RequestValidationError(problems, endpoint_ctx=CONTEXT))
    found = complaints(text)
    assert [(its["type"], its["loc"]) for its in found] == [(its["type"], its["loc"]) for its in problems]
    report = report_of(500, {"error": {"message": text, "type": "internal_server_error"}})
    assert report.status == 422
    assert "secret" not in report.words
    assert report.param == ".".join(map(str, problems[0]["loc"][1:]))


@given(PROBLEMS)
def test_what_is_wrong_with_an_answer_is_the_servers_own_fault(problems: list[dict[str, Any]]) -> None:
    of_answer = [{**problem, "loc": ("response", *problem["loc"][1:])} for problem in problems]
    text = str(ResponseValidationError(of_answer, endpoint_ctx=CONTEXT))
    assert complaints(text) == []
    report = report_of(500, {"error": {"message": text}})
    assert (report.status, "secret" in report.words) == (500, False)


class System(BaseModel):
    role: Literal["system"]
    content: str


class Assistant(BaseModel):
    role: Literal["assistant"]
    content: str


class ChatRequest(BaseModel):
    messages: list[System | Assistant]
    max_tokens: int = 1


class ChatResponse(BaseModel):
    text: str


def text_of(model: type[BaseModel], value: Any) -> str:
    with pytest.raises(ValidationError) as raised:
        model.model_validate(value)
    return str(raised.value)


def test_what_pydantic_complains_of_is_too() -> None:
    text = text_of(ChatRequest, {"messages": [{"role": "assistant", "content": None}], "max_tokens": "five"})
    report = report_of(500, {"error": {"message": text}})
    assert report.status == 422
    assert report.words == (
        "messages.0.content: Input should be a valid string; "
        "max_tokens: Input should be a valid integer, unable to parse string as an integer"
    )
    assert report.param == "messages.0.content"
    assert complaints(text_of(ChatResponse, {})) == [], "an answer of the server's is not the client's to mend"


def test_of_a_union_in_which_nobody_knows_the_role_only_that_is_wrong() -> None:
    text = text_of(ChatRequest, {"messages": [{"role": "robot"}]})
    report = report_of(500, {"error": {"message": text}})
    assert report.words == "messages.0.role: Input should be 'system'; messages.0.role: Input should be 'assistant'"


@pytest.mark.parametrize(
    ("recorded", "param"),
    [("err-temperature-string", "temperature"), ("err-null-content", "input")],
)
def test_a_recorded_500_is_a_400_that_names_the_parameter(recorded: str, param: str) -> None:
    error = ServerErrors().of_answer(500, (RECORDED / f"{recorded}.response.json").read_bytes())
    assert isinstance(error, BackendRefused)
    assert (error.status, error.param) == (400, param)
    assert "app.py" not in error.message
    assert "POST" not in error.message
    assert "tool_calls" not in error.message, "the request is repeated"


TRACEBACK = """it broke: Traceback (most recent call last):
  File "/srv/secret/app.py", line 12, in run
    raise KeyError("x")
KeyError: 'x'
"""


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (TRACEBACK, "it broke: KeyError: 'x'"),
        ('bad\n  File "/srv/secret/app.py", line 3, in f\n    return 1\nworse', "bad\nworse"),
        ("Traceback (most recent call last):", ""),
        ('the File "notes.txt" is missing', 'the File "notes.txt" is missing'),
        ("nothing of the kind", "nothing of the kind"),
    ],
)
def test_where_it_was_raised_is_left_out(text: str, left: str) -> None:
    assert without_places(text) == left
    error = ServerErrors().of_answer(500, text.encode())
    assert isinstance(error, BackendError)
    assert "secret" not in error.message


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    complaints(text)
    assert without_places(without_places(text)) == without_places(text)


@pytest.mark.parametrize(
    "text",
    ["{'type': 'a', 'loc': (" * 400, "{'type': 'a', 'loc': (), 'msg': '" * 300, "a\n  b [type=" * 900, "File " * 2000],
)
def test_no_text_takes_long(text: str) -> None:
    began = time.process_time()
    complaints(f"1 validation error for Request\n{text}")
    without_places(text)
    assert time.process_time() - began < 1
