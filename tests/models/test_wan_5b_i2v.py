"""What Wan 2.2 TI2V-5B from a picture alone has, on a tiny checkpoint."""

import gymnasium as gym
import pytest
import torch
from models.family_checks import edited_copy as edited
from models.wan_cases import WAN_5B_I2V as FAMILY
from models.wan_cases import WIDE

from unirl_env.errors import ConfigError, ContractError, ModelNotFound
from unirl_env.functional.sde import HALF_LOG_TWO_PI
from unirl_env.models import check_denoiser
from unirl_env.models.shared.from_picture import FIRST
from unirl_env.policies.actor import Actor


@pytest.fixture(scope="module")
def folder(checkpoint):
    return checkpoint(FAMILY)


def test_a_checkpoint_of_the_picture_pipeline_is_the_same(folder, tmp_path):
    named = edited(folder, tmp_path / "named", "model_index.json", _class_name=FAMILY.pipeline)
    latents = torch.randn(1, *FAMILY.denoiser(folder).latent_shape)
    clips = []
    for place in (folder, named):
        denoiser = FAMILY.denoiser(place)
        clips.append(denoiser.decode(latents, denoiser.encode(FAMILY.prompts[:1]))[0].video)
    assert torch.equal(*clips)


def test_the_pictures_elements_have_no_say(folder):
    """What the network says of them changes neither what is drawn nor how probable it is."""
    denoiser = FAMILY.denoiser(folder)
    assert denoiser.latent_shape == (WIDE, 1, 4, 6)
    actor, obs = Actor(denoiser), FAMILY.observed(denoiser, 1.0)
    assert obs[FIRST].shape == (3, WIDE, 1, 4, 6) and obs[FIRST].dtype == torch.float32
    noise = torch.randn(obs["latent"].shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        step = actor.act(obs, noise)
        forward = denoiser._forward

        def otherwise(*arguments):
            said = forward(*arguments).clone()
            said[:, :, :1] += 7.0
            return said

        denoiser._forward = otherwise
        other = actor.act(obs, noise)
    assert torch.equal(step.latent, other.latent) and torch.equal(step.log_prob, other.log_prob)
    miss = ((step.latent - step.mean) / step.std.view(-1, 1, 1, 1, 1)).square().flatten(1).mean(1)
    assert torch.allclose(step.log_prob, -miss / 2 - step.std.log() - HALF_LOG_TWO_PI, atol=1e-6)


def test_its_clips_begin_with_the_picture(folder):
    """The decoder is causal: the first frame is the picture's latent alone, whatever follows."""
    denoiser = FAMILY.denoiser(folder)
    latents = torch.randn(2, *denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
    context = denoiser.encode(FAMILY.prompts)
    clips = [sample.video for sample in denoiser.decode(latents, {FIRST: context[FIRST][[0, 0]]})]
    assert torch.equal(clips[0][0], clips[1][0]) and not torch.equal(clips[0][1:], clips[1][1:])
    (other,) = denoiser.decode(latents[:1], {FIRST: context[FIRST][1:2]})
    assert not torch.equal(other.video[0], clips[0][0])


def test_environments_decode_with_their_own_pictures(folder):
    env = gym.make_vec(
        FAMILY.id,
        num_envs=2,
        vectorization_mode="vector_entry_point",
        array_backend="torch",
        **{
            **FAMILY.arguments(folder),
            "prompts": list(FAMILY.prompts[:2]),
            "num_steps": 1,
            "info_objects": True,
        },
    )
    obs, _ = env.reset(seed=3)
    _, _, terminated, _, info = env.step(obs["latent"] * 0.5)
    assert terminated.all()
    denoiser = env.unwrapped.denoiser
    for row, sample in enumerate(info["samples"]):
        alone = denoiser.decode(obs["latent"][row : row + 1] * 0.5, {FIRST: obs[FIRST][row : row + 1]})
        assert torch.equal(sample.video, alone[0].video)
    env.close()


def test_without_its_picture_a_clip_is_not_decoded(folder):
    denoiser = FAMILY.denoiser(folder)
    with pytest.raises(ContractError, match=r"`context` must hold `first_latent`.* got None; try that of"):
        denoiser.decode(torch.zeros(1, *denoiser.latent_shape))


def test_a_clip_of_the_picture_alone_is_refused(folder):
    with pytest.raises(ConfigError, match=r"`num_frames` must be more than 1 .* got 1; try 81"):
        FAMILY.denoiser(folder, num_frames=1)


def test_the_judge_says_that_it_is_none_for_it(folder):
    with pytest.raises(ConfigError, match="must step all of its pipeline's latent, got a WanI2VDenoiser"):
        check_denoiser(FAMILY.denoiser(folder))


def test_a_checkpoint_from_text_alone_is_refused(folder, tmp_path):
    other = edited(folder, tmp_path / "other", "model_index.json", expand_timesteps=False)
    with pytest.raises(ModelNotFound, match="is of WanPipeline, not of WanImageToVideoPipeline"):
        FAMILY.denoiser(other)
