"""Rewards: callables `(samples, prompts) -> Scores`, and what combines them.

Every name loads its module on first use, so that a scorer's libraries are needed only where it is.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "AestheticScore": "learned.aesthetic",
    "CLIPScore": "learned.clip",
    "ChoiceScorer": "texts.choice",
    "ExactScorer": "texts.exact",
    "FormatScorer": "texts.format",
    "Gate": "compose",
    "GenEvalScorer": "pictures.geneval",
    "HPSv2Score": "learned.hpsv2",
    "HTTPScorer": "external.http",
    "ImageRewardScore": "learned.image_reward",
    "JPEGScorer": "pictures.image_quality",
    "JudgeScorer": "external.judge",
    "LengthScorer": "texts.length",
    "LinearScorer": "linear",
    "MathScorer": "texts.math_answer",
    "Minimum": "compose",
    "MotionScorer": "videos.video",
    "Normalized": "normalized",
    "OCRScorer": "pictures.ocr",
    "OverFrames": "videos.over_frames",
    "OverPictures": "over_pictures",
    "Overlong": "texts.overlong",
    "PickScore": "learned.pickscore",
    "Pictured": "pictured",
    "PlanScorer": "texts.plan",
    "Product": "compose",
    "RegexScorer": "texts.regex",
    "RemoteScorer": "remote.scorer",
    "SCORERS": "names",
    "SaturationScorer": "pictures.image_quality",
    "ShapesScorer": "pictures.shapes",
    "SharpnessScorer": "pictures.image_quality",
    "TemplateScorer": "pictures.shapes",
    "TemporalConsistency": "videos.video",
    "VQAScore": "learned.vqa",
    "WeightedSum": "compose",
    "build_scorer": "spec",
    "checked_scorer": "scoring",
    "for_mode": "spec",
    "needs_of": "spec",
    "place_scores": "scoring",
    "require_judgeable": "asks",
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
