"""All wrappers at once, around the real denoising environment."""

import numpy as np
import pytest
import torch
from gymnasium.vector import VectorWrapper

import unirl_env.functional as F
from unirl_env.envs.denoising import DenoiseVectorEnv
from unirl_env.models.denoiser import Denoiser
from unirl_env.types import Sample, Scores
from unirl_env.wrappers import (
    EpisodeStatistics,
    FlattenForPPO,
    PotentialShaping,
    RecordMedia,
    RewardWrapper,
)


class Sketch(Denoiser):
    """Latents that are pictures already."""

    latent_shape = (3, 8, 8)
    lora_targets = ()

    def sigmas(self, num_steps):
        return F.flow_sigmas(num_steps)

    def encode(self, prompts, *, negative=False):
        return {"prompt_embeds": torch.tensor([[[float(len(prompt.text))]] for prompt in prompts])}

    def decode(self, latents):
        return [Sample(image=torch.sigmoid(latent.float())) for latent in latents]

    def network(self):
        raise NotImplementedError

    def velocity(self, network, latent, sigma, context):
        raise NotImplementedError


def brightness(samples, prompts):
    return Scores(value=torch.stack([sample.image.mean() for sample in samples]))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("autoreset", ["disabled", "next_step"])
def test_the_wrappers_stack(backend, autoreset, tmp_path):
    bare = DenoiseVectorEnv(
        Sketch(),
        num_envs=4,
        num_steps=3,
        prompts=["a cat", "a dog"],
        group_size=2,
        array_backend=backend,
        autoreset_mode=autoreset,
        render_mode="rgb_array",
        info_objects=True,
    )
    env: VectorWrapper = PotentialShaping(RewardWrapper(bare, brightness), lambda obs: -obs["sigma"])
    env = EpisodeStatistics(RecordMedia(env, tmp_path, format="strip"))
    env = FlattenForPPO(env, ["latent", "sigma"])
    obs, _ = env.reset(seed=1)
    rounds = 1 if autoreset == "disabled" else 2
    for k in range(4 * rounds - 1):
        obs, reward, terminated, _, info = env.step(obs[:, :-1] * 0.5)
        assert bool(np.asarray(terminated).all()) == (k % 4 == 2)
    assert isinstance(reward, torch.Tensor) == (backend == "torch")
    # The first potential is -1, so the return is the score plus 1.
    assert np.allclose(info["episode"]["r"], np.asarray(info["scores"].value) + 1, atol=1e-6)
    assert np.allclose(
        np.asarray(reward), np.asarray(info["scores"].value) + float(bare.sigmas[2]), atol=1e-6
    )
    statistics = env.env
    assert (statistics.episodes, statistics.steps, statistics.invalid) == (4 * rounds, 12 * rounds, 0)
    assert len(list(tmp_path.glob("*.png"))) == len(list(tmp_path.glob("*.json"))) == 4 * rounds
