"""An agent inside Tune: a trial of its own process, with a checkpoint that continues."""

from functools import partial

import pytest
from callback_cases import Counts
from ray import tune
from ray.rllib.algorithms.algorithm import Algorithm
from toy import farness, toy_config

from unirl_env.agents import FlowDPPO, FlowDPPOConfig
from unirl_env.monitor.callback import HackingCallback

FAST = {"smooth": 1, "patience": 1, "heldout_every": 1}

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_trial_stops_on_a_return_of_training_and_reports_its_evaluation(cluster, tmp_path):
    config = toy_config(FlowDPPOConfig, lr=1e-2, policy={"lora_rank": None}).callbacks(Counts)
    config.evaluation(evaluation_interval=1, evaluation_duration=4)
    (result,) = tune.Tuner(
        FlowDPPO,
        param_space=config,
        run_config=tune.RunConfig(
            stop={"env_runners/episode_return_mean": -2.0, "training_iteration": 12},
            storage_path=str(tmp_path),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, checkpoint_at_end=True),
            verbose=0,
        ),
    ).fit()
    assert result.error is None
    runners = result.metrics["env_runners"]
    assert runners["episode_return_mean"] >= -2.0 and result.metrics["training_iteration"] < 12
    assert runners["my_length"] == 6
    assert result.metrics["evaluation"]["env_runners"]["num_episodes"] == 4
    agent = Algorithm.from_checkpoint(result.checkpoint.path)
    try:
        assert isinstance(agent, FlowDPPO) and agent.iterations_done == result.metrics["training_iteration"]
        assert agent.train()["env_runners"]["num_episodes_lifetime"] == 32 * agent.iterations_done
    finally:
        agent.stop()


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
