"""What Gymnasium's and RLlib's machinery does to `info`, done to ours."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers.vector import DictInfoToList
from worlds import world

from unirl_env.rewards.compose import Background
from unirl_env.rewards.scoring import PendingScores
from unirl_env.types import Prompt, Sample, Scores
from unirl_env.wrappers import EpisodeStatistics, RewardWrapper


def brightness(samples, prompts):
    value = torch.stack([sample.image.mean() for sample in samples])
    return Scores(value, parts={"twice": 2 * value, "failed": torch.full_like(value, torch.nan)})


def every_other(samples, prompts):
    value = brightness(samples, prompts).value
    return Scores(value, valid=torch.arange(len(samples)) % 2 == 0)


def finished(env, *, seed=1):
    obs, _ = env.reset(seed=seed)
    for _ in range(3):
        obs, reward, *_, info = env.step(obs["latent"] * 0.5)
    return reward, info


def test_info_can_be_taken_apart_by_episode():
    env = DictInfoToList(RewardWrapper(world(info_objects=False), brightness))
    reward, infos = finished(env)
    for row, info in enumerate(infos):
        assert info["sample"]["image"].shape == (3, 4, 4)
        assert isinstance(info["prompt"], str) and info["prompt"] == info["prompt_id"]
        assert info["scores"]["value"] == pytest.approx(float(reward[row]), abs=0)
        assert info["scores"]["parts"] == {"twice": 2 * info["scores"]["value"]}, (
            "no NaN of a part that failed"
        )
        assert info["scores"]["valid"]
    _, infos = env.reset(seed=1)
    assert all("sample" not in info and "scores" not in info for info in infos)


def test_an_invalid_score_has_no_value():
    _, info = finished(RewardWrapper(world(info_objects=False), every_other, "nan"))
    scores = info["scores"]
    assert scores["valid"].tolist() == scores["_value"].tolist() == [True, False, True, False]
    assert scores["_valid"].all() and not np.isnan(scores["value"]).any() and "parts" not in scores


def test_the_statistics_leave_out_a_return_that_is_not_known():
    _, info = finished(EpisodeStatistics(RewardWrapper(world(info_objects=False), every_other, "nan")))
    assert info["episode"]["_r"].tolist() == [True, False, True, False]
    assert not np.isnan(info["episode"]["r"]).any() and info["episode"]["_l"].all()


def test_scores_on_their_way_are_not_said_but_kept():
    env = RewardWrapper(world(info_objects=False, autoreset_mode="disabled"), Background(brightness))
    _, info = finished(env)
    assert "scores" not in info and isinstance(env.scores, PendingScores)
    assert env.scores.result().valid.all() and env.judged.all()


def test_objects_where_they_are_asked_for():
    _, info = finished(RewardWrapper(world(info_objects=True), brightness))
    assert all(isinstance(prompt, Prompt) for prompt in info["prompt"])
    assert all(isinstance(sample, Sample) for sample in info["samples"])
    assert isinstance(info["scores"], Scores) and "sample" not in info


def test_tensors_of_the_torch_backend():
    _, info = finished(RewardWrapper(world(info_objects=False, array_backend="torch"), brightness))
    assert isinstance(info["sample"]["image"], torch.Tensor) and isinstance(
        info["scores"]["value"], torch.Tensor
    )
    assert info["sample"]["_image"].all() and info["prompt"].dtype == object


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
    np.testing.assert_array_equal(info["sample"]["latent"], np.ones((2, 2)))
    np.testing.assert_array_equal(info["scores"]["value"], [2.0, 2.0])
