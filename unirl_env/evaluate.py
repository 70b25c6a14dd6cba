"""Compare: `python -m unirl_env.evaluate --run runs/tiny_sd3` sets a checkpoint beside its base.

Both answer the same prompts under the same seeds. What comes out: a table, `comparison.json`, the pictures or
texts, and a page that shows them side by side. Clips are animated WebP, and mp4, too, where the extra `video`
is installed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from unirl_env.command_line import Parser, positive
from unirl_env.run.comparison import Options, compare
from unirl_env.run.entry import guarded

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the exit code is 0, 2 for a mistake that is explained, 130 after Ctrl-C."""

    def action(console: Console) -> int:
        arguments = vars(_parser().parse_args(argv))
        run, device, trust = (arguments.pop(name) for name in ("run", "device", "trust"))
        compare(run, Options(**arguments), console, device=device, trust=trust)
        return 0

    return guarded(action)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m unirl_env.evaluate",
        description="Compare a trained policy with its base on fixed prompts and seeds.",
    )
    parser.add_argument("--run", required=True, help="the run's folder")
    parser.add_argument("--checkpoint", default="best", help="best, last, an iteration or a folder")
    parser.add_argument("--prompts", help="a .txt or .jsonl file, a data set or a shipped set")
    parser.add_argument("--limit", type=positive, help="prompts per set")
    parser.add_argument("--samples", type=positive, help="samples per prompt")
    parser.add_argument("--num-steps", type=positive, help="denoising steps")
    parser.add_argument("--seed", type=int, default=0, help="key of the initial noise")
    parser.add_argument("--device", help="cpu, cuda, ...; by default what there is")
    parser.add_argument(
        "--trust", action="store_true", help="import what the settings of somebody else's run name"
    )
    parser.add_argument("--out", type=Path, help="where the results go")
    parser.add_argument("--export", type=Path, help="write the checkpoint's adapters (or all weights) here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
