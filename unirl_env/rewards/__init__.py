"""Rewards: callables `(samples, prompts) -> Scores`, and what combines them.

Every name loads its module on first use, so that a scorer's libraries are needed only where it is.
"""

from importlib import import_module
from typing import Any

from unirl_env.registry import Registry

SCORERS = Registry(
    "reward",
    {
        "clip": "unirl_env.rewards.clip:CLIPScore",
        "gate": "unirl_env.rewards.compose:Gate",
        "linear": "unirl_env.rewards.linear:LinearScorer",
        "minimum": "unirl_env.rewards.compose:Minimum",
        "product": "unirl_env.rewards.compose:Product",
        "shapes": "unirl_env.rewards.shapes:ShapesScorer",
        "template": "unirl_env.rewards.shapes:TemplateScorer",
        "weighted_sum": "unirl_env.rewards.compose:WeightedSum",
    },
)

_HOMES = {
    "CLIPScore": "clip",
    "Gate": "compose",
    "LinearScorer": "linear",
    "Minimum": "compose",
    "Product": "compose",
    "ShapesScorer": "shapes",
    "TemplateScorer": "shapes",
    "WeightedSum": "compose",
    "checked_scorer": "scoring",
    "place_scores": "scoring",
    "score_safely": "scoring",
    "scorer_name": "scoring",
}

__all__ = ["SCORERS", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
