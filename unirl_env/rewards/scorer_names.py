"""The names by which configurations call rewards."""

from unirl_env.registry import Registry

__all__ = ["SCORERS"]

SCORERS = Registry(
    "reward",
    {
        "aesthetic": "unirl_env.rewards.learned.aesthetic:AestheticScore",
        "choice": "unirl_env.rewards.texts.choice:ChoiceScorer",
        "clip": "unirl_env.rewards.learned.clip:CLIPScore",
        "exact": "unirl_env.rewards.texts.exact:ExactScorer",
        "format": "unirl_env.rewards.texts.format:FormatScorer",
        "gate": "unirl_env.rewards.compose:Gate",
        "geneval": "unirl_env.rewards.pictures.geneval:GenEvalScorer",
        "hpsv2": "unirl_env.rewards.learned.hpsv2:HPSv2Score",
        "http": "unirl_env.rewards.external.http_scorer:HTTPScorer",
        "image_reward": "unirl_env.rewards.learned.image_reward:ImageRewardScore",
        "jpeg": "unirl_env.rewards.pictures.image_quality:JPEGScorer",
        "judge": "unirl_env.rewards.external.judge_scorer:JudgeScorer",
        "length": "unirl_env.rewards.texts.length:LengthScorer",
        "linear": "unirl_env.rewards.linear:LinearScorer",
        "math": "unirl_env.rewards.texts.math_answer:MathScorer",
        "minimum": "unirl_env.rewards.compose:Minimum",
        "motion": "unirl_env.rewards.videos.video:MotionScorer",
        "normalized": "unirl_env.rewards.compose:Normalized",
        "ocr": "unirl_env.rewards.pictures.ocr:OCRScorer",
        "over_frames": "unirl_env.rewards.over_several:OverFrames",
        "over_pictures": "unirl_env.rewards.over_several:OverPictures",
        "overlong": "unirl_env.rewards.texts.overlong:Overlong",
        "pickscore": "unirl_env.rewards.learned.pickscore:PickScore",
        "pictured": "unirl_env.rewards.compose:Pictured",
        "plan": "unirl_env.rewards.texts.plan:PlanScorer",
        "product": "unirl_env.rewards.compose:Product",
        "regex": "unirl_env.rewards.texts.regex:RegexScorer",
        "remote": "unirl_env.rewards.remote.remote_scorer:RemoteScorer",
        "saturation": "unirl_env.rewards.pictures.image_quality:SaturationScorer",
        "shapes": "unirl_env.rewards.pictures.shapes_scorers:ShapesScorer",
        "sharpness": "unirl_env.rewards.pictures.image_quality:SharpnessScorer",
        "template": "unirl_env.rewards.pictures.shapes_scorers:TemplateScorer",
        "temporal_consistency": "unirl_env.rewards.videos.video:TemporalConsistency",
        "vqa": "unirl_env.rewards.learned.vqa:VQAScore",
        "weighted_sum": "unirl_env.rewards.compose:WeightedSum",
    },
)
