"""An agent inside Tune: a trial of its own process, with a checkpoint that continues."""

from functools import partial

import pytest
from ray import tune
from toy import farness, toy_config

from unirl_env.agents import FlowDPPO, FlowDPPOConfig
from unirl_env.agents.hacking_callback import HackingCallback

FAST = {"smooth": 1, "patience": 1, "heldout_every": 1}

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_trial_trains_until_an_alarm_rings_and_leaves_a_checkpoint(cluster, tmp_path):
    config = toy_config(
        FlowDPPOConfig,
        lr=tune.grid_search([5e-3]),
        policy={"lora_rank": None, "eta": tune.choice([0.6])},
    ).callbacks(partial(HackingCallback, {**FAST, "gap": 1e-3}, heldout=farness))
    (result,) = tune.Tuner(
        FlowDPPO,
        param_space=config,
        run_config=tune.RunConfig(
            stop={"reward_hacking": True, "training_iteration": 8},
            storage_path=str(tmp_path),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
            verbose=0,
        ),
    ).fit()
    assert result.error is None
    last = result.metrics["training_iteration"]
    assert result.metrics["alarms"][0]["signal"] == "gap"
    assert 1 < result.metrics["alarms"][0]["iteration"] == last < 8
    assert result.metrics["env_runners"]["episode_return_mean"] < 0
    agent = FlowDPPO.from_checkpoint(result.checkpoint.path)
    try:
        assert agent.iterations_done == agent.training_iteration == last
        assert agent.config.lr == 5e-3 and agent.config.policy.eta == 0.6
        agent.train()
        assert agent.iteration_metrics["weights_version"] == last + 1
    finally:
        agent.stop()
