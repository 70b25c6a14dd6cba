"""The embedded Qwen3 as a model family member: the real adapter, the shipped weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unirl_env.models.causal_lm import CausalLM
from unirl_env.models.tiny import qwen3_path

__all__ = ["TinyQwen3"]


class TinyQwen3(CausalLM):
    """`CausalLM` with the embedded model, which adds two-digit numbers in chats."""

    def __init__(self, pretrained: str | Path | None = None, **options: Any):
        super().__init__(str(pretrained or qwen3_path()), **options)
