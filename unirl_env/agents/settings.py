"""The settings of a run as attributes of an `AgentConfig`, in RLlib's manner, and back.

`AgentSettings` and `RolloutSettings` are flat there (`config.lr`), as are the knobs of an algorithm;
`StepSettings` and `PolicySettings` stay dataclasses in an attribute. Nothing here names a single setting.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ray.tune.search.sample import Domain

from unirl_env.agents.knobs import check_knobs, check_plain_knobs, knob_defaults, knob_kinds
from unirl_env.errors import ConfigError
from unirl_env.settings import AgentSettings, PolicySettings, RolloutSettings, StepSettings
from unirl_env.settings.fields import python_name

__all__ = ["FLAT", "NESTED", "check_groups", "defaults", "laid_over", "rebuilt", "take_over"]

FLAT = (AgentSettings, RolloutSettings)
"""Groups whose settings are attributes of their own."""
NESTED: Mapping[str, type] = {"steps": StepSettings, "policy": PolicySettings}
"""Groups that are an attribute."""


def defaults(config_class: type) -> dict[str, Any]:
    """The attributes that an agent's configuration has besides RLlib's: every agent's, and declared knobs.

    Raises:
        ConfigError: If a knob is called as a setting of every agent.
    """
    shared = {name: kind() for name, kind in NESTED.items()}
    for group in (kind() for kind in FLAT):
        shared |= {name: getattr(group, field.name) for name, field in _flat(group)}
    knobs = knob_defaults(config_class)
    taken = knobs.keys() & {*shared, "prompts", "run_seed", "seed"}
    if taken:
        name = min(taken)
        raise ConfigError(
            f"`{name}` must not be a knob of {config_class.__name__}: it is a setting of every agent; "
            "try another name, or set it in `__init__` after `super().__init__()`."
        )
    return shared | knobs


def take_over(config: Any, group: Any) -> None:
    """Set the attributes of an `AgentConfig` that stand for a group of settings.

    What is null and thereby the algorithm's own is left as the algorithm has it.
    """
    for name, field in _flat(group):
        value = getattr(group, field.name)
        if value is not None or not field.metadata.get("inherits"):
            setattr(config, name, value)


def rebuilt(kind: type, config: Any) -> Any:
    """A group of settings as the attributes of an `AgentConfig` have it."""
    return kind(**{field.name: getattr(config, name) for name, field in _flat(kind)})


def laid_over(kind: type, present: Any, given: Any) -> Any:
    """A group of settings: given fields over the present ones, or as it is given as a whole.

    What does not fit is returned as it is; `check_groups` refuses it.
    """
    if isinstance(given, kind):
        return dataclasses.replace(given)  # so that two configurations never share one
    if not isinstance(given, Mapping):
        return given
    if isinstance(present, kind):
        present = {field.name: getattr(present, field.name) for field in dataclasses.fields(kind)}
    laid = {**present, **given} if isinstance(present, Mapping) else dict(given)
    if not laid.keys() <= {field.name for field in dataclasses.fields(kind)}:
        return given
    # Tune draws from search spaces that it finds in mappings, and sets what it has drawn.
    return laid if any(map(_is_searched, laid.values())) else kind(**laid)


def check_groups(config: Any) -> None:
    """Refuse what cannot work in a group of settings by itself, the algorithm's knobs included.

    Raises:
        ConfigError: Naming the setting, its value and the remedy.
    """
    for name, kind in NESTED.items():
        group = getattr(config, name)
        if not isinstance(group, kind):
            known = [field.name for field in dataclasses.fields(kind)]
            wrong = (
                next((key for key in group if key not in known), group)
                if isinstance(group, Mapping)
                else group
            )
            raise ConfigError(f"`{name}` must have keys of {', '.join(known)}, got {wrong!r}.")
        group.check(f"{name}.")
    for kind in FLAT:
        rebuilt(kind, config).check()
    for kind in knob_kinds(type(config)):
        check_knobs(rebuilt(kind, config))
    check_plain_knobs(config)


def _is_searched(value: Any) -> bool:
    return isinstance(value, Domain) or (isinstance(value, Mapping) and "grid_search" in value)


def _flat(group: Any) -> Iterator[tuple[str, dataclasses.Field]]:
    for field in dataclasses.fields(group):
        if name := python_name(field):
            yield name, field
