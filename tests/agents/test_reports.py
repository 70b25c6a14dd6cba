"""The numbers of an iteration, from what several learners report."""

import math
from dataclasses import replace

import pytest
import torch
from test_shards import batch_of

from unirl_env.agents.reports import PhaseUpdate, Update, rollout_metrics, update_metrics
from unirl_env.episode import Phase
from unirl_env.monitor.iteration_metrics import heldout_metrics, is_due, score_metrics
from unirl_env.types import Sample, Scores


def test_sums_become_means_over_computed_rows_and_the_loss_one_over_minibatches():
    both = {"grad_norm": [1.0, 3.0], "skipped": [False, True]}
    metrics = [{"loss": 1.0, "tv": 6.0, "far": 0.1}, {"loss": 2.0, "tv": 2.0, "far": 0.4, "cut": 3.0}]
    reduce = {"far": "max", "cut": "sum"}
    first = Update({"image": PhaseUpdate(metrics=metrics, rows=[4, 2], reduce=reduce)}, **both)
    part = PhaseUpdate(
        metrics=[{"loss": 0.5, "tv": 4.0, "far": 0.3, "cut": 1.0}, {}],
        rows=[2, 0],
        reduce=reduce,
        check={"noise_floor/kl": 1e-9},
    )
    second = Update({"image": part}, **both)
    found = update_metrics([first, second])
    assert found["loss"] == pytest.approx(3.5 / 2)
    assert found["tv"] == pytest.approx(12.0 / 8)
    assert (found["far"], found["cut"]) == (0.4, 4.0)
    assert (found["grad_norm"], found["skipped_steps"], found["trained_rows"]) == (2.0, 1.0, 8.0)
    assert found["noise_floor/kl"] == 1e-9, "a learner without rows to check does not hide the other's"


def test_an_iteration_without_rows_has_numbers_too():
    nothing = {"image": PhaseUpdate(metrics=[{}], rows=[0])}
    found = update_metrics([Update(nothing, grad_norm=[0.0], skipped=[False])])
    names = ("loss", "kl", "grad_norm", "skipped_steps", "trained_rows", "scored_rows")
    assert found == dict.fromkeys(names, 0.0)


def test_of_several_phases_each_has_numbers_of_its_own():
    phases = {
        "text": PhaseUpdate([{"loss": 1.0, "tv": 6.0}], [3], gap={"max": 0.5, "sum": 0.6, "rows": 3}),
        "image": PhaseUpdate([{"loss": 2.0, "tv": 2.0}], [1], check={"noise_floor/kl": 1e-9}),
    }
    found = update_metrics([Update(phases, grad_norm=[1.0], skipped=[False])])
    assert (found["text/tv"], found["image/tv"]) == (2.0, 2.0)
    assert (found["loss"], found["text/loss"], found["trained_rows"]) == (3.0, 1.0, 4.0)
    assert found["text/gap_max"] == 0.5 and found["text/gap"] == pytest.approx(0.2)
    assert found["image/noise_floor/kl"] == 1e-9 and "kl" not in found


def test_rewards_are_those_of_valid_scores():
    batch = batch_of(groups=2, size=4, broken=(1,))
    advantages = torch.tensor([0.5, 0, -0.5, 0, 0, 0, 0, 0])
    found = rollout_metrics(batch, advantages)
    valid = batch.rewards[batch.scores.valid]
    assert found["reward"] == pytest.approx(float(valid.mean()))
    assert found["reward/failed"] == 1
    assert found["zero_std_groups"] == 0.5 and found["advantage_zero"] == 0.75
    nothing = rollout_metrics(batch_of(groups=1, size=2, broken=(0, 1)), torch.zeros(2))
    assert math.isnan(nothing["reward"]) and nothing["reward/failed"] == 2


def test_texts_that_never_came_to_their_picture_are_counted():
    tokens = torch.zeros(4, 3, dtype=torch.int64)
    text = Phase({}, tokens, torch.zeros(4, 3), tokens == 0, ragged=True)
    batch = replace(batch_of(groups=1, size=4), phases={"text": text})
    drawn, none = Sample(text="a", image=torch.zeros(3, 2, 2)), Sample(text="a")

    def found(*samples, **phases):
        kept = replace(batch, samples=samples or None, phases={**batch.phases, **phases})
        return rollout_metrics(kept, torch.zeros(4)).get("no_picture")

    assert found(drawn, none, drawn, drawn) == 0.25 and found(drawn, drawn, drawn, drawn) == 0
    assert found(none, none, none, none) is None, "answers are not meant to become pictures"
    assert found(none, none, none, none, image=text) == 1
    paid = replace(batch, scores=Scores(torch.zeros(4), {"scorer/pictured": torch.zeros(4)}))
    assert rollout_metrics(replace(paid, samples=(none,) * 4), torch.zeros(4))["no_picture"] == 1
    assert found() is None
    pictures = replace(batch_of(groups=1, size=4), samples=(drawn,) * 4)
    assert "no_picture" not in rollout_metrics(pictures, torch.zeros(4))


def test_every_part_has_its_own_statistics_and_what_fails_is_not_what_does_not_apply():
    nan = math.nan
    scores = Scores(
        torch.tensor([1.0, nan, 0.0, 0.5]),
        {"a": torch.tensor([1.0, nan, 0.0, nan]), "watched/b": torch.tensor([4.0, 2.0, 3.0, 3.0])},
    )
    found = score_metrics("heldout", scores)
    assert found["heldout"] == pytest.approx(0.5) and found["heldout/failed"] == 1
    assert found["heldout_std"] == pytest.approx(float(torch.tensor([1.0, 0.0, 0.5]).std(unbiased=False)))
    assert (found["heldout/a"], found["heldout_std/a"]) == (0.5, 0.5)
    assert (found["heldout_failed/a"], found["heldout_absent/a"]) == (1, 1)
    assert (found["heldout/watched/b"], found["heldout_failed/watched/b"]) == (3.0, 0)
    none = score_metrics("reward", Scores.failed(3))
    assert math.isnan(none["reward"]) and math.isnan(none["reward_std"]) and none["reward/failed"] == 3


@pytest.mark.parametrize(
    ("values", "top", "share"),
    [
        ([0.0, 1.0, 1.0, 0.5], 1.0, 0.5),
        ([0.25, 0.5, 0.75, 1.0], 1.0, 0.25),
        ([26.3, 26.300002, 20.0, math.nan], 26.300002, 2 / 3),  # neighbours in float32
        ([-1.0, -1.0, -2.0, -1.00001], -1.0, 0.5),
        ([math.nan] * 4, math.nan, math.nan),
    ],
)
def test_saturation_is_the_share_of_valid_episodes_with_the_highest_reward(values, top, share):
    batch = replace(batch_of(groups=2, size=2), scores=Scores(torch.tensor(values)))
    found = rollout_metrics(batch, torch.ones(4))
    assert found["saturation"] == pytest.approx(share, nan_ok=True)
    assert found["reward_max"] == pytest.approx(top, nan_ok=True)


def test_variety_is_measured_where_samples_are_kept():
    pictures = tuple(Sample(image=torch.full((3, 4, 4), level)) for level in (0.0, 1.0, 0.5, 0.5))
    batch = replace(batch_of(groups=2, size=2), samples=pictures)
    assert rollout_metrics(batch, torch.zeros(4))["diversity"] == pytest.approx(0.5)
    assert "diversity" not in rollout_metrics(replace(batch, samples=None), torch.zeros(4))


def test_the_held_out_reward_judges_the_very_samples():
    asked = []

    def scorer(samples, prompts):
        asked.append((samples, prompts))
        return Scores(torch.arange(4.0))

    batch = batch_of(groups=2, size=2)
    assert heldout_metrics(scorer, batch) == {} and not asked
    kept = replace(batch, samples=(Sample(text="a"),) * 4)
    found = heldout_metrics(scorer, kept)
    assert found["heldout"] == 1.5 and found["seconds/heldout"] >= 0
    assert asked == [(kept.samples, kept.prompts)]
    assert [i for i in range(1, 13) if is_due(i, 5)] == [1, 6, 11]
    assert not any(is_due(i, 0) for i in range(1, 5)) and is_due(3, 1)
