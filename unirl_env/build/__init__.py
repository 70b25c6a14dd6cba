"""Assembly: the only place where parts meet. Worlds need no Ray; agents import it when they are built."""

from unirl_env.build.options import check_prompts, check_targets, check_world, model_sources
from unirl_env.build.world import make_env, make_vector_env
from unirl_env.rewards.spec import build_scorer
from unirl_env.world_arguments import pick_device

__all__ = [
    "build_agent",
    "build_scorer",
    "check_agent",
    "check_prompts",
    "check_targets",
    "check_world",
    "chosen",
    "make_env",
    "make_vector_env",
    "model_sources",
    "own_settings",
    "pick_device",
]


def __getattr__(name: str):
    if name in ("build_agent", "check_agent", "chosen", "own_settings"):
        from unirl_env.build import agent

        return getattr(agent, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")


def __dir__() -> list[str]:
    return sorted(__all__)
