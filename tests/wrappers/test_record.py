"""Recordings: what is written, under which name, and how a folder is refused."""

import json
import sys

import numpy as np
import pytest
import torch
from fakes import FakeDenoiseEnv, walk
from PIL import Image

from unirl_env.errors import ConfigError, ContractError, MissingExtra
from unirl_env.media.frames import to_frame, write_mp4
from unirl_env.types import Sample, Scores
from unirl_env.wrappers import RecordMedia, RewardWrapper


def half_fails(samples, prompts):
    value = torch.full((len(samples),), 0.25)
    value[1::2] = torch.nan
    return Scores(value=value, parts={"part": value + 1})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_final_pictures_and_their_pages(tmp_path, backend):
    env = RecordMedia(RewardWrapper(FakeDenoiseEnv(backend=backend), half_fails, "nan"), tmp_path / "a" / "b")
    results = walk(env)
    folder = tmp_path / "a" / "b"
    assert names(folder) == [
        "sample-000000-000.json",
        "sample-000000-000.png",
        "sample-000000-001.json",
        "sample-000000-001.png",
    ]
    picture = np.asarray(Image.open(folder / "sample-000000-001.png"))
    assert np.array_equal(picture, to_frame(results[-1][4]["samples"][1].image))
    page = json.loads((folder / "sample-000000-000.json").read_text())
    seed = int(results[-1][4]["episode_seed"][0])
    assert page == {
        "file": "sample-000000-000.png",
        "round": 0,
        "row": 0,
        "reward": 0.25,
        "text": None,
        "episode_seed": seed,
        "group": 0,
        "prompt": "prompt 0",
        "prompt_id": "p0",
        "negative": "",
        "score": 0.25,
        "valid": True,
        "parts": {"part": 1.25},
    }
    failed = json.loads((folder / "sample-000000-001.json").read_text())
    assert (failed["reward"], failed["score"], failed["valid"]) == (None, None, False)
    assert env.written == 2


def test_the_same_run_writes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        walk(RecordMedia(FakeDenoiseEnv(render_mode="rgb_array"), tmp_path / name, format="gif"))
    assert names(tmp_path / "a") == names(tmp_path / "b") and len(names(tmp_path / "a")) == 4
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("every", [2, lambda n: n % 2 == 0])
def test_only_chosen_rounds_and_rows_are_written(tmp_path, every):
    env = RecordMedia(FakeDenoiseEnv(steps=(1, 1, 1)), tmp_path, every=every, episodes=2, name_prefix="x")
    for _ in range(3):
        walk(env)
    expected = ["x-000000-000", "x-000000-001", "x-000002-000", "x-000002-001"]
    assert [name[:-4] for name in names(tmp_path) if name.endswith("png")] == expected


def test_automatic_resets_begin_new_rounds(tmp_path):
    env = RecordMedia(FakeDenoiseEnv(steps=(1, 2), autoreset="next_step"), tmp_path)
    obs, _ = env.reset(seed=0)
    for _ in range(5):
        env.step(obs["latent"])
    pictures = [name for name in names(tmp_path) if name.endswith("png")]
    assert pictures == [
        f"sample-{r:06d}-{row:03d}.png" for r, row in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    ]


def test_a_strip_shows_every_state_and_the_picture(tmp_path):
    env = FakeDenoiseEnv(steps=(3,), render_mode="rgb_array")
    results = walk(RecordMedia(env, tmp_path, format="strip"))
    strip = np.asarray(Image.open(tmp_path / "sample-000000-000.png"))
    assert strip.shape == (4, 16, 3)
    assert np.array_equal(strip[:, 12:], to_frame(results[-1][4]["samples"][0].image))
    assert not np.array_equal(strip[:, :4], strip[:, 4:8])


def test_a_gif_has_a_frame_per_state(tmp_path):
    walk(RecordMedia(FakeDenoiseEnv(steps=(3,), render_mode="rgb_array"), tmp_path, format="gif"))
    assert Image.open(tmp_path / "sample-000000-000.gif").n_frames == 4


def test_rounds_that_are_not_recorded_are_not_rendered(tmp_path):
    env = FakeDenoiseEnv(steps=(2,), render_mode="rgb_array")
    calls = []
    render = env.render
    env.render = lambda: calls.append(1) or render()
    wrapped = RecordMedia(env, tmp_path, format="gif", every=lambda n: n == 1)
    walk(wrapped)
    assert calls == []
    walk(wrapped)
    assert len(calls) == 2


def test_an_mp4_can_be_read_back(tmp_path):
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("moviepy")
    walk(RecordMedia(FakeDenoiseEnv(steps=(3,), render_mode="rgb_array"), tmp_path, format="mp4"))
    frames = [frame for frame in imageio.get_reader(tmp_path / "sample-000000-000.mp4")]
    assert len(frames) == 4 and frames[0].shape == (4, 4, 3)
    write_mp4(tmp_path / "odd.mp4", [np.zeros((5, 7, 3), np.uint8)] * 2, fps=4)
    assert next(iter(imageio.get_reader(tmp_path / "odd.mp4"))).shape == (6, 8, 3)


class Other(FakeDenoiseEnv):
    """Finishes with whatever sample it is given."""

    def __init__(self, sample, **kwargs):
        super().__init__(steps=(1,), **kwargs)
        self.sample = sample

    def step(self, actions):
        results = super().step(actions)
        self.finished = dict.fromkeys(self.finished, self.sample)
        return results


def test_a_text_has_a_page_alone(tmp_path):
    walk(RecordMedia(Other(Sample(text="vier Käfer")), tmp_path))
    assert names(tmp_path) == ["sample-000000-000.json"]
    page = json.loads((tmp_path / "sample-000000-000.json").read_text("utf-8"))
    assert page["text"] == "vier Käfer" and page["file"] is None


def test_a_text_and_what_was_drawn_of_it_are_recorded_together(tmp_path):
    colours = torch.eye(3)[..., None, None].expand(3, 3, 4, 4)
    sample = Sample(image=colours[0], pictures=colours, text="a red square")
    walk(RecordMedia(Other(sample), tmp_path))
    stem = "sample-000000-000"
    assert names(tmp_path) == [f"{stem}-1.png", f"{stem}-2.png", f"{stem}.json", f"{stem}.png"]
    page = json.loads((tmp_path / f"{stem}.json").read_text("utf-8"))
    assert (page["file"], page["further"]) == (f"{stem}.png", [f"{stem}-1.png", f"{stem}-2.png"])
    assert (page["text"], page["truncated"]) == ("a red square", False)
    found = [Image.open(tmp_path / name).getpixel((0, 0)) for name in (page["file"], *page["further"])]
    assert found == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


class WritesFirst(FakeDenoiseEnv):
    """Its first two steps are those of a text."""

    def _observation(self):
        phase = (self.k >= 2).astype(np.int64)
        return {
            **super()._observation(),
            "phase": torch.from_numpy(phase) if self.backend == "torch" else phase,
        }


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_while_a_text_is_written_there_is_nothing_to_show(tmp_path, backend):
    env = WritesFirst(steps=(5, 1), backend=backend, render_mode="rgb_array")
    walk(RecordMedia(env, tmp_path, format="gif"))
    assert Image.open(tmp_path / "sample-000000-000.gif").n_frames == 3 + 1
    assert Image.open(tmp_path / "sample-000000-001.gif").n_frames == 1


def test_a_video_shows_its_own_frames(tmp_path):
    video = torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    walk(RecordMedia(Other(Sample(video=video), render_mode="rgb_array"), tmp_path, format="strip"))
    assert Image.open(tmp_path / "sample-000000-000.png").size == (30, 6)


def test_an_episode_without_a_sample_breaks_the_contract(tmp_path):
    with pytest.raises(ContractError, match="must hold the sample of an ended episode, got none of row 0"):
        walk(RecordMedia(Other(None), tmp_path))


def test_frames_are_rounded_clamped_and_finite():
    image = torch.zeros(3, 1, 4)
    image[0, 0] = torch.tensor([0.5, 2.0, -1.0, torch.nan])
    assert to_frame(image)[0, :, 0].tolist() == [128, 255, 0, 0]
    with pytest.raises(ContractError, match=r"must be \[3, H, W\], got shape \[1, 2, 2\]"):
        to_frame(torch.zeros(1, 2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "jpg"}, "`format` must be one of"),
        ({"format": "gif"}, "`render_mode` must be 'rgb_array' to record 'gif', got None"),
        ({"every": 0}, "`every` must be an integer of at least 1 or a function, got 0"),
        ({"every": 1.5}, "`every` must be"),
        ({"episodes": "some"}, "`episodes` must be 'all' or an integer"),
        ({"episodes": 0}, "`episodes` must be"),
        ({"name_prefix": "../x"}, "`name_prefix` must be the beginning of a file name"),
        ({"name_prefix": ""}, "`name_prefix` must be"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        RecordMedia(FakeDenoiseEnv(), tmp_path, **arguments)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(
        ConfigError, match=r"`folder` must be a directory that can be written to.*File exists"
    ):
        RecordMedia(FakeDenoiseEnv(), file)
    with pytest.raises(ConfigError, match="Not a directory"):
        RecordMedia(FakeDenoiseEnv(), file / "below")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "touch", refuse)
    with pytest.raises(ConfigError, match="Permission denied"):
        RecordMedia(FakeDenoiseEnv(), tmp_path)


def test_a_folder_with_recordings_is_announced(tmp_path, caplog):
    walk(RecordMedia(FakeDenoiseEnv(), tmp_path))
    assert "recordings already" not in caplog.text
    RecordMedia(FakeDenoiseEnv(), tmp_path)
    assert "holds recordings already" in caplog.text


def test_a_missing_moviepy_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "moviepy", None)
    with pytest.raises(MissingExtra, match=r"moviepy.*unirl-env\[video\]"):
        write_mp4(tmp_path / "x.mp4", [np.zeros((2, 2, 3), np.uint8)], fps=4)
    monkeypatch.setattr("unirl_env.wrappers.record.makes_mp4", lambda: False)
    with pytest.raises(MissingExtra, match=r"unirl-env\[video\]"):
        RecordMedia(FakeDenoiseEnv(render_mode="rgb_array"), tmp_path, format="mp4")
