"""A process in functional form is an environment by the contract, and a wrong one is told so."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from mdp_cases import Throw, Walk, at_the_right_end

from unirl_env.envs import MDPVectorEnv, check_vector_env
from unirl_env.errors import ConfigError, ContractError, ShapeError
from unirl_env.types import Sample

CASES = {"walk": (Walk, ["1", "2", "3"]), "throw": (Throw, ["1,0", "0,1"])}


def env(kind=Walk, prompts=("1", "2", "3"), num_envs=4, **options):
    return MDPVectorEnv(kind(), num_envs=num_envs, prompts=list(prompts), **options)


@pytest.mark.parametrize("mode", ["next_step", "disabled"])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("case", CASES)
def test_the_judge_acquits(case, backend, mode):
    kind, prompts = CASES[case]
    for count, size in ((4, 2), (1, 1)):
        check_vector_env(
            env(kind, prompts, count, group_size=size, array_backend=backend, autoreset_mode=mode), seed=3
        )


@pytest.mark.parametrize("case", CASES)
def test_one_episode_passes_the_checkers_of_gymnasium_and_of_stable_baselines(case):
    from stable_baselines3.common.env_checker import check_env as check_for_sb3

    kind, _ = CASES[case]
    name = f"cases/{kind.__name__}-v0"
    check_env(gym.make(name).unwrapped)
    check_for_sb3(gym.make(name))
    check_vector_env(gym.make_vec(name, num_envs=4, vectorization_mode="vector_entry_point"))


def test_an_episode_is_what_the_functions_say():
    walk = env(num_envs=3, group_size=1, array_backend="torch", autoreset_mode="disabled", info_objects=True)
    walk.mdp.slip = 0.0
    obs, _ = walk.reset(seed=0, options={"prompts": ["1", "2", "3"]})
    assert obs["place"].argmax(1).tolist() == [1, 2, 3]
    _, _, terminated, _, info = walk.step(torch.tensor([4, 4, 4]))
    assert terminated.tolist() == [False, False, True]
    assert info["samples"][2].latent.tolist() == [4, 1]
    for _ in range(2):
        obs, _, terminated, truncated, info = walk.step(torch.tensor([4, 4, 99]))  # nobody reads the third
    assert terminated.all() and not truncated.any()
    assert obs["time"].tolist() == [3, 2, 1]


def test_the_limit_truncates_and_tells_the_sample():
    walk = env(num_envs=2, max_steps=3, info_objects=True, autoreset_mode="disabled")
    walk.mdp.slip = 1.0
    walk.reset(seed=0, options={"prompts": ["2", "2"]})
    for _ in range(3):
        _, _, terminated, truncated, info = walk.step(np.array([3, 4]))
    assert truncated.all() and not terminated.any()
    assert all(sample.truncated for sample in info["samples"])


def test_noise_on_the_way_is_that_of_the_episode_and_not_that_of_the_policy():
    import unirl_env.functional as F

    seen = []

    class Noisy(Walk):
        def transition(self, state, action, noise):
            seen.append((noise.uniform(), noise.normal(2), noise.step.tolist()))
            return super().transition(state, action, noise)

    walk = env(Noisy, num_envs=3, array_backend="torch", autoreset_mode="disabled")
    _, info = walk.reset(seed=1)
    walk.step(torch.tensor([3, 4, 3]))
    drawn = F.keyed_uniform(info["episode_seed"].tolist(), 0)
    uniform, normal, step = seen[0]
    assert not (uniform == drawn).any() and len(set(uniform.tolist())) == 3
    assert normal.shape == (3, 2) and step == [0, 0, 0]


def test_actions_outside_a_box_are_clipped_to_it():
    seen = []

    class Watched(Throw):
        def transition(self, state, action, noise):
            seen.append(action)
            return super().transition(state, action, noise)

    throw = env(Watched, ["1,0"], num_envs=2)
    throw.reset(seed=0)
    throw.step(np.array([[5.0, -5.0], [0.5, -0.5]]))
    assert seen[0].tolist() == [[2.0, -2.0], [0.5, -0.5]]


@pytest.mark.parametrize(
    "kind, action",
    [
        (Walk, np.array([3.0, 4.0, 3.0, 4.0])),
        (Walk, np.array([True, False, True, False])),
        (Walk, np.array([3, 4])),
        (Walk, "left"),
        (Walk, np.ma.masked_array([3, 4, 3, 4], [0, 1, 0, 1])),
        (Throw, np.zeros((4, 2), dtype=int)),
        (Throw, np.zeros((4, 3))),
    ],
)
def test_actions_of_another_shape_or_kind(kind, action):
    world = env(kind, CASES[kind.__name__.lower()][1])
    world.reset(seed=0)
    with pytest.raises(ShapeError, match="`actions` must be"):
        world.step(action)


def test_actions_that_cannot_be_done():
    walk, throw = env(), env(Throw, ["1,0"])
    walk.reset(seed=0)
    with pytest.raises(ContractError, match=r"must be in \[3, 5\), got others in episodes \[1\]"):
        walk.step(np.array([3, 5, 4, 4]))
    throw.reset(seed=0)
    with pytest.raises(ContractError, match=r"must be finite, got others in episodes \[0\]"):
        throw.step(np.array([[np.nan, 0.0]] + [[0.0, 0.0]] * 3))


def with_wrong(name, value):
    class Wrong(Walk):
        pass

    setattr(Wrong, name, value)
    return Wrong


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("initial", lambda self, prompts, noise: torch.zeros(3), "initial` must return a mapping of tensors"),
        ("initial", lambda self, p, n: {"place": torch.zeros(1)}, "initial` must return a tensor"),
        ("initial", lambda self, p, n: {"place": torch.full((len(p),), 4)}, "must begin episodes that go on"),
        ("transition", lambda self, state, a, n: {"place": state["place"]}, "as every state, got"),
        ("transition", lambda self, state, a, n: {k: v[:1] for k, v in state.items()}, "transition` must"),
        ("terminated", lambda self, state: state["place"], "terminated` must return bool"),
        ("truncated", lambda self, state: True, "truncated` must return bool"),
        ("observation", lambda self, state: {"place": state["place"]}, "observation` must return"),
        ("observation", lambda self, s: {"place": s["place"], "time": s["time"]}, "a tensor .*'place'"),
    ],
)
def test_functions_that_break_the_contract_are_named(name, value, words):
    with pytest.raises(ContractError, match=words):
        world = env(with_wrong(name, value))
        world.reset(seed=0)
        world.step(np.full(4, 3))


def test_samples_must_be_one_for_each_finished_episode():
    walk = env(with_wrong("sample", lambda self, state: [Sample(), Sample()]), num_envs=3, max_steps=1)
    walk.reset(seed=0)
    with pytest.raises(ContractError, match="sample` must return a list of 3 samples, got 2"):
        walk.step(np.full(3, 3))


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("action_space", spaces.MultiDiscrete([2, 2]), "`action_space` of Wrong must be Discrete"),
        ("action_space", spaces.Box(0, 1, (2,), np.int64), "`action_space` of Wrong must be Discrete"),
        ("observation_spaces", {}, "`observation_spaces` of Wrong must be a mapping"),
        ("observation_spaces", {"place": spaces.MultiBinary(3)}, "must be Box or Discrete"),
        ("max_steps", 0, "`max_steps` must be at least 1"),
    ],
)
def test_spaces_and_limits_that_no_episode_can_have(name, value, words):
    with pytest.raises(ConfigError, match=words):
        env(with_wrong(name, value))


class Crowded(Walk):
    """What one does depends on the others."""

    def transition(self, state, action, noise):
        state = super().transition(state, action, noise)
        return {**state, "place": torch.where(state["place"].sum() % 2 == 0, 1, state["place"])}


def test_the_judge_convicts_a_process_in_which_episodes_are_not_alone():
    with pytest.raises(ContractError, match="nor on the others"):
        check_vector_env(env(Crowded, num_envs=3), seed=1)


def test_the_judge_convicts_an_environment_that_takes_any_action():
    class Lax(MDPVectorEnv):
        def step(self, actions):
            actions = np.clip(np.asarray(actions, dtype=object).ravel()[: self.num_envs].astype(float), 3, 4)
            return super().step(actions.astype(int))

    with pytest.raises(ContractError, match="must be refused"):
        check_vector_env(Lax(Walk(), num_envs=2, prompts=["2"]))


def test_pictures_where_there_are_any():
    walk = env(num_envs=2, render_mode="rgb_array")
    walk.reset(seed=0)
    assert walk.render()[0].shape == (4, 5, 3)
    assert env(Throw, ["1,0"]).metadata["render_modes"] == []
    with pytest.raises(ConfigError, match="`render_mode` must be None"):
        env(Throw, ["1,0"], render_mode="rgb_array")


def test_it_is_scored_as_any_world():
    from unirl_env.worlds import make_vector_env

    walk = make_vector_env(4, mdp="mdp_cases:Walk", prompts=["3"], scorer=at_the_right_end, max_steps=2)
    walk.reset(seed=0)
    rewards = np.zeros(4)
    for _ in range(2):
        rewards += walk.step(np.full(4, 4))[1]
    assert set(rewards) <= {0.0, 1.0} and rewards.any()
    with pytest.raises(ConfigError, match="num_steps"):
        make_vector_env(4, mdp="mdp_cases:Walk", prompts=["3"], num_steps=3)
