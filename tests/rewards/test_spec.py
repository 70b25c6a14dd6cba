"""From the words of a configuration to a scorer; nothing that cannot work is accepted."""

import pytest
import torch

from unirl_env.errors import ConfigError
from unirl_env.rewards import (
    Gate,
    LinearScorer,
    Minimum,
    Overlong,
    Product,
    ShapesScorer,
    WeightedSum,
    build_scorer,
)
from unirl_env.types import Prompt, Sample, Scores

HERE = __name__


class Constant:
    """A reward that is a setting."""

    def __init__(self, value=1.0, *, scale=1.0):
        self.value = value * scale

    def __call__(self, samples, prompts):
        return Scores(torch.full((len(samples),), self.value))


def half(samples, prompts):
    """A reward that is a function."""
    return Scores(torch.full((len(samples),), 0.5))


def value(scorer):
    return scorer([Sample(text="a")], [Prompt("b")]).value.item()


def test_a_name_a_path_and_a_callable():
    assert isinstance(build_scorer("shapes"), ShapesScorer)
    assert value(build_scorer(f"{HERE}:Constant")) == 1.0
    assert build_scorer(f"{HERE}.half") is half
    assert build_scorer(half) is half
    mine = Constant(7)
    assert build_scorer(mine) is mine


def test_options():
    assert value(build_scorer({"name": f"{HERE}:Constant", "value": 3.0, "scale": 2.0})) == 6.0
    assert build_scorer({"name": "linear", "weights": [1.0, 2.0]}).weights.tolist() == [1, 2]


def test_compositions_nest():
    one, two = ({"name": f"{HERE}:Constant", "value": v} for v in (1.0, 2.0))
    total = build_scorer(
        {"name": "weighted_sum", "parts": {"a": {**one, "weight": 0.5}, "b": two, f"{HERE}:half": 4}}
    )
    assert isinstance(total, WeightedSum) and value(total) == pytest.approx(0.5 + 2 + 2)
    product = build_scorer(
        {"name": "product", "parts": {"a": two, "b": {"name": "minimum", "parts": {"a": two, "b": one}}}}
    )
    assert isinstance(product, Product) and value(product) == 2.0
    assert isinstance(build_scorer({"name": "minimum", "parts": {"a": one, "b": two}}), Minimum)
    gate = build_scorer({"name": "gate", "gate": one, "scorer": two, "threshold": 0.5})
    assert isinstance(gate, Gate) and value(gate) == 2.0
    overlong = build_scorer({"name": "overlong", "scorer": two, "mode": "soft", "max_tokens": 9, "buffer": 3})
    assert isinstance(overlong, Overlong) and overlong.buffer == 3 and value(overlong.scorer) == 2.0


def test_a_part_is_named_by_its_key_where_it_has_no_name():
    total = build_scorer({"name": "weighted_sum", "parts": {"linear": {"weights": 2.0, "weight": 3.0}}})
    assert isinstance(total.parts["linear"], LinearScorer) and total.weights == {"linear": 3.0}


def test_the_words_are_left_as_they_were():
    words = {"name": "weighted_sum", "parts": {"a": {"name": f"{HERE}:Constant", "weight": 0.5}}}
    build_scorer(words)
    assert words == {"name": "weighted_sum", "parts": {"a": {"name": f"{HERE}:Constant", "weight": 0.5}}}


@pytest.mark.parametrize(
    "spec, words",
    [
        ("no_such_reward", "`reward` must be one of"),
        ("shapess", "try 'shapes'"),
        ("no.such.module:Thing", "module that exists"),
        ({}, "must have a `name`"),
        ({"value": 3}, "must have a `name`"),
        ({"name": f"{HERE}:Constant", "colour": 3}, "do not fit.*colour"),
        ({"name": f"{HERE}:half", "value": 3}, "takes no options"),
        ({"name": "weighted_sum"}, "must have `parts"),
        ({"name": "weighted_sum", "parts": {}}, "must have `parts"),
        ({"name": "weighted_sum", "parts": {"shapes": 1}, "weights": [1]}, "nothing else"),
        ({"name": "weighted_sum", "parts": {"shapes": "a lot"}}, "weight or a mapping"),
        ({"name": "product", "parts": ["shapes"]}, "must have `parts"),
        ({"name": "gate", "gate": "shapes"}, "must have `scorer`"),
        ({"name": "gate", "gate": "shapes", "scorer": "shapes"}, "do not fit.*threshold"),
        ({"name": "overlong", "mode": "keep"}, "'overlong' must have `scorer`"),
        ({"name": "overlong", "scorer": "shapes", "most": 3}, "do not fit.*most"),
        ({"name": "overlong", "scorer": "no_such_reward"}, "`reward` must be one of"),
        (7, "name, a mapping or a callable, got int"),
        (None, "got NoneType"),
        (Constant, "got the class Constant"),
    ],
)
def test_what_cannot_work_is_named(spec, words):
    with pytest.raises(ConfigError, match=words):
        build_scorer(spec)
