"""The reward wrapper: rewards, scores and the counted failures."""

import math
import threading

import numpy as np
import pytest
import torch
from fakes import FakeDenoiseEnv, walk

from unirl_env.errors import ConfigError, ContractError, ScorerError
from unirl_env.rewards import WeightedSum
from unirl_env.rewards.compose import Background
from unirl_env.types import Scores
from unirl_env.wrappers.reward import RewardWrapper, leave_invalid
from unirl_env.wrappers.statistics import EpisodeStatistics


def brightness(samples, prompts):
    assert len(samples) == len(prompts)
    value = torch.stack([sample.image.mean() for sample in samples])
    return Scores(value=value, parts={"red": torch.stack([sample.image[0].mean() for sample in samples])})


def second_fails(samples, prompts):
    value = torch.ones(len(samples))
    value[1] = torch.nan
    return Scores(value=value)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_the_reward_is_zero_until_the_last_step_and_then_the_score(backend):
    env = RewardWrapper(FakeDenoiseEnv(steps=(3, 3), backend=backend), brightness)
    results = walk(env)
    for _, reward, _, _, info in results[:-1]:
        assert np.asarray(reward).tolist() == [0.0, 0.0] and "scores" not in info
    _, reward, _, _, info = results[-1]
    expected = torch.stack([sample.image.mean() for sample in info["samples"]])
    assert isinstance(reward, torch.Tensor) == (backend == "torch")
    assert str(reward.dtype).endswith("float32")
    assert torch.equal(torch.as_tensor(reward), expected)
    assert torch.equal(info["scores"].value, expected) and info["scores"].valid.all()
    assert "red" in info["scores"].parts and info["_scores"].all()
    assert (env.scored, env.unscored) == (2, 0)


def test_only_finished_episodes_are_scored():
    sizes = []

    def sized(samples, prompts):
        sizes.append([prompt.id for prompt in prompts])
        return brightness(samples, prompts)

    env = RewardWrapper(FakeDenoiseEnv(steps=(1, 3, 3, 1)), sized)
    results = walk(env)
    assert sizes == [["p0", "p1"], ["p0", "p1"]]
    _, reward, _, _, info = results[0]
    assert info["_scores"].tolist() == [True, False, False, True]
    assert info["scores"].valid.tolist() == [True, False, False, True]
    assert reward[1] == reward[2] == 0 and reward[0] > 0 and reward[3] > 0
    assert "scores" not in results[1][4]
    assert results[2][4]["_scores"].tolist() == [False, True, True, False]
    assert env.scored == 4


def test_the_environments_own_reward_is_kept():
    results = walk(RewardWrapper(FakeDenoiseEnv(steps=(2, 2), reward=10.0), brightness))
    assert results[0][1].tolist() == [10.0, 10.0]
    assert all(10 < reward < 11 for reward in results[-1][1])


def test_every_episode_of_an_autoresetting_environment_is_scored():
    env = RewardWrapper(FakeDenoiseEnv(steps=(2, 2), autoreset="next_step"), brightness)
    obs, _ = env.reset(seed=0)
    rewards = [env.step(obs["latent"])[1][0] for _ in range(6)]
    assert [reward > 0 for reward in rewards] == [False, True, False, False, True, False]
    assert env.scored == 4


@pytest.mark.parametrize(("on_invalid", "expected"), [("nan", math.nan), (-2, -2.0), (0.0, 0.0)])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_an_invalid_score_is_counted_and_shown(backend, on_invalid, expected):
    env = RewardWrapper(FakeDenoiseEnv(backend=backend), second_fails, on_invalid=on_invalid)
    _, reward, _, _, info = walk(env)[-1]
    assert float(reward[0]) == 1.0
    assert float(reward[1]) == expected or (math.isnan(expected) and math.isnan(reward[1]))
    assert info["scores"].valid.tolist() == [True, False] and info["scores"].value[1].isnan()
    assert env.unscored == 1


def test_a_scorer_that_raises_makes_the_batch_invalid():
    def broken(samples, prompts):
        raise RuntimeError("out of memory")

    env = RewardWrapper(FakeDenoiseEnv(), broken, on_invalid="nan")
    assert np.isnan(walk(env)[-1][1]).all()
    assert env.unscored == 2
    with pytest.raises(ScorerError, match=r"`broken` must score 2 samples, got RuntimeError: out of memory"):
        walk(RewardWrapper(FakeDenoiseEnv(), broken))


def test_raise_stops_on_an_invalid_score():
    with pytest.raises(
        ScorerError, match=r"`second_fails` must give finite scores, got 1 invalid ones among 2"
    ):
        walk(RewardWrapper(FakeDenoiseEnv(), second_fails))


def test_whoever_reads_scores_has_invalid_ones_as_data_unless_told_otherwise():
    for told, expected in (({}, "nan"), ({"on_invalid": "raise"}, "raise"), ({"on_invalid": 2.0}, 2.0)):
        env = RewardWrapper(FakeDenoiseEnv(), second_fails, **told)
        assert env.on_invalid == told.get("on_invalid", "raise")
        leave_invalid(EpisodeStatistics(env))
        assert env.on_invalid == expected


def test_a_composed_reward_says_what_went_wrong_inside():
    def ill(samples, prompts):
        raise RuntimeError("the judge is ill")

    both = WeightedSum({"bright": (brightness, 1.0), "judge": (ill, 1.0)})
    with pytest.raises(ScorerError, match=r"2 invalid ones among 2 \(ill: RuntimeError: the judge is ill\)"):
        walk(RewardWrapper(FakeDenoiseEnv(), both))


def test_a_failure_in_the_background_is_raised_once_it_is_known():
    ill, known = threading.Event(), threading.Event()

    def late(samples, prompts):
        known.wait(20)
        try:
            raise RuntimeError("the judge is ill")
        finally:
            ill.set()

    env = RewardWrapper(FakeDenoiseEnv(), Background(late))
    walk(env)
    known.set()
    ill.wait(20)
    with pytest.raises(ScorerError, match="the judge is ill"):
        env.scores.result()
    with pytest.raises(ScorerError, match="the judge is ill"):
        env.reset()
    env.reset()  # once is enough


def test_a_broken_contract_raises_whatever_the_setting():
    with pytest.raises(ContractError, match=r"must return Scores, got list"):
        walk(RewardWrapper(FakeDenoiseEnv(), lambda samples, prompts: [1.0, 1.0]))


class Promptless(FakeDenoiseEnv):
    def _info(self):
        info = super()._info()
        del self.playing
        return info


def test_samples_without_prompts_break_the_contract():
    with pytest.raises(ContractError, match=r"must have `playing`, got none"):
        walk(RewardWrapper(Promptless(), brightness))


@pytest.mark.parametrize("on_invalid", ["zero", math.nan, math.inf, True, None])
def test_an_unknown_policy_for_invalid_scores_is_refused(on_invalid):
    with pytest.raises(ConfigError, match=r"`on_invalid` must be 'nan', 'raise' or a finite number"):
        RewardWrapper(FakeDenoiseEnv(), brightness, on_invalid=on_invalid)


def test_a_scorer_that_cannot_be_called_is_refused():
    with pytest.raises(ConfigError, match=r"`scorer` must be callable as \(samples, prompts\), got str"):
        RewardWrapper(FakeDenoiseEnv(), "clip")
    with pytest.raises(ConfigError, match=r"must be an object, got the class FakeDenoiseEnv"):
        RewardWrapper(FakeDenoiseEnv(), FakeDenoiseEnv)
