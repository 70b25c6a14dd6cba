"""Recordings of environments that make clips: their own frames and speed, and nothing rendered for it."""

import json

import numpy as np
import pytest
import torch
from fakes import FakeDenoiseEnv, walk
from PIL import Image

from unirl_env.envs.denoising import DenoiseVectorEnv
from unirl_env.errors import ConfigError
from unirl_env.media.frames import clip_frames
from unirl_env.models.gaussian_mixture import GaussianMixtureDenoiser
from unirl_env.types import Sample
from unirl_env.wrappers import RecordMedia
from unirl_env.wrappers.base import Wrapper

FILE = "sample-000000-000"


def clip(count=9, side=6):
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=draw)


class Films(FakeDenoiseEnv):
    """Every episode ends with the same clip; to render is a mistake."""

    makes, fps = "video", 16.0

    def __init__(self, video, **kwargs):
        super().__init__(steps=(3,), **kwargs)
        self.video = video

    def step(self, actions):
        results = super().step(actions)
        self.finished = {row: Sample(video=self.video) for row in self.finished}
        return results

    def render(self):
        raise AssertionError("a latent was decoded for nothing")


def recorded(folder, video, format, suffix, render_mode="rgb_array"):
    walk(RecordMedia(Wrapper(Films(video, render_mode=render_mode)), folder, format=format))
    return Image.open(folder / f"{FILE}{suffix}")


@pytest.mark.parametrize("render_mode", ["rgb_array", None])
@pytest.mark.parametrize("floats", [False, True])
def test_a_webp_is_the_clip_and_nothing_is_rendered(tmp_path, floats, render_mode):
    video = clip().float() / 255 if floats else clip()
    file = recorded(tmp_path, video, "webp", ".webp", render_mode)
    assert file.n_frames == 9
    for i, frame in enumerate(clip_frames(video)):
        file.seek(i)
        assert np.array_equal(np.asarray(file.convert("RGB")), frame)
        assert file.info["duration"] in (62, 63)  # 16 a second, and no rest at the end
    page = json.loads((tmp_path / f"{FILE}.json").read_text())
    assert (page["file"], page["frames"], page["fps"]) == (f"{FILE}.webp", 9, 16.0)


def test_a_gif_has_the_frames_of_the_clip(tmp_path):
    file = recorded(tmp_path, clip(), "gif", ".gif")
    shown = []
    for i in range(file.n_frames):
        file.seek(i)
        shown.append(file.info["duration"])
    assert len(shown) == 9 and sum(shown) == 560 and max(shown) <= 70


@pytest.mark.parametrize(("format", "count", "most"), [("strip", 9, 9), ("strip", 40, 16), ("png", 40, 5)])
def test_still_formats_show_frames_side_by_side(tmp_path, format, count, most):
    file = np.asarray(recorded(tmp_path, clip(count), format, ".png"))
    assert file.shape == (6, 6 * most, 3)
    frames = clip_frames(clip(count))
    assert np.array_equal(file[:, :6], frames[0]) and np.array_equal(file[:, -6:], frames[-1])


def test_a_movie_plays_at_the_models_speed(tmp_path):
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("moviepy")
    walk(RecordMedia(Films(clip(9, 16)), tmp_path, format="mp4"))
    reader = imageio.get_reader(tmp_path / f"{FILE}.mp4")
    assert reader.get_meta_data()["fps"] == 16 and sum(1 for _ in reader) == 9


def test_without_a_speed_of_its_own_it_is_the_environments(tmp_path):
    env = Films(clip())
    env.fps = None
    walk(RecordMedia(env, tmp_path, format="webp"))
    file = Image.open(tmp_path / f"{FILE}.webp")
    file.load()
    assert file.info["duration"] == 250


def test_pictures_are_still_watched_as_they_come_about(tmp_path):
    env = FakeDenoiseEnv(steps=(3,), render_mode="rgb_array")
    walk(RecordMedia(env, tmp_path, format="webp"))
    assert Image.open(tmp_path / f"{FILE}.webp").n_frames == 4
    with pytest.raises(ConfigError, match="`render_mode` must be 'rgb_array' to record 'webp', got None"):
        RecordMedia(FakeDenoiseEnv(), tmp_path, format="webp")


class Planes(GaussianMixtureDenoiser):
    """Its points `[N, 2]` are the grey levels of the two frames of a clip."""

    makes, fps = "video", 12.0
    decoded = 0

    def decode(self, latents):
        self.decoded += 1
        levels = latents.sigmoid().mul(255).to(torch.uint8)
        return [Sample(video=level[:, None, None, None].expand(-1, 3, 4, 4)) for level in levels]


def test_a_real_environment_of_clips_decodes_once_an_episode(tmp_path):
    model = Planes()
    env = DenoiseVectorEnv(
        model, num_envs=2, num_steps=4, prompts=["a"], autoreset_mode="disabled", info_objects=True
    )
    results = walk(RecordMedia(env, tmp_path, format="webp"))
    assert len(results) == 4 and model.decoded == 1
    for row in range(2):
        file = Image.open(tmp_path / f"sample-000000-{row:03d}.webp")
        file.load()
        assert file.n_frames == 2 and file.info["duration"] == 83
        wanted = clip_frames(env.finished[row].video)[0]
        assert np.array_equal(np.asarray(file.convert("RGB")), wanted)
