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
from unirl_env.rewards.spec import check_reward
from unirl_env.types import Prompt, Sample, Scores

HERE = __name__


class Constant:
    """A reward that is a setting."""

    def __init__(self, value=1.0, *, scale=1.0):
        self.value = value * scale

    def __call__(self, samples, prompts):
        return Scores(torch.full((len(samples),), self.value))


class Picky:
    """A reward that cannot do without an option, and not without one of two others."""

    def __init__(self, path, *, low=None, high=None):
        self.check_with(low, high)
        self.value = 1.0

    @staticmethod
    def check_with(low=None, high=None, **options):
        if (low is None) == (high is None):
            raise ConfigError("it must have one of `low` and `high`; try low=0.")

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


@pytest.mark.parametrize(
    "spec, words",
    [
        (
            "video_align",
            r"`question` must be the path of .* got None: there is no default; try a file",
        ),
        ({"name": "video_align", "question": "/no/such/file.txt"}, r"`question` must be .*/no/such/file"),
        (
            "judge",
            r"do not fit: it must have `url`, `model` and `rubric`, got none; try `url: \.\.\., m",
        ),
        ({"name": "judge", "url": "http://a", "model": "b"}, r"got \['model', 'url'\]; try `rubric: \.\.\.`"),
        ("http", r"'http' do not fit: it must have `url`"),
        ({"name": "remote", "urls": ["http://a"]}, "'remote' do not fit: .*`reward: "),
        ("length", r"must have one of `linear` and `target`.*try `linear: \[100, 500\]`"),
        ({"name": "normalized", "scorer": "jpeg"}, "either `mean` and `std` or `low` and `high`"),
        ({"name": "overlong", "scorer": "shapes"}, "`max_tokens` and `buffer` must be"),
        (
            {"name": "temporal_consistency", "pretrained": "openai"},
            "`pretrained` must be None without",
        ),
        ("pictured", r"'pictured' must have `scorer`, got \[\]; try \{name: pictured, scorer: \.\.\.\}"),
        (
            {"name": "gate", "gate": "shapes", "scorer": "shapes"},
            "it must have .* and `threshold`",
        ),
        ({"name": "over_frames", "scorer": {"name": "length"}}, "one of `linear` and `target`"),
        ({"name": "weighted_sum", "parts": {"video_align": 1.0, "shapes": 1.0}}, "`question` must be"),
        (f"{HERE}:Picky", "do not fit: it must have `path`, got none; try `path: ...` beside its name"),
        ({"name": f"{HERE}:Picky", "path": "a"}, "one of `low` and `high`"),
        ({"name": f"{HERE}:half", "value": 3}, "takes no options"),
    ],
)
def test_what_is_missing_is_found_before_anything_is_built(spec, words):
    pytest.importorskip("httpx")
    with pytest.raises(ConfigError, match=words):
        check_reward(spec)


def test_a_secret_of_the_environment_is_an_option(monkeypatch, tmp_path):
    spec = {"name": f"{HERE}:Picky", "path": "a", "low": "env:A_LOW_END"}
    with pytest.raises(ConfigError, match="A_LOW_END"):
        check_reward(spec)
    monkeypatch.setenv("A_LOW_END", "0.5")
    check_reward(spec)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "length", "target": 3},
        {"name": "overlong", "scorer": "shapes", "mode": "zero"},
        {"name": "normalized", "scorer": {"name": "length", "linear": [1, 2]}, "low": 0, "high": 1},
        {"name": "gate", "gate": "shapes", "scorer": "shapes", "threshold": 0.5},
        {"name": "weighted_sum", "parts": {"shapes": 1.0, "motion": 0.5}},
        {"name": f"{HERE}:Picky", "path": "a", "high": 1},
        f"{HERE}:half",
    ],
)
def test_what_is_whole_passes(spec):
    check_reward(spec)
