"""The early stop: how far the policy has gone, and that nothing moves behind it."""

import math
from dataclasses import replace

import pytest
import torch
from batches import play, shards_of, trainable
from one_learner import OneLearner
from ray.rllib.core.learner.training_data import TrainingData
from test_learner import make_learner
from toy import toy_config

import unirl_env.functional as F
from unirl_env.agents import FlowDPPOConfig, GRPOConfig
from unirl_env.agents.early_stop import drift, settled
from unirl_env.agents.reports import update_metrics
from unirl_env.agents.rows import Rows
from unirl_env.errors import ConfigError
from unirl_env.functional import SDEStep, TokenStep

EPOCHS = {"num_epochs": 4, "num_minibatches": 2}


def rows_of(kind, action, old_log_prob, old_mean=None, mask=None):
    count = len(action)
    whole = torch.zeros(count, dtype=torch.int64)
    mask = torch.ones(count, dtype=torch.bool) if mask is None else mask
    nothing = torch.zeros(count)
    return Rows(
        kind, {}, action, whole, whole, old_log_prob, old_mean, nothing, torch.ones(count), mask, float(count)
    )


class TestMeasurement:
    def test_of_tokens_the_mean_under_the_old_policy_is_the_kl(self):
        """Weighed by the old probabilities, every token once: KL(old | new) by its definition."""
        old = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
        new = torch.tensor([0.2, 0.5, 0.2, 0.1]).log()
        token = torch.arange(4)
        each = [
            float(
                drift(
                    TokenStep(token[i : i + 1], new[i : i + 1], None),
                    rows_of("tokens", token[i : i + 1], old[i : i + 1]),
                    20.0,
                )[0]
            )
            for i in range(4)
        ]
        expected = float((old.exp() * (old - new)).sum())
        assert float((old.exp() * torch.tensor(each)).sum()) == pytest.approx(expected, rel=1e-5)
        assert min(each) >= 0

    @pytest.mark.parametrize("kl", [0.02, 0.7, 6.0])
    def test_of_latents_it_is_exact_with_means_and_near_without(self, kl):
        count, elements, std = 200_000, 5, 0.3
        generator = torch.Generator().manual_seed(2)
        mean = torch.randn(elements, generator=generator).expand(count, -1)
        shift = torch.full((elements,), math.sqrt(2 * kl / elements) * std)
        noise = torch.randn(count, elements, generator=generator)
        action, width = mean + std * noise, torch.full((count,), std)
        old = -(noise.square()).mean(1) / 2
        new = -((action - mean - shift) / std).square().mean(1) / 2
        step = SDEStep(action, new, mean + shift, width)
        for means, tolerance in ((mean, 1e-4), (None, 0.03)):
            total, rows = drift(step, rows_of("latents", action, old, means), 20.0).tolist()
            found = settled(total, rows, gaussian=True, exact=means is not None)
            assert rows == count and found == pytest.approx(kl, rel=tolerance)

    def test_masked_rows_count_nowhere(self):
        token = torch.tensor([1, 2, 3])
        mask = torch.tensor([True, False, True])
        new = torch.tensor([-1.0, math.inf, -2.0])
        rows = rows_of("tokens", token, torch.tensor([-1.5, -1.0, -1.0]), mask=mask)
        total, count = drift(TokenStep(token, new, None), rows, 20.0).tolist()
        expected = (math.exp(0.5) - 1.5) + (math.exp(-1.0) - 1 + 1.0)
        assert count == 2 and total == pytest.approx(expected, rel=1e-5)

    def test_without_a_row_nothing_is_known(self):
        assert math.isnan(settled(0.0, 0.0, gaussian=False, exact=True))


def update(learner, shard, lr=5e-3):
    report = learner.update(training_data=TrainingData(batch=shard), lr=lr)
    if report.error is not None:
        raise report.error
    return report


@pytest.mark.parametrize("name", ["grpo", "flow_dppo"])
@pytest.mark.parametrize("size", [None, 3])
def test_steps_behind_the_stop_are_not_taken(name, size):
    settings = {**EPOCHS, "micro_batch_size": size}
    learner = make_learner(name, stop_kl=1e-3, **settings)
    batch = play(learner.policy)
    if name == "grpo":  # whose rollouts record no means
        batch = replace(batch, phases={"image": replace(batch.phases["image"], mean=None)})
    (shard,) = shards_of(batch, num_minibatches=2, num_epochs=4)
    report = update(learner, shard)
    taken = len(report.grad_norm)
    assert 1 <= taken < 8 and report.stopped == 8 - taken
    assert len(report.skipped) == taken and len(report.phases["image"].metrics) == taken + 1
    assert report.phases["image"].stop_kl > 1e-3

    other = make_learner(name, **settings)
    short = replace(shard, steps=shard.steps[:taken], denominators=shard.denominators[:taken])
    update(other, short)
    assert torch.equal(trainable(learner), trainable(other)), "as if there had been no more steps"
    assert all(torch.equal(mine, other.run_state()[key]) for key, mine in learner.run_state().items()), (
        "the optimizer's memory, too"
    )

    metrics = update_metrics([report])
    assert metrics["stopped_steps"] == 8 - taken and metrics["stop_kl"] == report.phases["image"].stop_kl
    assert metrics["trained_rows"] == (taken + 1) * 16 * 5
    assert "stopped_steps" not in update_metrics([update(other, short)])


def test_the_kl_is_that_of_the_steps_own_minibatch():
    learner = make_learner("flow_dppo", stop_kl=1e-9, **EPOCHS)
    (shard,) = shards_of(play(learner.policy), num_minibatches=2, num_epochs=4)
    report = update(learner, shard)
    assert len(report.grad_norm) == 1, "the first step is always taken"
    rows = learner.rows(shard, "image", shard.steps[1], 1.0)
    with torch.no_grad():
        new = learner._context("image", "latents").score(rows.observation, rows.action)
    expected = F.gaussian_kl(new.mean, rows.old_mean, new.std, reduction="sum")[rows.mask].mean()
    assert report.phases["image"].stop_kl == pytest.approx(float(expected), rel=1e-4)


def test_a_bound_that_is_never_reached_changes_nothing():
    weights = []
    for bound in (None, 1e6):
        learner = make_learner("grpo", stop_kl=bound, **EPOCHS)
        (shard,) = shards_of(play(learner.policy), num_minibatches=2, num_epochs=4)
        report = update(learner, shard)
        assert len(report.grad_norm) == 8 and report.stopped == (None if bound is None else 0)
        weights.append(trainable(learner))
    assert torch.equal(*weights)


def test_it_bounds_how_far_an_iteration_goes():
    """DRPO, whose loss masks nothing, over 8 epochs: the KL by hand, of all steps that were played."""
    gone = []
    for bound in (None, 1e-2):
        learner = make_learner("drpo", stop_kl=bound, num_epochs=8)
        batch = play(learner.policy)
        (shard,) = shards_of(batch, num_minibatches=2, num_epochs=8)
        update(learner, shard)
        rows = learner.rows(shard, "image", torch.arange(len(batch)), 1.0)
        with torch.no_grad():
            new = learner._context("image", "latents").score(rows.observation, rows.action)
        apart = (new.mean - rows.old_mean).square().sum(1) / (2 * new.std.square())
        gone.append(float(apart[rows.mask].mean()))
    assert gone[0] > 0.05 and 0.005 < gone[1] < 0.02


def test_tokens_stop_too():
    settings = {"num_prompts": 3, "group_size": 4, "policy": {"lora_rank": None}, "lr": 1e-3, **EPOCHS}
    one = OneLearner(GRPOConfig().environment("unirl/TinyQwen3-Math-v0").training(**settings, stop_kl=1e-4))
    report = one.learn()
    metrics = update_metrics([report])
    assert metrics["stopped_steps"] >= 1 and metrics["stop_kl"] > 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_minibatches": 1}, r"`stop_kl` must be null with one optimizer step.*num_epochs=2"),
        ({"stop_kl": 0.0}, r"`stop_kl` must be positive, or null"),
    ],
)
def test_what_could_never_stop_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        toy_config(FlowDPPOConfig, **{"stop_kl": 0.1, **settings}).validate()
    toy_config(FlowDPPOConfig, stop_kl=0.1, num_minibatches=1, num_epochs=2).validate()


def test_where_no_transition_is_scored_it_is_refused():
    with pytest.raises(ConfigError, match=r"`stop_kl` must be null where no transition is scored.*'elbo'"):
        toy_config(GRPOConfig, stop_kl=0.1, estimator="elbo").validate()
