"""What Wan alone has, on a tiny checkpoint."""

import gymnasium as gym
import pytest
import torch
from models import family_checks as checks
from models.family_checks import edited_copy as edited
from models.wan_cases import WAN

from unirl_env.errors import ConfigError, ModelNotFound
from unirl_env.run.preflight import check_all
from unirl_env.train import settings

SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture(scope="module")
def folder(checkpoint):
    return checkpoint(WAN)


def test_agents_of_finished_latents_train_it_without_steps(folder, cluster):
    checks.trains(WAN, folder, "diffusion/wan", "nft")
    checks.trains(
        WAN, folder, "diffusion/wan", "grpo", "agent.estimator=elbo", "agent.options.clip_low_nats=2"
    )


def test_its_levels_are_those_of_the_checkpoints_solver(folder):
    from diffusers import UniPCMultistepScheduler

    solver = UniPCMultistepScheduler.from_pretrained(folder, subfolder="scheduler")
    solver.set_timesteps(5)
    assert torch.equal(WAN.denoiser(folder).sigmas(5), solver.sigmas)


def test_clips_are_not_drawn_where_pictures_are_asked_for(folder):
    model = {"denoiser": "wan", "pretrained": str(folder), **WAN.sizes, **WAN.options}
    both = {"writer": {"language_model": "tiny_enhancer"}, "painter": model}
    with pytest.raises(ConfigError, match="`painter` must make pictures, got WanDenoiser"):
        gym.make("unirl/TinyEnhancerAndSD3-T2I-v0", model_options=both)


def test_a_frame_and_all_frames_are_shown(folder):
    arguments = WAN.arguments(folder)
    one = gym.make(WAN.id, render_mode="rgb_array", **arguments)
    one.reset(seed=1)
    frame = one.render()
    assert frame.dtype == "uint8" and frame.shape == (32, 48, 3)
    assert one.metadata["render_fps"] == 16 and "rgb_array_list" in one.metadata["render_modes"]
    several = gym.make(WAN.id, render_mode="rgb_array_list", **arguments)
    several.reset(seed=1)
    frames = several.render()
    assert len(frames) == 5 and (frames[2] == frame).all()


def test_a_reward_of_pictures_says_how_it_judges_clips(folder):
    cfg = settings("diffusion/wan", [f"model.pretrained={folder}", "reward.train=saturation"])
    told = r"reward of video or latent .*, got one of image; try \{name: over_frames, scorer: saturation\}"
    with pytest.raises(ConfigError, match=told):
        check_all(cfg)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_frames": 8}, "one more than a multiple of 4, got 8; try 5 or 9"),
        ({"height": 40}, "`height` must be a positive multiple of 16, got 40; try 32 or 48"),
        ({"fps": 0}, "`fps` must be positive"),
    ],
)
def test_what_it_cannot_film_is_refused(folder, options, told):
    with pytest.raises(ConfigError, match=told):
        WAN.denoiser(folder, **options)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"use_flow_sigmas": False}, "use_flow_sigmas"),
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting"),
        ({"strange": 1}, "strange"),
    ],
)
def test_settings_of_the_scheduler_are_honoured_or_refused(folder, tmp_path, change, told):
    changed = edited(folder, tmp_path / "changed", SCHEDULER, **change)
    with pytest.raises(ConfigError, match=told):
        WAN.denoiser(changed)


def test_another_familys_checkpoint_is_refused(folder, tmp_path):
    other = edited(folder, tmp_path / "other", "model_index.json", _class_name="WanImageToVideoPipeline")
    with pytest.raises(ModelNotFound, match="WanImageToVideoPipeline"):
        WAN.denoiser(other)
