"""The alarm on a real agent, where RLlib runs the loop."""

from functools import partial

import pytest
import torch
from toy import POINTS, nearness, toy_config

from unirl_env.agents import GRPOConfig
from unirl_env.errors import ConfigError
from unirl_env.monitor.callback import HackingCallback
from unirl_env.settings import AlarmSettings
from unirl_env.types import Scores

pytestmark = pytest.mark.ray

FAST = {"smooth": 1, "patience": 1, "heldout_every": 1}


def rightness(samples, prompts):
    """What is paid: to lie far to the right, whatever the prompt."""
    return Scores(torch.stack([sample.latent[0] for sample in samples]))


def trained(callback, iterations, **settings):
    config = toy_config(GRPOConfig, lr=0.03, **settings).callbacks(callback)
    config = config.environment("toy:toy/Points-v0", env_config={"scorer": rightness, "prompts": POINTS})
    agent = config.build_algo()
    try:
        return [agent.train() for _ in range(iterations)]
    finally:
        agent.stop()


def test_a_policy_that_runs_from_the_points_rings(cluster, caplog):
    results = trained(partial(HackingCallback, FAST, heldout=nearness), 8)
    rung = [result["reward_hacking"] for result in results]
    assert not rung[0] and rung[-1] and rung == sorted(rung)
    first = results[rung.index(True)]
    assert first["alarms"][0]["signal"] == "gap"
    assert first["alarms"][0]["iteration"] == first["training_iteration"] == rung.index(True) + 1
    assert results[-1]["heldout"] < results[0]["heldout"]
    assert caplog.text.count("Alarm (gap)") == 1, "once, and not in every iteration after it"


def test_without_a_held_out_reward_the_rest_is_watched(cluster):
    (result,) = trained(HackingCallback, 1)
    assert result["reward_hacking"] is False and result["alarms"] == [] and "heldout" not in result


def test_only_what_may_stop_a_run_counts_as_hacking(cluster):
    settings = AlarmSettings(**FAST, stop=["zero_std_groups"])
    results = trained(partial(HackingCallback, settings, heldout=nearness), 8)
    assert results[-1]["alarms"] and not results[-1]["reward_hacking"]


def test_mistakes_are_told_before_anything_is_trained():
    with pytest.raises(ConfigError, match="`settings` must hold settings of an alarm"):
        HackingCallback({"patients": 3})
    with pytest.raises(ConfigError, match="patience"):
        HackingCallback({"patience": 0})
    with pytest.raises(ConfigError, match="no_such_scorer"):
        HackingCallback(heldout="no_such_scorer")
