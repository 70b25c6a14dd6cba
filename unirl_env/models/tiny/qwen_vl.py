"""The embedded Qwen3-VL as a model family member: the real adapter, the shipped weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unirl_env.models.qwen_vl import QwenVL
from unirl_env.models.tiny import qwen_vl_path

__all__ = ["TinyQwenVL"]


class TinyQwenVL(QwenVL):
    """`QwenVL` with the embedded model, which answers questions about coloured shapes."""

    def __init__(self, pretrained: str | Path | None = None, **options: Any):
        super().__init__(str(pretrained or qwen_vl_path()), **options)
