"""The tabular world of tokens: its contract, its words, and that its table holds every policy."""

import gymnasium as gym
import pytest
import torch

from unirl_env.envs import MDPVectorEnv, check_vector_env
from unirl_env.errors import ConfigError, PromptError
from unirl_env.functional.sequences import all_sequences, sequence_log_prob
from unirl_env.models.tabular import TabularTokens
from unirl_env.policies.actor import Actor
from unirl_env.types import Prompt


def env(model, prompts=("A", "B"), num_envs=4):
    return MDPVectorEnv(
        model,
        num_envs=num_envs,
        prompts=list(prompts),
        group_size=1,
        array_backend="torch",
        autoreset_mode="disabled",
        info_objects=True,
    )


def write(model, prompts, words):
    """The samples, and the rows of the table that were seen, of episodes that write `words` `[N, L]`."""
    world, seen = env(model, prompts, len(words)), []
    obs, _ = world.reset(seed=0, options={"prompts": list(prompts)})
    for letter in words.T:
        seen.append(obs["row"])
        obs, _, terminated, truncated, info = world.step(letter)
    assert terminated.all() and not truncated.any()
    return info["samples"], torch.stack(seen, 1)


def test_the_judge_acquits():
    for options in ({}, {"model_options": {"vocabulary": 3, "length": 1, "spread": 0.0}, "prompts": ["C"]}):
        made = gym.make_vec(
            "unirl/TabularTokens-v0", num_envs=4, vectorization_mode="vector_entry_point", **options
        )
        check_vector_env(made, seed=3)


@pytest.mark.parametrize(("vocabulary", "length"), [(2, 5), (3, 3), (4, 1)])
def test_an_episode_writes_its_word_and_sees_a_row_of_its_own_for_each_prefix(vocabulary, length):
    model = TabularTokens(vocabulary, length)
    words = all_sequences(vocabulary, length)
    rows = {}
    for prompt in model.letters:
        samples, seen = write(model, [prompt] * len(words), words)
        for word, sample, row in zip(words.tolist(), samples, seen.tolist(), strict=True):
            assert sample.tokens.tolist() == word
            assert sample.text == "".join(model.letters[letter] for letter in word)
            for k in range(length):
                assert rows.setdefault((prompt, *word[:k]), row[k]) == row[k]
    assert sorted(rows.values()) == list(range(len(rows))), "no two prefixes share a row"
    assert len(rows) == model.observation_spaces["row"].n == len(model.table())


def test_what_the_policy_says_of_an_episode_is_what_the_table_says_of_the_word():
    model = TabularTokens(3, 4, spread=1.5, key=7)
    actor, words = Actor(model), all_sequences(3, 4)
    for place, prompt in enumerate(model.letters):
        _, seen = write(model, [prompt] * len(words), words)
        found = torch.zeros(len(words))
        for k in range(4):
            found += actor.score({"row": seen[:, k]}, words[:, k]).log_prob
        part = model.table()[place * model.prefixes : (place + 1) * model.prefixes]
        torch.testing.assert_close(found.detach(), sequence_log_prob(part), atol=1e-5, rtol=1e-5)


def test_the_untrained_table_follows_from_its_key():
    assert torch.equal(TabularTokens(key=1).table(), TabularTokens(key=1).network().logits.detach())
    assert not torch.equal(TabularTokens(key=1).table(), TabularTokens(key=2).table())
    assert float(TabularTokens(4, 5, spread=0.5).table().std()) == pytest.approx(0.5, rel=0.05)
    assert not TabularTokens(spread=0).table().any()
    assert TabularTokens(key=1).identity() != TabularTokens(key=2).identity()


def test_a_picture_has_a_dark_place_for_each_letter():
    model = TabularTokens(3, 2)
    state = {"asked": torch.zeros(2).long(), "code": torch.tensor([7, 1]), "count": torch.tensor([2, 1])}
    first, second = (1 - picture[0, ::8, ::8] for picture in model.pictures(state))
    assert first.tolist() == [[0, 0], [0, 1], [1, 0]]
    assert second.tolist() == [[0, 0], [1, 0], [0, 0]]


@pytest.mark.parametrize("prompt", ["E", "a", "AB", ""])
def test_a_prompt_that_is_none_of_the_letters_is_refused(prompt):
    with pytest.raises(PromptError, match="one of the letters ABCD"):
        TabularTokens().initial([Prompt(prompt, "id")], env(TabularTokens())._acting)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 1}, "`vocabulary` must be at least 2"),
        ({"vocabulary": 27, "length": 1}, "`vocabulary` must be at most 26"),
        ({"vocabulary": 10, "length": 5}, "at most 20000"),
        ({"length": 0}, "`length` must be at least 1"),
        ({"spread": "much"}, "`spread` must be"),
    ],
)
def test_sizes_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TabularTokens(**options)
