"""A reward of pictures over all frames of a video."""

import pytest
import torch

from unirl_env.errors import ConfigError, ContractError
from unirl_env.rewards import OverFrames, build_scorer, needs_of
from unirl_env.rewards.scoring import score_safely
from unirl_env.types import Prompt, Sample, Scores


class Brightness:
    """Notes the prompts of its calls; what is brighter than 0.9 is invalid."""

    pointwise = True
    needs = ("image",)

    def __init__(self):
        self.calls = []

    def __call__(self, samples, prompts):
        self.calls.append([prompt.text for prompt in prompts])
        assert all(s.video is None and s.pictures is None and s.image.ndim == 3 for s in samples)
        value = torch.stack([sample.image.mean() for sample in samples])
        return Scores(value, {"double": 2 * value}, valid=value < 0.9)


def film(*levels):
    return Sample(video=torch.stack([torch.full((3, 2, 2), level) for level in levels]), text="kept")


def judge(scorer, *samples):
    return scorer(samples, [Prompt(str(i)) for i in range(len(samples))])


@pytest.mark.parametrize(
    "aggregate, first",
    [
        ("mean", 0.26),
        ("min", 0.0),
        ("max", 0.8),
        ("median", 0.2),
        ("p10", 0.04),
        ("p75", 0.2),
        ("p99", 0.776),
    ],
)
def test_every_aggregate_by_hand(aggregate, first):
    inner = Brightness()
    scores = judge(OverFrames(inner, aggregate), film(0.0, 0.8, 0.2, 0.1, 0.2), film(0.5))
    assert scores.value.tolist() == pytest.approx([first, 0.5], abs=1e-6) and scores.valid.all()
    assert scores.parts["best"].tolist() == pytest.approx([0.8, 0.5])
    assert scores.parts["worst"].tolist() == pytest.approx([0.0, 0.5])
    assert scores.parts["scorer"].tolist() == pytest.approx([0.26, 0.5])
    assert scores.parts["scorer/double"].tolist() == pytest.approx([0.52, 1.0])
    assert inner.calls == [["0"] * 5 + ["1"]]


@pytest.mark.parametrize("every, frames", [(1, 7), (2, 4), (3, 3), (4, 3), (6, 2), (100, 2)])
def test_every_kth_frame_with_the_first_and_the_last(every, frames):
    inner = Brightness()
    levels = [0.5, *[0.1] * 5, 0.3]
    scores = judge(OverFrames(inner, "max", every), film(*levels))
    assert len(inner.calls[0]) == frames and scores.value.item() == 0.5
    assert judge(OverFrames(Brightness(), "mean", 6), film(*levels)).value.item() == pytest.approx(0.4)
    assert len(judge(OverFrames(inner, every=every), film(0.2))) == 1
    assert inner.calls[-1] == ["0"]


@pytest.mark.parametrize("aggregate", ["mean", "min", "max", "median", "p10"])
def test_a_sample_is_invalid_if_one_of_its_frames_is(aggregate):
    scores = judge(OverFrames(Brightness(), aggregate), film(0.5, 0.95, 0.5, 0.5), film(0.5, 0.5))
    assert scores.valid.tolist() == [False, True] and scores.value[1] == 0.5


def test_one_bad_frame_shows_in_the_worst_and_not_in_the_best():
    clean, spoiled = film(*[0.8] * 10), film(*[0.8] * 9, 0.0)
    assert judge(OverFrames(Brightness(), "min"), clean, spoiled).value.tolist() == pytest.approx([0.8, 0.0])
    low = judge(OverFrames(Brightness(), "p10"), clean, spoiled).value
    assert low[1] < low[0]


def test_samples_without_a_video_break_the_contract():
    for sample in (Sample(image=torch.zeros(3, 2, 2)), Sample(video=torch.zeros(0, 3, 2, 2))):
        with pytest.raises(ContractError, match=r"`Sample.video` must be \[F, 3, H, W\]"):
            score_safely(OverFrames(Brightness()), [sample], [Prompt("")])


def test_a_video_alone_scores_as_in_company():
    scorer, films = OverFrames(Brightness(), "p10"), [film(0.1, 0.2, 0.4), film(0.5), film(0.3, 0.1)]
    together = judge(scorer, *films).value
    assert scorer.pointwise
    assert torch.equal(torch.cat([judge(scorer, own).value for own in films]), together)
    assert not OverFrames(lambda samples, prompts: Scores.failed(len(samples))).pointwise


def test_it_goes_by_name_and_looks_at_videos():
    words = {"name": "over_frames", "scorer": {"name": "saturation"}, "aggregate": "min", "every": 2}
    scorer = build_scorer(words)
    assert isinstance(scorer, OverFrames) and scorer.every == 2
    assert needs_of(words) == {"video": True}
    assert needs_of({"name": "over_frames"}) == {"video": True}
    parts = {"a": {"name": "over_frames", "scorer": "saturation"}, "b": "motion"}
    assert needs_of({"name": "product", "parts": parts}) == {"video": True}


@pytest.mark.parametrize("options, words", [({"aggregate": "p0"}, "p1 "), ({"aggregate": "p100"}, "p99"),
                                            ({"aggregate": 10}, "`aggregate`"), ({"every": 0}, "`every`"),
                                            ({"every": 1.5}, "`every`")])  # fmt: skip
def test_settings_out_of_range_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        OverFrames(Brightness(), **options)
