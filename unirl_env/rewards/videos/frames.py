"""The frames of a sample's video, checked."""

from __future__ import annotations

from torch import Tensor

from unirl_env.errors import ContractError
from unirl_env.rewards.inputs import require_pixels
from unirl_env.types import Sample

__all__ = ["video_of"]


def video_of(sample: Sample, name: str) -> Tensor:
    """The video `[F, 3, H, W]` of a sample.

    Args:
        sample: What is judged.
        name: The scorer that asks, for the message.

    Raises:
        ContractError: If there is none, it has no frames, or its pixels are no floats in [0, 1].
    """
    video = sample.video
    if video is None or video.ndim != 4 or video.shape[1] != 3 or not video.numel():
        got = None if video is None else list(video.shape)
        raise ContractError(f"`Sample.video` must be [F, 3, H, W] for the reward `{name}`, got {got}.")
    require_pixels(video, "video", name)
    return video
