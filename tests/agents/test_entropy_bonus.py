"""The entropy bonus: the gradient is that of the mean entropy, and the optimum the softmax of the rewards."""

import mdp_cases  # noqa: F401, registers the cases
import pytest
import torch
from mdp_cases import WAGES
from one_learner import OneLearner, still
from toy import toy_config

from unirl_env.agents import DRPOConfig, GRPOConfig, GSPOConfig
from unirl_env.agents.reports import update_metrics
from unirl_env.errors import ConfigError, ContractError
from unirl_env.functional import TokenStep

ALL_WEIGHTS = {"lora_rank": None}
CUT = {**ALL_WEIGHTS, "temperature": 0.8, "top_k": 6}


def texts(kind=GRPOConfig, **settings):
    settings = {"num_prompts": 3, "group_size": 4, "policy": CUT, "grad_clip": None, **settings}
    return OneLearner(kind().environment("unirl/TinyQwen3-Math-v0").training(**settings))


def arms(**settings):
    settings = {"num_prompts": 1, "group_size": 64, "policy": ALL_WEIGHTS, "num_minibatches": 1, **settings}
    return OneLearner(GRPOConfig().environment("cases/Arms-v0").training(**settings))


@pytest.mark.parametrize("kind", [GRPOConfig, GSPOConfig, DRPOConfig])
def test_where_nothing_is_earned_the_gradient_is_that_of_the_mean_entropy(kind):
    one = texts(kind, entropy_bonus=0.7)
    batch = still(one.play())
    (shard,) = one.shards(batch, num_minibatches=1)
    rows = one.learner.rows(shard, "text", torch.arange(len(batch)), 1.0)
    hidden = one.learner.policy.actor.heads["text"]._hidden(one.network, rows.observation)
    logits = (hidden @ one.learner.policy.actor.model.head(one.network).T) / 0.8
    lowest = logits.topk(6).values[:, -1:]
    kept = (logits >= lowest).scatter(1, rows.action[:, None], True)
    logs = logits.masked_fill(~kept, -1e9).log_softmax(1)
    entropy = -(logs.exp() * logs.masked_fill(~kept, 0.0)).sum(1)
    mean = (rows.weight * entropy).sum() / shard.denominators[0]["text"]
    weights = one.learner.get_parameters(one.learner.policy)
    expected = torch.autograd.grad(0.7 * mean, weights, allow_unused=True)
    norm = torch.cat([part.flatten() for part in expected if part is not None]).norm()

    report = one.update(shard, lr=0.0)
    assert report.grad_norm == [pytest.approx(float(norm), rel=1e-4)]
    metrics = update_metrics([report])
    assert metrics["entropy"] == pytest.approx(float(entropy.detach().mean()), rel=1e-5)
    assert metrics["loss"] == pytest.approx(-0.7 * float(mean.detach()), rel=1e-4)
    assert metrics["trained_rows"] == len(rows), "advantage 0 spares no row"


def test_without_a_bonus_it_is_told_and_changes_nothing():
    plain, told = texts(), texts(entropy_bonus=0.0)
    one, other = plain.learn(), told.learn()
    assert one.grad_norm == other.grad_norm
    assert update_metrics([one])["entropy"] > 0
    assert not plain.learner.policy.actor.heads["text"].entropy_gradient
    idle = plain.learn(still(plain.play()))
    assert idle.grad_norm == [0.0, 0.0] and update_metrics([idle])["trained_rows"] == 0


def test_micro_batches_change_nothing():
    norms = []
    for tokens in (None, 24):
        one = texts(entropy_bonus=0.5, micro_batch_tokens=tokens, aggregate="sequence_mean")
        norms.append(one.learn().grad_norm)
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_of_actions_the_optimum_is_the_softmax_of_wages_over_the_bonus():
    """max E[r] + b H has pi = exp(r / b), up to a factor."""
    one = arms(group_size=512, lr=0.05, advantage_scale="none", entropy_bonus=0.5)
    for iteration in range(60):
        one.learn(one.play(iteration))
    best = torch.softmax(torch.tensor(WAGES) / 0.5, 0)
    assert torch.allclose(torch.softmax(one.network.logits, 0), best, atol=0.05)


def test_of_actions_the_first_gradient_is_the_closed_one():
    """dH / d logit_j = -p_j (ln p_j + H)."""
    one = arms(entropy_bonus=1.0, grad_clip=None)
    report = one.learn(still(one.play()), lr=0.0)
    p = torch.softmax(torch.tensor([0.5, 0.0, -0.5]), 0)
    entropy = -(p * p.log()).sum()
    expected = -p * (p.log() + entropy)
    assert report.grad_norm == [pytest.approx(float(expected.norm()), rel=1e-5)]
    assert update_metrics([report])["entropy"] == pytest.approx(float(entropy), rel=1e-5)


def test_real_actions_have_an_entropy_too():
    settings = {"num_prompts": 3, "group_size": 8, "policy": ALL_WEIGHTS, "entropy_bonus": 1.0}
    one = OneLearner(GRPOConfig().environment("cases/Throw-v0").training(**settings, lr=0.01))
    before = one.network.log_std.detach().clone()
    one.learn(still(one.play()))
    assert (one.network.log_std > before).all()


def test_latents_have_none_to_reward():
    with pytest.raises(
        ConfigError, match=r"`entropy_bonus` must be 0 where latents alone.*fixes the standard"
    ):
        toy_config(GRPOConfig, entropy_bonus=0.1).validate()
    with pytest.raises(ConfigError, match="`entropy_bonus` must be at least 0"):
        toy_config(GRPOConfig, entropy_bonus=-0.1).validate()


def test_a_head_that_gives_no_gradient_is_refused(monkeypatch):
    one = texts(entropy_bonus=0.5)
    head, score = one.learner.policy.actor.heads["text"], type(one.learner.policy.actor.heads["text"]).score

    def deaf(*arguments):
        step = score(head, *arguments)
        return TokenStep(step.token, step.log_prob, step.entropy.detach())

    monkeypatch.setattr(head, "score", deaf)
    with pytest.raises(ContractError, match="entropy of phase `text` must have a gradient"):
        one.learn()
