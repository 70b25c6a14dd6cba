"""Train: `python -m unirl_env.train --config-name=diffusion/tiny_sd3 iterations=40 agent=grpo`.

A recipe is a short YAML file over typed groups (`model/ reward/ agent/ rollout/ prompts/`). Hydra composes
it; every name and type is held against `RunConfig`, so that a typing error ends the run before it begins.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from unirl_env.command_line import Parser
from unirl_env.errors.masks import remember_command
from unirl_env.run.compose.chosen import DEFAULT_RECIPE, settings
from unirl_env.run.compose.names import GROUPS
from unirl_env.run.compose.recipes import CONFIGS, recipes
from unirl_env.run.compose.yaml import to_yaml
from unirl_env.run.entry import guarded

__all__ = ["CONFIGS", "GROUPS", "main", "recipes", "settings"]

PROGRAM = ("python", "-m", "unirl_env.train")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door.

    The exit code is 0, 2 for a mistake that is explained, 3 where an alarm ended the run, 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    remember_command(argv)

    def action(console: Console) -> int:
        arguments = _parser().parse_intermixed_args(argv)
        if arguments.list:
            console.print("\n".join(recipes()), highlight=False, markup=False)
            return 0
        if arguments.multirun and not arguments.show:
            from unirl_env.run.sweep import sweep

            given = arguments.config_name, arguments.config_dir
            return sweep(arguments.overrides, *given, console, PROGRAM)
        cfg = settings(
            arguments.config_name,
            arguments.overrides,
            arguments.config_dir,
            trust=arguments.trust or arguments.show,  # what is only printed imports nothing
        )
        if arguments.show:
            console.print(to_yaml(cfg), highlight=False, markup=False, end="", soft_wrap=True)
            return 0
        from unirl_env.run.launch import launch

        return launch(cfg, console, [*PROGRAM, *argv])

    return guarded(action)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m unirl_env.train", description="Post-train a generative model with RL.")
    parser.add_argument(
        "--config-name", "-cn", default=DEFAULT_RECIPE, help="a recipe's name, or the path of a YAML file"
    )
    parser.add_argument("--config-dir", "-cd", help="a folder with recipes of your own")
    parser.add_argument(
        "--trust", action="store_true", help="continue a run of somebody else's, whose settings name code"
    )
    parser.add_argument("--show", action="store_true", help="print the settings and stop")
    parser.add_argument(
        "--cfg", "-c", dest="show", action=_Show, metavar="job", help="the same, as Hydra calls it"
    )
    parser.add_argument("--list", action="store_true", help="print the recipes and stop")
    parser.add_argument(
        "--multirun", "-m", action="store_true", help="a run for each of the values between commas"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings (agent.lr=1e-4), groups (agent=grpo), resume=auto, resume=runs/<name>",
    )
    return parser


class _Show(argparse.Action):
    """`--cfg job`, which has no other value here."""

    def __call__(self, parser: argparse.ArgumentParser, namespace, values, option_string=None) -> None:
        if values != "job":
            parser.error(f"`--cfg` must be job, got {values}: Hydra has no settings of its own here")
        namespace.show = True


if __name__ == "__main__":
    sys.exit(main())
