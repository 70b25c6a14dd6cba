"""The embedded unified model as a model family member: the real adapter, the shipped weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unirl_env.models.tiny import sd3_path, unified_path
from unirl_env.models.unified_flow.model import UnifiedFlow

__all__ = ["TinyUnified"]

MAX_PROMPT_TOKENS = 48
"""A picture takes 18, the template 4; the longest request of the shipped sets has 10 words."""


class TinyUnified(UnifiedFlow):
    """`UnifiedFlow` with the embedded model, which names a coloured shape and its place and then draws it.

    Its latents are those of the embedded Stable Diffusion 3, whose autoencoder it shares.
    """

    def __init__(self, pretrained: str | Path | None = None, **options: Any):
        options.setdefault("vae", str(sd3_path()))
        options.setdefault("max_prompt_tokens", MAX_PROMPT_TOKENS)
        super().__init__(str(pretrained or unified_path()), **options)
