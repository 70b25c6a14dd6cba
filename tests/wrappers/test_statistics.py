"""Episode statistics: returns, lengths, failures, throughput."""

import math

import numpy as np
import pytest
import torch
from fakes import FakeDenoiseEnv, walk

from unirl_env.errors import ConfigError
from unirl_env.types import Scores
from unirl_env.wrappers import EpisodeStatistics, RewardWrapper


def second_fails(samples, prompts):
    value = torch.arange(1.0, len(samples) + 1)
    value[1:2] = torch.nan
    return Scores(value=value)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_ended_episodes_are_in_the_info(backend):
    env = EpisodeStatistics(FakeDenoiseEnv(steps=(1, 3), backend=backend, reward=2.0))
    results = walk(env)
    first, second, last = (result[4] for result in results)
    assert first["_episode"].tolist() == [True, False] and last["_episode"].tolist() == [False, True]
    assert "episode" not in second
    assert first["episode"]["r"].tolist() == [2.0, 0.0] and first["episode"]["l"].tolist() == [1, 0]
    assert last["episode"]["r"].tolist() == [0.0, 6.0] and last["episode"]["l"].tolist() == [0, 3]
    assert last["episode"]["t"][1] >= first["episode"]["t"][0] > 0


def test_the_summary_is_over_valid_episodes():
    env = EpisodeStatistics(RewardWrapper(FakeDenoiseEnv(steps=(2, 2, 2)), second_fails, "nan"))
    walk(env)
    summary = env.summary()
    assert summary["return_mean"] == 2.0 and summary["return_std"] == 1.0
    assert summary["length_mean"] == 2.0 and summary["seconds_mean"] > 0
    assert summary["invalid_fraction"] == pytest.approx(1 / 3)
    assert (summary["episodes"], env.invalid, env.steps) == (3, 1, 6)
    assert summary["steps_per_second"] == pytest.approx(2 * summary["episodes_per_second"])


def test_an_invalid_score_counts_even_where_its_reward_was_replaced():
    env = EpisodeStatistics(RewardWrapper(FakeDenoiseEnv(), second_fails, on_invalid=-100.0))
    walk(env)
    assert env.invalid == 1 and env.summary()["return_mean"] == 1.0


def test_the_window_keeps_the_last_episodes():
    env = EpisodeStatistics(FakeDenoiseEnv(steps=(1, 1)), window=2)
    env.env.reward = 5.0
    walk(env)
    env.env.reward = 1.0
    walk(env)
    assert env.summary()["return_mean"] == 1.0 and env.episodes == 4


def test_automatic_resets_start_from_zero():
    env = EpisodeStatistics(FakeDenoiseEnv(steps=(2, 2), autoreset="next_step", reward=1.0))
    obs, _ = env.reset(seed=0)
    infos = [env.step(obs["latent"])[4] for _ in range(6)]
    assert ["episode" in info for info in infos] == [False, True, False, False, True, False]
    assert infos[4]["episode"]["r"].tolist() == [2.0, 2.0] and infos[4]["episode"]["l"].tolist() == [2, 2]
    assert env.steps == 8


def test_nothing_yet_is_nan():
    summary = EpisodeStatistics(FakeDenoiseEnv()).summary()
    assert summary.pop("episodes") == 0
    assert all(math.isnan(value) for value in summary.values())
    assert np.isnan(summary["return_mean"])


def test_a_window_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="`window` must be at least 1, got 0"):
        EpisodeStatistics(FakeDenoiseEnv(), window=0)
