"""A run's settings as YAML, and the comparison that decides whether a run may be continued."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unirl_env.config import RunConfig
from unirl_env.errors import ConfigError

__all__ = ["as_config", "differences", "from_mapping", "read_yaml", "to_yaml"]

MAY_CHANGE = (
    "name",
    "iterations",
    "resume",
    "logging.folder",
    "logging.eval_every",
    "logging.checkpoint_every",
    "logging.keep_last",
    "logging.tensorboard",
    "logging.wandb",
    "logging.progress",
    "reward.max_failed_iterations",
    "model.device",
    "model.offload",
    "agent.micro_batch_size",
    "agent.micro_batch_tokens",
    "reward.overlap",
    "rollout.batch_size",
    "rollout.num_env_runners",
    "rollout.num_learners",
    "rollout.num_gpus_per_env_runner",
    "rollout.num_gpus_per_learner",
    "rollout.timeout_s",
)
"""Settings that a continued run may change, as it may all of `alarm`: they leave the mathematics alone."""


def as_config(node: Any) -> RunConfig:
    """The typed settings that an OmegaConf node holds."""
    cfg = OmegaConf.to_object(node)
    _restore_tuples(cfg)
    return cfg


def from_mapping(values: Mapping[str, Any]) -> RunConfig:
    """Settings from nested mappings; what is not named keeps its default.

    Raises:
        ConfigError: If a name is unknown or a value has the wrong type.
    """
    try:
        return as_config(OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.create(dict(values))))
    except OmegaConfBaseException as error:
        raise ConfigError(f"The settings must fit `RunConfig`, got: {first_line(error)}") from error


def read_yaml(path: Path) -> RunConfig:
    """The settings that `to_yaml` wrote.

    Raises:
        ConfigError: If the file is missing, is no YAML, or does not fit `RunConfig`.
    """
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise ConfigError(
            f"A run's folder must hold its settings, got {error.strerror} for {path}; try the folder that "
            f"holds `config.yaml`."
        ) from error
    except Exception as error:
        raise ConfigError(f"{path} must be YAML, got: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping, got {type(values).__name__}.")
    return from_mapping(values)


def to_yaml(cfg: RunConfig) -> str:
    """Every setting, resolved."""
    return OmegaConf.to_yaml(OmegaConf.create(_plain(dataclasses.asdict(cfg))))


def differences(saved: RunConfig, wanted: RunConfig) -> list[str]:
    """The settings whose change would make a continued run another run, as `field: saved -> wanted`."""
    one, other = flat(saved), flat(wanted)
    for rows in (one, other):
        rows |= {name: _without_places(value) for name, value in rows.items() if name.startswith("reward.")}
    return [
        f"{name}: {one.get(name)!r} -> {other.get(name)!r}"
        for name in sorted(one.keys() | other.keys())
        if not _may_change(name) and one.get(name) != other.get(name)
    ]


def _may_change(name: str) -> bool:
    # An alarm watches a run and changes nothing in it; who was stopped by one may want to go on.
    return name in MAY_CHANGE or name.startswith("alarm.")


def _without_places(spec: Any) -> Any:
    """A reward without the addresses of its services: the same service may answer from another machine."""
    if isinstance(spec, Mapping):
        return {name: _without_places(value) for name, value in spec.items() if name not in ("url", "urls")}
    return spec


def flat(cfg: RunConfig) -> dict[str, Any]:
    """Every setting under its dotted name; what is inside a free-form setting stays one value."""
    rows: dict[str, Any] = {}
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if dataclasses.is_dataclass(value):
            for inner in dataclasses.fields(value):
                rows[f"{field.name}.{inner.name}"] = _plain(getattr(value, inner.name))
        else:
            rows[field.name] = _plain(value)
    return rows


def first_line(error: BaseException) -> str:
    """The part of a library's message that is meant for people."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def _restore_tuples(settings: Any) -> None:
    # YAML knows lists only; the fields that are declared as tuples become tuples again.
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            _restore_tuples(value)
        elif isinstance(value, list) and typing.get_origin(hints[field.name]) is tuple:
            setattr(settings, field.name, tuple(value))
