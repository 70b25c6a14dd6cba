"""Rewards of the length, and what becomes of rewards of texts that are too long."""

import math

import pytest
import torch

from unirl_env.errors import ConfigError, ContractError
from unirl_env.rewards import LengthScorer, Overlong
from unirl_env.types import Prompt, Sample, Scores


def samples(*lengths, truncated=()):
    return [
        Sample(text="x" * length, tokens=torch.zeros(length, dtype=torch.int64), truncated=i in truncated)
        for i, length in enumerate(lengths)
    ]


def score(scorer, given):
    return scorer(given, [Prompt("p")] * len(given))


def test_a_straight_line_either_way():
    scores = score(LengthScorer(linear=[10, 20]), samples(0, 10, 15, 20, 99))
    assert scores.value.tolist() == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert scores.parts["length"].tolist() == [0, 10, 15, 20, 99]
    assert score(LengthScorer(linear=[20, 10]), samples(0, 10, 15, 20, 99)).value.tolist() == [
        0,
        0,
        0.5,
        1,
        1,
    ]


def test_a_target():
    scores = score(LengthScorer(target=10, width=4), samples(5, 6, 9, 10, 12, 14, 30))
    assert scores.value.tolist() == [0, 0, 0.75, 1, 0.5, 0, 0]
    assert score(LengthScorer(target=10), samples(0, 5, 10, 20)).value.tolist() == [0, 0.5, 1, 0]


def test_characters_are_those_of_the_text():
    given = [Sample(text="äöü "), Sample(text="")]
    assert score(LengthScorer(linear=(0, 8), unit="characters"), given).value.tolist() == [0.5, 1.0]
    with pytest.raises(ContractError, match=r"`Sample\.tokens` must be.*`length`, got None"):
        score(LengthScorer(linear=(0, 8)), given)
    with pytest.raises(ContractError, match=r"`Sample\.text` must be"):
        score(LengthScorer(linear=(0, 8), unit="characters"), [Sample()])


@pytest.mark.parametrize(
    "options",
    [
        {}, {"linear": [1, 2], "target": 3}, {"linear": [1]}, {"linear": [1, 1]}, {"linear": [-1, 1]},
        {"linear": "12"}, {"linear": [1, math.inf]}, {"target": -1}, {"target": 0},
        {"target": 5, "width": 0}, {"linear": [1, 2], "width": 3}, {"target": math.nan}, {"target": "5"},
        {"target": 5, "unit": "words"},
    ],
)  # fmt: skip
def test_mistakes_are_named(options):
    with pytest.raises(ConfigError, match="must"):
        LengthScorer(**options)


def inner(given, prompts):
    return Scores(
        torch.tensor([1.0, 1.0, 1.0, math.nan][: len(given)]), {"x": torch.arange(4.0)[: len(given)]}
    )


def test_keep_only_counts():
    scores = score(Overlong(inner, "keep"), [Sample(), Sample(truncated=True), Sample()])
    assert scores.value.tolist() == [1, 1, 1]
    assert scores.parts["truncated"].tolist() == [0, 1, 0]
    assert scores.parts["scorer"].tolist() == [1, 1, 1] and scores.parts["scorer/x"].tolist() == [0, 1, 2]


def test_zero_is_for_what_was_truncated_even_where_the_reward_failed():
    scores = score(Overlong(inner, "zero"), samples(1, 1, 1, 1, truncated=(1, 3)))
    assert scores.value.tolist() == [1, 0, 1, 0] and scores.valid.all()
    scores = score(Overlong(inner, "zero"), samples(1, 1, 1, 1, truncated=(1,)))
    assert scores.valid.tolist() == [True, True, True, False]


def test_the_soft_penalty_is_that_of_dapo():
    soft = Overlong(inner, max_tokens=100, buffer=20)
    scores = score(soft, samples(0, 80, 90))
    assert scores.value.tolist() == [1.0, 1.0, 0.5]
    assert scores.parts["penalty"].tolist() == [0.0, 0.0, -0.5]
    assert score(soft, samples(100, 101, 5000)).value.tolist() == [0, 0, 0]
    half = Overlong(inner, "soft", max_tokens=100, buffer=20, factor=0.5)
    assert score(half, samples(81, 90, 100)).value.tolist() == pytest.approx([0.975, 0.75, 0.5])
    assert not score(soft, samples(1, 1, 1, 1)).valid[3]
    assert torch.signbit(score(soft, samples(1)).parts["penalty"]).sum() == 0


def test_a_reward_that_raises_is_invalid_and_not_zero(caplog):
    def broken(given, prompts):
        raise RuntimeError("down")

    assert not score(Overlong(broken, max_tokens=9, buffer=3), samples(1, 9)).valid.any()
    assert "`broken` failed on 2 samples" in caplog.text


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Overlong(inner), "`max_tokens` and `buffer` must be whole numbers"),
        (lambda: Overlong(inner, max_tokens=9, buffer=10), "must be whole numbers"),
        (lambda: Overlong(inner, max_tokens=9, buffer=0), "must be whole numbers"),
        (lambda: Overlong(inner, max_tokens=9.0, buffer=3), "must be whole numbers"),
        (lambda: Overlong(inner, max_tokens=9, buffer=3, factor=-1), "`factor` must be"),
        (lambda: Overlong(inner, "hard"), "`mode` must be one of"),
        (lambda: Overlong(LengthScorer, "keep"), r"got the class LengthScorer"),
        (lambda: Overlong("math", "keep"), "must be callable"),
    ],
)
def test_what_cannot_work_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_tokens_must_be_there_to_be_counted():
    with pytest.raises(ContractError, match="`overlong`, got None"):
        score(Overlong(inner, max_tokens=9, buffer=3), [Sample(text="x")])
