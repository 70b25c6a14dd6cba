"""Several phases in one optimizer step: what a nat of each weighs, its share of the gradient, its steps."""

import pytest
import torch
from one_learner import OneLearner
from test_hybrids import ONE, TWO, config_of
from toy import toy_config

from unirl_env.agents import GRPOConfig
from unirl_env.agents.phases import phase_scales
from unirl_env.agents.reports import update_metrics
from unirl_env.episode import Phase
from unirl_env.errors import ConfigError


def phases_of(lengths, drawn, steps=3, elements=(2, 5)):
    """Texts of `lengths`, and pictures of so many steps where one is drawn."""
    longest = max(lengths)
    written = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    tokens = torch.zeros(len(lengths), longest, dtype=torch.int64)
    text = Phase({}, tokens, written.float(), written, ragged=True, kind="tokens")
    pictured = torch.tensor(drawn)[:, None].expand(-1, steps)
    image = Phase({}, torch.zeros(len(lengths), steps, *elements), pictured.float(), pictured, kind="latents")
    return {"text": text, "image": image}


class TestScales:
    def test_by_the_mean_of_tokens_the_picture_gets_s_d_over_l(self):
        phases, steps = phases_of([4, 6, 1, 2], [True] * 4), [torch.tensor([0, 1]), torch.tensor([2, 3])]
        weights = {name: torch.ones(4) for name in phases}
        denominators = [{"text": 10.0, "image": 6.0}, {"text": 3.0, "image": 6.0}]
        first, second = phase_scales(phases, steps, weights, denominators)
        assert first == {"text": 1.0, "image": pytest.approx(3 * 10 / 5.0)}
        assert second == {"text": 1.0, "image": pytest.approx(3 * 10 / 1.5)}

    def test_pictures_that_were_not_drawn_count_nowhere(self):
        phases = phases_of([4, 6], [True, False])
        weights = {name: torch.ones(2) for name in phases}
        (found,) = phase_scales(phases, [torch.arange(2)], weights, [{"text": 10.0, "image": 3.0}])
        # The loss of each picture is a third of what D nats are, of each token a tenth of a nat.
        assert found["image"] == pytest.approx(3 * 10 / 10)

    def test_other_ways_to_weigh_texts(self):
        phases, index = phases_of([4, 6], [True, True]), [torch.arange(2)]
        ones = torch.ones(2)
        (horizon,) = phase_scales(
            phases, index, {"text": ones, "image": ones}, [{"text": 16.0, "image": 6.0}]
        )
        assert horizon["image"] == pytest.approx(3 * 10 / 8), "S D / horizon"
        means = {"text": torch.tensor([1 / 4, 1 / 6]), "image": ones}
        (texts,) = phase_scales(phases, index, means, [{"text": 2.0, "image": 6.0}])
        assert texts["image"] == pytest.approx(3 * 10 / 5), "a nat of the mean text"

    def test_without_tokens_the_first_phase_is_the_unit(self):
        phases = phases_of([0, 0], [True, True])
        weights = {name: torch.ones(2) for name in phases}
        (found,) = phase_scales(phases, [torch.arange(2)], weights, [{"text": 1.0, "image": 6.0}])
        assert found == {"text": 1.0, "image": 1.0}


def moves(one, shard, batch):
    """What a nat of either phase's joint log-probability moves the loss by, per unit of advantage."""
    found = {}
    for name in batch.phases:
        rows = one.learner.rows(shard, name, torch.arange(len(batch)), shard.denominators[0][name])
        new = one.learner._context(name, rows.kind).score(rows.observation, rows.action)
        log_prob = new.log_prob.detach().requires_grad_()
        loss, _ = one.learner.loss(
            rows, new._replace(log_prob=log_prob), one.learner._context(name, rows.kind)
        )
        scale = shard.phase_scales[0][name] if shard.phase_scales else 1.0
        slope = torch.autograd.grad(scale * loss, log_prob)[0]
        found[name] = float(slope[slope != 0].abs().mean()) / rows.action[0].numel()
    return found


@pytest.mark.parametrize("aggregate", ["token_mean", "horizon"])
def test_in_nats_a_nat_is_a_nat(aggregate):
    settings = {"aggregate": aggregate, "horizon": 12 if aggregate == "horizon" else None}
    found = {}
    for scale in ("mean", "nats"):
        one = OneLearner(config_of("drpo", phase_scale=scale, **settings))
        batch = one.play()
        advantages = {phase: torch.ones(len(batch)) for phase in batch.phases}
        (shard,) = one.shards(batch, advantages=advantages, num_minibatches=1)
        found[scale] = moves(one, shard, batch)
    assert found["nats"]["image"] == pytest.approx(found["nats"]["text"], rel=1e-3)
    assert found["mean"]["text"] == pytest.approx(found["nats"]["text"], rel=1e-6), "tokens keep their loss"
    assert found["mean"]["text"] / found["mean"]["image"] > 30


def test_the_loss_that_is_told_is_the_one_that_is_taken():
    told = {}
    for scale in ("mean", "nats"):
        one = OneLearner(config_of(phase_scale=scale, reference_kl=0.1, num_minibatches=1))
        batch = one.play()
        (shard,) = one.shards(batch)
        told[scale] = update_metrics([one.update(shard, lr=0.0)])
        factor = shard.phase_scales[0]["image"] if shard.phase_scales else None
    assert told["nats"]["image/grad_norm"] == pytest.approx(
        factor * told["mean"]["image/grad_norm"], rel=1e-3
    )
    assert told["nats"]["text/grad_norm"] == pytest.approx(told["mean"]["text/grad_norm"], rel=1e-3)


def test_the_norm_of_each_phases_gradient_is_that_of_training_it_alone():
    """Over two backbones and over one, whose weights both phases share; in micro-batches."""
    for env in (TWO, ONE):
        norms = {}
        for alone in (None, "text", "image"):
            weights = {} if alone is None else {other: 1e-30 for other in {"text", "image"} - {alone}}
            settings = {
                "num_minibatches": 1,
                "grad_clip": None,
                "micro_batch_size": 5,
                "phase_weights": weights,
            }
            one = OneLearner(config_of(env=env, **settings))
            norms[alone] = update_metrics([one.learn(lr=0.0)])
        both = norms[None]
        assert both["text/grad_norm"] == pytest.approx(norms["text"]["grad_norm"], rel=1e-4)
        assert both["image/grad_norm"] == pytest.approx(norms["image"]["grad_norm"], rel=1e-4)
        apart = (both["text/grad_norm"] ** 2 + both["image/grad_norm"] ** 2) ** 0.5
        if env == TWO:
            assert both["grad_norm"] == pytest.approx(apart, rel=1e-4), "they share no weight"
        else:
            norms = both["text/grad_norm"], both["image/grad_norm"]
            assert abs(norms[0] - norms[1]) <= both["grad_norm"] <= sum(norms)


def test_norms_cost_nothing_that_is_not_wanted():
    one = OneLearner(config_of(env=TWO, phase_grad_norms=False))
    metrics = update_metrics([one.learn()])
    assert "grad_norm" in metrics and "text/grad_norm" not in metrics
    assert [len(marks) for marks in one.learner._gradient._marks] == [0]
    single = OneLearner(config_of(env=TWO, train_phases=["text"]))
    assert update_metrics([single.learn()]).keys() & {"text/grad_norm", "grad_norm"} == {"grad_norm"}
    assert [len(marks) for marks in single.learner._gradient._marks] == [0]


@pytest.mark.parametrize("env", [ONE, TWO])
def test_a_factor_moves_the_weights_of_its_phase_alone(env):
    moved = {}
    for factors in ({}, {"image": 0.1}):
        one = OneLearner(config_of(env=env, phase_lrs=factors, grad_clip=None))
        before = {name: tensor.clone() for name, tensor in one.network.named_parameters()}
        own = {id(weight) for weight in one.learner.policy.actor.private("image")}
        one.learn(lr=1e-3, num_minibatches=1)
        moved[bool(factors)] = {
            name: (tensor.detach() - before[name].detach(), id(tensor) in own)
            for name, tensor in one.network.named_parameters()
            if tensor.requires_grad
        }
    kinds = set()
    for name, (change, private) in moved[True].items():
        factor = 0.1 if private else 1.0
        torch.testing.assert_close(change, factor * moved[False][name][0], rtol=2e-2, atol=2e-7)
        kinds.add(private)
    assert kinds == {True, False}


def test_a_phase_without_weights_of_its_own_has_no_factor():
    with pytest.raises(ConfigError, match=r"no other one reads, got 'text'.*`phase_weights`"):
        OneLearner(config_of(env=ONE, phase_lrs={"text": 0.5}))


@pytest.mark.parametrize("phase", ["text", "image"])
def test_either_phase_stops_the_other(phase):
    other = {"text": "image", "image": "text"}[phase]
    one = OneLearner(
        config_of(env=TWO, num_epochs=4, lr=1e-3, phase_lrs={other: 1e-6}, stop_kl=1e-3, num_minibatches=1)
    )
    metrics = update_metrics([one.learn(lr=1e-3)])
    assert metrics[f"{phase}/stop_kl"] > 1e-3 > metrics[f"{other}/stop_kl"]
    assert metrics["stopped_steps"] >= 1


def test_one_phase_has_no_other_to_be_weighed_against():
    with pytest.raises(ConfigError, match=r"`phase_scale` must be 'mean' where one phase is trained"):
        toy_config(GRPOConfig, phase_scale="nats").validate()
    with pytest.raises(ConfigError, match=r"`phase_scale` must be one of mean, nats"):
        toy_config(GRPOConfig, phase_scale="sum").validate()
