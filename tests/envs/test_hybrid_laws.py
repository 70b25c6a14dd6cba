"""Hybrid environments before the judges: our own, Gymnasium's and Stable-Baselines3's."""

import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hybrid_worlds import Discrete, OneBackbone, Sighted, TwoBackbones, hybrid, looking
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from unirl_env.envs import HybridVectorEnv, SingleEnv, check_vector_env
from unirl_env.errors import ContractError
from unirl_env.wrappers import EpisodeStatistics, PotentialShaping

MODES = [(backend, mode) for backend in ("numpy", "torch") for mode in ("next_step", "disabled")]
MODELS = [TwoBackbones, OneBackbone, Discrete]


class TestAcquittal:
    @pytest.mark.parametrize("backend, mode", MODES)
    @pytest.mark.parametrize("model", MODELS)
    def test_every_kind_of_model(self, model, backend, mode):
        check_vector_env(hybrid(model(), array_backend=backend, autoreset_mode=mode, group_size=2), seed=3)

    @pytest.mark.parametrize("mode", ["next_step", "disabled"])
    @pytest.mark.parametrize("model", MODELS)
    def test_pictures_without_texts(self, model, mode):
        check_vector_env(hybrid(model(), max_new_tokens=0, autoreset_mode=mode))

    @pytest.mark.parametrize("mode", ["next_step", "disabled"])
    def test_texts_without_pictures(self, mode):
        check_vector_env(hybrid(num_steps=0, autoreset_mode=mode, array_backend="torch"))

    @pytest.mark.parametrize(
        "options",
        [
            {"with_negative": True, "scored": True},
            {"same_noise": True, "group_size": 4},
            {"num_envs": 1},
            {"context_cache": 0, "stochastic_steps": [1]},
        ],
    )
    def test_any_option(self, options):
        for model in (TwoBackbones(), OneBackbone((5, 6))):
            check_vector_env(hybrid(model, **options), seed=1)

    def test_pictures_to_look_at(self):
        check_vector_env(hybrid(Sighted(), prompts=looking(), edits=True, array_backend="torch"))

    def test_wrapped(self):
        env = PotentialShaping(hybrid(scored=True), lambda obs: obs["phase"] - obs["sigma"])
        check_vector_env(EpisodeStatistics(env))


# The mutants. Each breaks one promise and keeps the others.


class Relapsing(HybridVectorEnv):
    """Shows an episode that draws as one that writes again."""

    def _observe(self):
        obs = super()._observe()
        return {**obs, "phase": np.where(obs["step"] == 1, 0, obs["phase"])}


class Proud(HybridVectorEnv):
    """Calls the opening an action."""

    def _observe(self):
        obs = super()._observe()
        place = np.arange(obs["tokens"].shape[1])
        said = (place >= obs["prompt_length"][:, None]) & (place < obs["length"][:, None])
        return {**obs, "is_action": said.astype(np.int8)}


class Fidgety(HybridVectorEnv):
    """Lets the noise of a picture drift while its text is written."""

    def _observe(self):
        obs = super()._observe()
        writes = (obs["phase"] == 0).reshape(-1, 1, 1, 1)
        drift = (obs["length"] > obs["prompt_length"]).reshape(-1, 1, 1, 1) * np.float32(0.01)
        return {**obs, "latent": obs["latent"] + drift * writes}


class Chatty(HybridVectorEnv):
    """Goes on writing while it draws."""

    def _observe(self):
        obs = super()._observe()
        return {**obs, "length": obs["length"] + (obs["step"] > 0)}


class Impatient(HybridVectorEnv):
    """Takes a part that is left out for a step towards zero."""

    def _advance(self, actions, active):
        whole = {"token": np.full(self.num_envs, 5), "latent": super()._observe()["latent"] * 0}
        return super()._advance(
            {**whole, **actions} if isinstance(actions, dict) and actions else actions, active
        )


class Sloppy(HybridVectorEnv):
    """Takes any mapping for an action."""

    def _advance(self, actions, active):
        known = {name: part for name, part in dict(actions).items() if name in ("token", "latent")}
        return super()._advance(known, active)


class Crowded(HybridVectorEnv):
    """Mixes what an episode draws with what its neighbour has said."""

    def _observe(self):
        obs = super()._observe()
        heard = np.roll(obs["length"], 1) * (obs["step"] > 0)
        return {**obs, "pooled": obs["pooled"] + heard[:, None].astype(np.float32)}


class Bare(HybridVectorEnv):
    """Loses the pictures."""

    def _finish(self, rows):
        return [replace(sample, image=None) for sample in super()._finish(rows)]


class Illiterate(HybridVectorEnv):
    """Loses the texts of pictures."""

    def _finish(self, rows):
        return [
            sample if sample.image is None else replace(sample, text=None) for sample in super()._finish(rows)
        ]


class Forgetful(HybridVectorEnv):
    """Leaves the denoising step out of its snapshots."""

    def _become(self, snapshot, rows, groups):
        state = snapshot.model_state
        image = {**state["image"], "step": np.zeros_like(state["image"]["step"])}
        return super()._become(replace(snapshot, model_state={**state, "image": image}), rows, groups)


class Scattering(HybridVectorEnv):
    """Forks each episode to itself once any has begun to draw."""

    def fork(self, indices):
        drawing = super()._observe()["step"].any()
        return super().fork(list(range(self.num_envs)) if drawing else indices)


MUTANTS = [
    (Relapsing, {}, "`phase` must never go back"),
    (Proud, {}, "What follows an action by itself is no action"),
    (Fidgety, {}, "its picture must stay as it began"),
    (Chatty, {}, "its text must stay as it is"),
    (Impatient, {"autoreset_mode": "disabled"}, "no part in the action"),
    (Sloppy, {}, "no mapping of the phases' parts, or no tokens, must be refused"),
    (Crowded, {}, "must not depend on its place in the batch, nor on the others"),
    (Bare, {}, "must have a picture where the episode came to it only"),
    (Illiterate, {}, "`Sample.text` must be the generated text"),
    (Forgetful, {}, "must bring back the observation and info of the snapshot"),
    (Scattering, {}, "must let every copy start from its original's observation"),
]


@pytest.mark.parametrize("mutant, options, law", MUTANTS, ids=[m.__name__ for m, *_ in MUTANTS])
def test_a_broken_world_is_convicted(mutant, options, law):
    env = mutant(
        TwoBackbones(),
        num_envs=4,
        prompts=["1 cat", "2 dogs", "a house", "say hello"],
        max_new_tokens=6,
        max_prompt_tokens=20,
        num_steps=3,
        **options,
    )
    with pytest.raises(ContractError, match=law):
        check_vector_env(env, max_steps=60)


def make_single(kind="two", render_mode=None, **options):
    """Entry point of the single environment."""
    model = {"two": TwoBackbones, "one": OneBackbone, "tokens": Discrete}[kind]()
    options = {"autoreset_mode": "disabled", "info_objects": False, "render_mode": render_mode, **options}
    return SingleEnv(hybrid(model, num_envs=1, scored=True, **options))


gym.register("toy/Hybrid-v0", entry_point=f"{__name__}:make_single")


class TestOthers:
    @pytest.mark.parametrize("kind", ["two", "one", "tokens"])
    @pytest.mark.parametrize("mode", ["rgb_array", "ansi"])
    def test_gymnasium_accepts_it(self, kind, mode):
        env = gym.make("toy/Hybrid-v0", kind=kind, render_mode=mode)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # Latents are unbounded, and the bounds of the actions are far from 1.
            warnings.filterwarnings("ignore", message=".*(infinity|symmetric and normalized).*")
            check_env(env.unwrapped)

    @pytest.mark.parametrize("kind", ["two", "one", "tokens"])
    def test_stable_baselines_sees_only_its_actions_amiss(self, kind):
        """It passes, and warns that the agents of the library know no mapping of actions."""
        with pytest.warns(UserWarning, match="either a Dict or Tuple space.*not supported"):
            sb3_check_env(make_single(kind))

    def test_an_episode_of_one(self):
        env = make_single(render_mode="rgb_array")
        obs, _ = env.reset(seed=0)
        env.action_space.seed(1)
        assert env.observation_space.contains(obs) and obs["phase"].tolist() == [0]
        for token in (7, 8, 2):
            obs, _, terminated, truncated, info = env.step({"token": token, "latent": obs["latent"]})
            assert env.observation_space.contains(obs) and not terminated and not truncated
        assert obs["phase"].tolist() == [1]
        while not terminated:
            obs, reward, terminated, _, info = env.step({"latent": obs["latent"] * np.float32(0.5)})
        assert reward == info["scores"]["value"] and info["sample"]["text"] == "de"
        assert info["sample"]["image"].shape == (3, 4, 4) and env.render().shape == (4, 4, 3)

    def test_off_the_shelf_vectorisation(self):
        env = gym.vector.SyncVectorEnv([make_single, make_single])
        obs, _ = env.reset(seed=[1, 2])
        action = {"token": np.array([2, 5]), "latent": obs["latent"]}
        assert env.step(action)[0]["phase"].ravel().tolist() == [1, 0]

    def test_tensors_are_accepted_by_the_spaces(self):
        env = hybrid(array_backend="torch")
        assert isinstance(env.reset(seed=0)[0]["phase"], torch.Tensor)
