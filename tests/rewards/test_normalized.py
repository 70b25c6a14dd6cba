"""A declared scale around another reward."""

import math

import pytest
import torch

from unirl_env.errors import ConfigError
from unirl_env.rewards import build_scorer, needs_of
from unirl_env.rewards.compose import Normalized
from unirl_env.types import Prompt, Sample, Scores


class Given:
    """The number that a prompt brings; NaN fails."""

    name = "given"
    needs = ("text",)
    pointwise = True

    def __call__(self, samples, prompts):
        value = torch.tensor([prompt.metadata["value"] for prompt in prompts])
        return Scores(value, {"twice": 2 * value})


def scored(scorer, *values):
    prompts = [Prompt(str(value), metadata={"value": value}) for value in values]
    return scorer([Sample(text="") for _ in values], prompts)


def test_mean_and_std_make_a_scale_without_ends():
    scores = scored(Normalized(Given(), mean=0.28, std=0.03), 0.28, 0.31, 0.19, 1.0)
    assert scores.value.tolist() == pytest.approx([0.0, 1.0, -3.0, 24.0], abs=1e-5)
    assert scores.parts["scorer"].tolist() == pytest.approx([0.28, 0.31, 0.19, 1.0])
    assert scores.parts["scorer/twice"].tolist() == pytest.approx([0.56, 0.62, 0.38, 2.0])


def test_low_and_high_are_clipped_and_may_be_turned_around():
    rising = scored(Normalized(Given(), low=10, high=30), 5.0, 10.0, 15.0, 30.0, 99.0)
    assert rising.value.tolist() == pytest.approx([0, 0, 0.25, 1, 1])
    free = scored(Normalized(Given(), low=10, high=30, clip=False), 5.0, 50.0)
    assert free.value.tolist() == pytest.approx([-0.25, 2.0])
    falling = scored(Normalized(Given(), low=30, high=10), 5.0, 10.0, 15.0, 99.0)
    assert falling.value.tolist() == pytest.approx([1, 1, 0.75, 0])


def test_what_is_invalid_stays_invalid():
    scores = scored(Normalized(Given(), low=0, high=1), 0.5, math.nan, 7.0)
    assert scores.valid.tolist() == [True, False, True]
    assert math.isnan(scores.value[1])


def test_a_scorer_that_raises_is_a_failure_of_its_samples_alone():
    class Picky(Given):
        def __call__(self, samples, prompts):
            if any(prompt.metadata["value"] < 0 for prompt in prompts):
                raise ValueError("negative")
            return super().__call__(samples, prompts)

    assert scored(Normalized(Picky(), mean=0, std=2), 4.0, -1.0).valid.tolist() == [True, False]


def test_it_is_pointwise_where_its_scorer_is():
    assert Normalized(Given(), mean=0, std=1).pointwise
    assert not Normalized(lambda samples, prompts: Scores.failed(len(samples)), mean=0, std=1).pointwise


def test_words_put_every_term_of_a_sum_on_its_own_scale():
    spec = {
        "name": "weighted_sum",
        "parts": {
            "sharp": {"name": "normalized", "scorer": "sharpness", "low": 0, "high": 0.5, "weight": 2.0},
            "size": {
                "name": "normalized",
                "scorer": {"name": "jpeg", "per_pixel": True},
                "mean": -1.0,
                "std": 0.5,
            },
        },
    }
    picture = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0))
    scores = build_scorer(spec)([Sample(image=picture)], [Prompt("a")])
    sharp, bits = scores.parts["sharp/scorer"], scores.parts["size/scorer/bits_per_pixel"]
    assert torch.allclose(scores.value, 2 * (sharp / 0.5).clamp(0, 1) + (-bits + 1.0) / 0.5)
    assert bits > 1
    assert needs_of(spec) == {"image": True}
    assert needs_of({"name": "normalized", "scorer": "length", "low": 0, "high": 1}) == {"text": True}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either `mean` and `std` or `low` and `high`, got none of them"),
        ({"mean": 1}, r"got \['mean'\]"),
        ({"mean": 1, "high": 2}, r"got \['high', 'mean'\]"),
        ({"mean": 1, "std": 1, "low": 0, "high": 2}, "either"),
        ({"mean": 1, "std": 0}, "`std` must be positive, got 0"),
        ({"low": 3, "high": 3}, "`low` and `high` must differ, got 3 twice"),
        ({"low": 0, "high": math.inf}, "`high` must be a finite number, got inf"),
        ({"low": "0", "high": 1}, "`low` must be a finite number, got '0'"),
        ({"low": True, "high": 3}, "`low` must be a finite number, got True"),
    ],
)
def test_impossible_scales_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build_scorer({"name": "normalized", "scorer": "jpeg", **options})


def test_something_to_normalise_is_needed():
    with pytest.raises(ConfigError, match="must have `scorer`"):
        build_scorer({"name": "normalized", "low": 0, "high": 1})
