"""Credit of steps: what is charged, who says so, and that neither learners nor micro-batches change it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from batches import advantages_of, play
from ray.rllib.core.learner.training_data import TrainingData
from test_learner import make_learner
from test_shards import batch_of
from toy import toy_config

import unirl_env.functional as F
from unirl_env.agents import GRPOConfig, GSPOConfig, Loss
from unirl_env.agents.batching import credit, largest, share_out
from unirl_env.agents.kinds import PhaseKind
from unirl_env.agents.reference import reference_kls
from unirl_env.agents.reports import rollout_metrics
from unirl_env.agents.rows import latent_rows
from unirl_env.agents.step_credit import charges_of, check_step_credit, credit_steps
from unirl_env.episode import Phase
from unirl_env.errors import ConfigError

BETA = 0.5
OWN = PhaseKind(F.SDEStep, latent_rows, lambda *given, **more: [], lambda *given: None)


def settings(**given):
    fixed = dict(trained=("image",), phase_rewards={}, advantage_parts={}, advantage_scale="none")
    fixed |= dict(advantage_clip=None, reference_kl=BETA, weighs_steps="none")
    fixed |= dict(policy=SimpleNamespace(dynamics="flow", eta=0.7))
    return SimpleNamespace(**{**fixed, **given})


def test_a_step_is_charged_with_what_comes_after_it_in_all_phases_that_follow():
    kls = {"image": torch.tensor([[5.0, 7.0], [0.0, 0.0]]), "text": torch.tensor([[1.0, 2.0, 4.0]] * 2)}
    found = charges_of(kls, ("text", "image"), BETA)
    assert found["image"].tolist() == [[3.5, 0.0], [0.0, 0.0]]
    assert found["text"].tolist() == [[9.0, 8.0, 6.0], [3.0, 2.0, 0.0]]
    assert charges_of({"text": kls["text"]}, ("text", "image"), BETA)["text"][0].tolist() == [3.0, 2.0, 0.0]
    assert charges_of({}, ("text",), BETA) == {}


def test_credit_of_steps_is_that_of_episodes_where_nothing_differs():
    batch = batch_of()
    advantages, valid = credit(batch, settings())
    found, scales = credit_steps(batch, settings(), advantages, valid, {})
    assert found == advantages and scales == {}
    blank = {"image": torch.zeros(24, 3)}
    found, scales = credit_steps(batch, settings(), advantages, valid, blank)
    torch.testing.assert_close(found["image"], advantages["image"][:, None].expand(24, 3))
    assert scales["image"].unique().tolist() == pytest.approx([5 / 6])


def test_a_phase_is_paid_its_own_reward_in_the_return_too():
    batch = batch_of()
    part = torch.randn(24, generator=torch.Generator().manual_seed(1))
    batch = replace(batch, scores=type(batch.scores)(batch.rewards, {"fine": part}))
    kls = {"image": torch.rand(24, 3, generator=torch.Generator().manual_seed(2))}
    config = settings(phase_rewards={"image": "fine"})
    advantages, valid = credit(batch, config)
    found, _ = credit_steps(batch, config, advantages, valid, kls)
    torch.testing.assert_close(found["image"][:, 2], F.group_advantages(part, batch.group, scale="none"))
    returns = part - BETA * kls["image"][:, 1:].sum(1)
    torch.testing.assert_close(
        found["image"][:, 0], F.group_advantages(returns, batch.group, scale="none"), rtol=1e-5, atol=1e-6
    )


def noisy_batch():
    """Steps of falling noise, of which every second episode trains two."""
    batch = batch_of()
    phase = batch.phases["image"]
    levels = torch.tensor([[0.9, 0.6, 0.3, 0.1]]).expand(24, 4)
    mask = phase.mask.clone()
    mask[::2, 1] = False
    seen = {**phase.observation, "sigma": levels[:, :3], "sigma_next": levels[:, 1:]}
    return replace(batch, phases={"image": replace(phase, observation=seen, mask=mask)})


def test_weights_of_steps_multiply_advantages_and_the_kl_that_they_balance():
    batch, config = noisy_batch(), settings(weighs_steps="noise")
    phase = batch.phases["image"]
    sigmas = (phase.observation["sigma"], phase.observation["sigma_next"])
    here = torch.zeros(*phase.mask.shape, 1)
    weight = F.step_weights(F.transition(here, here, *sigmas, eta=0.7)[1], phase.mask)
    assert weight[0, 1] == 0 and float(weight[0, 0]) > 1 > float(weight[0, 2])
    advantages, valid = credit(batch, config)
    found, scales = credit_steps(batch, config, advantages, valid, {})
    torch.testing.assert_close(found["image"], weight * advantages["image"][:, None])
    assert scales == {}, "the KL in the loss stays as it is"
    kls = {"image": torch.rand(24, 3, generator=torch.Generator().manual_seed(2))}
    plain = credit_steps(batch, settings(), advantages, valid, kls)
    weighed = credit_steps(batch, config, advantages, valid, kls)
    for mine, theirs in zip(weighed, plain, strict=True):
        torch.testing.assert_close(mine["image"], weight * theirs["image"])


def test_steps_may_weigh_by_the_inverse_of_their_length():
    batch = noisy_batch()
    phase = batch.phases["image"]
    length = phase.observation["sigma"] - phase.observation["sigma_next"]
    advantages, valid = credit(batch, settings())
    found, _ = credit_steps(batch, settings(weighs_steps="inverse_length"), advantages, valid, {})
    weight = torch.where(phase.mask, 1 / length, 0.0)
    weight = weight / weight.sum(1, keepdim=True) * phase.mask.sum(1, keepdim=True)
    torch.testing.assert_close(found["image"], weight * advantages["image"][:, None])


def test_tokens_are_left_alone():
    batch = noisy_batch()
    blank = torch.zeros(24, 2)
    text = Phase({}, blank.long(), blank, torch.ones(24, 2, dtype=torch.bool), ragged=True)
    batch = replace(batch, phases={"text": text, **batch.phases})
    config = settings(trained=("text", "image"), weighs_steps="noise")
    advantages, valid = credit(batch, config)
    found, _ = credit_steps(batch, config, advantages, valid, {})
    assert found["text"] is advantages["text"] and found["image"].shape == (24, 3)


# Advantages, weights and scales of steps on their way to rows.


@pytest.mark.parametrize("learners", [1, 2])
def test_what_steps_have_goes_with_them(learners):
    by_step = torch.arange(72.0).view(24, 3)
    shards = share_out(
        batch_of(),
        {"image": by_step},
        num_minibatches=2,
        num_learners=learners,
        shuffle="episode",
        kl_scales={"image": by_step + 0.5},
    )
    for shard in shards:
        shard = replace(shard, weights={"image": shard.advantages["image"] + 0.25}).to("cpu")
        rows = latent_rows(shard, "image", torch.arange(len(shard)), 1.0)
        expected = shard.episode_seed[rows.episode] * 3.0 + rows.step
        assert torch.equal(rows.advantages, expected) and torch.equal(rows.weight, expected + 0.25)
        assert torch.equal(rows.kl_scale, expected + 0.5)
        assert torch.equal(rows.select(torch.tensor([4, 2])).kl_scale, rows.kl_scale[[4, 2]])
    (shard,) = share_out(batch_of(), {"image": by_step}, num_minibatches=1, num_learners=1)
    assert latent_rows(shard, "image", torch.arange(2), 1.0).kl_scale is None


def test_an_episode_is_idle_if_all_of_its_steps_are():
    by_step = torch.zeros(24, 3)
    by_step[3, 1] = by_step[7, 2] = -2.0
    (shard,) = share_out(
        batch_of(), {"image": by_step}, num_minibatches=1, num_learners=0, idle_episodes="leave_out"
    )
    assert shard.phases["image"].mask.any(1).nonzero().flatten().tolist() == [3, 7]
    learner = make_learner("grpo")
    batch = play(learner.policy)
    steps = batch.phases["image"].log_prob.shape[1]
    advantages = torch.zeros(len(batch), steps)
    advantages[5, 0] = 1.0
    shards = share_out(batch, {"image": advantages}, num_minibatches=1, num_learners=1)
    report = update(learner, shards[0])
    assert report.phases["image"].rows == [steps]
    metrics = rollout_metrics(batch, largest(advantages))
    assert metrics["advantage_max"] == 1.0 and metrics["advantage_zero"] == 1 - 1 / len(batch)


def update(learner, shard, lr=0.0, **options):
    report = learner.update(training_data=TrainingData(batch=shard), lr=lr, **options)
    if report.error is not None:
        raise report.error
    return report


# The KL of the visited steps, and the update that is made of it.


def moved_learner(name="grpo", **settings):
    """One whose weights are not those of the reference."""
    more = {"reference_kl": BETA, "kl_in": "return", "grad_clip": None, "advantage_scale": "none"}
    learner = make_learner(name, policy={"lora_rank": None}, **{**more, **settings})
    learner.policy.set_state({n: t * 1.2 + 0.03 for n, t in learner.policy.get_state().items()})
    return learner


def blank_shards(batch, learners=1):
    blank = {"image": torch.zeros(len(batch))}
    return share_out(batch, blank, {"image": batch.scores.valid}, num_minibatches=1, num_learners=learners)


def kls_of(learner, batch, learners=1):
    parts = [reference_kls(learner, shard) for shard in blank_shards(batch, learners)]
    return {"image": torch.cat([part["image"] for part in parts])}


def shares(learner, batch, kls, learners=1, **cut):
    advantages, valid = credit(batch, learner.config)
    advantages, scales = credit_steps(batch, learner.config, advantages, valid, kls)
    options = {"num_minibatches": 1, **cut}
    return share_out(batch, advantages, valid, num_learners=learners, kl_scales=scales, **options)


def gradient(learner):
    return torch.cat([p.grad.flatten().clone() for p in learner.get_parameters(learner.policy)])


@pytest.mark.parametrize("name", ["grpo", "flow_dppo"])
def test_the_kl_of_each_step_is_the_gaussians_in_nats_of_the_whole_action(name):
    """From the sampler's recorded means, or by scoring anew."""
    learner = moved_learner(name)
    batch = play(learner.policy)
    if name == "grpo":
        batch = replace(batch, phases={"image": replace(batch.phases["image"], mean=None)})
    scores = batch.scores.value.clone()
    scores[3] = torch.nan
    batch = replace(batch, scores=type(batch.scores)(scores))
    found = kls_of(learner, batch)["image"]
    phase, actor = batch.phases["image"], learner.policy.actor
    seen, action = phase.rows(torch.arange(len(batch)))
    with torch.no_grad():
        new = actor.score(seen, action)
        with actor.reference():
            old = actor.score(seen, action)
    expected = ((new.mean - old.mean) / new.std[:, None]).square().sum(1).view(found.shape) / 2
    expected[3] = 0.0
    assert float(expected.max()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("weights", ["none", "noise"])
def test_the_update_does_not_depend_on_learners_or_micro_batches(weights):
    learner = moved_learner(step_weights=weights)
    batch = play(learner.policy)
    kls = kls_of(learner, batch)
    torch.testing.assert_close(kls_of(learner, batch, 2)["image"], kls["image"], rtol=1e-4, atol=1e-6)
    update(learner, shares(learner, batch, kls)[0])
    whole = gradient(learner)
    total = 0.0
    for shard in shares(learner, batch, kls, learners=2):
        update(learner, shard)
        total = total + gradient(learner)
    torch.testing.assert_close(total, whole, rtol=1e-4, atol=1e-6)
    for size in (1, 5):
        other = moved_learner(step_weights=weights, micro_batch_size=size)
        update(other, shares(other, batch, kls_of(other, batch))[0])
        torch.testing.assert_close(gradient(other), whole, rtol=1e-4, atol=1e-6)


def test_the_metric_stays_the_mean_kl_whatever_it_is_scaled_with():
    reports = []
    for kl_in in ("loss", "return"):
        learner = moved_learner(kl_in=kl_in)
        batch = play(learner.policy)
        kls = kls_of(learner, batch) if kl_in == "return" else {}
        report = update(learner, shares(learner, batch, kls)[0])
        reports.append(report.phases["image"].metrics[0]["reference_kl"])
    elements = batch.phases["image"].elements
    assert reports[0] == pytest.approx(reports[1], rel=1e-6)
    assert reports[1] == pytest.approx(float(kls["image"].sum()) / elements, rel=1e-4)


def test_without_a_price_constant_groups_stay_at_zero():
    learner = moved_learner(reference_kl=0.0)
    batch = play(learner.policy)
    value = batch.scores.value.clone()
    value[:8] = 0.1
    batch = replace(batch, scores=type(batch.scores)(value))
    (shard,) = shares(learner, batch, {})
    assert (shard.advantages["image"][:8] == 0).all()
    assert torch.equal(shard.advantages["image"], F.group_advantages(value, batch.group, scale="none"))
    assert not torch.equal(advantages_of(batch), shard.advantages["image"])


# What is refused.


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kl_in": "reward"}, "`kl_in` must be one of loss, return"),
        (
            {"kl_in": "return", "advantage_parts": {"near": 1.0}},
            "`kl_in` must be loss with `advantage_parts`",
        ),
        ({"kl_in": "return", "kl_estimator": "k3"}, "`kl_estimator` must be k2 with `kl_in=return`"),
        ({"step_weights": "noise", "steps": {"kind": "none"}}, "Some step must explore"),
        ({"correction": "truncate"}, "`correction` must be none or null where .*anchor='replay'"),
        ({"correction": "mask", "anchor": "replay", "correction_bound": 1.0}, "`correction_bound`"),
    ],
)
def test_settings_that_cannot_work_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        toy_config(GRPOConfig, **given).validate()


def test_where_no_latents_are_trained_their_noise_weighs_nothing():
    config = GRPOConfig().environment("unirl/TabularTokens-v0").training(policy={"lora_rank": None})
    config.validate()
    config.training(step_weights="noise")
    with pytest.raises(ConfigError, match=r"`step_weights` must be none .* trains discrete"):
        config.validate()


def test_one_ratio_of_a_text_wants_one_advantage():
    config = GSPOConfig().environment("unirl/TabularTokens-v0").training(policy={"lora_rank": None})
    for name, value in (("kl_in", "return"), ("correction_level", "step")):
        with pytest.raises(ConfigError, match=f"`{name}` must be .* for GSPO"):
            config.copy(copy_frozen=False).training(**{name: value}).validate()


def test_a_loss_without_log_probs_has_nothing_to_correct():
    class Blind(GRPOConfig):
        losses = {"latents": Loss(lambda rows, new, context: None, needs={"final"}, scores=False)}

    config = toy_config(Blind, anchor="replay")
    config.validate()
    config.training(correction="truncate")
    with pytest.raises(ConfigError, match="does not use log-probs"):
        config.validate()


def test_a_kind_of_ones_own_must_say_what_a_step_pays():
    config = SimpleNamespace(
        trained_kinds=(f"{__name__}:OWN",),
        step_weights="none",
        looks_forward=False,
        kl_in="return",
        reference_kl=1.0,
    )
    with pytest.raises(ConfigError, match="does not say in `nats`"):
        check_step_credit(config)
