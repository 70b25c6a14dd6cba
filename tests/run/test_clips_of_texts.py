"""Prompt enhancement before a generator of clips: by the ordinary command, on the embedded models."""

import cluster as one_cluster
import pytest

from unirl_env import train
from unirl_env.errors import ConfigError
from unirl_env.run.preflight import preflight
from unirl_env.run.record.folder import RunFolder
from unirl_env.run.record.logbook import read_rows
from unirl_env.run.record.samples import clip_paths, load_texts, picture_paths
from unirl_env.run.world_setup import frame_rate, world_generator

RECIPE = "pe/tiny_prompt_enhancer"
CLIPS = [
    "model.options.generator={denoiser: tiny_video, num_steps: 2}",
    "prompts=moving",
    "reward=moving_shapes",
]
SMALL = [
    "iterations=1",
    "agent.warmup_iterations=0",
    "rollout.num_prompts=2",
    "rollout.group_size=4",
    "logging.eval_prompts=2",
    "logging.eval_samples=1",
    "logging.tensorboard=false",
    "logging.progress=false",
    "name=clips",
]


def test_it_passes_the_checks_and_pictures_are_refused_by_name():
    cfg = train.settings(RECIPE, CLIPS)
    assert len(preflight(cfg).train) == 60 and frame_rate(world_generator(cfg)) == 8.0
    assert world_generator(train.settings("diffusion/tiny_video")) is None
    with pytest.raises(ConfigError, match=r"`reward\.train` must be a reward of text or tokens or video"):
        preflight(train.settings(RECIPE, [*CLIPS, "reward=pictured_shapes"]))


@pytest.mark.slow
@pytest.mark.ray
def test_one_iteration_trains_the_writer_by_its_clips(tmp_path):
    one_cluster.start()
    words = [f"--config-name={RECIPE}", f"logging.folder={tmp_path}", *CLIPS, *SMALL]
    assert train.main(words) == 0
    folder = RunFolder(tmp_path / "clips")
    (row,) = read_rows(folder.path / "metrics.jsonl")
    assert row["reward"] is not None and row["heldout"] is not None and row["grad_norm"] > 0
    assert row["self_check/ratio"] <= 1e-4 and 0 <= row["no_picture"] < 1
    for iteration in (0, 1):
        place = folder.pictures / f"{iteration:06d}" / "heldout"
        assert clip_paths(place) and not picture_paths(place) and load_texts(place)
    page = folder.report.read_text()
    assert 'class="clip' in page and "clips drawn without exploration noise" in page
