"""Environments are pickled and copied at any moment, and the copies go on as the original does."""

import copy
import multiprocessing
import pickle
import threading
import time

import gymnasium as gym
import numpy as np
import pytest
import torch
from envs.test_gymnasium import EMBEDDED, options_of
from worlds import PROMPTS, PlainDenoiser, brightness, world

from unirl_env.envs import SingleEnv
from unirl_env.errors import ContractError
from unirl_env.rewards.compose import Background
from unirl_env.types import Scores
from unirl_env.wrappers import EpisodeStatistics, FlattenForPPO, PotentialShaping, RecordMedia, RewardWrapper

WAYS = {"pickle": lambda env: pickle.loads(pickle.dumps(env)), "deepcopy": copy.deepcopy}
MOMENTS = {"fresh": None, "middle": 1, "later": 7}


def plain(value):
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return np.array(value)


def same(one, other):
    if isinstance(one, dict):
        return set(one) == set(other) and all(same(one[name], other[name]) for name in one)
    if one.dtype == object or one.dtype.kind in "US":
        return bool((one == other).all())
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def walk(env, steps, seed=None):
    """What the next steps bring, with random actions of the environment's own and resets at ends."""
    told = [] if seed is None else [plain(env.reset(seed=seed)[1])]
    for _ in range(steps):
        obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        told.append(plain({"obs": obs, "reward": reward, "over": terminated, "cut": truncated, "info": info}))
        if np.all(np.asarray(terminated) | np.asarray(truncated)) and _resets_by_hand(env):
            told.append(plain(env.reset()[0]))
    return told


def _resets_by_hand(env):
    return getattr(env, "autoreset_mode", gym.vector.AutoresetMode.DISABLED).name == "DISABLED"


def require_same_walks(env, moment, steps=6):
    if MOMENTS[moment] is not None:
        walk(env, MOMENTS[moment], seed=5)
    seed = 9 if moment == "fresh" else None
    twins = {way: make(env) for way, make in WAYS.items()}
    expected = walk(env, steps, seed)
    for way, twin in twins.items():
        got = walk(twin, steps, seed)
        assert len(got) == len(expected) and all(map(same, got, expected)), way


@pytest.mark.parametrize("kind", ["single", "numpy", "torch"])
@pytest.mark.parametrize("name", EMBEDDED)
def test_every_embedded_id(name, kind, offline):
    options = {**offline(name), **options_of(name)}
    if kind == "single":
        env = gym.make(name, **options)
    else:
        mode = "next_step" if kind == "numpy" else "disabled"
        options |= {"array_backend": kind, "autoreset_mode": mode, "group_size": 2}
        env = gym.make_vec(name, 4, vectorization_mode="vector_entry_point", **options)
    env.action_space.seed(3)
    for moment in MOMENTS:
        require_same_walks(env, moment, steps=3)


@pytest.mark.parametrize("flat", [True, ["latent", "step"]])
def test_flat_ones(flat):
    require_same_walks(gym.make("unirl/GaussianMixture-v0", flat=flat), "middle")
    require_same_walks(gym.make_vec("unirl/GaussianMixture-v0", 2, flat=flat), "middle")


def test_the_weights_stay_at_home(tiny_dir):
    """Of a network, an autoencoder and text encoders of several megabytes."""
    weights = sum(file.stat().st_size for file in tiny_dir.rglob("*.safetensors"))
    drawn = {"denoiser": "tiny_sd3", "pretrained": str(tiny_dir), "num_steps": 2}
    envs = [
        gym.make_vec("unirl/TinySD3-T2I-v0", 2, pretrained=str(tiny_dir), num_steps=3),
        gym.make_vec("unirl/TinyPromptEnhancer-T2I-v0", 2, max_new_tokens=2, generator=drawn),
    ]
    for env in envs:
        walk(env, 4, seed=1)
        # The order of the prompts and the prompts themselves are most of it.
        assert len(pickle.dumps(env)) < 100_000 < weights / 10


def test_a_copy_shares_what_is_loaded(tiny):
    env = gym.make_vec("unirl/TinySD3-T2I-v0", 2, denoiser=tiny, num_steps=3)
    walk(env, 2, seed=1)
    assert copy.deepcopy(env).unwrapped.denoiser.frozen is tiny.frozen


def test_what_was_seen_is_the_copys_own():
    """Texts grow in buffers: neither of the two writes into the other's."""
    from talk import say, talk

    env = talk(array_backend="torch", autoreset_mode="disabled")
    env.reset(seed=0)
    say(env, "a", "a", "a", "a")
    for make in WAYS.values():
        twin = make(env)
        obs = say(twin, "bc", "bc", "bc", "bc")[-1][0]
        own = env.unwrapped._observe()
        assert (own["length"] + 2 == obs["length"]).all()
        assert not torch.equal(own["tokens"], obs["tokens"])
        assert torch.equal(say(env, "bc", "bc", "bc", "bc")[-1][0]["tokens"], obs["tokens"])
        env.unwrapped.restore(env.unwrapped.snapshot())


def play_elsewhere(blob, sender):
    env = pickle.loads(blob)
    sender.send(walk(env, 5))


def test_it_goes_on_in_another_process():
    env = gym.make("unirl/GaussianMixture-v0")
    env.action_space.seed(1)
    walk(env, 3, seed=2)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=play_elsewhere, args=(pickle.dumps(env), sender))
    process.start()
    assert receiver.poll(120)
    got, expected = receiver.recv(), walk(env, 5)
    process.join()
    assert len(got) == len(expected) and all(map(same, got, expected))


def test_all_wrappers_at_once(tmp_path):
    def stack():
        env = world(scored=True, render_mode="rgb_array", info_objects=False)
        env = PotentialShaping(env, lambda obs: -obs["sigma"])
        env = RecordMedia(EpisodeStatistics(env), tmp_path, every=2, format="png")
        return FlattenForPPO(env)

    env = stack()
    walk(env, 2, seed=4)
    for way, make in WAYS.items():
        twin = make(env)
        one, other = (one.env.env for one in (env, twin))
        assert (one.episodes, one.steps) == (other.episodes, other.steps), way
    require_same_walks_but_for_the_clock(env, twin)


def require_same_walks_but_for_the_clock(env, twin):
    for one, other in zip(walk(env, 6), walk(twin, 6), strict=True):
        for told in (one, other):
            if "info" in told and "episode" in told["info"]:
                told["info"]["episode"].pop("t")
        assert same(one, other)


def test_the_clock_of_another_process(monkeypatch):
    """`perf_counter` begins anywhere; what travels is how long ago an episode began."""
    env = EpisodeStatistics(world(num_steps=2))
    env.reset(seed=0)
    blob, clock = pickle.dumps(env), time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() - 1e6)
    twin = pickle.loads(blob)
    for _ in range(2):
        *_, info = twin.step(twin.action_space.sample())
    assert (0 < info["episode"]["t"]).all() and (info["episode"]["t"] < 60).all()


def test_what_waits_for_its_reward_is_not_forgotten():
    """Samples that are judged together, at the end of a batch whose episodes end at different steps."""
    from talk import length_score, say, talk

    env = RewardWrapper(talk(autoreset_mode="disabled"), length_score, together=True)
    env.reset(seed=0)
    say(env, "~", "a", "b", "c")
    for make in WAYS.values():
        twin = make(env)
        assert say(twin, "_~", "b~", "b~", "b~")[-1][1].tolist() == [1.0, 3.0, 3.0, 3.0]


def test_a_scorer_in_the_background_begins_anew():
    env = RewardWrapper(world(autoreset_mode="disabled"), Background(brightness))
    walk(env, 3, seed=1)
    for make in WAYS.values():
        twin = make(env)
        walk(twin, 3)
        assert twin.scorer is not env.scorer
        obs, _ = twin.reset(seed=1)
        for _ in range(3):
            obs, *_ = twin.step(obs["latent"])
        assert twin.scores.result().valid.all()


class TestWhatAUserGives:
    def test_functions_without_a_name_travel(self):
        shift = 3.0
        env = world(autoreset_mode="disabled", info_objects=False)
        env = RewardWrapper(env, lambda samples, prompts: Scores(brightness(samples, prompts).value + shift))
        walk(env, 1, seed=1)
        require_same_walks(env, "middle")

    def test_so_do_those_of_an_id(self):
        def scorer(samples, prompts):
            return Scores(torch.ones(len(samples)))

        for env in (
            gym.make("unirl/GaussianMixture-v0", scorer=scorer),
            gym.make_vec("unirl/GaussianMixture-v0", 2, scorer=scorer),
        ):
            require_same_walks(env, "middle")

    def test_what_cannot_travel_is_named(self):
        lock = threading.Lock()

        def scorer(samples, prompts):
            with lock:
                return brightness(samples, prompts)

        env = RewardWrapper(world(), scorer)
        with pytest.raises(ContractError, match=r"`scorer` must be something that can be pickled.*first use"):
            pickle.dumps(env)
        env = PotentialShaping(world(), lambda obs: -obs["sigma"] + 0 * bool(lock))
        with pytest.raises(ContractError, match="`potential` must be something that can be pickled"):
            pickle.dumps(env)

    def test_a_scorer_with_a_state_has_one_of_its_own(self):
        class Counting:
            def __init__(self):
                self.calls = 0

            def __call__(self, samples, prompts):
                self.calls += 1
                return Scores(torch.full((len(samples),), float(self.calls)))

        env = RewardWrapper(world(num_steps=1, info_objects=False), Counting())
        require_same_walks(env, "later")

    def test_prompts_travel_as_they_were_read(self, tmp_path):
        file = tmp_path / "prompts.txt"
        file.write_text("a\nb\nc\n")
        env = world(prompts=str(file))
        env.reset(seed=0)
        file.unlink()
        for make in WAYS.values():
            assert [p.text for p in make(env).prompts] == ["a", "b", "c"]


def test_the_own_random_numbers_go_on():
    """A reset without a seed before any reset draws one."""
    env = SingleEnv(world(PlainDenoiser(), num_envs=1, prompts=PROMPTS, autoreset_mode="disabled"))
    env.vector_env.np_random.integers(10)
    for make in WAYS.values():
        twin = make(env)
        drawn = {one.vector_env.np_random.integers(2**40) for one in (copy.deepcopy(env), twin)}
        assert len(drawn) == 1
