"""An agent inside Tune: a trial of its own process, with a checkpoint that continues."""

import pytest
from ray import tune
from toy import toy_config

from unirl_env.agents import FlowDPPO, FlowDPPOConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_trial_trains_and_leaves_a_checkpoint(cluster, tmp_path):
    config = toy_config(
        FlowDPPOConfig,
        lr=tune.grid_search([5e-3]),
        policy={"lora_rank": None, "eta": tune.choice([0.6])},
    )
    (result,) = tune.Tuner(
        FlowDPPO,
        param_space=config,
        run_config=tune.RunConfig(
            stop={"training_iteration": 2},
            storage_path=str(tmp_path),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
            verbose=0,
        ),
    ).fit()
    assert result.error is None
    assert result.metrics["env_runners"]["episode_return_mean"] < 0
    agent = FlowDPPO.from_checkpoint(result.checkpoint.path)
    try:
        assert agent.iterations_done == agent.training_iteration == 2
        assert agent.config.lr == 5e-3 and agent.config.policy.eta == 0.6
        agent.train()
        assert agent.iteration_metrics["weights_version"] == 3
    finally:
        agent.stop()
