"""What RLlib's env runner does to `info`, done to ours."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import FakeDenoiseEnv, walk
from gymnasium.wrappers.vector import DictInfoToList

from unirl_env.types import Scores
from unirl_env.wrappers import ArrayInfo, RewardWrapper


def brightness(samples, prompts):
    value = torch.stack([sample.image.mean() for sample in samples])
    return Scores(value, parts={"twice": 2 * value})


def test_info_can_be_taken_apart_by_episode():
    bare = RewardWrapper(FakeDenoiseEnv(steps=(3, 1)), brightness)
    with pytest.raises(AssertionError):
        walk(DictInfoToList(bare))
    env = DictInfoToList(ArrayInfo(RewardWrapper(FakeDenoiseEnv(steps=(3, 1)), brightness)))
    results = walk(env)
    early, late = results[0][4], results[-1][4]
    assert "samples" not in early[0]
    assert early[1]["samples"].image.shape == (3, 4, 4)
    assert early[1]["prompt"].text == "prompt 0"
    assert early[1]["scores"]["value"] == pytest.approx(float(results[0][1][1]))
    assert early[1]["scores"]["twice"] == pytest.approx(2 * early[1]["scores"]["value"])
    assert late[0]["scores"]["valid"]
    assert "scores" not in late[1]


def test_a_flat_environment_has_it():
    env = gym.make_vec(
        "unirl_env:unirl/GaussianMixture-v0",
        2,
        vectorization_mode="vector_entry_point",
        flat=True,
        num_steps=2,
    )
    env.reset(seed=0)
    env.step(np.zeros((2, 2), np.float32))
    *_, info = env.step(np.ones((2, 2), np.float32))
    assert info["samples"].dtype == object
    np.testing.assert_array_equal(info["scores"]["value"], [2.0, 2.0])
