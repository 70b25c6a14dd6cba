"""The ids are RLlib's, too: in every order of imports, and in processes that have imported nothing."""

import subprocess
import sys

import gymnasium as gym
import pytest

from unirl_env.worlds.ids import IDS
from unirl_env.worlds.registration import make_for_rllib, spec_of

NAME = "unirl/GaussianMixture-v0"


@pytest.mark.parametrize(
    "imports", ["import unirl_env, ray.tune.registry", "import ray.tune.registry, unirl_env"]
)
def test_rllib_knows_the_ids_whichever_is_imported_first(imports):
    code = f"""
{imports}
from ray.tune.registry import ENV_CREATOR, _global_registry
print(all(_global_registry.contains(ENV_CREATOR, name) for name in unirl_env.worlds.ids.IDS))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["True"], done.stderr


def test_one_environment_or_a_batch_of_them():
    single = make_for_rllib(NAME, spec_of(NAME), {"num_steps": 3, "flat": True})
    batch = make_for_rllib(NAME, spec_of(NAME), {"num_steps": 3, "flat": True, "num_envs": 4})
    assert single.observation_space == batch.single_observation_space and batch.num_envs == 4
    assert isinstance(single, gym.Env) and isinstance(batch, gym.vector.VectorEnv)
    assert batch.unwrapped.num_steps == 3 and NAME in IDS


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["vector_entry_point", "sync"])
def test_rllibs_own_agent_trains_on_a_remote_runner_by_the_plain_id(cluster, mode):
    from ray.rllib.algorithms.ppo import PPOConfig

    agent = (
        PPOConfig()
        .environment(NAME, env_config={"num_steps": 3, "flat": True}, normalize_actions=False)
        .env_runners(
            num_env_runners=1,
            num_envs_per_env_runner=2,
            gym_env_vectorize_mode=mode,
            rollout_fragment_length=8,
        )
        .training(train_batch_size_per_learner=16, minibatch_size=16, num_epochs=1)
        .rl_module(model_config={"fcnet_hiddens": [8]})
        .build_algo()
    )
    try:
        assert agent.train()["env_runners"]["num_episodes"] > 0
    finally:
        agent.stop()
