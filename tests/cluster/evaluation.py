"""Code that a test hands to another process of a service."""

from __future__ import annotations

import ast
import asyncio
from typing import Any


async def evaluate(code: str, names: dict[str, Any]) -> Any:
    """What the code gives: an expression, or statements, with `await` where it is needed."""
    is_expression = True
    try:
        compiled = compile(code, "<test>", "eval", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError:
        is_expression = False
        compiled = compile(code, "<test>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(compiled, names)
    if asyncio.iscoroutine(result):
        result = await result
    return result if is_expression else None
