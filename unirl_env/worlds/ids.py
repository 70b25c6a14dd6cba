"""The environment ids. Entry points are strings, so that registering them imports nothing."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from unirl_env.worlds.registration import announce

ENHANCE = (
    "You rewrite what a user wants to see as a prompt for an image generator. Keep everything that the user "
    "asks for: every object, number, colour, place, lettering and style. Add what makes the picture "
    "concrete: composition, light, material, viewpoint. Answer with the enhanced prompt alone, in one "
    "paragraph of at most 80 words."
)
"""What a prompt enhancer is told."""

HUNYUAN_VIDEO15 = "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p"
"""Where its checkpoints are in diffusers' layout."""

IDS: dict[str, dict[str, Any]] = {
    "unirl/SD3-T2I-v0": {
        "denoiser": "sd3",
        "pretrained": "stabilityai/stable-diffusion-3.5-medium",
        "height": 512,
        "width": 512,
        "num_steps": 10,
        "prompts": "scenes_train",
        "scorer": "clip",
    },
    **{
        name: {
            "denoiser": denoiser,
            "pretrained": pretrained,
            "height": side,
            "width": side,
            "num_steps": num_steps,
            "prompts": "scenes_train",
            "scorer": "clip",
        }
        for name, denoiser, pretrained, side, num_steps in (
            ("unirl/Flux1-T2I-v0", "flux1", "black-forest-labs/FLUX.1-dev", 512, 10),
            ("unirl/Flux2-T2I-v0", "flux2", "black-forest-labs/FLUX.2-dev", 512, 10),
            ("unirl/Flux2Klein-T2I-v0", "flux2_klein", "black-forest-labs/FLUX.2-klein-base-4B", 512, 10),
            ("unirl/QwenImage-T2I-v0", "qwen_image", "Qwen/Qwen-Image", 512, 10),
            ("unirl/ZImage-T2I-v0", "z_image", "Tongyi-MAI/Z-Image", 512, 10),
            ("unirl/Sana-T2I-v0", "sana", "Efficient-Large-Model/Sana_1600M_512px_diffusers", 512, 10),
            ("unirl/PixArt-T2I-v0", "pixart", "PixArt-alpha/PixArt-Sigma-XL-2-512-MS", 512, 10),
            ("unirl/SD15-T2I-v0", "sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5", 512, 50),
            ("unirl/SDXL-T2I-v0", "sdxl", "stabilityai/stable-diffusion-xl-base-1.0", 1024, 20),
        )
    },
    "unirl/QwenImage-Edit-v0": {
        "denoiser": "qwen_image_edit",
        "pretrained": "Qwen/Qwen-Image-Edit",
        "num_steps": 10,
        "prompts": "unified_edits_train",
        "scorer": "clip",
    },
    **{
        name: {
            "denoiser": denoiser,
            "pretrained": pretrained,
            "height": height,
            "width": width,
            "num_frames": num_frames,
            "num_steps": 10,
            # A picture to begin with is what edits bring.
            "prompts": "unified_edits_train" if "I2V" in name else "scenes_train",
            "scorer": {"name": "over_frames", "scorer": "clip"},
        }
        for name, denoiser, pretrained, height, width, num_frames in (
            ("unirl/Wan-T2V-v0", "wan", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 480, 832, 81),
            ("unirl/Wan-I2V-v0", "wan_i2v", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", 480, 832, 81),
            (
                "unirl/HunyuanVideo-T2V-v0",
                "hunyuan_video",
                "hunyuanvideo-community/HunyuanVideo",
                544,
                960,
                129,
            ),
            ("unirl/HunyuanVideo15-T2V-v0", "hunyuan_video15", f"{HUNYUAN_VIDEO15}_t2v", 480, 848, 121),
            ("unirl/HunyuanVideo15-I2V-v0", "hunyuan_video15_i2v", f"{HUNYUAN_VIDEO15}_i2v", 480, 848, 121),
            ("unirl/LTX-T2V-v0", "ltx", "Lightricks/LTX-Video", 480, 704, 161),
            ("unirl/LTX-I2V-v0", "ltx_i2v", "Lightricks/LTX-Video", 480, 704, 161),
        )
    },
    "unirl/Diffusers-T2I-v0": {
        "denoiser": "pipeline",
        "num_steps": 10,
        "prompts": "scenes_train",
        "scorer": "clip",
    },
    "unirl/Diffusers-T2V-v0": {
        "denoiser": "video_pipeline",
        "num_steps": 10,
        "prompts": "scenes_train",
        "scorer": {"name": "over_frames", "scorer": "clip"},
    },
    "unirl/TinySD3-T2I-v0": {
        "denoiser": "tiny_sd3",
        "num_steps": 8,
        "prompts": "shapes_train",
        "scorer": "shapes",
    },
    "unirl/TinyVideo-T2V-v0": {
        "denoiser": "tiny_video",
        "num_steps": 8,
        "prompts": "moving_train",
        "scorer": "moving_shapes",
    },
    "unirl/Qwen3-Math-v0": {
        "language_model": "causal_lm",
        "pretrained": "Qwen/Qwen3-4B-Base",
        "max_new_tokens": 2048,
        "max_prompt_tokens": 512,
        "prompts": "math_train",
        "scorer": "math",
    },
    "unirl/QwenVL-VQA-v0": {
        "language_model": "qwen_vl",
        "pretrained": "Qwen/Qwen2.5-VL-3B-Instruct",
        "max_new_tokens": 256,
        "max_prompt_tokens": 1024,
        "max_pixels": 512 * 512,
        "prompts": "shapes_vqa_train",
        "scorer": "exact",
    },
    "unirl/TinyQwen3-Math-v0": {
        "language_model": "tiny_qwen3",
        "max_new_tokens": 8,
        "max_prompt_tokens": 32,
        "prompts": "sums_train",
        "scorer": "exact",
    },
    "unirl/PromptEnhancer-T2I-v0": {
        "language_model": "causal_lm",
        "pretrained": "Qwen/Qwen3-4B-Instruct-2507",
        "system": ENHANCE,
        "max_new_tokens": 256,
        "max_prompt_tokens": 512,
        "generator": {
            "denoiser": "sd3",
            "pretrained": "stabilityai/stable-diffusion-3.5-medium",
            "height": 512,
            "width": 512,
            "dtype": "bfloat16",
            "num_steps": 20,
            "guidance": 4.5,
            "rows": 4,
        },
        "prompts": "scenes_train",
        "scorer": {"name": "pictured", "scorer": "clip"},
    },
    "unirl/TinyPromptEnhancer-T2I-v0": {
        "language_model": "tiny_enhancer",
        "max_new_tokens": 16,
        "max_prompt_tokens": 32,
        "generator": {"denoiser": "tiny_sd3", "num_steps": 4, "guidance": 3.0, "context_cache": 1024},
        "prompts": "requests_train",
        "scorer": {"name": "pictured", "scorer": "shapes"},
    },
    "unirl/EnhancerAndSD3-T2I-v0": {
        "unified_model": "composed",
        "model_options": {
            "writer": {
                "language_model": "causal_lm",
                "pretrained": "Qwen/Qwen3-4B-Instruct-2507",
                "system": ENHANCE,
            },
            "painter": {
                "denoiser": "sd3",
                "pretrained": "stabilityai/stable-diffusion-3.5-medium",
                "height": 512,
                "width": 512,
            },
        },
        "max_new_tokens": 256,
        "max_prompt_tokens": 512,
        "num_steps": 10,
        "prompts": "scenes_train",
        "scorer": {"name": "pictured", "scorer": "clip"},
    },
    "unirl/TinyEnhancerAndSD3-T2I-v0": {
        "unified_model": "composed",
        "model_options": {
            "writer": {"language_model": "tiny_enhancer"},
            "painter": {"denoiser": "tiny_sd3"},
        },
        "max_new_tokens": 16,
        "max_prompt_tokens": 32,
        "num_steps": 8,
        "prompts": "requests_train",
        "scorer": {"name": "pictured", "scorer": "shapes"},
    },
    "unirl/TinyQwenVL-VQA-v0": {
        "language_model": "tiny_qwen_vl",
        "max_new_tokens": 8,
        "max_prompt_tokens": 96,
        "prompts": "shapes_vqa_train",
        "scorer": "exact",
    },
    "unirl/HunyuanImage3-T2I-v0": {
        "unified_model": "hunyuan_image3",
        "pretrained": "tencent/HunyuanImage-3.0-Instruct",
        "height": 1024,
        "width": 1024,
        "dtype": "bfloat16",
        "max_new_tokens": 1024,
        "max_prompt_tokens": 1280,
        "num_steps": 10,
        "model_options": {"task": "recaption", "system": "en_recaption", "max_prompt_tokens": 1280},
        "prompts": "scenes_train",
        "scorer": {"name": "pictured", "scorer": "clip"},
    },
    "unirl/Bagel-T2I-v0": {
        "unified_model": "bagel",
        "pretrained": "ByteDance-Seed/BAGEL-7B-MoT",
        "height": 512,
        "width": 512,
        "dtype": "bfloat16",
        "thinking": True,
        "max_new_tokens": 512,
        "max_prompt_tokens": 512,
        "num_steps": 15,
        "prompts": "scenes_train",
        "scorer": {"name": "pictured", "scorer": "clip"},
    },
    "unirl/Bagel-Edit-v0": {
        "unified_model": "bagel",
        "pretrained": "ByteDance-Seed/BAGEL-7B-MoT",
        "height": 512,
        "width": 512,
        "dtype": "bfloat16",
        "max_images": 1,
        "edits": True,
        "max_new_tokens": 0,
        "max_prompt_tokens": 2944,
        "num_steps": 15,
        "prompts": "unified_edits_train",
        "scorer": {"name": "pictured", "scorer": "clip"},
    },
    "unirl/Janus-T2I-v0": {
        "unified_model": "janus",
        "pretrained": "deepseek-community/Janus-Pro-1B",
        "max_new_tokens": 0,
        "max_prompt_tokens": 256,
        "prompts": "scenes_train",
        "scorer": {"name": "pictured", "scorer": "clip"},
    },
    "unirl/TinyUnified-T2I-v0": {
        "unified_model": "tiny_unified",
        "max_new_tokens": 8,
        "max_prompt_tokens": 48,
        "num_steps": 8,
        "prompts": "unified_train",
        "scorer": {"name": "pictured", "scorer": "shapes"},
    },
    "unirl/TinyUnified-Edit-v0": {
        "unified_model": "tiny_unified",
        "edits": True,
        "max_new_tokens": 8,
        "max_prompt_tokens": 48,
        "num_steps": 8,
        "prompts": "unified_edits_train",
        "scorer": {"name": "pictured", "scorer": "shapes"},
    },
    "unirl/GaussianMixture-v0": {
        "denoiser": "gaussian_mixture",
        "num_steps": 10,
        "prompts": ["a sample"],
        "scorer": "linear",
    },
    "unirl/Line-v0": {
        "denoiser": "gaussian_mixture",
        "model_options": {"means": [[-1.0], [1.0]], "stds": 0.4, "weights": [0.6, 0.4]},
        "num_steps": 16,
        "prompts": ["a sample"],
        "scorer": "linear",
    },
    "unirl/TabularTokens-v0": {
        "mdp": "tabular_tokens",
        "prompts": ["A", "B", "C", "D"],
        "scorer": "alphabet",
    },
}
"""Id to the keyword arguments of its entry points."""


def register_ids() -> None:
    """Register every id with Gymnasium, and with RLlib as soon as that is there, once."""
    for name, arguments in IDS.items():
        if name not in gym.registry:
            announce(name, arguments, home=__name__.partition(".")[0])
