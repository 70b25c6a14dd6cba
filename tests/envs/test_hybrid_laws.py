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
