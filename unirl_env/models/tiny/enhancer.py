"""The embedded prompt enhancer as a model family member: the real adapter, the shipped weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unirl_env.models.causal_lm import CausalLM
from unirl_env.models.tiny import enhancer_path

__all__ = ["TinyPromptEnhancer"]


class TinyPromptEnhancer(CausalLM):
    """`CausalLM` with the embedded model, which rewrites requests as captions of the shapes world."""

    def __init__(self, pretrained: str | Path | None = None, **options: Any):
        super().__init__(str(pretrained or enhancer_path()), **options)
