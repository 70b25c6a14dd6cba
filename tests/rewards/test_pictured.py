"""Samples with a picture are scored, samples without are paid, and broken pictures are nobody's reward."""

import pytest
import torch

from unirl_env.errors import ConfigError
from unirl_env.rewards import Pictured, build_scorer
from unirl_env.types import Prompt, Sample, Scores


def brightness(samples, prompts):
    assert all(sample.image is not None for sample in samples) and len(samples) == len(prompts)
    value = torch.stack([sample.image.mean() for sample in samples])
    return Scores(value, {"double": 2 * value})


def grey(level):
    return Sample(image=torch.full((3, 2, 2), level), text="a")


def judge(scorer, *samples):
    return scorer(samples, [Prompt(str(i)) for i in range(len(samples))])


def test_the_others_are_paid_what_is_said():
    scores = judge(Pictured(brightness, otherwise=-1.0), grey(0.25), Sample(text=""), grey(0.5))
    assert scores.value.tolist() == [0.25, -1.0, 0.5] and scores.valid.all()
    assert scores.parts["pictured"].tolist() == [1, 0, 1]
    assert scores.parts["scorer/double"].tolist() == pytest.approx([0.5, float("nan"), 1.0], nan_ok=True)
    assert scores.parts["scorer"].isnan().tolist() == [False, True, False]


def test_without_any_picture_the_scorer_is_not_asked():
    scores = judge(Pictured(lambda *_: 1 / 0), Sample(text=""), Sample(text="a", truncated=True))
    assert scores.value.tolist() == [0, 0] and scores.valid.all()


def test_a_picture_that_is_not_finite_is_invalid():
    several = Sample(image=torch.zeros(3, 2, 2), pictures=torch.full((2, 3, 2, 2), torch.nan))
    scores = judge(Pictured(brightness), grey(float("nan")), several, grey(0.5), Sample(text=""))
    assert scores.valid.tolist() == [False, False, True, True]
    assert scores.parts["pictured"].tolist() == [1, 1, 1, 0]


def test_a_scorer_that_fails_is_invalid_and_never_paid_otherwise():
    scores = judge(Pictured(lambda *_: 1 / 0, otherwise=0.5), grey(0.1), Sample(text=""))
    assert scores.valid.tolist() == [False, True] and scores.value[1] == 0.5


def test_it_goes_by_name():
    scorer = build_scorer({"name": "pictured", "scorer": "shapes", "otherwise": -0.5})
    assert isinstance(scorer, Pictured) and scorer.name == "pictured" and scorer.otherwise == -0.5
    with pytest.raises(ConfigError, match="'pictured' must have `scorer`"):
        build_scorer("pictured")


@pytest.mark.parametrize("otherwise", [float("nan"), None, True, "0"])
def test_what_cannot_be_paid(otherwise):
    with pytest.raises(ConfigError, match="`otherwise` must be a finite number"):
        Pictured(brightness, otherwise)
