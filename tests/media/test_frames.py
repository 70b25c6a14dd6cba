"""Frames as files: what is written is what is read, at the speed that was asked for."""

import numpy as np
import pytest
import torch
from PIL import Image, features

from unirl_env.errors import ConfigError, ContractError
from unirl_env.media.frames import clip_frames, evenly, to_frame, write_gif, write_strip, write_webp


def noise(count, height, width):
    return [np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8) for i in range(count)]


def read(path):
    """Frames, and how many milliseconds each is shown."""
    with Image.open(path) as file:
        found, shown = [], []
        for i in range(getattr(file, "n_frames", 1)):
            file.seek(i)
            found.append(np.asarray(file.convert("RGB")))
            shown.append(file.info.get("duration"))
        return found, shown, file.info.get("loop")


def test_a_clip_in_bytes_is_the_clip_in_floats():
    whole = torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8)
    frames = clip_frames(whole)
    assert len(frames) == 5 and frames[0].shape == (4, 6, 3) and frames[0].dtype == np.uint8
    assert np.array_equal(frames[2][1, 3], whole[2, :, 1, 3].numpy())
    assert all(map(np.array_equal, frames, clip_frames(whole.float() / 255)))
    assert np.array_equal(to_frame(whole[0]), frames[0])


@pytest.mark.parametrize("shape", [(3, 4, 4), (5, 1, 4, 4), (0, 3, 4, 4)])
def test_what_is_no_clip_is_refused(shape):
    with pytest.raises(ContractError, match=r"A clip must be \[F, 3, H, W\] with a frame at least, got \["):
        clip_frames(torch.zeros(shape))


def test_a_small_webp_keeps_every_bit_and_plays_for_ever(tmp_path):
    frames = noise(9, 32, 20)
    write_webp(tmp_path / "a.webp", frames, fps=8)
    found, shown, loop = read(tmp_path / "a.webp")
    assert len(found) == 9 and all(map(np.array_equal, found, frames))
    assert shown == [125] * 9 and loop == 0


def test_a_large_webp_is_near(tmp_path):
    y, x = np.mgrid[:40, :300]
    frames = [np.stack([x % 256, 6 * y % 256, np.full_like(x, 9 * i)], -1).astype(np.uint8) for i in range(3)]
    write_webp(tmp_path / "a.webp", frames, fps=16)
    found, shown, _ = read(tmp_path / "a.webp")
    apart = [np.abs(a.astype(int) - b).mean() for a, b in zip(found, frames, strict=True)]
    assert 0 < max(apart) < 6 and sum(shown) == 188


@pytest.mark.parametrize("fps", [8, 12, 16, 24, 23.976, 30])
def test_speeds_do_not_drift(tmp_path, fps):
    write_webp(tmp_path / "a.webp", noise(25, 4, 4), fps)
    assert sum(read(tmp_path / "a.webp")[1]) == pytest.approx(25_000 / fps, abs=1)
    write_gif(tmp_path / "a.gif", noise(25, 4, 4), fps)
    assert sum(read(tmp_path / "a.gif")[1]) == pytest.approx(25_000 / fps, abs=10)


def test_an_animation_may_rest_at_its_end(tmp_path):
    write_webp(tmp_path / "a.webp", noise(3, 4, 4), 4, rest=1.0)
    assert read(tmp_path / "a.webp")[1] == [250, 250, 1250]
    write_gif(tmp_path / "a.gif", noise(3, 4, 4), 4, rest=1.0)
    assert read(tmp_path / "a.gif")[1] == [250, 250, 1250]


def test_a_clip_that_never_moves_is_a_still_picture(tmp_path):
    frames = noise(1, 8, 8) * 9
    write_webp(tmp_path / "a.webp", frames, 8)
    found, _, _ = read(tmp_path / "a.webp")
    assert len(found) == 1 and np.array_equal(found[0], frames[0])


def test_a_long_strip_is_thinned_evenly(tmp_path):
    frames = [np.full((2, 2, 3), i, np.uint8) for i in range(81)]
    write_strip(tmp_path / "a.png", frames, 8, most=5)
    assert read(tmp_path / "a.png")[0][0][0, ::2, 0].tolist() == [0, 20, 40, 60, 80]
    assert evenly("abc", 5) == ["a", "b", "c"]


def test_a_pillow_without_animations_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(ConfigError, match=r"must be built with animated WebP.*reinstall pillow"):
        write_webp(tmp_path / "a.webp", noise(2, 4, 4), 8)
