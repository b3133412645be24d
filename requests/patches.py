"""The patch in what a model gives to `apply_patch`: alone, in a fence, in a command of a shell, under whatever key.

*** Begin Patch
*** Add File: a.txt
+hello
*** End Patch
"""

from __future__ import annotations

import re
from collections.abc import Iterator

BEGIN = "*** Begin Patch"
_PATCH = re.compile(r"\*\*\* Begin Patch.*\*\*\* End Patch", re.DOTALL)
_HEADER = re.compile(r"^\*\*\* (?P<verb>Add|Update|Delete) File: (?P<path>.+?)\s*$", re.MULTILINE)
_TYPES = {"Add": "create_file", "Update": "update_file", "Delete": "delete_file"}
# What a patch that is wrapped begins with.
WRAPPERS = ("```", "apply_patch", "applypatch", "bash ", "sh ", "cat ", "$ ")


def unwrapped(text: str) -> str:
    """The patch in a text that wraps one; any other text as it is."""
    if text.lstrip().startswith(WRAPPERS) and (found := _PATCH.search(text)):
        return found[0]
    return text


def may_be_wrapped(begins: str) -> bool:
    """Whether a text that begins so may turn out to wrap a patch."""
    begun = begins.lstrip()
    return any(begun.startswith(wrapper) or wrapper.startswith(begun) for wrapper in WRAPPERS)


def patch_in(value: object) -> str | None:
    """The only patch among the texts in a value, without what is around it. None if there is none, or more than one."""
    texts = [text for text in _texts_in(value) if BEGIN in text]
    if len(texts) != 1:
        return None
    found = _PATCH.search(texts[0])
    return found[0] if found else texts[0][texts[0].index(BEGIN) :]


def operation_in(patch: str) -> dict[str, str] | None:
    """What a patch of one file does, as an `apply_patch_call` has it. None for a patch of none or several."""
    headers = [*_HEADER.finditer(patch)]
    if len(headers) != 1:
        return None
    (header,) = headers
    operation = {"type": _TYPES[header["verb"]], "path": header["path"]}
    if operation["type"] != "delete_file":
        operation["diff"] = patch[header.end() :].partition("\n*** End Patch")[0].removeprefix("\n")
    return operation


def _texts_in(value: object, depth: int = 8) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list) and depth:
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(inner, depth - 1)
