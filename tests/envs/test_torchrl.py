"""TorchRL makes the environments by their ids, and wraps the natively batched ones."""

import gymnasium as gym
import pytest

pytest.importorskip("torchrl")

NAMES = ("unirl/GaussianMixture-v0", "unirl/TinyQwen3-Math-v0")


@pytest.mark.parametrize("name", NAMES)
def test_by_its_id(name):
    from torchrl.envs import GymEnv
    from torchrl.envs.utils import check_env_specs

    env = GymEnv(name)
    check_env_specs(env)
    assert env.rollout(3).shape == (3,)


@pytest.mark.parametrize("name", NAMES)
def test_a_native_batch(name):
    from torchrl.envs import GymWrapper
    from torchrl.envs.utils import check_env_specs

    batch = gym.make_vec(name, 3, vectorization_mode="vector_entry_point", autoreset_mode="disabled")
    env = GymWrapper(batch)
    check_env_specs(env)
    told = env.rollout(25, break_when_any_done=False)
    assert told.shape == (3, 25) and told["next", "done"].sum() >= 6
