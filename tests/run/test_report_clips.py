"""Clips in a report: they play in the page, stand still on paper, and weigh little."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from door_fakes import FakeAgent, small_config
from PIL import Image
from rich.console import Console
from test_report import parse

from unirl_env.episode import EpisodeBatch
from unirl_env.models.gaussian_mixture import GaussianMixtureDenoiser
from unirl_env.run.agent_setup import Parts
from unirl_env.run.comparison import Options, compare
from unirl_env.run.launch import launch
from unirl_env.run.record.folder import RunFolder
from unirl_env.run.record.samples import clip_paths, save_samples
from unirl_env.run.report.cards import drawn, gallery
from unirl_env.run.report.shown import FRAMES, SIDE, clip_uris, shown
from unirl_env.run.world_setup import frame_rate, world_model
from unirl_env.types import Prompt, Sample, Scores

CLIP = re.compile(r'<img class="clip pixels" src="(data:image/webp;base64,[^"]+)" alt="" loading="lazy">')
STILL = re.compile(r'<img class="still pixels" src="(data:image/webp;base64,[^"]+)" alt="">')


def moving(count, side=16, height=None):
    """A white bar that goes down, a row of pixels or more a frame; uint8 `[F, 3, H, W]`."""
    video = torch.zeros(count, 3, height or side, side, dtype=torch.uint8)
    for i in range(count):
        video[i, :, i * (height or side) // count] = 255
    return video


class Director(FakeAgent):
    """Makes clips."""

    def rollout_eval(self, prompts, *, samples_per_prompt, seed, base=False, **options):
        rows = [prompt for prompt in prompts for _ in range(samples_per_prompt)]
        return EpisodeBatch(
            phases={},
            scores=Scores(torch.full((len(rows),), 0.25 if base else 0.5)),
            group=torch.arange(len(prompts)).repeat_interleave(samples_per_prompt),
            prompts=tuple(rows),
            episode_seed=torch.arange(len(rows)),
            samples=tuple(Sample(video=moving(9)) for _ in rows),
        )


def build(cfg):
    return Parts(Director(cfg.seed), None, {"model": "fake"}, fps=16.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    launch(small_config(folder, logging__eval_every=2), Console(file=io.StringIO()), ["python"], build)
    return RunFolder(folder / "fake")


def opened(uri):
    kind, _, body = uri.partition(";base64,")
    return kind, Image.open(io.BytesIO(base64.b64decode(body)))


def test_clips_play_in_the_page(run):
    text = run.report.read_text(encoding="utf-8")
    assert all(link.startswith("data:image/webp") for link in parse(text).links)
    gallery, film = text.split("One seed over the run, training prompts")
    # Two prompts of two samples, before and after, and each prompt's first one at four iterations.
    assert len(CLIP.findall(gallery)) == len(STILL.findall(gallery)) == 2 * 2 * 2
    assert len(CLIP.findall(film.partition("<h3>Held-out")[0])) == 2 * 4
    _, clip = opened(CLIP.search(text)[1])
    clip.seek(8)
    clip.load()
    assert clip.n_frames == 9 and clip.size == (16, 16) and clip.info["loop"] == 0
    assert clip.info["timestamp"] + clip.info["duration"] == round(9000 / 16)
    assert "Clips play with at most 16 frames of at most 128 pixels a side" in text
    assert text.count("<script>") == 1


def test_paper_and_calm_people_get_a_strip(run):
    text = run.report.read_text(encoding="utf-8")
    assert "img.still { display: none; }" in text
    rule = "@media print, (prefers-reduced-motion: reduce) { img.clip { display: none; } img.still"
    assert f"{rule} {{ display: block; }} }}" in text
    _, strip = opened(STILL.search(text)[1])
    assert strip.size == (16, 5 * 16 + 4 * 2)
    pixels = np.asarray(strip.convert("RGBA")).astype(int)
    bars = [pixels[18 * k : 18 * k + 16, :, :3].mean((1, 2)).argmax() for k in range(5)]
    assert bars == [i * 16 // 9 for i in (0, 2, 4, 6, 8)]
    assert (pixels[16:18, :, 3] == 0).all()


def test_old_clips_are_thinned_and_the_last_ones_whole(run):
    left = [len(clip_paths(run.pictures / f"{iteration:06d}" / "train")) for iteration in (0, 2, 4, 6)]
    assert left == [4, 2, 2, 4]


def test_large_and_long_clips_become_small_and_short(tmp_path):
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(40, 3, 10, 20, generator=draw)
    video = torch.nn.functional.interpolate(coarse, scale_factor=20, mode="bilinear")
    save_samples(tmp_path, [Sample(video=video)], 1, fps=20)
    uri, strip, small = clip_uris(tmp_path / "000-0.webp")
    kind, clip = opened(uri)
    assert kind == "data:image/webp" and not small
    assert clip.n_frames == FRAMES and clip.size == (SIDE, SIDE // 2)
    clip.seek(FRAMES - 1)
    clip.load()
    assert clip.info["timestamp"] + clip.info["duration"] == 2000
    assert opened(strip)[1].size == (SIDE, 5 * SIDE // 2 + 4 * 2)
    assert len(uri) + len(strip) < 100_000 < (tmp_path / "000-0.webp").stat().st_size
    for largest, width in ((320, SIDE), (160, 80)):
        found = re.search('class="clip" src="([^"]+)"', shown(tmp_path / "000-0.webp", largest))[1]
        assert opened(found)[1].size == (width, width // 2)


def test_a_frozen_clip_is_seen_to_be_frozen(tmp_path):
    save_samples(tmp_path, [Sample(video=moving(1).expand(9, -1, -1, -1))], 1)
    clip, strip, small = clip_uris(tmp_path / "000-0.webp")
    assert small and getattr(opened(clip)[1], "n_frames", 1) == 1
    assert opened(strip)[1].size == (16, 5 * 16 + 4 * 2)


def test_a_clip_stands_under_the_picture_that_it_begins_with(tmp_path):
    first = torch.ones(3, 8, 8)
    row = {"prompts": ["p"], "samples": 1, "values": {"reward": [1.0]}}
    columns = {name: (tmp_path / name, row) for name in ("before", "after")}
    for folder, _ in columns.values():
        save_samples(folder, [Sample(video=moving(9))], 1, [Prompt("p", images=(first,))])
    found = gallery(columns)
    parse(found)
    assert found.count('<div class="seen"><img class="pixels"') == 1 and len(CLIP.findall(found)) == 2


def test_a_clip_that_was_made_of_a_text_stands_beside_it(tmp_path):
    row = {"prompts": ["p"], "samples": 1, "values": {"reward": [1.0]}}
    save_samples(tmp_path, [Sample(video=moving(9), text="a plan")], 1, [Prompt("p")])
    found = drawn({"after": (tmp_path, row)})
    parse(found)
    assert len(CLIP.findall(found)) == 1 and "a plan" in found and "no picture" not in found


def asked(run, out):
    console = Console(file=io.StringIO(), width=200)
    compare(str(run.path), Options(out=out), console, build)
    return console.file.getvalue(), sorted(path.name for path in (out / "pictures/train/after").iterdir())


def test_a_comparison_has_movies_where_they_can_be_written(run, tmp_path, monkeypatch):
    pytest.importorskip("moviepy")
    said, names = asked(run, tmp_path)
    assert names == [f"00{p}-{n}.{kind}" for p in (0, 1) for n in (0, 1) for kind in ("mp4", "webp")]
    assert "unirl-env[video]" not in said
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert len(CLIP.findall(text)) == 2 * 2 * 2 * 2 and "Clips play with" in text
    monkeypatch.setattr("unirl_env.run.comparison.makes_mp4", lambda: False)
    said, names = asked(run, tmp_path)
    assert names == ["000-0.webp", "000-1.webp", "001-0.webp", "001-1.webp"]
    assert "Clips are written as animated WebP alone" in said and "unirl-env[video]" in said


def test_clips_of_a_run_have_the_models_speed(tmp_path, monkeypatch):
    cfg = small_config(tmp_path, model__env="unirl/GaussianMixture-v0")
    assert frame_rate(world_model(cfg)) is None
    monkeypatch.setattr(GaussianMixtureDenoiser, "fps", 24.0, raising=False)
    assert frame_rate(world_model(cfg)) == 24.0
