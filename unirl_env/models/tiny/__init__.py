"""Models small enough to ship: they load in a second, need no download, and learn on two CPU cores."""

from __future__ import annotations

from pathlib import Path

__all__ = ["sd3_path"]


def sd3_path() -> Path:
    """The directory of the embedded Stable Diffusion 3 that draws coloured shapes at 32 x 32."""
    return Path(__file__).parent / "sd3"
