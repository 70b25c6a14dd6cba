"""The boundary around a scorer: what counts as a failure and what stops the run."""

import math

import pytest
import torch

from unirl_env.errors import ContractError, MissingExtra, ModelNotFound, ScorerError
from unirl_env.rewards.scoring import place_scores, score_safely, scorer_name
from unirl_env.types import Prompt, Sample, Scores

SAMPLES = [Sample(text=str(i)) for i in range(4)]
PROMPTS = [Prompt(f"p{i}") for i in range(4)]


def raising(error):
    def broken(samples, prompts):
        raise error

    return broken


class Counting:
    """Fails on every batch that holds the sample "2"; remembers the sizes of its batches."""

    def __init__(self, pointwise):
        self.pointwise, self.sizes = pointwise, []

    def __call__(self, samples, prompts):
        self.sizes.append(len(samples))
        if any(sample.text == "2" for sample in samples):
            raise RuntimeError("cannot read 2")
        return Scores(
            value=torch.tensor([float(s.text) for s in samples]), parts={"x": torch.ones(len(samples))}
        )


def test_good_scores_pass_unchanged():
    scores = Scores(value=torch.arange(4.0), parts={"a": torch.ones(4)})
    assert score_safely(lambda s, p: scores, SAMPLES, PROMPTS) is scores


def test_no_samples_do_not_reach_the_scorer():
    assert len(score_safely(raising(RuntimeError("called")), [], [])) == 0


def test_an_exception_makes_every_score_invalid_and_is_named(caplog):
    scores = score_safely(raising(RuntimeError("no GPU left")), SAMPLES, PROMPTS)
    assert not scores.valid.any() and scores.value.isnan().all() and len(scores) == 4
    assert "`broken` failed on 4 samples" in caplog.text and "RuntimeError: no GPU left" in caplog.text


def test_a_pointwise_scorer_loses_only_the_samples_at_fault(caplog):
    scorer = Counting(pointwise=True)
    scores = score_safely(scorer, SAMPLES, PROMPTS)
    assert scorer.sizes == [4, 1, 1, 1, 1]
    assert scores.valid.tolist() == [True, True, False, True]
    assert scores.value[[0, 1, 3]].tolist() == [0.0, 1.0, 3.0]
    assert scores.parts["x"][[0, 1, 3]].tolist() == [1.0, 1.0, 1.0] and scores.parts["x"][2].isnan()
    assert caplog.text.count("cannot read 2") == 1


def test_any_other_scorer_is_asked_once():
    scorer = Counting(pointwise=False)
    assert not score_safely(scorer, SAMPLES, PROMPTS).valid.any()
    assert scorer.sizes == [4]


def test_raise_stops_with_the_name_and_the_cause():
    with pytest.raises(
        ScorerError, match=r"`Counting` must score 4 samples, got RuntimeError: cannot read 2"
    ) as e:
        score_safely(Counting(pointwise=True), SAMPLES, PROMPTS, on_error="raise")
    assert isinstance(e.value.__cause__, RuntimeError)


def test_a_failure_that_the_scorer_names_itself_is_counted_too():
    assert not score_safely(raising(ScorerError("the service is down")), SAMPLES, PROMPTS).valid.any()


@pytest.mark.parametrize(
    "error", [MissingExtra("open_clip_torch", "clip"), ModelNotFound("x"), ContractError("x")]
)
def test_a_wrong_setup_is_not_a_failed_score(error):
    with pytest.raises(type(error)):
        score_safely(raising(error), SAMPLES, PROMPTS)


@pytest.mark.parametrize("result", [[0.0] * 4, torch.zeros(4), None])
def test_another_type_breaks_the_contract(result):
    with pytest.raises(ContractError, match=r"`<lambda>` must return Scores, got"):
        score_safely(lambda s, p: result, SAMPLES, PROMPTS)


def test_another_length_breaks_the_contract():
    with pytest.raises(ContractError, match=r"one score per sample, got 3 for 4 samples"):
        score_safely(lambda s, p: Scores(value=torch.zeros(3)), SAMPLES, PROMPTS)
    with pytest.raises(ContractError, match=r"got 3 for 4 samples"):
        score_safely(lambda s, p: Scores(value=torch.zeros(4)), SAMPLES, PROMPTS[:3])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_invalid(bad):
    scores = score_safely(lambda s, p: Scores(value=torch.tensor([1.0, bad, 0.0, 2.0])), SAMPLES, PROMPTS)
    assert scores.valid.tolist() == [True, False, True, True]
    assert scores.value[1].isnan()


def test_joining_fills_missing_parts_with_nan():
    good = Scores(value=torch.ones(2), parts={"a": torch.zeros(2)})
    joined = Scores.cat([Scores.failed(1), good])
    assert joined.valid.tolist() == [False, True, True]
    assert joined.parts["a"].isnan().tolist() == [True, False, False]
    assert len(Scores.cat([])) == 0


def test_placing_leaves_the_other_places_invalid():
    scores = Scores(
        value=torch.tensor([1.0, 2.0]), parts={"a": torch.tensor([3.0, 4.0])}, valid=[True, False]
    )
    placed = place_scores(scores, torch.tensor([False, True, False, True]))
    assert placed.valid.tolist() == [False, True, False, False]
    assert placed.value[1] == 1.0 and placed.parts["a"][3] == 4.0 and placed.parts["a"][0].isnan()
    with pytest.raises(ContractError, match=r"2 true places, got 1"):
        place_scores(scores, torch.tensor([True, False]))


def test_names():
    assert scorer_name(Counting(False)) == "Counting"
    assert scorer_name(raising(None)) == "broken"
    named = Counting(False)
    named.name = "mine"
    assert scorer_name(named) == "mine"
