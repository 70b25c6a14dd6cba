"""Rewards: callables `(samples, prompts) -> Scores`, and what combines them.

Every name loads its module on first use, so that a scorer's libraries are needed only where it is.
"""

from importlib import import_module
from typing import Any

from unirl_env.registry import Registry

SCORERS = Registry(
    "reward",
    {
        "choice": "unirl_env.rewards.choice:ChoiceScorer",
        "clip": "unirl_env.rewards.clip:CLIPScore",
        "exact": "unirl_env.rewards.exact:ExactScorer",
        "format": "unirl_env.rewards.format:FormatScorer",
        "gate": "unirl_env.rewards.compose:Gate",
        "length": "unirl_env.rewards.length:LengthScorer",
        "linear": "unirl_env.rewards.linear:LinearScorer",
        "math": "unirl_env.rewards.math_answer:MathScorer",
        "minimum": "unirl_env.rewards.compose:Minimum",
        "over_pictures": "unirl_env.rewards.over_pictures:OverPictures",
        "overlong": "unirl_env.rewards.overlong:Overlong",
        "pictured": "unirl_env.rewards.pictured:Pictured",
        "plan": "unirl_env.rewards.plan:PlanScorer",
        "product": "unirl_env.rewards.compose:Product",
        "shapes": "unirl_env.rewards.shapes:ShapesScorer",
        "template": "unirl_env.rewards.shapes:TemplateScorer",
        "weighted_sum": "unirl_env.rewards.compose:WeightedSum",
    },
)

_HOMES = {
    "CLIPScore": "clip",
    "ChoiceScorer": "choice",
    "ExactScorer": "exact",
    "FormatScorer": "format",
    "Gate": "compose",
    "LengthScorer": "length",
    "LinearScorer": "linear",
    "MathScorer": "math_answer",
    "Minimum": "compose",
    "OverPictures": "over_pictures",
    "Overlong": "overlong",
    "Pictured": "pictured",
    "PlanScorer": "plan",
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
