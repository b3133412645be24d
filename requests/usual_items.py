"""The items that nearly all inputs consist of, known at once: to check each of them in Python takes a third of an
agent's turn. What is not among them is looked at one by one (`requests.items.check_item`), and may be as good.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from core.json import Json
from requests.tools import Item

Name = Annotated[str, msgspec.Meta(min_length=1)]


class UsualPart(msgspec.Struct, gc=False):
    type: str
    text: str | None = None
    refusal: str | None = None


class UsualMessage(msgspec.Struct, tag="message"):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[UsualPart] | None = None
    id: str | None = None


class UsualReasoning(msgspec.Struct, tag="reasoning"):
    content: list[UsualPart] | None = None
    summary: list[UsualPart] | None = None
    id: str | None = None


class _UsualOfCall(msgspec.Struct):
    call_id: Name
    id: str | None = None
    namespace: str | None = None
    action: Json | None = None
    operation: Json | None = None


class _UsualCall(_UsualOfCall, kw_only=True):
    name: Name
    output: str | None = None


class UsualFunctionCall(_UsualCall, tag="function_call"):
    pass


class UsualCustomCall(_UsualCall, tag="custom_tool_call"):
    pass


class _UsualOutput(_UsualOfCall, kw_only=True):
    output: str | list[UsualPart]


class UsualFunctionOutput(_UsualOutput, tag="function_call_output"):
    pass


class UsualCustomOutput(_UsualOutput, tag="custom_tool_call_output"):
    pass


UsualItem = (
    UsualMessage | UsualReasoning | UsualFunctionCall | UsualFunctionOutput | UsualCustomCall | UsualCustomOutput
)


class UsualInput(msgspec.Struct):
    items: list[UsualItem]


def are_usual(items: list[Item]) -> bool:
    """Whether `check_item` passes all of these, as can be seen at once."""
    try:
        msgspec.convert({"items": items}, UsualInput)
    except msgspec.ValidationError:
        return False
    return True
