"""Model families: adapters that tell an environment and a policy how a model encodes, denoises, decodes.

What a model of your own must answer, CONTRIBUTING says in a table.
"""

from unirl_env.models.backbone import Backbone, TokenBackbone
from unirl_env.models.denoiser import Denoiser
from unirl_env.models.process import MDP
from unirl_env.models.shared.denoiser_check import check_denoiser
from unirl_env.models.shared.judging import DenoiserReport
from unirl_env.models.shared.language_check import LanguageModelReport, check_language_model
from unirl_env.models.unified import PictureTokens, SharedBackbone, UnifiedModel
from unirl_env.models.words import Encoded, LanguageModel, Words
from unirl_env.registry import Registry

__all__ = [
    "DENOISERS",
    "LANGUAGE_MODELS",
    "MDP",
    "MDPS",
    "UNIFIED_MODELS",
    "Backbone",
    "Denoiser",
    "DenoiserReport",
    "Encoded",
    "LanguageModel",
    "LanguageModelReport",
    "PictureTokens",
    "SharedBackbone",
    "TokenBackbone",
    "UnifiedModel",
    "Words",
    "check_denoiser",
    "check_language_model",
]

DENOISERS = Registry(
    "denoiser",
    {
        "flux1": "unirl_env.models.flux1:Flux1Denoiser",
        "flux2": "unirl_env.models.flux2:Flux2Denoiser",
        "flux2_klein": "unirl_env.models.flux2:Flux2KleinDenoiser",
        "gaussian_mixture": "unirl_env.models.gaussian_mixture:GaussianMixtureDenoiser",
        "hunyuan_video": "unirl_env.models.hunyuan_video:HunyuanVideoDenoiser",
        "hunyuan_video15": "unirl_env.models.hunyuan_video15:HunyuanVideo15Denoiser",
        "hunyuan_video15_i2v": "unirl_env.models.hunyuan_video15_i2v:HunyuanVideo15I2VDenoiser",
        "ltx": "unirl_env.models.ltx:LTXDenoiser",
        "ltx_i2v": "unirl_env.models.ltx_i2v:LTXI2VDenoiser",
        "pipeline": "unirl_env.models.any_pipeline:any_pipeline",
        "pixart": "unirl_env.models.pixart:PixArtDenoiser",
        "qwen_image": "unirl_env.models.qwen_image:QwenImageDenoiser",
        "qwen_image_edit": "unirl_env.models.qwen_image_edit:QwenImageEditDenoiser",
        "sana": "unirl_env.models.sana:SanaDenoiser",
        "sd15": "unirl_env.models.stable_diffusion:SD15Denoiser",
        "sd3": "unirl_env.models.sd3:SD3Denoiser",
        "sdxl": "unirl_env.models.stable_diffusion:SDXLDenoiser",
        "tiny_sd3": "unirl_env.models.tiny:TinySD3Denoiser",
        "tiny_video": "unirl_env.models.tiny:TinyVideoDenoiser",
        "video_pipeline": "unirl_env.models.any_video_pipeline:VideoPipelineDenoiser",
        "wan": "unirl_env.models.wan:WanDenoiser",
        "wan_i2v": "unirl_env.models.wan_i2v:WanI2VDenoiser",
        "z_image": "unirl_env.models.z_image:ZImageDenoiser",
    },
)

LANGUAGE_MODELS = Registry(
    "language model",
    {
        "causal_lm": "unirl_env.models.causal_lm:CausalLM",
        "qwen_vl": "unirl_env.models.qwen_vl:QwenVL",
        "tiny_enhancer": "unirl_env.models.tiny:TinyPromptEnhancer",
        "tiny_qwen3": "unirl_env.models.tiny:TinyQwen3",
        "tiny_qwen_vl": "unirl_env.models.tiny:TinyQwenVL",
    },
)

MDPS = Registry("mdp", {"tabular_tokens": "unirl_env.models.tabular:TabularTokens"})

UNIFIED_MODELS = Registry(
    "unified model",
    {
        "bagel": "unirl_env.models.bagel:Bagel",
        "composed": "unirl_env.models.composed:Composed",
        "hunyuan_image3": "unirl_env.models.hunyuan_image3:HunyuanImage3",
        "janus": "unirl_env.models.janus.model:Janus",
        "tiny_unified": "unirl_env.models.tiny:TinyUnified",
        "unified_flow": "unirl_env.models.unified_flow.model:UnifiedFlow",
    },
)
