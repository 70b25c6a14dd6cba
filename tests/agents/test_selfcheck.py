"""The check of the first update: it stops what is wrong, in nats, and changes nothing."""

from dataclasses import asdict, replace

import pytest
import torch
from batches import play, trainable
from test_learner import CONFIGS, learn, make_learner

from unirl_env.agents import selfcheck
from unirl_env.agents.rows import Rows
from unirl_env.errors import SelfCheckError
from unirl_env.functional import SDEStep, TokenStep

CHECK = ("image",)
ELEMENTS = 2
"""Of the toy's latents."""


def moved(batch, nats, rows=slice(None)):
    """The batch as an engine would have recorded it whose log-probs are off by so much."""
    phase = batch.phases["image"]
    log_prob = phase.log_prob.clone()
    log_prob[rows] += nats / ELEMENTS
    return replace(batch, phases={"image": replace(phase, log_prob=log_prob)})


def constant(batch, episodes):
    """The batch with groups in which these episodes earn alike, and so teach nothing."""
    value = batch.scores.value.clone()
    value[episodes] = 0.25
    return replace(batch, scores=type(batch.scores)(value))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("anchor", ["rollout", "replay"])
def test_a_checked_update_is_the_unchecked_one(name, anchor):
    reports, weights = [], []
    for check in ((), CHECK):
        learner = make_learner(name, anchor=anchor, micro_batch_size=3)
        batch = constant(play(learner.policy), slice(0, 8))
        reports.append(learn(learner, batch, check=check, num_epochs=2))
        weights.append(trainable(learner))
    assert torch.equal(*weights)
    plain, checked = (asdict(report) for report in reports)
    found = checked["phases"]["image"].pop("check")
    assert plain["phases"]["image"].pop("check") == {} and found["self_check/ratio"] <= 1e-6
    assert checked == plain


def test_an_update_that_trains_nothing_is_not_checked():
    learner = make_learner()
    report = learn(learner, constant(play(learner.policy), slice(None)), check=CHECK)
    assert report.phases["image"].check == {} and report.phases["image"].rows == [0, 0]


def test_the_check_looks_at_the_first_minibatch_that_trains_something():
    learner = make_learner("grpo")
    batch = moved(constant(play(learner.policy), slice(0, 16)), 0.1, rows=20)
    before = trainable(learner)
    with pytest.raises(SelfCheckError, match=r"\|ratio - 1\|"):
        learn(learner, batch, check=CHECK)
    assert torch.equal(trainable(learner), before)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_engine_that_is_off_by_a_nat_is_noticed_though_the_anchor_is_replayed(name):
    learner = make_learner(name, anchor="replay")
    batch = play(learner.policy)
    with pytest.raises(SelfCheckError, match=r"mean gap = 1 \(`self_check_gap_mean` is 0.25\)"):
        learn(learner, moved(batch, 1.0), check=CHECK)
    report = learn(learner, moved(batch, 0.1), check=CHECK)
    assert report.phases["image"].check["self_check/ratio"] <= 1e-6
    assert report.phases["image"].check["self_check/gap_mean"] == pytest.approx(0.1, abs=1e-4)
    loose = make_learner(name, anchor="replay", self_check_gap_mean=2.0)
    learn(loose, moved(play(loose.policy), 1.0), check=CHECK)


def test_a_single_row_far_off_is_noticed_too():
    learner = make_learner("grpo", anchor="replay")
    batch = play(learner.policy)
    report = learn(learner, moved(batch, 3.0, rows=(4, 2)), check=CHECK)
    assert report.phases["image"].check["self_check/gap_max"] == pytest.approx(3.0, abs=1e-4)
    with pytest.raises(SelfCheckError, match=r"largest gap = 6 \(`self_check_gap_max` is 5\)"):
        learn(make_learner("grpo", anchor="replay"), moved(batch, 6.0, rows=(4, 2)), check=CHECK)
    unbounded = {f"self_check_{name}": None for name in ("tolerance", "gap_mean", "gap_max", "kl")}
    learn(make_learner("grpo", anchor="replay", **unbounded), moved(batch, 6.0), check=CHECK)


def test_nothing_that_is_no_number_passes():
    batch = play(make_learner("grpo").policy)
    for nats in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(SelfCheckError, match="gap"):
            learn(make_learner("grpo", anchor="replay"), moved(batch, nats, rows=(0, 0)), check=CHECK)


def rows_of(kind, action, log_prob, mean=None):
    count = len(log_prob)
    number = torch.arange(count)
    return Rows(
        kind=kind,
        observation={},
        action=action,
        episode=number,
        step=torch.zeros_like(number),
        old_log_prob=log_prob,
        old_mean=mean,
        advantages=torch.ones(count),
        weight=torch.ones(count),
        mask=torch.ones(count, dtype=torch.bool),
        denominator=float(count),
    )


def measured(new, rows):
    return {
        name: float(value) for name, value in selfcheck.summary([selfcheck.measure(new, rows, rows)]).items()
    }


def test_on_latents_nats_are_those_of_all_elements():
    """At the size of SD3 at 512 x 512, a KL of 1e-4 per element is 6.55 nats a step."""
    shape, std = (3, 16, 64, 64), 0.5
    mean = torch.zeros(shape)
    shift = std * (2 * 1e-4) ** 0.5
    new = SDEStep(mean, torch.full((3,), -1.4 - 2e-5), mean + shift, torch.full((3,), std))
    found = measured(new, rows_of("latents", mean, torch.full((3,), -1.4), mean))
    assert found["noise_floor/kl"] == pytest.approx(1e-4, rel=1e-3)
    assert found["self_check/kl"] == pytest.approx(6.5536, rel=1e-3)
    assert found["self_check/gap_mean"] == pytest.approx(2e-5 * 65536, rel=0.1)
    assert found["self_check/ratio"] <= 1e-4, "the ratio of means over elements sees nothing"


def test_float32s_own_rounding_is_no_gap_whatever_the_size():
    shape = (2, 16, 21, 60, 104)
    action = torch.zeros(1).expand(shape)
    log_prob = torch.tensor([-1.4, -7.3])
    step = log_prob.clone()
    for _ in range(4):
        step = torch.nextafter(step, torch.zeros(2))
    found = measured(SDEStep(action, step, action, torch.ones(2)), rows_of("latents", action, log_prob))
    assert found["noise_floor/log_prob"] > 0 == found["self_check/gap_max"]


def test_on_tokens_log_probs_are_nats():
    log_prob = torch.tensor([-1.0, -2.0, -3.0])
    new = TokenStep(*(None for _ in TokenStep._fields))._replace(
        log_prob=log_prob + torch.tensor([0.1, -0.3, 0])
    )
    found = measured(new, rows_of("tokens", torch.tensor([1, 2, 3]), log_prob))
    assert found["self_check/gap_max"] == pytest.approx(0.3)
    assert found["self_check/gap_mean"] == pytest.approx(0.4 / 3)
