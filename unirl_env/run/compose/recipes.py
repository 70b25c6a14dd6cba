"""Recipes: YAML files with a list of defaults, which Hydra composes.

What is typed, and what a run wrote into its `config.yaml`, is literal. In a recipe, `${name}` in a closed
setting (`name`, `logging.folder`, `agent.horizon`, ...) stands for the setting of that name, such as
`${seed}` or `${model.max_new_tokens}`; prompts, rewards and options are literal there, too, and nothing is
taken from the environment: a run's folder shows all its settings to whoever can read it.
"""

from __future__ import annotations

import functools
import operator
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote, unquote

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unirl_env.errors import ConfigError
from unirl_env.run.compose.names import GROUPS, OPEN, TEXTS, TYPES, unknown_name
from unirl_env.run.compose.yaml import read_text, require_texts
from unirl_env.settings import RunConfig
from unirl_env.settings.literal import first_line, from_yaml, shielded, shielded_but, unshielded

CONFIGS = Path(__file__).parents[2] / "configs"
SHARED = (*GROUPS, "knobs", "service")
RESOLVER = re.compile(r"\$\{\s*[A-Za-z_][\w.]*\s*:")
"""What asks OmegaConf or Hydra for more than a setting: `${oc.env:HOME}`, `${now:%H}`."""


def recipes() -> list[str]:
    """The recipes that ship with the library."""
    files = (path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))
    return sorted(path.with_suffix("").as_posix() for path in files if path.parts[0] not in SHARED)


def options(group: str, folder: Path | None = None) -> list[str]:
    """What can be chosen for a group, here and in a folder of one's own."""
    places = [CONFIGS / group, *([folder / group] if folder else [])]
    return sorted({path.stem for place in places if place.is_dir() for path in place.glob("*.yaml")})


def is_recipe(path: Path) -> bool:
    """Whether a YAML file has a list of defaults, and is not the settings of a run.

    Raises:
        ConfigError: If it cannot be read.
    """
    return "defaults" in from_yaml(shielded(read_text(path)), str(path))


def composed(recipe: str, chosen: Sequence[str], folder: Path | None, *, bare: bool = False) -> DictConfig:
    """The settings of a recipe, with shielded texts and open settings taken literally.

    Args:
        recipe: Its name.
        chosen: `group=option` each.
        folder: A folder with recipes and groups of one's own, which come before those that ship.
        bare: Whether what nobody has set is missing, in place of its default.

    Raises:
        ConfigError: If it cannot be composed.
    """
    places = [f"file://{CONFIGS}"]
    if folder is not None:
        Plugins.instance().register(OwnFiles)
        places.insert(0, f"{OwnFiles.scheme()}://{quote(str(folder))}")
    ConfigStore.instance().store(name="run_settings", node=without_defaults() if bare else RunConfig)
    search = f"hydra.searchpath=[{','.join(_quoted(place) for place in places)}]"
    try:
        # Hydra takes the recipe itself from the folder that it is made with, by a reader of its own.
        with TemporaryDirectory() as place:
            copy = Path(place, f"{recipe}.yaml")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(_shielded_file(_file(recipe, folder), recipe)[0], encoding="utf-8")
            with initialize_config_dir(place, version_base="1.3"):
                node = compose(recipe, overrides=[search, *chosen])
        _take_literally(node)
        return node
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, recipe, folder)) from error


def without_defaults() -> DictConfig:
    """All settings of a run, of which none is given yet."""
    node = OmegaConf.structured(RunConfig)
    for name in TYPES:
        OmegaConf.update(node, name, MISSING, merge=False)
    return node


class OwnFiles(ConfigSource):
    """YAML files of somebody's own, in which only names of settings are filled in."""

    def __init__(self, provider: str, path: str):
        super().__init__(provider=provider, path=path)
        self.path = unquote(self.path)

    @staticmethod
    def scheme() -> str:
        """What stands before `://`."""
        return "unirl"

    def load_config(self, config_path: str) -> ConfigResult:
        """A file, with shielded texts."""
        path = self._place(self._normalize_file_name(config_path))
        if not path.is_file():
            raise ConfigLoadError(f"Config not found : {path}")
        text, header = _shielded_file(path, config_path)
        place = f"{self.scheme()}://{self.path}"
        return ConfigResult(config=OmegaConf.create(text), path=place, provider=self.provider, header=header)

    def available(self) -> bool:
        """Whether there is such a folder."""
        return os.path.isdir(self.path)

    def is_group(self, config_path: str) -> bool:
        """Whether it is a folder."""
        return self._place(config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        """Whether it is a file."""
        return self._place(self._normalize_file_name(config_path)).is_file()

    def list(self, config_path: str, results_filter: Any) -> list[str]:
        """What a folder holds."""
        files: list[str] = []
        for name in sorted(os.listdir(self._place(config_path))):
            self._list_add_result(files, os.path.join(config_path, name), name, results_filter)
        return sorted(set(files))

    def _place(self, config_path: str) -> Path:
        return Path(self.path, config_path)


def _file(recipe: str, folder: Path | None) -> Path:
    own = None if folder is None else folder / f"{recipe}.yaml"
    return own if own is not None and own.is_file() else CONFIGS / f"{recipe}.yaml"


def _shielded_file(path: Path, name: str) -> tuple[str, dict[str, str | None]]:
    """The text of a recipe or an option, shielded but for names of settings, and its header.

    Raises:
        ConfigError: If it cannot be read, or holds what is not filled in.
    """
    text = read_text(path)
    header = ConfigSource._get_header_dict(text[:512])
    hidden = shielded_but(text, {*TYPES, *GROUPS})
    package = header["package"]
    if package is None:
        package = os.path.dirname(name).replace("/", ".")
    prefix = "" if package in ("_global_", "") else f"{package}."
    values = unshielded(OmegaConf.to_container(from_yaml(hidden, str(path)), resolve=False))
    values.pop("defaults", None)
    require_texts(values, str(path), prefix)
    _refuse_resolvers(values, str(path), prefix)
    return hidden, header


def _refuse_resolvers(values: Mapping[str, Any], source: str, prefix: str) -> None:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in OPEN:
            _refuse_resolvers(value, source, f"{name}.")
        elif isinstance(value, str) and name in TYPES and name not in OPEN and RESOLVER.search(value):
            said = "a text" if name in TEXTS else "a value"
            raise ConfigError(
                f"`{name}` of {source} must be {said} without calls, got {value!r}: names of settings are "
                f"filled in (`${{seed}}`), and nothing else, because a run's folder shows its settings; try "
                f"`{name}=...` on the command line, where the shell fills in."
            )


def _take_literally(node: DictConfig) -> None:
    """In open settings, not even names of settings are filled in."""
    raw = OmegaConf.to_container(node, resolve=False)
    for name in OPEN:
        held = functools.reduce(operator.getitem, name.split("."), raw)
        literal = shielded(unshielded(held))
        if literal != held:
            OmegaConf.update(node, name, literal, merge=False, force_add=True)


def _quoted(text: str) -> str:
    escaped = text.replace('"', '\\"')
    return f'"{escaped}"'


def _explain(error: Exception, recipe: str, folder: Path | None) -> str:
    """Hydra's message in the form of this library's, with the nearest name that exists."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    said = unshielded(str(error))
    if "Cannot find primary config" in said:
        own = f" {folder} has none of that name." if folder else ""
        return f"`--config-name` must be one of {', '.join(recipes())}, or a YAML file; got {recipe}.{own}"
    for cause in chain:
        name = getattr(cause, "full_key", None) or getattr(cause, "key", None)
        if name and isinstance(cause, OmegaConfBaseException):
            known = str(name) in TYPES or any(str(name).startswith(f"{setting}.") for setting in OPEN)
            if not known and "not in" in str(cause):
                return unknown_name(str(name), recipe)
            return f"`{name}` of {recipe} must have the right type, got: {first_line(cause)}"
    detail = "" if chain[-1] is error else f" ({first_line(chain[-1])})"
    return f"The settings of {recipe} must be valid, got: {first_line(error)}{detail}"
