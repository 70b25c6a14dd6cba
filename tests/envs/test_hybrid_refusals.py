"""What a hybrid environment refuses, and how it says so."""

import numpy as np
import pytest
import torch
from hybrid_worlds import Discrete, OneBackbone, Sighted, TwoBackbones, hybrid, letters, looking, step

from unirl_env.errors import ConfigError, ContractError, PromptError, ShapeError
from unirl_env.types import Prompt


class TestActions:
    @pytest.mark.parametrize(
        ("actions", "message"),
        [
            (np.zeros(2, int), r"must be a mapping with \['token', 'latent'\], got ndarray"),
            ({}, r"got none of \['token', 'latent'\]"),
            ({"token": np.zeros(2, int), "latents": 0}, r"got unknown parts \['latents'\]"),
            ({"token": np.zeros(3, int)}, r"token ids, integers \[2\], got int64 \[3\]"),
            ({"token": np.zeros(2)}, r"token ids, integers \[2\], got float64"),
            ({"latent": np.zeros((2, 3, 4, 5))}, r"next latents \[2, 3, 4, 4\], got \[2, 3, 4, 5\]"),
            ({"latent": np.zeros((2, 3, 4, 4), int)}, "floating point"),
        ],
    )
    def test_of_another_form(self, actions, message):
        env = hybrid(num_envs=2, autoreset_mode="disabled")
        env.reset(seed=0)
        with pytest.raises(ShapeError, match=message):
            env.step(actions)

    @pytest.mark.parametrize("part", ["token", "latent"])
    def test_a_missing_part_where_batches_restart(self, part):
        env = hybrid(num_envs=2)
        obs, _ = env.reset(seed=0)
        actions = {"token": letters("ab"), "latent": obs["latent"]}
        with pytest.raises(ShapeError, match=rf"got none of \['{part}'\]; .* in autoreset mode DISABLED"):
            env.step({**actions, part: None})

    def test_tokens_that_are_none(self):
        env = hybrid(num_envs=2)
        obs, _ = env.reset(seed=0)
        for token in (-1, 52):
            with pytest.raises(ContractError, match=rf"in \[0, 52\), got \[{token}\] in episodes \[1\]"):
                env.step({"token": np.array([5, token]), "latent": obs["latent"]})
        env = hybrid(Discrete(), num_envs=2, max_new_tokens=0)
        env.reset(seed=0)
        with pytest.raises(ContractError, match=r"in \[52, 57\), got \[57\] in episodes \[0\]"):
            env.step({"image_token": np.array([57, 52])})

    def test_what_another_phase_is_told_means_nothing(self):
        env = hybrid(num_envs=2)
        obs, _ = env.reset(seed=0)
        obs, *_ = step(env, obs, "^a")
        latent = obs["latent"].copy()
        latent[1] = np.nan
        after, *_ = env.step({"token": np.array([-7, 5]), "latent": latent})
        assert np.array_equal(after["latent"], np.stack([latent[0], obs["latent"][1]]))

    @pytest.mark.parametrize("backend", ["numpy", "torch"])
    def test_a_policy_that_has_diverged(self, backend):
        env = hybrid(num_envs=2, num_steps=1, array_backend=backend)
        obs, _ = env.reset(seed=0)
        obs, *_ = step(env, obs, "a^")
        with pytest.raises(ContractError, match=r"in episodes \[1\]; the policy has diverged"):
            step(env, obs, "b.", factor=torch.nan)


class TestPrompts:
    def test_pictures_for_a_model_that_sees_none(self):
        with pytest.raises(PromptError, match="at most 0 pictures for this model, got 1 in '0'"):
            hybrid(prompts=looking())
        env = hybrid(num_envs=1)
        with pytest.raises(PromptError, match="at most 0 pictures"):
            env.reset(options={"prompts": looking()[:1]})

    def test_more_pictures_than_it_sees(self):
        with pytest.raises(PromptError, match="at most 2 pictures for this model, got 3"):
            hybrid(Sighted(), prompts=looking(3))

    def test_edits_of_nothing(self):
        with pytest.raises(PromptError, match="must bring a picture, got none in 'a house'"):
            hybrid(Sighted(), prompts=[*looking(), Prompt("a house")], edits=True)
        env = hybrid(Sighted(), num_envs=1, prompts=looking(), edits=True)
        env.reset(seed=0)
        before = env.snapshot()
        with pytest.raises(PromptError, match="must bring a picture, got none in 'b'"):
            env.reset(options={"prompts": ["b"]})
        assert env.snapshot().model_state["text"]["written"] is before.model_state["text"]["written"]
        with pytest.raises(ConfigError, match="`edits` must be False for a model that takes no pictures"):
            hybrid(edits=True)

    def test_one_that_is_too_long_changes_nothing(self):
        env = hybrid(num_envs=2, max_prompt_tokens=8)
        env.reset(seed=0, options={"prompts": ["abcde", "a"]})
        before = env.snapshot().model_state
        with pytest.raises(PromptError, match="at most 8 tokens, got 9 for prompt 'abcdef'"):
            env.reset(options={"prompts": ["a", "abcdef"]})
        after = env.snapshot().model_state
        assert after["image"]["latent"] is before["image"]["latent"] and after["phase"] is before["phase"]


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_new_tokens": 0, "num_steps": 0}, "must not both be 0, got two empty phases"),
            ({"max_new_tokens": -1}, "`max_new_tokens` must be at least 0, got -1"),
            ({"num_steps": -1}, "`num_steps` must be at least 0, got -1"),
            ({"max_prompt_tokens": 0}, "`max_prompt_tokens` must be at least 1, got 0"),
            (
                {"max_new_tokens": 43},
                r"at most 62, .* 64 tokens without the 2 of .*, got 20 \+ 43; try max_new_tokens=42",
            ),
            ({"stochastic_steps": [3]}, r"`stochastic_steps` must lie in \[0, 3\), got \[3\]"),
            (
                {"num_steps": 0, "stochastic_steps": [0]},
                "`stochastic_steps` must be empty where no latents are",
            ),
            ({"num_steps": 0, "render_mode": "rgb_array"}, "`render_mode` must be 'ansi' or None"),
            ({"render_mode": "human"}, "`render_mode` must be one of"),
        ],
    )
    def test_out_of_range(self, options, message):
        with pytest.raises(ConfigError, match=message):
            hybrid(**options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_steps": 4}, "`num_steps` must be left out for a model whose pictures are tokens, got 4"),
            ({"with_negative": True}, "`with_negative` must be False for a model whose pictures are tokens"),
            ({"stochastic_steps": [0]}, "`stochastic_steps` must be empty"),
            ({"max_new_tokens": 39}, r"at most 58, .* without the 6 of opening and picture, got 20 \+ 39"),
        ],
    )
    def test_that_pictures_of_tokens_do_not_know(self, options, message):
        with pytest.raises(ConfigError, match=message):
            hybrid(Discrete(), **options)

    def test_the_whole_context_can_be_used(self):
        env = hybrid(Discrete(), num_envs=1, max_new_tokens=38)
        assert env.max_length == 60 and env.reset(seed=0, options={"stochastic_steps": []})

    def test_a_model_whose_pictures_no_text_ends_with(self):
        model = OneBackbone()
        model.opens = (7,)
        with pytest.raises(ContractError, match=r"`UnifiedModel\.opens` must be among"):
            hybrid(model)

    def test_a_model_whose_contexts_have_many_shapes(self):
        model = TwoBackbones()
        env = hybrid(model, num_envs=1)
        obs, _ = env.reset(seed=0)
        model.context = lambda prompt, text: {"pooled": torch.zeros(1, 3)}
        with pytest.raises(
            ContractError, match=r"must give `prompt_embeds` \[1, 2\] for every text, got none"
        ):
            step(env, obs, "^")
