"""Tools of a conversation: what the world answers when a language model ends its turn with a call."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import cast

from unirl_env.errors import ContractError, UnirlError
from unirl_env.types import Prompt

Tool = Callable[[str, Prompt], str | None]
"""`tool(text of the turn, prompt)` answers with a text, or with None where nothing was called."""

CALL = re.compile(r"<tool>((?:(?!<tool>).)*?)</tool>", re.DOTALL)
OPERATORS: Mapping[type[ast.AST], Callable[..., int | float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
ALLOWED = re.compile(r"[0-9.eE+\-*/() \t\n]*")
MAX_CHARACTERS = 200
MAX_DIGITS = 30
"""Results of longer numbers would only fill the context."""


def ask_tool(tool: Tool, text: str, prompt: Prompt) -> str | None:
    """What `tool` answers to a turn.

    Raises:
        ContractError: If it raises, or answers anything but a text or None.
    """
    try:
        answer = tool(text, prompt)
    except UnirlError:
        raise
    except Exception as error:
        raise ContractError(
            f"`tool` must answer with a text or None, got {type(error).__name__}: {error} for prompt "
            f"{prompt.id[:60]!r}; try to answer failures in words."
        ) from error
    if answer is not None and not isinstance(answer, str):
        raise ContractError(
            f"`tool` must answer with a text or None, got {type(answer).__name__} for prompt "
            f"{prompt.id[:60]!r}."
        )
    return answer


class Calculator:
    """Works out the last `<tool>...</tool>` of a turn: numbers with + - * / and parentheses.

    The answer is the result (`"12"`, `"0.5"`), or a sentence that begins with `"error:"` where the call
    cannot be worked out. Nothing is ever executed: the expression is parsed, and only arithmetic on bounded
    numbers is done.
    """

    def __call__(self, text: str, prompt: Prompt) -> str | None:
        """The answer to the last call in `text`; None if there is none."""
        calls = CALL.findall(text)
        if not calls:
            return None
        try:
            return _written(_value(_parsed(calls[-1])))
        except ZeroDivisionError:
            return "error: division by zero"
        except ValueError as error:
            return f"error: {error}"


def _parsed(call: str) -> ast.expr:
    call = " ".join(call.split())
    if not call:
        raise ValueError("the call is empty")
    if len(call) > MAX_CHARACTERS:
        raise ValueError(f"the call is longer than {MAX_CHARACTERS} characters")
    if not ALLOWED.fullmatch(call) or "**" in call or "//" in call:
        raise ValueError("only numbers, + - * / and parentheses are understood")
    try:
        return ast.parse(call, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("the call is not a complete expression") from error


def _value(node: ast.expr) -> int | float:
    """The value of an expression; its depth is bounded by the call's length."""
    value: int | float
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = cast(float, node.value)
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        value = OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    elif isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        value = OPERATORS[type(node.op)](_value(node.operand))
    else:
        raise ValueError("only numbers, + - * / and parentheses are understood")
    if not math.isfinite(value) or abs(value) >= 10**MAX_DIGITS:
        raise ValueError(f"a number is longer than {MAX_DIGITS} digits")
    return value


def _written(value: int | float) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return str(value) if isinstance(value, int) else f"{value:.10g}"
