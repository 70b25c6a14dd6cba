"""Rewards: callables `(samples, prompts) -> Scores`, and what combines them.

Every name loads its module on first use, so that a scorer's libraries are needed only where it is.
"""

from unirl_env.registry import lazily

_HOMES = {
    "AestheticScore": "learned.aesthetic",
    "CLIPScore": "learned.clip",
    "ChoiceScorer": "texts.choice",
    "ExactScorer": "texts.exact",
    "FormatScorer": "texts.format",
    "Gate": "compose",
    "GenEvalScorer": "pictures.geneval",
    "HPSv2Score": "learned.hpsv2",
    "HTTPScorer": "external.http_scorer",
    "ImageRewardScore": "learned.image_reward",
    "JPEGScorer": "pictures.image_quality",
    "JudgeScorer": "external.judge_scorer",
    "LengthScorer": "texts.length",
    "LinearScorer": "linear",
    "MathScorer": "texts.math_answer",
    "Minimum": "compose",
    "MotionScorer": "videos.video",
    "Normalized": "compose",
    "OCRScorer": "pictures.ocr",
    "OverFrames": "over_several",
    "OverPictures": "over_several",
    "Overlong": "texts.overlong",
    "PickScore": "learned.pickscore",
    "Pictured": "compose",
    "PlanScorer": "texts.plan",
    "Product": "compose",
    "RegexScorer": "texts.regex",
    "RemoteScorer": "remote.remote_scorer",
    "SCORERS": "scorer_names",
    "SaturationScorer": "pictures.image_quality",
    "ShapesScorer": "pictures.shapes_scorers",
    "SharpnessScorer": "pictures.image_quality",
    "TemplateScorer": "pictures.shapes_scorers",
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

__getattr__, __dir__ = lazily(__name__, _HOMES)
