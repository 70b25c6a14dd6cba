"""The algorithms by their names: those that ship, and what a run's state says of who wrote it."""

from __future__ import annotations

from typing import Any

from unirl_env.registry import Registry

AGENTS = Registry(
    "agent",
    {
        "awm": "unirl_env.agents.awm:AWMConfig",
        "drpo": "unirl_env.agents.drpo:DRPOConfig",
        "elbo_pg": "unirl_env.agents.pg:ELBOPGConfig",
        "flow_dppo": "unirl_env.agents.flow_dppo:FlowDPPOConfig",
        "grpo": "unirl_env.agents.grpo:GRPOConfig",
        "grpo_guard": "unirl_env.agents.guard:GRPOGuardConfig",
        "gspo": "unirl_env.agents.gspo:GSPOConfig",
        "nft": "unirl_env.agents.nft:NFTConfig",
        "pg": "unirl_env.agents.pg:PGConfig",
        "temp_flow": "unirl_env.agents.temp_flow:TempFlowGRPOConfig",
    },
)
"""The algorithms that ship, by what a recipe calls them; those of other packages are named by their paths."""


def algorithm_name(agent: Any) -> str:
    """What a run's state says of who wrote it: a name of the table, or the path of the configuration's class.

    An agent whose own class is not the one that its configuration asks for is named by both.
    """
    config, kind = type(agent.config), _written(type(agent))
    return path_of(config, kind if kind is not config().algo_class else None)


def path_of(config: type, agent: type | None = None) -> str:
    """The name of a configuration's class in the table, or its path; with that of a class of agents."""
    place = path(config)
    name = next((name for name in AGENTS if AGENTS.target(name) == place), place)
    return name if agent is None else f"{name} as {path(agent)}"


def same_algorithm(written: Any, agent: Any) -> bool:
    """Whether a state that says `written` of its writer is one of `agent`'s.

    States of before name the agent's class alone, which then was one that ships with this library.
    """
    kind = _written(type(agent))
    if written == algorithm_name(agent):
        return True
    return written == kind.__name__ and kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def _written(kind: type) -> type:
    """The class as somebody wrote it: Ray plays an actor, such as a trial of Tune, by one derived from it."""
    return getattr(kind, "__ray_actor_class__", kind)


def path(kind: type) -> str:
    """`module:qualname` of a class."""
    return f"{kind.__module__}:{kind.__qualname__}"
