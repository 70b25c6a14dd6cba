"""Models small enough to ship: they load in a second, need no download, and learn on two CPU cores."""

from __future__ import annotations

from pathlib import Path

__all__ = ["enhancer_path", "qwen3_path", "qwen_vl_path", "sd3_path", "unified_path"]


def enhancer_path() -> Path:
    """The directory of the embedded Qwen3 that rewrites requests for pictures of shapes."""
    return Path(__file__).parent / "enhancer"


def qwen3_path() -> Path:
    """The directory of the embedded Qwen3 that adds two-digit numbers."""
    return Path(__file__).parent / "qwen3"


def qwen_vl_path() -> Path:
    """The directory of the embedded Qwen3-VL that answers questions about coloured shapes at 32 x 32."""
    return Path(__file__).parent / "qwen_vl"


def sd3_path() -> Path:
    """The directory of the embedded Stable Diffusion 3 that draws coloured shapes at 32 x 32."""
    return Path(__file__).parent / "sd3"


def unified_path() -> Path:
    """The directory of the embedded unified model that plans and draws a coloured shape at 32 x 32."""
    return Path(__file__).parent / "unified"
