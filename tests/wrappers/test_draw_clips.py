"""Texts become clips where the frozen generator makes such."""

import json

import pytest
import torch
from gymnasium.vector import AutoresetMode

from unirl_env.envs.contract import env_attr
from unirl_env.errors import ConfigError
from unirl_env.models.tiny import TinyVideoDenoiser
from unirl_env.modes import MODES
from unirl_env.rewards import build_scorer, for_mode
from unirl_env.types import Prompt, Sample
from unirl_env.worlds import make_vector_env
from unirl_env.wrappers import RecordMedia

GENERATOR = {"denoiser": "tiny_video", "num_steps": 2}
ENHANCER = {"language_model": "tiny_enhancer", "generator": GENERATOR}
MOVING = {"prompts": "moving_train", "max_new_tokens": 4, "max_prompt_tokens": 48, "group_size": 2}


def played(env):
    """The samples of one round of episodes, whatever they write."""
    env.reset(seed=0)
    over = torch.zeros(env.num_envs, dtype=torch.bool)
    while not over.all():
        _, _, terminated, truncated, _ = env.step(torch.full((env.num_envs,), 300))
        over |= terminated | truncated
    finished = env_attr(env, "finished")
    return [finished[row] for row in range(env.num_envs)]


def made(**options):
    return make_vector_env(
        2, **ENHANCER, **MOVING, autoreset_mode=AutoresetMode.DISABLED, array_backend="torch", **options
    )


def test_a_text_gets_its_clip_and_keeps_its_words():
    env = made(scorer={"name": "pictured", "scorer": "moving_shapes"})
    first, second = played(env)
    for sample in (first, second):
        assert sample.video.shape == (9, 3, 32, 32) and sample.video.dtype == torch.uint8
        assert sample.image is None and sample.pictures is None and sample.text
    assert not torch.equal(first.video, second.video), "noise of their own"
    again, _ = played(made())
    assert torch.equal(first.video, again.video), "the same seed, the same clip"


def test_a_recording_shows_the_clip_at_the_generators_speed(tmp_path):
    env = RecordMedia(made(), tmp_path, format="gif")
    played(env)
    pages = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert [(page["frames"], page["fps"]) for page in pages] == [(9, 8.0)] * 2
    assert all((tmp_path / page["file"]).exists() and page["text"] for page in pages)


def test_several_clips_of_one_text_are_refused():
    with pytest.raises(ConfigError, match=r"`pictures` .* must be 1 .* as TinyVideoDenoiser does, got 2"):
        make_vector_env(2, **{**ENHANCER, "generator": {**GENERATOR, "pictures": 2}}, **MOVING)


@pytest.mark.parametrize("denoiser", ["tiny_video", "wan", TinyVideoDenoiser])
def test_a_mode_with_such_a_generator_gives_clips_and_no_pictures(denoiser):
    mode, arguments = MODES.get("pe"), {**ENHANCER, "generator": {"denoiser": denoiser}}
    assert mode.given(arguments) == {"text": True, "tokens": True, "video": False}
    assert "image" in mode.given({**ENHANCER, "generator": {"denoiser": "tiny_sd3"}})
    assert mode.given({"language_model": "tiny_enhancer"}) == mode.gives
    paid = for_mode("moving_shapes", mode, arguments=arguments)
    assert paid == {"name": "pictured", "scorer": "moving_shapes"}
    assert for_mode(paid, mode, arguments=arguments) == paid
    with pytest.raises(ConfigError, match=r"must be a reward of text or tokens or video.*over_frames"):
        for_mode("shapes", mode, arguments=arguments)


def test_a_text_without_a_clip_earns_what_pictured_says():
    scorer = build_scorer({"name": "pictured", "scorer": "motion", "otherwise": -1.0})
    clip = torch.randint(0, 255, (9, 3, 32, 32), dtype=torch.uint8)
    broken = torch.full((9, 3, 32, 32), torch.nan)
    samples = [Sample(text="a", video=clip), Sample(text=""), Sample(text="b", video=broken)]
    scores = scorer(samples, [Prompt("x")] * 3)
    assert scores.value[1] == -1.0 and scores.valid.tolist() == [True, True, False]
    assert scores.parts["pictured"].tolist() == [1.0, 0.0, 1.0]
