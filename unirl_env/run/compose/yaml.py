"""A run's settings as YAML, and the comparison that decides whether a run may be continued."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unirl_env import __version__
from unirl_env.arguments.values import is_whole
from unirl_env.errors import ConfigError
from unirl_env.errors.masks import masked, same_secrets
from unirl_env.run.compose.names import TEXTS, TYPES, below, unknown_name
from unirl_env.settings import RunConfig
from unirl_env.settings.fields import may_change
from unirl_env.settings.literal import first_line, from_yaml, shielded, unshielded
from unirl_env.settings.run_config import pinned

VERSION_KEY, VERSION = "version", 1
"""What a run's `config.yaml` says of its own form.

The version rises when a setting changes its name or its meaning, and `_read_version` then says what becomes
of files of before. It does not rise for a new setting: its default is what runs did without it. Files without
a version are older than versions; every setting in them is called and means what it does in version 1.
"""


def as_config(node: Any) -> RunConfig:
    """The typed settings that an OmegaConf node with shielded texts holds."""
    cfg = OmegaConf.to_object(node)
    _restore(cfg)
    shown(cfg)  # From now on, no message repeats its secrets.
    return cfg


def from_mapping(values: Mapping[str, Any], source: str = "") -> RunConfig:
    """Settings from nested mappings; what is not named keeps its default, and every text is literal.

    Args:
        values: The mappings.
        source: The file that they come from, for errors.

    Raises:
        ConfigError: If a name is unknown or a value has the wrong type.
    """
    require_texts(values, source)
    try:
        node = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.create(shielded(dict(values))))
        return as_config(node)
    except OmegaConfBaseException as error:
        name = str(error.full_key or "")
        if name and name not in TYPES and below(name) is None:
            raise ConfigError(unknown_name(name, source)) from error
        what = f"`{name}`" if name else "The settings"
        where = f" of {source}" if source else ""
        raise ConfigError(f"{what}{where} must fit `RunConfig`, got: {first_line(error)}") from error


def literally(cfg: RunConfig) -> DictConfig:
    """Settings as a node with shielded texts, to be changed and given to `as_config`."""
    return OmegaConf.merge(
        OmegaConf.structured(RunConfig), OmegaConf.create(shielded(_plain(dataclasses.asdict(cfg))))
    )


def require_texts(values: Mapping[str, Any], source: str = "", prefix: str = "") -> None:
    """Refuse numbers and truth values for texts: YAML has read `007` as 7, and `1e5` as 100000.0.

    Raises:
        ConfigError: Naming the setting.
    """
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            require_texts(value, source, f"{name}.")
        elif name in TEXTS and value is not None and not isinstance(value, str):
            where = f" of {source}" if source else ""
            raise ConfigError(
                f"`{name}`{where} must be a text, got {value!r}: YAML reads what looks like a number, a "
                f"truth value or a list as one; try quotes: `{key}: '...'`."
            )


def read_text(path: Path) -> str:
    """The text of a settings file.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"A run's folder must hold its settings, got {error.strerror} for {path}; try the folder that "
            f"holds `config.yaml`."
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{path} must be UTF-8, got: {first_line(error)}; try saving it as UTF-8."
        ) from error


def read_yaml(path: Path) -> RunConfig:
    """The settings that `to_yaml` wrote; every text is literal.

    Raises:
        ConfigError: If the file is missing, is no YAML, is of a later version, or does not fit `RunConfig`.
    """
    return from_mapping(unshielded(settings_in(path)), str(path))


def settings_in(path: Path) -> dict[str, Any]:
    """What a settings file gives, as nested mappings with shielded texts, without its version.

    Raises:
        ConfigError: If it cannot be read, holds nothing, or is of a later version.
    """
    node = from_yaml(shielded(read_text(path)), str(path))
    values = OmegaConf.to_container(node, resolve=False)
    if not values:
        raise ConfigError(f"{path} must hold settings, got an empty file; try a copy of it that is whole.")
    _read_version(values, path)
    return values


def _read_version(values: dict[str, Any], path: Path) -> None:
    """Take the version out of settings that were read, and refuse those that would be read wrongly."""
    version = values.pop(VERSION_KEY, VERSION)
    if is_whole(version) and version > VERSION:
        raise ConfigError(
            f"`{VERSION_KEY}` of {path} must be at most {VERSION}, as this unirl_env ({__version__}) "
            f"reads it, got {version}: a later one wrote these settings, which may mean something else here; "
            f"try the version of unirl_env that `provenance.json` beside it names."
        )
    if not is_whole(version) or version < 1:
        raise ConfigError(
            f"`{VERSION_KEY}` of {path} must be a whole number of at least 1, got {version!r}: no unirl_env "
            f"writes that; try {VERSION_KEY}: {VERSION} if you wrote the file yourself."
        )


def to_yaml(cfg: RunConfig) -> str:
    """Every setting; what looks like an interpolation is a text, what is secret its variable."""
    values = {VERSION_KEY: VERSION, **shown(cfg)}
    return unshielded(OmegaConf.to_yaml(OmegaConf.create(shielded(values))))


def shown(cfg: RunConfig) -> dict[str, Any]:
    """The settings as nested mappings that others may see."""
    values = _plain(dataclasses.asdict(cfg))
    return {name: masked(value, (name,)) if _searched(name) else value for name, value in values.items()}


def differences(saved: RunConfig, wanted: RunConfig) -> list[str]:
    """The settings whose change would make a continued run another run, as `field: saved -> wanted`."""
    one, other = flat(pinned(saved)), flat(pinned(wanted))
    for rows in (one, other):
        rows |= {name: _without_places(value) for name, value in rows.items() if name.startswith("reward.")}
        rows |= {
            name: same_secrets(value, tuple(name.split(".")))
            for name, value in rows.items()
            if _searched(name)
        }
    return [
        f"{name}: {one.get(name)!r} -> {other.get(name)!r}"
        for name in sorted(one.keys() | other.keys())
        if not _may_change(name) and one.get(name) != other.get(name)
    ]


def _may_change(name: str) -> bool:
    group, _, inner = name.rpartition(".")
    kind = typing.get_type_hints(RunConfig)[group] if group else RunConfig
    return any(each.name == inner and may_change(each) for each in dataclasses.fields(kind))


def _without_places(spec: Any) -> Any:
    """A reward without the addresses of its services: the same service may answer from another machine."""
    if isinstance(spec, Mapping):
        return {name: _without_places(value) for name, value in spec.items() if name not in ("url", "urls")}
    return spec


def flat(cfg: RunConfig, *, public: bool = False) -> dict[str, Any]:
    """Every setting under its dotted name; what is inside a free-form setting stays one value.

    Args:
        cfg: The settings.
        public: Whether others see them, so that secrets are masked.
    """
    rows: dict[str, Any] = {}
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if dataclasses.is_dataclass(value):
            for inner in dataclasses.fields(value):
                rows[f"{field.name}.{inner.name}"] = _plain(getattr(value, inner.name))
        else:
            rows[field.name] = _plain(value)
    if public:
        rows |= {
            name: masked(value, tuple(name.split("."))) for name, value in rows.items() if _searched(name)
        }
    return rows


def _searched(name: str) -> bool:
    """Whether a setting is searched for secrets; prompts are texts about anything."""
    return name != "name" and name.partition(".")[0] != "prompts"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def _restore(settings: Any) -> None:
    # YAML knows lists only; the fields that are declared as tuples become tuples again, and texts themselves.
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            _restore(value)
        else:
            listed = isinstance(value, list) and typing.get_origin(hints[field.name]) is tuple
            setattr(settings, field.name, tuple(value) if listed else unshielded(value))
