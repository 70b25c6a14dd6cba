"""Rewards of words, by hand."""

import pytest
import torch

from unirl_env.errors import ConfigError, ContractError, PromptError
from unirl_env.rewards import build_scorer, require_judgeable
from unirl_env.types import Prompt, Sample


def judged(spec, *pairs):
    scorer = build_scorer(spec)
    return scorer([Sample(text=word) for word, _ in pairs], [Prompt(letter) for _, letter in pairs]).value


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"vocabulary": 5}, [1.0, 0.75, 0.0, 0.0]),
        ({"vocabulary": 5, "whole_word": True}, [1.0, 0.0, 0.0, 0.0]),
        ({"vocabulary": 5, "step": -1}, [0.0, 0.0, 1.0, 0.0]),
    ],
)
def test_letters_go_on_in_the_alphabet(options, expected):
    """Forwards from B: C, D, E, A. Backwards: A, E, D, C."""
    pairs = [("CDEA", "B"), ("CDBA", "B"), ("AEDC", "B"), ("", "B")]
    assert judged({"name": "alphabet", **options}, *pairs).tolist() == expected


def test_the_share_of_a_letter():
    assert judged({"name": "letter", "letter": "B"}, ("ABBA", "C"), ("BBB", "C"), ("", "C")).tolist() == [
        0.5,
        1.0,
        0.0,
    ]


def test_they_compose():
    spec = {
        "name": "weighted_sum",
        "parts": {"alphabet": 1.0, "easy": {"name": "letter", "letter": "A", "weight": 2.0}},
    }
    torch.testing.assert_close(judged(spec, ("BCDA", "A"), ("AAAA", "A")), torch.tensor([1.5, 2.25]))


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(PromptError, match="prompt of one letter"):
        require_judgeable({"name": "alphabet"}, [Prompt("two words")])
    for name in ("alphabet", "letter"):
        with pytest.raises(ContractError, match=f"`{name}` scores texts"):
            build_scorer(name)([Sample(latent=torch.zeros(1))], [Prompt("A")])
    with pytest.raises(ConfigError, match="`letter` must be one letter"):
        build_scorer({"name": "letter", "letter": "AB"})
    with pytest.raises(ConfigError, match="`vocabulary`"):
        build_scorer({"name": "alphabet", "vocabulary": 1})
