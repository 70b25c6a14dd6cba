"""Rewards: callables `(samples, prompts) -> Scores`, and what combines them.

Every name loads its module on first use, so that a scorer's libraries are needed only where it is.
"""

from typing import TYPE_CHECKING

from unirl_env.registry import lazily

if TYPE_CHECKING:
    from unirl_env.rewards.asks import require_judgeable
    from unirl_env.rewards.compose import Gate, Minimum, Normalized, Pictured, Product, WeightedSum
    from unirl_env.rewards.external.http_scorer import HTTPScorer
    from unirl_env.rewards.external.judge_scorer import JudgeScorer
    from unirl_env.rewards.learned.aesthetic import AestheticScore
    from unirl_env.rewards.learned.clip import CLIPScore
    from unirl_env.rewards.learned.hpsv2 import HPSv2Score
    from unirl_env.rewards.learned.image_reward import ImageRewardScore
    from unirl_env.rewards.learned.pickscore import PickScore
    from unirl_env.rewards.learned.vqa import VQAScore
    from unirl_env.rewards.linear import LinearScorer
    from unirl_env.rewards.over_several import OverFrames, OverPictures
    from unirl_env.rewards.pictures.geneval import GenEvalScorer
    from unirl_env.rewards.pictures.image_quality import JPEGScorer, SaturationScorer, SharpnessScorer
    from unirl_env.rewards.pictures.ocr import OCRScorer
    from unirl_env.rewards.pictures.shapes_scorers import ShapesScorer, TemplateScorer
    from unirl_env.rewards.points import NearScorer
    from unirl_env.rewards.remote.remote_scorer import RemoteScorer
    from unirl_env.rewards.scorer_names import SCORERS
    from unirl_env.rewards.scoring import checked_scorer, place_scores, score_safely, scorer_name
    from unirl_env.rewards.spec import build_scorer, for_mode, needs_of
    from unirl_env.rewards.texts.choice import ChoiceScorer
    from unirl_env.rewards.texts.exact import ExactScorer
    from unirl_env.rewards.texts.format import FormatScorer
    from unirl_env.rewards.texts.length import LengthScorer
    from unirl_env.rewards.texts.letters import AlphabetScorer, LetterScorer
    from unirl_env.rewards.texts.math_answer import MathScorer
    from unirl_env.rewards.texts.overlong import Overlong
    from unirl_env.rewards.texts.plan import PlanScorer
    from unirl_env.rewards.texts.regex import RegexScorer
    from unirl_env.rewards.videos.consistency import TemporalConsistency
    from unirl_env.rewards.videos.motion import MotionScorer
    from unirl_env.rewards.videos.moving_shapes import MovingShapesScorer
    from unirl_env.rewards.videos.moving_template import MovingTemplateScorer
    from unirl_env.rewards.videos.subject import SubjectConsistency
    from unirl_env.rewards.videos.video_align import VideoAlignScore

__all__ = [
    "SCORERS",
    "AestheticScore",
    "AlphabetScorer",
    "CLIPScore",
    "ChoiceScorer",
    "ExactScorer",
    "FormatScorer",
    "Gate",
    "GenEvalScorer",
    "HPSv2Score",
    "HTTPScorer",
    "ImageRewardScore",
    "JPEGScorer",
    "JudgeScorer",
    "LengthScorer",
    "LetterScorer",
    "LinearScorer",
    "MathScorer",
    "Minimum",
    "MotionScorer",
    "MovingShapesScorer",
    "MovingTemplateScorer",
    "NearScorer",
    "Normalized",
    "OCRScorer",
    "OverFrames",
    "OverPictures",
    "Overlong",
    "PickScore",
    "Pictured",
    "PlanScorer",
    "Product",
    "RegexScorer",
    "RemoteScorer",
    "SaturationScorer",
    "ShapesScorer",
    "SharpnessScorer",
    "SubjectConsistency",
    "TemplateScorer",
    "TemporalConsistency",
    "VQAScore",
    "VideoAlignScore",
    "WeightedSum",
    "build_scorer",
    "checked_scorer",
    "for_mode",
    "needs_of",
    "place_scores",
    "require_judgeable",
    "score_safely",
    "scorer_name",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazily(__name__)
