"""Train: `python -m unirl_env.train --config-name=diffusion/tiny_sd3 iterations=40 agent=grpo`.

A recipe is a short YAML file over typed groups (`model/ reward/ agent/ rollout/ prompts/`). Hydra composes
it; every name and type is held against `RunConfig`, so that a typing error ends the run before it begins.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from unirl_env.config import RunConfig
from unirl_env.entry import guarded
from unirl_env.errors import ConfigError
from unirl_env.masks import remember_command
from unirl_env.overrides import WHOLE, for_hydra, respelled
from unirl_env.settings import as_config, first_line, flat, read_yaml, to_yaml

__all__ = ["main", "recipes", "settings"]

CONFIGS = Path(__file__).parent / "configs"
GROUPS = ("model", "reward", "agent", "rollout", "prompts")
SHARED = (*GROUPS, "knobs", "service")
DEFAULT_RECIPE = "diffusion/tiny_sd3"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door.

    The exit code is 0, 2 for a mistake that is explained, 3 where an alarm ended the run, 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    remember_command(argv)
    arguments = _parser().parse_args(argv)

    def action(console: Console) -> int:
        if arguments.list:
            console.print("\n".join(recipes()), highlight=False)
            return 0
        cfg = settings(
            arguments.config_name,
            arguments.overrides,
            arguments.config_dir,
            trust=arguments.trust or arguments.show,  # what is only printed imports nothing
        )
        if arguments.show:
            console.print(to_yaml(cfg), highlight=False, markup=False, end="")
            return 0
        from unirl_env.launch import launch

        return launch(cfg, console, ["python", "-m", "unirl_env.train", *argv])

    return guarded(action)


def settings(
    recipe: str = DEFAULT_RECIPE,
    overrides: Sequence[str] = (),
    directory: str | None = None,
    *,
    trust: bool = False,
) -> RunConfig:
    """The settings of a recipe with overrides, or those of the run that `resume=<path>` names.

    Args:
        recipe: A name such as `diffusion/tiny_sd3`, or the path of a YAML file: a recipe, or the resolved
            `config.yaml` of a run that is to be done again.
        overrides: `key=value` each; a group (`agent=grpo`) or a single setting (`agent.lr=1e-4`).
        directory: A folder with further recipes and group files.
        trust: Whether a run that somebody else began may name code and secrets. A recipe always may, because
            whoever starts a run chooses it.

    Raises:
        ConfigError: If a name is unknown or a value has the wrong type, or if a run to be continued names
            code and was not begun by this account.
        CheckpointError: If `resume` names no run.
    """
    resume = _value(overrides, "resume")
    if resume not in (None, "auto", "null", ""):
        return _continued(resume, overrides, trust)
    root, further = CONFIGS, Path(directory).resolve() if directory else None
    if further and (further / f"{recipe}.yaml").is_file():
        root, further = further, CONFIGS
    if recipe.endswith((".yaml", ".yml")):
        path = Path(recipe).expanduser().resolve()
        if not path.is_file():
            raise ConfigError(f"`--config-name` must be a recipe or a YAML file, got {recipe}: no such file.")
        if "defaults:" not in path.read_text():
            return _with_overrides(path, overrides)
        root, recipe, further = path.parent, path.stem, CONFIGS
    search = [f"hydra.searchpath=[file://{further}]"] if further else []
    options = [word for item in overrides for word in for_hydra(item)]
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
    return sorted(path.with_suffix("").as_posix() for path in files if path.parts[0] not in SHARED)


def _continued(resume: str, overrides: Sequence[str], trust: bool) -> RunConfig:
    """A run that is named by its folder brings its own settings."""
    from unirl_env.run_folder import locate
    from unirl_env.trust import require_trust

    folder, _ = locate(resume)
    require_trust(folder.config, read_yaml(folder.config), trust)
    cfg = _with_overrides(folder.config, overrides)
    cfg.resume, cfg.name, cfg.logging.folder = resume, folder.path.name, str(folder.path.parent)
    return cfg


def _with_overrides(path: Path, overrides: Sequence[str]) -> RunConfig:
    """Resolved settings, in which single ones are overridden; they have no groups to choose from."""
    cfg = OmegaConf.structured(read_yaml(path))
    for item in overrides:
        key, found, value = respelled(item.lstrip("+")).partition("=")
        if not found or key in GROUPS:
            raise ConfigError(
                f"What goes with {path} must be `setting=value`, got {item}; try leaving it out."
            )
        try:
            OmegaConf.update(cfg, key, OmegaConf.create(f"v: {value}").v, merge=key not in WHOLE)
        except OmegaConfBaseException as error:
            raise ConfigError(_explain(error, str(path), [item])) from error
    return as_config(cfg)


def _explain(error: Exception, recipe: str, overrides: Sequence[str]) -> str:
    """Hydra's message in the form of this library's, with the nearest name that exists."""
    leaves = [*flat(RunConfig()), "hydra"]
    names = [*leaves, *GROUPS]
    for item in overrides:
        key, _, value = item.partition("=")
        key = key.lstrip("+~")
        if key not in names and not any(key.startswith(f"{leaf}.") for leaf in leaves):
            near = difflib.get_close_matches(key, names, n=1)
            advice = f"did you mean `{near[0]}`?" if near else "try `--show`, which prints them all."
            return f"`{key}` must be one of the settings of a run, got an unknown name; {advice}"
        if key in GROUPS and f"'{key}/{value}'" in str(error):
            options = sorted(path.stem for path in (CONFIGS / key).glob("*.yaml"))
            return f"`{key}` must be one of {', '.join(options)}, got {value}."
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
    parser.add_argument(
        "--trust", action="store_true", help="continue a run of somebody else's, whose settings name code"
    )
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
