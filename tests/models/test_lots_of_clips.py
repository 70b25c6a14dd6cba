"""How many clips go through a decoder together: by the frames that it makes at once, not by all of a clip."""

import pytest
import torch

from unirl_env.models.hunyuan_video15 import HunyuanVideo15Denoiser
from unirl_env.models.ltx import LTXDenoiser
from unirl_env.models.shared.fixed_batches import pictures_at_once
from unirl_env.models.tiny import TinyVideoDenoiser
from unirl_env.models.wan import WanDenoiser


@pytest.mark.parametrize(
    ("count", "sizes", "lots"),
    [
        (8, {}, [8]),
        (9, {}, [8, 8]),
        (2, {"num_frames": 33}, [8]),
        (4, {"height": 64, "width": 64}, [4]),
        (1, {"num_frames": 1}, [8]),
    ],
)
def test_small_clips_are_decoded_eight_at_a_time(count, sizes, lots, monkeypatch):
    model, seen = TinyVideoDenoiser(**sizes), []
    frames, height, width = model.num_frames, model.height, model.width

    def draw(vae, latents):
        seen.append(len(latents))
        return torch.zeros(len(latents), 3, frames, height, width)

    monkeypatch.setattr(model, "_draw", draw)
    clips = model.decode(torch.zeros(count, *model.latent_shape))
    assert seen == lots and len(clips) == count and clips[0].video.shape == (frames, 3, height, width)


def test_clips_of_published_sizes_are_decoded_one_by_one():
    assert WanDenoiser.frames_at_once == 4 and pictures_at_once(480, 832, 4) == 1
    assert LTXDenoiser.frames_at_once is None and HunyuanVideo15Denoiser.frames_at_once is None


def test_a_clip_is_the_same_in_any_lot():
    model = TinyVideoDenoiser()
    latents = torch.randn(10, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    together = model.decode(latents)
    for row in (0, 7, 9):
        (alone,) = model.decode(latents[row : row + 1])
        assert torch.equal(alone.video, together[row].video)
