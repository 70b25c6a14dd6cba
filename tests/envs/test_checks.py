"""The judge must acquit every registered world and convict every broken one, by the right law."""

import threading
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import FakeDenoiseEnv
from gymnasium.vector import AutoresetMode, VectorWrapper
from worlds import PROMPTS, PlainDenoiser, world

from unirl_env.envs import DenoiseVectorEnv, check_vector_env
from unirl_env.errors import ContractError
from unirl_env.types import Prompt
from unirl_env.worlds.ids import IDS
from unirl_env.wrappers import EpisodeStatistics, PotentialShaping

MODES = [(backend, mode) for backend in ("numpy", "torch") for mode in ("next_step", "disabled")]


class TestAcquittal:
    @pytest.mark.parametrize("backend, mode", MODES)
    @pytest.mark.parametrize("name", IDS)
    def test_every_registered_id(self, name, backend, mode, offline):
        env = gym.make_vec(
            name,
            num_envs=4,
            group_size=2,
            array_backend=backend,
            autoreset_mode=mode,
            **offline(name),
        )
        check_vector_env(env, seed=3)
        assert env.unwrapped.group_size == 2 and env.unwrapped.started
        env.close()

    def test_the_shipped_weights(self):
        check_vector_env(gym.make_vec("unirl/TinySD3-T2I-v0", num_envs=2, num_steps=2))

    @pytest.mark.parametrize("shape", [(2,), (5, 6), (2, 3, 4, 5)])
    @pytest.mark.parametrize("options", [{}, {"with_negative": True}, {"same_noise": True, "group_size": 4}])
    def test_any_rank_and_any_option(self, shape, options):
        check_vector_env(world(PlainDenoiser(shape), **options))

    def test_one_episode_and_one_step(self):
        check_vector_env(world(num_envs=1, num_steps=2))

    def test_wrapped(self):
        env = PotentialShaping(world(scored=True, array_backend="torch"), lambda obs: -obs["sigma"])
        check_vector_env(EpisodeStatistics(env))

    def test_an_environment_in_use(self):
        env = world()
        env.reset(seed=0)
        check_vector_env(env)

    def test_the_actions_of_ones_own_policy(self):
        seen = []

        def act(obs):
            seen.append(obs["step"].max())
            return obs["latent"] * 0.5

        check_vector_env(world(), act)
        assert max(seen) == 2


# The mutants. Each breaks one promise of the contract and keeps the others.


class StreamNoise(DenoiseVectorEnv):
    """Draws from the global generator."""

    def _begin(self, rows, groups, options):
        super()._begin(rows, groups, options)
        self._activity.latent = torch.randn_like(self._activity.latent)


class PlacedNoise(DenoiseVectorEnv):
    """Keys the noise by the place in the batch."""

    def _begin(self, rows, groups, options):
        super()._begin(
            rows, replace(groups, start_seed=np.arange(len(groups)) + groups.episode_seed[0] % 7), options
        )


class DeafToSeeds(DenoiseVectorEnv):
    """Starts from the same noise whatever the seed."""

    def _begin(self, rows, groups, options):
        super()._begin(rows, replace(groups, start_seed=np.zeros_like(groups.start_seed)), options)


class DeafToSameNoise(DenoiseVectorEnv):
    """Gives each episode its own start."""

    def _begin(self, rows, groups, options):
        super()._begin(rows, replace(groups, start_seed=groups.episode_seed), options)


class Unguarded(DenoiseVectorEnv):
    """Resets by itself when it is stepped too early."""

    def step(self, actions):
        if self._groups is None:
            self.reset(seed=0)
        return super().step(actions)


class StepsOn(DenoiseVectorEnv):
    """Declares DISABLED and starts anew all the same."""

    def step(self, actions):
        if self.started and self._done.all():
            self.reset()
        return super().step(actions)


class Sticky(DenoiseVectorEnv):
    """Still reports the end at the step that resets."""

    def step(self, actions):
        ended = self.started and self._done.all()
        obs, reward, terminated, truncated, info = super().step(actions)
        return obs, reward, terminated | bool(ended), truncated, info


class NoSamples(DenoiseVectorEnv):
    """Keeps what it made to itself."""

    def step(self, actions):
        *result, info = super().step(actions)
        return *result, {name: value for name, value in info.items() if name not in ("sample", "_sample")}


class Endless(DenoiseVectorEnv):
    def _advance(self, actions, active):
        super()._advance(actions, active)
        self._activity._step = np.minimum(self._activity._step, self.num_steps - 1)
        return np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)


class BothEnds(DenoiseVectorEnv):
    def _advance(self, actions, active):
        terminated, _ = super()._advance(actions, active)
        return terminated, terminated.copy()


class Forgetful(DenoiseVectorEnv):
    """Leaves the step counter out of its snapshots."""

    def _become(self, snapshot, rows, groups):
        forgotten = {**snapshot.model_state, "step": np.zeros_like(snapshot.model_state["step"])}
        return super()._become(replace(snapshot, model_state=forgotten), rows, groups)


class Writer(DenoiseVectorEnv):
    """Changes a tensor in place that its snapshots hold."""

    def _advance(self, actions, active):
        result = super()._advance(actions, active)
        self._activity.previous.copy_(self._activity.latent)
        self._activity.latent = self._activity.previous
        return result


class Twins(DenoiseVectorEnv):
    """Lets all copies explore alike."""

    def fork(self, indices):
        snapshot = self.snapshot()
        return self._become(snapshot, np.asarray(indices), snapshot.groups.take(np.asarray(indices)))


class Changelings(DenoiseVectorEnv):
    """Forks to the wrong originals."""

    def fork(self, indices):
        return super().fork([(i + 1) % self.num_envs for i in indices])


class Lender(DenoiseVectorEnv):
    """Hands out the array that it goes on to use."""

    def _observe(self):
        return {**super()._observe(), "latent": self._activity.latent.numpy()}


class Objects(DenoiseVectorEnv):
    """Shows a plain `info` the prompts themselves."""

    def _info(self):
        return {**super()._info(), "prompt": self._groups.prompt_array}


class Unmasked(DenoiseVectorEnv):
    def _info(self):
        return {**super()._info(), "luck": np.ones(self.num_envs)}


class NotApplicable(DenoiseVectorEnv):
    """Says NaN of what does not apply."""

    def _info(self):
        said = np.full(self.num_envs, np.nan)
        return {**super()._info(), "luck": said, "_luck": np.zeros(self.num_envs, bool)}


class Locked(DenoiseVectorEnv):
    """Holds what cannot be sent."""

    def __init__(self, *args, lock=None, **options):
        super().__init__(*args, **options)
        self._arguments[1]["tool"] = threading.Lock()


class MixedGroups(DenoiseVectorEnv):
    def _info(self):
        return {**super()._info(), "group": np.zeros(self.num_envs, np.int64)}


class SharedSeeds(DenoiseVectorEnv):
    def _info(self):
        return {**super()._info(), "episode_seed": self._groups.episode_seed // 2**62}


class Reticent(DenoiseVectorEnv):
    def _info(self):
        return {name: value for name, value in super()._info().items() if name != "prompt"}


class Double(DenoiseVectorEnv):
    """Observes in float64."""

    def _observe(self):
        obs = super()._observe()
        return {**obs, "latent": np.float64(obs["latent"])}


class OutOfBounds(DenoiseVectorEnv):
    def _observe(self):
        obs = super()._observe()
        return {**obs, "sigma": obs["sigma"] * 1000}


class NotANumber(DenoiseVectorEnv):
    def _observe(self):
        obs = super()._observe()
        obs["latent"][obs["step"] == 2] = np.nan
        return obs


class Undeclared(DenoiseVectorEnv):
    def _observe(self):
        return {**super()._observe(), "hint": np.zeros(self.num_envs)}


class Lenient(DenoiseVectorEnv):
    """Overlooks options that it does not know."""

    def reset(self, *, seed=None, options=None):
        return super().reset(
            seed=seed, options={k: v for k, v in (options or {}).items() if k != "no_such_option"}
        )


class Rounding(DenoiseVectorEnv):
    """Takes the nearest group size that fits."""

    def reset(self, *, seed=None, options=None):
        options = dict(options or {})
        options["group_size"] = min(options.get("group_size") or 1, self.num_envs)
        return super().reset(seed=seed, options=options)


class Clinging(DenoiseVectorEnv):
    """Keeps the options of an earlier reset."""

    def reset(self, *, seed=None, options=None):
        result = super().reset(seed=seed, options=options)
        self._defaults = dict(self._reset_state.options)
        return result


class Repeating(DenoiseVectorEnv):
    """Plays the same episodes again when no seed is given."""

    def reset(self, *, seed=None, options=None):
        return super().reset(
            seed=self._reset_state.seed if seed is None and self._reset_state else seed, options=options
        )


class Dice(DenoiseVectorEnv):
    """Adds noise of its own to every transition."""

    def _advance(self, actions, active):
        return super()._advance(np.asarray(actions) + np.float32(np.random.standard_normal()), active)


class SameStep(DenoiseVectorEnv):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.metadata = {**self.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}


class Nested(DenoiseVectorEnv):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        space = self.single_observation_space
        self.single_observation_space = gym.spaces.Dict({**space, "context": gym.spaces.Dict(space.spaces)})


class Flat(VectorWrapper):
    def __init__(self, env):
        super().__init__(env)
        self.single_observation_space = env.single_observation_space["latent"]


MUTANTS = [
    (StreamNoise, {}, "same seed must give the same episodes"),
    (PlacedNoise, {}, "must not depend on its place"),
    (DeafToSeeds, {}, "another seed must give other episodes"),
    (DeafToSameNoise, {}, "With `same_noise` the episodes of a group must begin alike"),
    (Unguarded, {}, "before the first `reset` must raise"),
    (StepsOn, {"autoreset_mode": "disabled"}, "finished batch in mode DISABLED must raise"),
    (Sticky, {}, "the step after the end must only reset"),
    (NoSamples, {}, "must hold the sample of every episode that has just finished"),
    (Endless, {}, "Episodes must end"),
    (BothEnds, {}, "must not terminate and truncate at once"),
    (Forgetful, {}, "must bring back the observation and info of the snapshot"),
    (Writer, {}, "must bring back the observation and info of the snapshot"),
    (Twins, {}, "Copies of one episode must differ in their noise"),
    (Changelings, {}, "to every episode itself must change nothing"),
    (Lender, {}, "must be copies"),
    (MixedGroups, {}, "episodes of a group must share one prompt"),
    (SharedSeeds, {}, "`info\\['episode_seed'\\]` must differ between episodes"),
    (Reticent, {}, "`info` must have 'prompt'"),
    (Objects, {}, "`info\\['prompt'\\]` must hold texts, got \\['Prompt'\\]"),
    (Unmasked, {}, "must have its mask `_luck`"),
    (NotApplicable, {}, "must leave out by its mask what does not apply, got NaN"),
    (Locked, {}, "must be pickled at any moment, got ContractError: `tool` must be something"),
    (Double, {}, "must have the dtype of its space, float32, got float64"),
    (OutOfBounds, {}, "`obs\\['sigma'\\]` must lie in its space"),
    (NotANumber, {}, "`obs\\['latent'\\]` must be finite"),
    (Undeclared, {}, "Observation keys must be"),
    (Lenient, {}, "must refuse the options {'no_such_option': 1}"),
    (Rounding, {}, "must refuse the options {'group_size': 5}"),
    (Clinging, {}, "must not outlive the next one"),
    (Repeating, {}, "without a seed must go on to new episodes"),
    (Dice, {}, "same seed and actions must give the same episodes"),
    (SameStep, {}, "the last observation of an episode must be seen"),
    (Nested, {}, "Observations must be flat, got nested spaces at \\['context'\\]"),
]


class TestConviction:
    @pytest.mark.parametrize("mutant, options, law", MUTANTS, ids=[m.__name__ for m, *_ in MUTANTS])
    def test_a_broken_world(self, mutant, options, law):
        env = mutant(PlainDenoiser(), num_envs=4, num_steps=3, prompts=PROMPTS, **options)
        with pytest.raises(ContractError, match=law):
            check_vector_env(env, max_steps=50)

    def test_an_observation_that_is_no_mapping(self):
        with pytest.raises(ContractError, match="must be a Dict, got Box"):
            check_vector_env(Flat(world()))

    def test_an_environment_without_snapshots(self):
        with pytest.raises(ContractError, match="must have `snapshot`"):
            check_vector_env(FakeDenoiseEnv())

    def test_half_precision_and_flags_are_no_crime_for_tensors(self):
        class Half(DenoiseVectorEnv):
            def _observe(self):
                return {**super()._observe(), "latent": self._activity.latent.bfloat16()}

        check_vector_env(
            Half(PlainDenoiser(), num_envs=2, num_steps=2, prompts=[Prompt("a cat")], array_backend="torch")
        )
