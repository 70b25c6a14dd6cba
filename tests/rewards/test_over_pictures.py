"""Several pictures of one text are one reward."""

import pytest
import torch

from unirl_env.errors import ConfigError
from unirl_env.rewards import OverPictures, Pictured, build_scorer
from unirl_env.types import Prompt, Sample, Scores


class Brightness:
    """Counts its calls; the level of the prompt's number is invalid."""

    def __init__(self):
        self.calls = []

    def __call__(self, samples, prompts):
        self.calls.append([prompt.text for prompt in prompts])
        assert all(sample.pictures is None and sample.image.ndim == 3 for sample in samples)
        value = torch.stack([sample.image.mean() for sample in samples])
        return Scores(value, {"double": 2 * value}, valid=value < 0.9)


def several(*levels):
    pictures = torch.stack([torch.full((3, 2, 2), level) for level in levels])
    return Sample(image=pictures[0], pictures=pictures, text="a")


def judge(scorer, *samples):
    return scorer(samples, [Prompt(str(i)) for i in range(len(samples))])


@pytest.mark.parametrize("aggregate, first", [("mean", 0.25), ("max", 0.5), ("min", 0.0)])
def test_mean_best_and_worst(aggregate, first):
    inner = Brightness()
    scores = judge(OverPictures(inner, aggregate), several(0.0, 0.5), several(0.75))
    assert scores.value.tolist() == pytest.approx([first, 0.75]) and scores.valid.all()
    assert scores.parts["best"].tolist() == pytest.approx([0.5, 0.75])
    assert scores.parts["worst"].tolist() == pytest.approx([0.0, 0.75])
    assert scores.parts["scorer"].tolist() == pytest.approx([0.25, 0.75])
    assert scores.parts["scorer/double"].tolist() == pytest.approx([0.5, 1.5])
    assert inner.calls == [["0", "0", "1"]]


def test_one_picture_is_judged_as_it_is():
    sample = Sample(image=torch.full((3, 2, 2), 0.25))
    assert judge(OverPictures(Brightness()), sample, several(0.5, 0.75)).value.tolist() == [0.25, 0.625]


@pytest.mark.parametrize("aggregate", ["mean", "max", "min"])
def test_a_sample_is_invalid_if_one_of_its_pictures_is(aggregate):
    scores = judge(OverPictures(Brightness(), aggregate), several(0.95, 0.5), several(0.5, 0.5))
    assert scores.valid.tolist() == [False, True] and scores.value[1] == 0.5


def test_it_goes_by_name_inside_others():
    scorer = build_scorer(
        {"name": "pictured", "scorer": {"name": "over_pictures", "scorer": "shapes", "aggregate": "max"}}
    )
    assert isinstance(scorer, Pictured) and isinstance(scorer.scorer, OverPictures)
    assert scorer.scorer.aggregate == "max"
    with pytest.raises(ConfigError, match="`aggregate` must be one of"):
        build_scorer({"name": "over_pictures", "scorer": "shapes", "aggregate": "median"})
