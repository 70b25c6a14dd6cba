"""Train: `python -m unirl_env.train --config-name=diffusion/tiny_sd3 iterations=40 agent=grpo`.

A recipe is a short YAML file over typed groups (`model/ reward/ agent/ rollout/ prompts/`). Hydra composes
it; every name and type is held against `RunConfig`, so that a typing error ends the run before it begins.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from unirl_env.config import RunConfig
from unirl_env.errors import ConfigError, UnirlError
from unirl_env.interrupt import EXIT_CODE
from unirl_env.settings import as_config, first_line, flat, read_yaml, to_yaml

__all__ = ["main", "recipes", "settings"]

CONFIGS = Path(__file__).parent / "configs"
GROUPS = ("model", "reward", "agent", "rollout", "prompts")
DEFAULT_RECIPE = "diffusion/tiny_sd3"
FREE_FORM = "agent.options."

ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",  # its threads and forked workers do not mix
    "RAY_USAGE_STATS_ENABLED": "0",  # nobody was asked
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leaves CUDA_VISIBLE_DEVICES alone, and stops its warning
    "TF_CPP_MIN_LOG_LEVEL": "3",  # TensorBoard looks for TensorFlow, which then speaks
}
"""What other libraries read from the environment; a value that is already there stays."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door; the exit code is 0, 2 for a mistake that is explained, 130 after Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    console, errors = Console(), Console(stderr=True)
    arguments = _parser().parse_args(argv)
    try:
        if arguments.list:
            console.print("\n".join(recipes()), highlight=False)
            return 0
        cfg = settings(arguments.config_name, arguments.overrides, arguments.config_dir)
        if arguments.show:
            console.print(to_yaml(cfg), highlight=False, markup=False, end="")
            return 0
        from unirl_env.launch import launch

        return launch(cfg, console, ["python", "-m", "unirl_env.train", *argv])
    except UnirlError as error:
        errors.print(f"[bold red]{type(error).__name__}:[/] ", end="")
        errors.print(str(error), highlight=False, markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors.print("Stopped before training began; nothing was written.")
        return EXIT_CODE
    except Exception:
        traceback.print_exc()
        return 1


def settings(
    recipe: str = DEFAULT_RECIPE, overrides: Sequence[str] = (), directory: str | None = None
) -> RunConfig:
    """The settings of a recipe with overrides, or those of the run that `resume=<path>` names.

    Args:
        recipe: A name such as `diffusion/tiny_sd3`, or the path of a YAML file.
        overrides: `key=value` each; a group (`agent=grpo`) or a single setting (`agent.lr=1e-4`).
        directory: A folder with further recipes and group files.

    Raises:
        ConfigError: If a name is unknown or a value has the wrong type.
        CheckpointError: If `resume` names no run.
    """
    resume = _value(overrides, "resume")
    if resume not in (None, "auto", "null", ""):
        return _continued(resume, overrides)
    root, further = CONFIGS, directory
    if recipe.endswith((".yaml", ".yml")):
        path = Path(recipe).expanduser().resolve()
        if not path.is_file():
            raise ConfigError(f"`--config-name` must be a recipe or a YAML file, got {recipe}: no such file.")
        root, recipe, further = path.parent, path.stem, str(CONFIGS)
    search = [f"hydra.searchpath=[file://{Path(further).resolve()}]"] if further else []
    options = [f"++{item}" if item.startswith(FREE_FORM) else item for item in overrides]
    ConfigStore.instance().store(name="run_settings", node=RunConfig)
    try:
        with initialize_config_dir(str(root), version_base="1.3"):
            node = compose(recipe.removesuffix(".yaml"), overrides=[*search, *options])
        return as_config(node)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, recipe, overrides)) from error


def recipes() -> list[str]:
    """The recipes that ship with the library."""
    files = (path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))
    return sorted(path.with_suffix("").as_posix() for path in files if path.parts[0] not in GROUPS)


def _continued(resume: str, overrides: Sequence[str]) -> RunConfig:
    """A run that is named by its folder brings its own settings; only single ones are overridden."""
    from unirl_env.run_folder import locate

    folder, _ = locate(resume)
    groups = [item for item in overrides if item.split("=", 1)[0].lstrip("+~") in GROUPS]
    if groups:
        raise ConfigError(
            f"`resume={resume}` must come with single settings only, since it brings those of its run, got "
            f"{' '.join(groups)}; try leaving that out."
        )
    saved = OmegaConf.structured(read_yaml(folder.config))
    try:
        for item in overrides:
            key, found, value = item.lstrip("+").partition("=")
            if not found:
                raise ConfigError(f"An override must be `key=value`, got {item!r}.")
            OmegaConf.update(saved, key, OmegaConf.create(f"v: {value}").v)
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error, str(folder.config), overrides)) from error
    cfg = as_config(saved)
    cfg.resume, cfg.name, cfg.logging.folder = resume, folder.path.name, str(folder.path.parent)
    return cfg


def _explain(error: Exception, recipe: str, overrides: Sequence[str]) -> str:
    """Hydra's message in the form of this library's, with the nearest name that exists."""
    names = [*flat(RunConfig()), *GROUPS]
    for item in overrides:
        key, _, value = item.partition("=")
        key = key.lstrip("+~")
        if f"'{key}'" in str(error) and key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            advice = f"did you mean `{near[0]}`?" if near else "try `--show`, which prints them all."
            return f"`{key}` must be one of the settings of a run, got an unknown name; {advice}"
        if key in GROUPS and f"'{key}/{value}'" in str(error):
            known = sorted(path.stem for path in (CONFIGS / key).glob("*.yaml"))
            return f"`{key}` must be one of {', '.join(known)}, got {value}."
    if "Cannot find primary config" in str(error):
        return f"`--config-name` must be one of {', '.join(recipes())}, or a YAML file; got {recipe}."
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    detail = "" if cause is error else f" ({first_line(cause)})"
    return f"The settings of {recipe} must be valid, got: {first_line(error)}{detail}"


def _value(overrides: Sequence[str], name: str) -> str | None:
    found = [item.split("=", 1)[1].strip("'\"") for item in overrides if item.startswith(f"{name}=")]
    return found[-1] if found else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m unirl_env.train", description="Post-train a generative model with RL."
    )
    parser.add_argument(
        "--config-name", "-cn", default=DEFAULT_RECIPE, help="a recipe's name, or the path of a YAML file"
    )
    parser.add_argument("--config-dir", "-cd", help="a folder with recipes of your own")
    parser.add_argument("--show", action="store_true", help="print the settings and stop")
    parser.add_argument("--list", action="store_true", help="print the recipes and stop")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings (agent.lr=1e-4), groups (agent=grpo), resume=auto, resume=runs/<name>",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
