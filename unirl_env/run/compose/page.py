"""The table of all settings: `python -m unirl_env.run.compose.page docs/settings.md`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unirl_env.settings import RunConfig
from unirl_env.settings.fields import allowed, may_change, python_name

INTRODUCTION = """\
# Settings

Every setting of a run, with its default and the reason for it. This page is written by `make docs` from the
dataclasses of `unirl_env.settings` and of the algorithms, where each setting stands once; the command line,
the YAML of recipes and Python take their names, defaults and checks from there, too.

On the command line and in YAML a setting is called `group.name` (`agent.lr=1e-4`), and null is nothing. In
Python, an `AgentConfig` has those of `agent` and `rollout` as its own attributes (`config.lr`,
`.training(lr=1e-4)`), called the same unless a row says otherwise, and `steps`, `noising`, `policy` and
`learner` as dataclasses in an attribute: `.training(policy={"eta": 0.5})` lays the given fields over the
present ones. A row marked † is of a whole run, and no attribute of an agent. RLlib's own words for the number
of episodes, `train_batch_size` and `train_batch_size_per_learner`, may stand in Python for `num_prompts`.

A continued run may change the settings marked ↻; they leave the mathematics alone. With others it is another
run, and is refused. What cannot work, or could teach nothing, is refused before a model is loaded, with the
same words on the command line and in Python.
"""
KNOBS = """\
## Knobs of the algorithms

What an algorithm has of its own: `agent.options.<knob>` on the command line and in YAML, an attribute of its
configuration in Python. An algorithm from a package of your own declares them likewise, by a dataclass in
`knobs`, or sets attributes in its `__init__`.
"""
WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "null"}


def page() -> str:
    """The whole page, as Markdown."""
    from unirl_env.agents import AGENTS

    parts = [INTRODUCTION, "## The run\n", _table(RunConfig, "")]
    for name, kind in typing.get_type_hints(RunConfig).items():
        if dataclasses.is_dataclass(kind):
            parts += [
                f"## `{name}`\n",
                _summary(kind),
                _table(kind, f"{name}.", name in ("agent", "rollout")),
            ]
    parts.append(KNOBS)
    for name in AGENTS:
        knobs = AGENTS.get(name).knobs
        parts += [f"### `{name}`\n", _summary(knobs), _table(knobs, "agent.options.")]
    return "\n".join(parts)


def reasons(kind: type) -> dict[str, str]:
    """The text under each field of a dataclass, those of classes that it derives from included."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(tree, ast.ClassDef)
        for field, after in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
                found[ast.unparse(field.target)] = " ".join(ast.literal_eval(after.value).split())
    return found


def _table(kind: type, prefix: str, flat: bool = False) -> str:
    hints, why = typing.get_type_hints(kind), reasons(kind)
    rows = ["| setting | type | default | reason |", "|---|---|---|---|"]
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            continue
        name = f"`{prefix}{field.name}`"
        if flat and (python := python_name(field)) != field.name:
            name += f" (`{python}` in Python)" if python else " †"
        name += " ↻" if may_change(field) else ""
        bounds = f", {allowed(field)}" if allowed(field) else ""
        cells = (name, _type(hints[field.name]) + bounds, f"`{_shown(_default(field))}`", why[field.name])
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def _summary(kind: type) -> str:
    return f"{inspect.cleandoc(kind.__doc__ or '')}\n"


def _type(hint: Any) -> str:
    if hint is Any:
        return "anything"
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_type, inner))
    if origin is tuple:
        return f"list of {len(inner)} {_type(inner[0])}s"
    if origin is list:
        return f"list of {_type(inner[0])}s"
    return "mapping" if origin is dict else WORDS[hint]


def _default(field: dataclasses.Field) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _shown(value: Any) -> str:
    """A value as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page to the file that is named, or print it."""
    named = list(sys.argv[1:] if argv is None else argv)
    if named:
        Path(named[0]).write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
