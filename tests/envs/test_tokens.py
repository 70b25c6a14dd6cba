"""The token MDP, on a model that spells."""

import time

import numpy as np
import pytest
import torch
from talk import EOS, MODEL, PAD, QUESTIONS, USER, SeeingModel, SpellingModel, plain, say, spelled, talk

from unirl_env.errors import ConfigError, ContractError, PromptError, ShapeError
from unirl_env.types import Prompt

BACKENDS = pytest.mark.parametrize("backend", ["numpy", "torch"])


class TestEpisodes:
    @BACKENDS
    def test_the_action_is_the_next_token(self, backend):
        env = talk(num_envs=2, array_backend=backend, autoreset_mode="disabled")
        obs, info = env.reset(seed=0, options={"prompts": ["ab", "c"]})
        prompts = [[USER, *spelled(prompt.text), EOS, MODEL] for prompt in info["prompt"]]
        assert [plain(obs["tokens"][i][: obs["length"][i]]).tolist() for i in (0, 1)] == prompts
        assert obs["length"].tolist() == obs["prompt_length"].tolist() == [5, 4]
        assert (plain(obs["tokens"])[0, 5:] == PAD).all() and not plain(obs["is_action"]).any()
        results = say(env, "hi~", "yo_")
        obs, reward, terminated, truncated, info = results[-1]
        assert plain(obs["tokens"][0][:8]).tolist() == prompts[0] + [*spelled("hi"), EOS]
        assert plain(obs["tokens"][1][:6]).tolist() == prompts[1] + spelled("yo")
        assert plain(obs["is_action"][0]).nonzero()[0].tolist() == [5, 6, 7]
        assert obs["length"].tolist() == [8, 6] and obs["prompt_length"].tolist() == [5, 4]
        assert terminated.tolist() == [True, False] and not truncated.any() and not reward.any()
        sample = info["samples"][0]
        assert info["samples"][1] is None and info["_samples"].tolist() == [True, False]
        assert sample.text == "hi" and sample.tokens.tolist() == [*spelled("hi"), EOS]
        assert not sample.truncated and sample.tokens.dtype == torch.int64

    def test_a_sample_brings_the_end_of_its_prompt(self):
        env = talk(num_envs=2, max_new_tokens=3, autoreset_mode="disabled")
        env.reset(seed=0, options={"prompts": ["ab", "c" * 15]})
        *_, (obs, *_, info) = say(env, "abc", "ab~")
        for row, sample in enumerate(info["samples"]):
            end = obs["prompt_length"][row]
            last = obs["tokens"][row, max(0, end - 16) : end].tolist()
            assert sample.before == env.unwrapped.language_model.decode(last) != ""

    @pytest.mark.parametrize(
        ("said", "terminated", "truncated"),
        [("ab", False, False), ("abc", False, True), ("ab~", True, False), ("a~", True, False)],
    )
    def test_the_limit_truncates_and_the_end_of_a_turn_terminates(self, said, terminated, truncated):
        env = talk(num_envs=1, max_new_tokens=3, autoreset_mode="disabled")
        env.reset(seed=0)
        *_, (obs, _, over, cut, info) = say(env, said)
        assert (over[0], cut[0]) == (terminated, truncated)
        if over[0] or cut[0]:
            assert info["samples"][0].truncated == truncated
            assert len(info["samples"][0].tokens) == len(said) == obs["length"][0] - obs["prompt_length"][0]

    def test_any_of_several_ends(self):
        model = SpellingModel()
        model.eos_ids = (EOS, USER, 10**6)
        env = talk(model, num_envs=2)
        env.reset(seed=0)
        assert env.step(np.array([EOS, USER]))[2].all()

    def test_finished_episodes_wait_and_keep_their_flags(self):
        env = talk(num_envs=2, max_new_tokens=3, autoreset_mode="disabled")
        env.reset(seed=0)
        first, second, third = say(env, "~xx", "abc")
        assert np.array_equal(first[0]["tokens"][0], third[0]["tokens"][0])
        assert [r[2].tolist() for r in (first, second, third)] == [[True, False]] * 3
        assert [r[3].tolist() for r in (first, second, third)] == [[False, False]] * 2 + [[False, True]]
        assert "samples" not in second[4] and third[4]["_samples"].tolist() == [False, True]

    def test_uneven_episodes_restart_on_their_own(self):
        env = talk(num_envs=3, max_new_tokens=4)
        _, before = env.reset(seed=0)
        results = say(env, "~xab", "a~xc", "abcd")
        lengths = [(r[0]["length"] - r[0]["prompt_length"]).tolist() for r in results]
        assert lengths == [[1, 1, 1], [0, 2, 2], [1, 0, 3], [2, 1, 4]]
        assert [r[2].tolist() for r in results[:3]] == [
            [True, False, False],
            [False, True, False],
            [False, False, False],
        ]
        assert results[3][3].tolist() == [False, False, True]
        seeds = {s for r in (before, results[1][4], results[2][4]) for s in r["episode_seed"].tolist()}
        assert len(seeds) == 5

    def test_a_group_restarts_when_its_last_episode_has_ended(self):
        env = talk(num_envs=4, group_size=2, max_new_tokens=4)
        _, before = env.reset(seed=0)
        results = say(env, "~xxx", "ab~x", "abcd", "abc~")
        assert [r[2].tolist()[:2] for r in results] == [[1, 0], [1, 0], [1, 1], [0, 0]]
        obs, _, terminated, truncated, info = results[3]
        assert obs["length"].tolist()[:2] == obs["prompt_length"].tolist()[:2]
        assert (terminated.tolist()[2:], truncated.tolist()[2:]) == ([False, True], [True, False])
        assert info["episode_seed"].tolist()[2:] == before["episode_seed"].tolist()[2:]
        assert info["samples"][:2] == [None, None] and len({p.id for p in info["prompt"][:2]}) == 1

    def test_waiting_is_for_batches_that_do_not_restart(self):
        env = talk(num_envs=2, autoreset_mode="disabled")
        obs, _ = env.reset(seed=0)
        (waited,) = say(env, "_", "_")
        assert all(np.array_equal(obs[k], waited[0][k]) for k in obs) and not waited[2].any()
        assert say(env, "_", "a")[0][0]["length"].tolist() == (obs["length"] + [0, 1]).tolist()
        env = talk(num_envs=2)
        env.reset(seed=0)
        with pytest.raises(ContractError, match=r"got \[-1\] in episodes \[1\]; WAIT .-1. is for"):
            say(env, "a", "_")

    @pytest.mark.parametrize("actions", [np.zeros(3, int), np.zeros((2, 1), int), np.zeros(2), [True, False]])
    def test_actions_of_another_form_are_refused(self, actions):
        env = talk(num_envs=2)
        env.reset(seed=0)
        with pytest.raises(ShapeError, match=r"must be token ids, integers \[2\], got"):
            env.step(actions)

    @pytest.mark.parametrize("token", [-2, SpellingModel.vocab_size, 2**40])
    def test_tokens_out_of_the_vocabulary_are_refused(self, token):
        env = talk(num_envs=2, autoreset_mode="disabled")
        obs, _ = env.reset(seed=0)
        with pytest.raises(ContractError, match=rf"in \[0, 52\), got \[{token}\] in episodes \[1\]"):
            env.step(np.array([5, token]))
        assert say(env, "a", "b")[0][0]["length"].tolist() == (obs["length"] + 1).tolist()

    def test_it_renders_as_text(self):
        env = talk(num_envs=1, render_mode="ansi")
        assert env.render() is None
        env.reset(seed=0, options={"prompts": ["1+1"]})
        say(env, "=2")
        assert env.render() == ("1+1=2",)
        with pytest.raises(ConfigError, match="`render_mode`"):
            talk(render_mode="rgb_array")


class TestLimits:
    def test_a_prompt_that_is_too_long_is_named_with_its_tokens(self):
        env = talk(num_envs=2, max_prompt_tokens=8)
        env.reset(seed=0, options={"prompts": ["abcde", "a"]})
        before = env.snapshot()
        with pytest.raises(
            PromptError, match=r"at most 8 tokens, got 9 for prompt 'abcdef'; .*larger `max_prompt_tokens`"
        ):
            env.reset(options={"prompts": ["a", "abcdef"]})
        assert env.snapshot().model_state["written"] is before.model_state["written"]

    def test_an_empty_encoding_is_named(self):
        model = SpellingModel()
        model.encode = lambda prompt: type(SpellingModel().encode(prompt))(torch.zeros(0, dtype=torch.long))
        with pytest.raises(PromptError, match=r"a token at least, got none for prompt"):
            talk(model).reset(seed=0)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_new_tokens": 50}, r"context of 64 tokens, got 20 \+ 50; try max_new_tokens=44"),
            ({"max_new_tokens": 0}, "`max_new_tokens` must be at least 1, got 0"),
            ({"max_prompt_tokens": 0}, "`max_prompt_tokens` must be at least 1"),
            ({"max_turns": 0}, "`max_turns` must be at least 1"),
            ({"tool": "calculator"}, r"`tool` must be callable as \(text, prompt\), got str"),
        ],
    )
    def test_arguments_out_of_range_are_refused(self, options, message):
        with pytest.raises(ConfigError, match=message):
            talk(**options)

    def test_the_whole_context_can_be_used(self):
        env = talk(num_envs=1, max_prompt_tokens=4, max_new_tokens=60)
        env.reset(seed=0, options={"prompts": ["a"]})
        assert say(env, "a" * 60)[-1][3].all()


class TestInputs:
    def test_they_are_padded_with_zeros(self):
        env = talk(SeeingModel(), num_envs=2)
        obs, _ = env.reset(seed=0, options={"prompts": ["3", "no"]})
        assert obs["pixel_values"].shape == (2, 9, 2) and obs["pixel_values"].dtype == np.float32
        assert obs["pixel_values"][0, :3].ravel().tolist() == [1, 2, 3, 4, 5, 6]
        assert not obs["pixel_values"][0, 3:].any() and not obs["pixel_values"][1].any()
        assert obs["image_grid_thw"][0].tolist() == [[1, 1, 3], [0, 0, 0]]
        assert obs["positions"].shape == (2, 3, 20), "as long as the longest prompt, not as the context"
        assert env.observation_space.contains(obs)

    def test_they_restart_with_their_rows(self):
        env = talk(SeeingModel(), num_envs=2, prompts=["1", "2", "3", "4"])
        obs, _ = env.reset(seed=0)
        after = say(env, "~x", "ab")[-1]
        patches = after[0]["image_grid_thw"][:, 0, 2].tolist()
        assert patches == [int(prompt.text) for prompt in after[4]["prompt"]]
        assert patches[1] == obs["image_grid_thw"][1, 0, 2] and patches[0] != obs["image_grid_thw"][0, 0, 2]

    def test_without_them_the_encodings_are_still_there(self):
        env = talk(SeeingModel(), num_envs=2, group_size=2, with_inputs=False)
        obs, _ = env.reset(seed=0)
        assert set(obs) == {"tokens", "length", "prompt_length", "is_action"}
        assert env.encodings[0] is env.encodings[1] and "pixel_values" in env.encodings[0].inputs

    def test_what_does_not_fit_is_named(self):
        model = SeeingModel()
        model.input_spaces = {**model.input_spaces, "pixel_values": ((2, 2), "float32")}
        with pytest.raises(
            PromptError, match=r"`pixel_values` must fit into \[2, 2\], got \[3, 2\] for prompt '3'"
        ):
            talk(model, num_envs=1).reset(options={"prompts": ["3"]})

    def test_the_episodes_of_a_group_share_an_encoding(self):
        model = SpellingModel()
        talk(model, num_envs=4, group_size=2).reset(seed=0)
        assert sorted(model.encoded.values()) == [1, 1]
        assert set(model.encoded) <= set(QUESTIONS)


def test_a_step_of_256_episodes_takes_less_than_a_fifth_of_a_millisecond():
    """Replaying 256 texts of 1024 tokens must not be felt; the best of five by processor time."""

    class Long(SpellingModel):
        max_context = 2048

        def decode(self, tokens):
            return ""

    options = {"num_envs": 256, "group_size": 8, "max_new_tokens": 1024, "max_prompt_tokens": 512}
    prompts = [Prompt(f"q{i}") for i in range(32)]
    env = talk(
        Long(), scored=True, prompts=prompts, array_backend="torch", autoreset_mode="disabled", **options
    )
    actions = torch.randint(4, 50, (1024, 256), generator=torch.Generator().manual_seed(0))
    spent = []
    for seed in range(5):
        env.reset(seed=seed)
        begin = time.process_time()
        for token in actions:
            result = env.step(token)
        spent.append(time.process_time() - begin)
        assert result[3].all()
    assert min(spent) <= 0.2
