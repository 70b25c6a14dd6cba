"""Bench: `python -m unirl_env.bench suite=quick agents=[grpo,flow_dppo,mylab.alg:ReinforceConfig] seeds=10`.

Further commands: `report <folder>`, `compare <folder> <folder>`, `plan`, `verify <run>`, `referee`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from unirl_env.bench.commands import COMMANDS, parser
from unirl_env.errors.masks import remember_command
from unirl_env.run.entry import guarded

PROGRAM = ("python", "-m", "unirl_env.bench")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door: the exit code is 0, 2 for a mistake that is explained, 130 after Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    remember_command(argv)

    def action(console: Console) -> int:
        name = argv[0] if argv and argv[0] in COMMANDS else "run"
        arguments = parser(name).parse_intermixed_args(argv[1:] if argv[:1] == [name] else argv)
        return COMMANDS[name](arguments, console, [*PROGRAM, *argv])

    return guarded(action)


if __name__ == "__main__":
    sys.exit(main())
