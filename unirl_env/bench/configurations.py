"""Configurations that an agent may try: factors on what a recipe says, drawn by Ray Tune's search spaces.

One configuration serves all tasks of a suite, whose learning rates and trust regions differ by orders of
magnitude between a point in the plane and a language model. So it is a set of factors on the recipes' values.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from typing import Any

import numpy as np

import unirl_env.functional as F
from unirl_env.agents.by_name import default_config
from unirl_env.arguments.values import is_number
from unirl_env.bench.contestants import Contestant
from unirl_env.errors import ConfigError
from unirl_env.settings import AgentSettings, RunConfig


def search_space(contestant: Contestant) -> dict[str, Any]:
    """Setting to a domain of `ray.tune` for the factor on it: what the agent's configuration declares.

    Raises:
        ConfigError: If it declares something else than domains by the name of a setting.
    """
    config = default_config(contestant.name)
    space = config.search_space()
    if not isinstance(space, Mapping) or not all(hasattr(each, "sample") for each in space.values()):
        raise ConfigError(
            f"`search_space` of {contestant.name} must return domains of ray.tune by the name of a setting, "
            f"got {space!r:.100}; try {{'lr': tune.loguniform(0.2, 5)}}."
        )
    return dict(space)


def draw(contestant: Contestant, count: int, seed: int) -> list[dict[str, float]]:
    """So many configurations: the recipe's own first, then draws from the agent's space.

    The same agent, count and seed give the same ones; a larger count begins with those of a smaller one.
    """
    space = search_space(contestant)
    found: list[dict[str, float]] = [{}]
    for number in range(1, count):
        key = F.derive_seed("configuration", contestant.name, seed, number)
        random_state = np.random.RandomState(key % 2**32)
        random.seed(key)
        drawn = {name: domain.sample(random_state=random_state) for name, domain in sorted(space.items())}
        found.append({name: float(value) for name, value in drawn.items()})
    return found[:count]


def configured(cfg: RunConfig, factors: Mapping[str, float]) -> RunConfig:
    """Settings with each named value times its factor, within the bounds of its setting.

    Args:
        cfg: Of a run.
        factors: By the name of a setting of `agent` (`lr`) or of one of the algorithm's own.

    Raises:
        ConfigError: If a setting has no number to multiply.
    """
    if not factors:
        return cfg
    agent = dataclasses.replace(cfg.agent, options=dict(cfg.agent.options))
    own = default_config(agent.name)
    general = {field.name: field for field in dataclasses.fields(AgentSettings)}
    for name, factor in factors.items():
        inside = name in general
        value = getattr(agent, name) if inside else agent.options.get(name, getattr(own, name, None))
        if value is None and not inside:
            continue  # another form of the same bound is in use
        if not is_number(value):
            raise ConfigError(
                f"`{name}` of {agent.name} must be a number to be tuned by a factor, got {value!r}; try a "
                "`search_space` without it."
            )
        facts = general[name].metadata if inside else _knob(own, name)
        value = _bounded(value * factor, facts)
        if inside:
            setattr(agent, name, value)
        else:
            agent.options[name] = value
    return dataclasses.replace(cfg, agent=agent)


def _knob(config: Any, name: str) -> Mapping[str, Any]:
    kind = getattr(type(config), "knobs", None)
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    return next((field.metadata for field in fields if field.name == name), {})


def _bounded(value: float, facts: Mapping[str, Any]) -> float:
    """Within the bounds; those that must not be reached are kept off by a thousandth."""
    low, high = facts.get("least"), facts.get("most")
    value = value if low is None else max(low, value)
    value = value if high is None else min(high, value)
    below = facts.get("below")
    return value if below is None else min(value, below * 0.999)
