"""The settings of a run from a recipe and what was typed, or from the run that is continued."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from unirl_env.errors import ConfigError
from unirl_env.registry import is_path
from unirl_env.run.compose.names import GROUPS
from unirl_env.run.compose.overrides import Override, apply, last_value, split
from unirl_env.run.compose.recipes import CONFIGS, composed, is_recipe, options, recipes, without_defaults
from unirl_env.run.compose.yaml import as_config, literally, read_yaml, settings_in
from unirl_env.settings import RunConfig

DEFAULT_RECIPE = "diffusion/tiny_sd3"


def settings(
    recipe: str = DEFAULT_RECIPE,
    overrides: Sequence[str] = (),
    directory: str | None = None,
    *,
    trust: bool = False,
) -> RunConfig:
    """The settings of a recipe with overrides, or those of the run that `resume=<path>` names.

    Args:
        recipe: A name such as `diffusion/tiny_sd3`, or the path of a YAML file: a recipe, or settings without
            a list of defaults, such as the `config.yaml` of a run that is to be done again.
        overrides: `key=value` each; a group (`agent=grpo`) or a single setting (`agent.lr=1e-4`). Of several
            for one setting, the last counts.
        directory: A folder with further recipes and group files.
        trust: Whether a run that somebody else began may name code and secrets. A recipe always may, because
            whoever starts a run chooses it.

    Raises:
        ConfigError: If a name is unknown or a value has the wrong type, or if a run to be continued names
            code and was not begun by this account.
        CheckpointError: If `resume` names no run.
    """
    items = [split(item) for item in overrides]
    resume = last_value(overrides, "resume")
    if resume not in (None, "auto"):
        return _continued(resume, items, trust)
    folder = Path(directory).expanduser().resolve() if directory else None
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"`--config-dir` must be a folder with recipes, got {directory}: there is none.")
    if recipe.endswith((".yaml", ".yml")):
        path = Path(recipe).expanduser().resolve()
        if not path.is_file():
            raise ConfigError(f"`--config-name` must be a recipe or a YAML file, got {recipe}: no such file.")
        if not is_recipe(path):
            given = OmegaConf.merge(without_defaults(), settings_in(path))
            return _filled_in(_with_overrides(path, items), given, items)
        recipe, folder = path.stem, path.parent
    elif folder is None or not (folder / f"{recipe}.yaml").is_file():
        _require_recipe(recipe, folder)
    chosen = [one for one in items if _chooses(one, folder)]
    for one in chosen:
        _require_option(one, folder)
    words = [f"{one.name}={one.value}" if one.name in GROUPS else one.typed for one in chosen]
    others = [one for one in items if one not in chosen]
    node = composed(recipe, words, folder)
    named = last_value(overrides, "agent.name")
    if named is not None and named != node.agent.name:
        # Those of the recipe are knobs of its own algorithm.
        OmegaConf.update(node, "agent.options", {}, merge=False, force_add=True)
    apply(node, others)
    cfg = as_config(node)
    if not is_path(cfg.agent.name):
        return cfg
    return _filled_in(cfg, composed(recipe, words, folder, bare=True), others)


def _filled_in(cfg: RunConfig, given: DictConfig, items: Sequence[Override]) -> RunConfig:
    """The settings, where what nobody has given is as somebody's own algorithm has chosen it for itself."""
    if not is_path(cfg.agent.name):
        return cfg
    from unirl_env.run.agent_setup import own_settings

    apply(given, items)
    for name, value in own_settings(cfg.agent.name).items():
        section, _, field = name.partition(".")
        if OmegaConf.is_missing(given[section], field):
            setattr(getattr(cfg, section), field, value)
    return cfg


def _continued(resume: str, items: Sequence[Override], trust: bool) -> RunConfig:
    """A run that is named by its folder brings its own settings."""
    from unirl_env.run.record.folder import locate
    from unirl_env.run.trust import require_trust

    folder, _ = locate(resume)
    require_trust(folder.config, read_yaml(folder.config), trust)
    cfg = _with_overrides(folder.config, items)
    cfg.resume, cfg.name, cfg.logging.folder = resume, folder.path.name, str(folder.path.parent)
    return cfg


def _with_overrides(path: Path, items: Sequence[Override]) -> RunConfig:
    """Whole settings, in which single ones are overridden; they have no groups to choose from."""
    for one in items:
        if one.chooses:
            raise ConfigError(
                f"What goes with {path} must be `setting=value`, got {one.typed}; try leaving it out."
            )
    node = literally(read_yaml(path))
    apply(node, items, groups=False)
    return as_config(node)


def _chooses(one: Override, folder: Path | None) -> bool:
    """Whether a word picks an option of a group, one of somebody's own included."""
    own = folder is not None and "." not in one.name and (folder / one.name).is_dir() and not one.removes
    return one.chooses or (own and one.name not in GROUPS)


def _require_option(one: Override, folder: Path | None) -> None:
    known = options(one.name, folder)
    places = [CONFIGS, *([folder] if folder else [])]
    if any((place / one.name / f"{one.value}.yaml").is_file() for place in places) and one.value.strip():
        return
    near = difflib.get_close_matches(one.value, known, n=1)
    remedy = f"; did you mean `{one.name}={near[0]}`?" if near else "."
    if "," in one.value:
        remedy = f"; try `-m {one.typed}` for a run with each."
    raise ConfigError(f"`{one.name}` must be one of {', '.join(known)}, got {one.value}{remedy}")


def _require_recipe(recipe: str, folder: Path | None) -> None:
    known = recipes()
    if recipe in known:
        return
    own = sorted(path.stem for path in folder.glob("*.yaml")) if folder else []
    tails = {name.rpartition("/")[2]: name for name in known}
    near = difflib.get_close_matches(recipe, [*known, *own, *tails], n=1)
    meant = tails.get(near[0], near[0]) if near else None
    hint = f"; did you mean {meant}?" if meant else "."
    raise ConfigError(
        f"`--config-name` must be one of {', '.join([*own, *known])}, or a YAML file; got {recipe}{hint}"
    )
