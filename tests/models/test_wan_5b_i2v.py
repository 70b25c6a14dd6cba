"""What Wan 2.2 TI2V-5B from a picture alone has, on a tiny checkpoint."""

import gymnasium as gym
import pytest
import torch
from models.family_checks import edited_copy as edited
from models.wan_cases import WAN_5B_I2V as FAMILY

from unirl_env.errors import ModelNotFound
from unirl_env.models.shared.from_picture import FIRST


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


def test_a_checkpoint_from_text_alone_is_refused(folder, tmp_path):
    other = edited(folder, tmp_path / "other", "model_index.json", expand_timesteps=False)
    with pytest.raises(ModelNotFound, match="is of WanPipeline, not of WanImageToVideoPipeline"):
        FAMILY.denoiser(other)
