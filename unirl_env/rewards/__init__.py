"""Rewards: callables `(samples, prompts) -> Scores`, and what combines them.

Every name loads its module on first use, so that a scorer's libraries are needed only where it is.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "AestheticScore": "aesthetic",
    "CLIPScore": "clip",
    "ChoiceScorer": "choice",
    "ExactScorer": "exact",
    "FormatScorer": "format",
    "Gate": "compose",
    "GenEvalScorer": "geneval",
    "HPSv2Score": "hpsv2",
    "HTTPScorer": "http",
    "ImageRewardScore": "image_reward",
    "JPEGScorer": "image_quality",
    "JudgeScorer": "judge",
    "LengthScorer": "length",
    "LinearScorer": "linear",
    "MathScorer": "math_answer",
    "Minimum": "compose",
    "MotionScorer": "video",
    "Normalized": "normalized",
    "OCRScorer": "ocr",
    "OverFrames": "over_frames",
    "OverPictures": "over_pictures",
    "Overlong": "overlong",
    "PickScore": "pickscore",
    "Pictured": "pictured",
    "PlanScorer": "plan",
    "Product": "compose",
    "RegexScorer": "regex",
    "RemoteScorer": "remote",
    "SCORERS": "names",
    "SaturationScorer": "image_quality",
    "ShapesScorer": "shapes",
    "SharpnessScorer": "image_quality",
    "TemplateScorer": "shapes",
    "TemporalConsistency": "video",
    "VQAScore": "vqa",
    "WeightedSum": "compose",
    "build_scorer": "spec",
    "checked_scorer": "scoring",
    "for_mode": "spec",
    "needs_of": "spec",
    "place_scores": "scoring",
    "score_safely": "scoring",
    "scorer_name": "scoring",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
