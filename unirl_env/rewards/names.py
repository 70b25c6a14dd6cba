"""The names by which configurations call rewards."""

from unirl_env.registry import Registry

__all__ = ["SCORERS"]

SCORERS = Registry(
    "reward",
    {
        "aesthetic": "unirl_env.rewards.aesthetic:AestheticScore",
        "choice": "unirl_env.rewards.choice:ChoiceScorer",
        "clip": "unirl_env.rewards.clip:CLIPScore",
        "exact": "unirl_env.rewards.exact:ExactScorer",
        "format": "unirl_env.rewards.format:FormatScorer",
        "gate": "unirl_env.rewards.compose:Gate",
        "geneval": "unirl_env.rewards.geneval:GenEvalScorer",
        "hpsv2": "unirl_env.rewards.hpsv2:HPSv2Score",
        "http": "unirl_env.rewards.http:HTTPScorer",
        "image_reward": "unirl_env.rewards.image_reward:ImageRewardScore",
        "jpeg": "unirl_env.rewards.image_quality:JPEGScorer",
        "judge": "unirl_env.rewards.judge:JudgeScorer",
        "length": "unirl_env.rewards.length:LengthScorer",
        "linear": "unirl_env.rewards.linear:LinearScorer",
        "math": "unirl_env.rewards.math_answer:MathScorer",
        "minimum": "unirl_env.rewards.compose:Minimum",
        "motion": "unirl_env.rewards.video:MotionScorer",
        "normalized": "unirl_env.rewards.normalized:Normalized",
        "ocr": "unirl_env.rewards.ocr:OCRScorer",
        "over_frames": "unirl_env.rewards.over_frames:OverFrames",
        "over_pictures": "unirl_env.rewards.over_pictures:OverPictures",
        "overlong": "unirl_env.rewards.overlong:Overlong",
        "pickscore": "unirl_env.rewards.pickscore:PickScore",
        "pictured": "unirl_env.rewards.pictured:Pictured",
        "plan": "unirl_env.rewards.plan:PlanScorer",
        "product": "unirl_env.rewards.compose:Product",
        "regex": "unirl_env.rewards.regex:RegexScorer",
        "remote": "unirl_env.rewards.remote:RemoteScorer",
        "saturation": "unirl_env.rewards.image_quality:SaturationScorer",
        "shapes": "unirl_env.rewards.shapes:ShapesScorer",
        "sharpness": "unirl_env.rewards.image_quality:SharpnessScorer",
        "template": "unirl_env.rewards.shapes:TemplateScorer",
        "temporal_consistency": "unirl_env.rewards.video:TemporalConsistency",
        "vqa": "unirl_env.rewards.vqa:VQAScore",
        "weighted_sum": "unirl_env.rewards.compose:WeightedSum",
    },
)
