"""Models small enough to ship: they load in a second, need no download, and learn on two CPU cores.

Each is a member of its family: the real adapter, the shipped weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unirl_env.models.causal_lm import CausalLM
from unirl_env.models.qwen_vl import QwenVL
from unirl_env.models.sd3 import SD3Denoiser
from unirl_env.models.unified_flow.model import UnifiedFlow
from unirl_env.models.wan import WanDenoiser

__all__ = [
    "TinyPromptEnhancer",
    "TinyQwen3",
    "TinyQwenVL",
    "TinySD3Denoiser",
    "TinyUnified",
    "TinyVideoDenoiser",
    "tiny_path",
]

SD3_TOKENS = 10
"""The longest caption has 8 words; begin and end make 10."""
VIDEO_TOKENS = 12
"""A caption has 5 words; the end makes 6. The rest are zeros, which Wan reads, too."""
UNIFIED_TOKENS = 48
"""A picture takes 18, the template 4; the longest request of the shipped sets has 10 words."""


def tiny_path(name: str) -> Path:
    """The directory of an embedded model: `enhancer`, `qwen3`, `qwen_vl`, `sd3`, `unified` or `video`."""
    return Path(__file__).parent / name


class TinyPromptEnhancer(CausalLM):
    """`CausalLM` with the embedded Qwen3 that rewrites requests as captions of the shapes world."""

    def __init__(self, pretrained: str | Path | None = None, **options: Any):
        super().__init__(str(pretrained or tiny_path("enhancer")), **options)


class TinyQwen3(CausalLM):
    """`CausalLM` with the embedded Qwen3 that adds two-digit numbers in chats."""

    def __init__(self, pretrained: str | Path | None = None, **options: Any):
        super().__init__(str(pretrained or tiny_path("qwen3")), **options)


class TinyQwenVL(QwenVL):
    """`QwenVL` with the embedded Qwen3-VL that answers questions about coloured shapes at 32 x 32."""

    def __init__(self, pretrained: str | Path | None = None, **options: Any):
        super().__init__(str(pretrained or tiny_path("qwen_vl")), **options)


class TinySD3Denoiser(SD3Denoiser):
    """`SD3Denoiser` with the embedded Stable Diffusion 3 that draws coloured shapes at 32 x 32.

    Its adapters also reach the feed-forward layers: at this size attention alone has too few weights.
    """

    lora_targets = (
        *SD3Denoiser.lora_targets,
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
    )

    def __init__(self, pretrained: str | Path | None = None, **options: Any):
        options.setdefault("max_sequence_length", SD3_TOKENS)
        super().__init__(str(pretrained or tiny_path("sd3")), **options)


class TinyUnified(UnifiedFlow):
    """`UnifiedFlow` with the embedded model that names a coloured shape and its place and then draws it.

    Its latents are those of the embedded Stable Diffusion 3, whose autoencoder it shares.
    """

    def __init__(self, pretrained: str | Path | None = None, **options: Any):
        options.setdefault("vae", str(tiny_path("sd3")))
        options.setdefault("max_prompt_tokens", UNIFIED_TOKENS)
        super().__init__(str(pretrained or tiny_path("unified")), **options)


class TinyVideoDenoiser(WanDenoiser):
    """`WanDenoiser` with the embedded Wan whose coloured shapes move, 9 frames of 32 x 32.

    Its adapters also reach the feed-forward layers: at this size attention alone has too few weights.
    """

    frames, rate = 9, 8.0
    lora_targets = (*WanDenoiser.lora_targets, "ffn.net.0.proj", "ffn.net.2")

    def __init__(self, pretrained: str | Path | None = None, **options: Any):
        for name, value in (("height", 32), ("width", 32), ("max_sequence_length", VIDEO_TOKENS)):
            options[name] = value if options.get(name) is None else options[name]
        options.setdefault("schedule", "flow")
        super().__init__(str(pretrained or tiny_path("video")), **options)
