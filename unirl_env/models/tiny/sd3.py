"""The embedded Stable Diffusion 3 as a model family member: the real adapter, the shipped weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unirl_env.models.sd3 import SD3Denoiser
from unirl_env.models.tiny import sd3_path

__all__ = ["MAX_TOKENS", "TinySD3Denoiser"]

MAX_TOKENS = 10
"""The longest caption has 8 words; begin and end make 10."""


class TinySD3Denoiser(SD3Denoiser):
    """`SD3Denoiser` with the defaults of the embedded model.

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
        options.setdefault("max_sequence_length", MAX_TOKENS)
        super().__init__(str(pretrained or sd3_path()), **options)
