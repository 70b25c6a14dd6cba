"""What Gymnasium asks of environments, asked of every embedded id: its checker, and the tests of its own."""

import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.wrappers.vector import DictInfoToList

from unirl_env.errors import ConfigError, UnknownArgument

EMBEDDED = (
    "unirl/GaussianMixture-v0",
    "unirl/TinySD3-T2I-v0",
    "unirl/TinyQwen3-Math-v0",
    "unirl/TinyQwenVL-VQA-v0",
    "unirl/TinyPromptEnhancer-T2I-v0",
    "unirl/TinyUnified-T2I-v0",
    "unirl/TinyUnified-Edit-v0",
    "unirl/TinyEnhancerAndSD3-T2I-v0",
)
KNOWN = ".*(infinity|symmetric and normalized).*"
"""Latents are unbounded, and the bounds of the actions are far from 1: both are what they are."""
PLAIN = (bool, int, float, str, np.ndarray)

every_id = pytest.mark.parametrize("name", EMBEDDED)


def options_of(name):
    """Few steps."""
    if "Qwen" in name or "PromptEnhancer" in name:
        return {"max_new_tokens": 3}
    writes = {} if name in EMBEDDED[:2] else {"max_new_tokens": 2}
    return {"num_steps": 2, **writes}


@pytest.fixture
def make(offline):
    """`make(id, ...)`, by weights that are small and untrained where there are such."""
    made = []

    def make(name, **more):
        made.append(gym.make(name, **{**offline(name), **options_of(name), **more}))
        return made[-1]

    yield make
    for env in made:
        env.close()


def episode(env, count=8):
    """What `count` steps bring, with resets after the ends."""
    told = []
    for _ in range(count):
        obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        told.append((obs, np.nan_to_num(reward, nan=-99.0), terminated, truncated, info))
        if terminated or truncated:
            told.append(env.reset())
    return told


def equal(one, other):
    return len(one) == len(other) and all(map(data_equivalence, one, other, [True] * len(one)))


def leaves(info):
    for value in info.values():
        yield from leaves(value) if isinstance(value, dict) else [value]


@every_id
def test_the_checker_with_every_render_mode(name, make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=KNOWN)
        check_env(make(name, render_mode="ansi" if "Qwen" in name else None).unwrapped)


@every_id
def test_one_seed_gives_one_rollout(name, make):
    one, other = make(name), make(name)
    assert one.spec == other.spec
    first = [env.reset(seed=7) for env in (one, other)]
    assert data_equivalence(*first, exact=True)
    for env in (one, other):
        env.action_space.seed(7)
    told = [episode(env) for env in (one, other)]
    assert equal(*told) and equal(told[0], told[0]), "an info equals itself"
    one.reset(seed=7), other.reset(seed=8)
    assert not data_equivalence(one.reset(seed=7)[1], other.reset(seed=8)[1], exact=True)


@every_id
def test_info_is_plain(name, make):
    env = make(name)
    env.reset(seed=1)
    env.action_space.seed(1)
    ends = 0
    for told in episode(env):
        info = told[-1]
        assert all(type(value) in PLAIN for value in leaves(info))
        assert not any(value != value for value in leaves(info) if isinstance(value, float))
        ends += "sample" in info and "scores" in info
    assert ends


@every_id
def test_a_spec_survives_its_forms(name, make):
    env = gym.make(name)
    spec = env.spec
    assert EnvSpec.from_json(spec.to_json()) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    again = gym.make(pickle.loads(pickle.dumps(spec)))
    assert again.spec == spec
    assert data_equivalence(env.reset(seed=2), again.reset(seed=2), exact=True)


@every_id
def test_frames_are_what_the_mode_says(name, make):
    for mode in make(name).metadata["render_modes"]:
        env = make(name, render_mode=mode)
        env.reset(seed=0)
        frame = env.render()
        assert isinstance(frame, str) if mode == "ansi" else frame.dtype == np.uint8
        assert env.render_mode == mode
    with pytest.raises((ConfigError, gym.error.Error)):
        make(name, render_mode="smell").reset()


@every_id
def test_a_batch_says_what_single_environments_say(name, offline):
    """Of every row, in Gymnasium's form: also of those that are not about all rows."""
    options = {**offline(name), **options_of(name)}
    batch = gym.make_vec(name, 2, vectorization_mode="vector_entry_point", **options)
    single = gym.make(name, **options)
    env = DictInfoToList(batch)
    _, infos = env.reset(seed=3)
    _, info = single.reset(seed=3, options={"prompt": batch.unwrapped.playing[0]})
    assert infos[0]["prompt"] == info["prompt"] and set(infos[0]) == set(info)
    env.action_space.seed(3)
    while True:
        actions = env.action_space.sample()
        own = {k: v[0] for k, v in actions.items()} if isinstance(actions, dict) else actions[0]
        _, _, terminated, truncated, infos = env.step(actions)
        *_, info = single.step(own)
        if terminated[0] or truncated[0]:
            break
    assert data_equivalence(_as_python(infos[0]), info, exact=True)


def _as_python(value):
    if isinstance(value, dict):
        return {name: _as_python(one) for name, one in value.items()}
    return value.item() if isinstance(value, np.generic) else value


@every_id
def test_several_in_one_process(name, offline):
    """Their ends come at different steps, with texts of different lengths."""
    options = {**offline(name), **options_of(name)}
    env = gym.vector.SyncVectorEnv([lambda: gym.make(name, **options)] * 2)
    env.reset(seed=[1, 2])
    env.action_space.seed(4)
    for _ in range(10):
        *_, info = env.step(env.action_space.sample())
    assert "prompt" in info


@every_id
def test_conversions_of_arrays_let_text_through(name, make):
    pytest.importorskip("array_api_compat")
    import torch
    from gymnasium.wrappers import NumpyToTorch

    env = NumpyToTorch(make(name))
    _, info = env.reset(seed=0)
    assert isinstance(info["prompt"], str) and isinstance(info["group"], torch.Tensor)
    env.unwrapped.action_space.seed(0)
    over = False
    while not over:
        action = env.unwrapped.action_space.sample()
        parts = action.items() if isinstance(action, dict) else ()
        tensors = {part: torch.as_tensor(value) for part, value in parts} or torch.as_tensor(action)
        *_, terminated, truncated, info = env.step(tensors)
        over = terminated or truncated
    assert isinstance(info["scores"]["valid"], torch.Tensor)


def test_an_unknown_argument_is_a_type_error_with_the_nearest_one():
    """Other libraries pass on what not every environment knows, and wait for the words of Python."""
    for make in (gym.make, lambda name, **options: gym.make_vec(name, num_envs=2, **options)):
        with pytest.raises(TypeError, match="unexpected keyword argument 'frameskip'"):
            make("unirl/GaussianMixture-v0", frameskip=4)
        with pytest.raises(UnknownArgument, match="unexpected keyword argument 'num_step', try 'num_steps'"):
            make("unirl/GaussianMixture-v0", num_step=4)
        with pytest.raises(TypeError, match="unexpected keyword argument 'height'"):
            make("unirl/GaussianMixture-v0", height=4)


def test_the_mode_of_autoreset_is_an_attribute_too():
    from unirl_env.wrappers import EpisodeStatistics

    for mode in ("disabled", "next_step"):
        env = gym.make_vec("unirl/GaussianMixture-v0", 2, autoreset_mode=mode)
        modes = {EpisodeStatistics(env).autoreset_mode, env.autoreset_mode, env.unwrapped.autoreset_mode}
        assert modes == {env.metadata["autoreset_mode"]}
