"""Finished latents noised anew: whose draws they are, what is scored, and what every learner agrees on."""

from dataclasses import replace

import pytest
import torch
from batches import play, shards_of, trainable
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from test_learner import learn, play_spaces
from toy import toy_config

import unirl_env  # noqa: F401, registers the ids
from unirl_env.agents import AgentConfig, ELBOPGConfig, FlowDPPOConfig, GRPOConfig
from unirl_env.agents.estimators import FORWARD
from unirl_env.agents.loss import Loss
from unirl_env.errors import ConfigError, ContractError


def learner_with(compute=None, config_class=GRPOConfig, **settings):
    """A learner on the toy that scores finished latents."""
    if compute is not None:
        loss = compute if isinstance(compute, Loss) else Loss(compute, estimators={"regression"})

        class Mine(AgentConfig):
            losses = {"latents": loss}
            own_estimator = "regression"

        config_class = Mine
    settings = {"estimator": "elbo" if compute is None else None, **settings}
    config = toy_config(config_class, **settings)
    config.validate()
    return config.build_learner(spaces={DEFAULT_MODULE_ID: play_spaces()})


def finished(learner, **options):
    """Episodes as the learner's own settings have them played."""
    asked = learner.config.mode.training_options(learner.config, 0, checked=True)
    names = ("stochastic_steps", "second_order", "keep_steps", "keep_final")
    return play(learner.policy, **{name: asked[name] for name in names}, **options)


def noised(learner, batch, **cut):
    (shard,) = shards_of(batch, **cut)
    return noised_shard(learner, shard)


def noised_shard(learner, shard):
    """The phase of a shard as its rows are scored."""
    shard = FORWARD.drawn(shard, "image", learner.config, learner.policy.actor.latent_head().model)
    phase = shard.phases["image"]
    (rows,) = learner.parts(shard, "image", torch.arange(len(shard)), 1.0)
    latent = rows.observation["latent"].view(phase.action.shape)
    observation = {**phase.observation, "latent": latent}
    return replace(phase, observation=observation, action=rows.action.view(phase.action.shape))


def miss(rows, new, context):
    return rows.mean(rows.advantages * -new.log_prob), {}


def test_a_finished_latent_becomes_rows_of_its_noised_selves():
    learner = learner_with(noising={"draws": 5, "low": 0.25, "high": 0.75})
    batch = finished(learner)
    phase, final = noised(learner, batch), batch.phases["image"].final
    assert phase.log_prob.shape == phase.mask.shape == (32, 5) and phase.mask.all()
    sigma = phase.observation["sigma"]
    strata = ((sigma - 0.25) / 0.1).floor()
    assert torch.equal(strata, torch.arange(5.0).expand(32, 5))
    s = sigma[..., None]
    noise = phase.action + final[:, None]
    torch.testing.assert_close(phase.observation["latent"], (1 - s) * final[:, None] + s * noise)
    assert abs(float(noise.mean())) < 0.15 and abs(float(noise.std()) - 1) < 0.15
    assert len(noise.flatten(0, 1).unique(dim=0)) == 160


def test_only_noise_levels_that_the_model_knows_are_drawn(monkeypatch):
    learner = learner_with(noising={"draws": 4, "low": 0.1})
    model, batch = learner.policy.actor.latent_head().model, finished(learner)
    monkeypatch.setattr(type(model), "known_sigmas", (0.03, 0.5))
    monkeypatch.setattr(type(model), "data", lambda self, latents: latents / 0.5)
    phase, final = noised(learner, batch), batch.phases["image"].final
    sigma, s = phase.observation["sigma"], phase.observation["sigma"][..., None]
    assert torch.equal(((sigma - 0.1) / 0.1).floor(), torch.arange(4.0).expand(32, 4))
    data = (final / 0.5)[:, None]
    torch.testing.assert_close(phase.observation["latent"], (1 - s) * data + s * (phase.action + data))
    monkeypatch.setattr(type(model), "known_sigmas", (0.0, 0.05))
    with pytest.raises(ConfigError, match=r"`noising.low`.*that the model knows, 0 to 0.05, got 0.1 and 1"):
        noised(learner, batch)


def test_draws_are_an_episodes_own_and_another_iterations_are_others():
    learner = learner_with()
    batch = finished(learner)
    whole = noised(learner, batch)
    for shard in shards_of(batch, num_learners=2):
        part = noised_shard(learner, shard)
        places = [batch.episode_seed.tolist().index(seed) for seed in shard.episode_seed.tolist()]
        for name in ("latent", "sigma"):
            assert torch.equal(part.observation[name], whole.observation[name][places]), name
        assert torch.equal(part.action, whole.action[places])
    (shard,) = shards_of(batch, iteration=1)
    other = noised_shard(learner, shard)
    assert not torch.isclose(other.observation["sigma"], whole.observation["sigma"]).any()


def test_groups_may_share_their_draws():
    learner = learner_with(noising={"share": "group"})
    batch = finished(learner)
    sigma = noised(learner, batch).observation["sigma"]
    assert torch.equal(sigma, sigma[batch.group * 8]) and len(sigma.unique(dim=0)) == 4


@pytest.mark.parametrize("steps", ["ode", "sde"])
def test_only_the_finished_latent_is_recorded(steps):
    learner = learner_with(sampler=steps)
    phase = finished(learner).phases["image"]
    assert phase.log_prob.shape == (32, 1) and not phase.drawn
    assert torch.equal(phase.final, phase.action[:, 0])


@pytest.mark.parametrize("weight", ["unit", "x0", "adaptive", "elbo"])
def test_the_first_step_finds_ratio_one_and_later_ones_do_not(weight):
    learner = learner_with(noising={"weight": weight}, micro_batch_size=3, clip_low=1e-2)
    report = learn(learner, finished(learner), num_minibatches=2, num_epochs=2, check=("image",))
    deviations = [metrics["ratio_max_deviation"] for metrics in report.phases["image"].metrics]
    assert deviations[0] == 0 and min(deviations[1:]) > 1e-6
    assert report.phases["image"].rows == [64] * 4 and not report.phases["image"].check


def test_old_values_are_those_of_the_weights_that_sampled():
    seen = []

    def compute(rows, new, context):
        seen.append((context.step, rows, new.velocity.detach()))
        with context.weights("old"):
            seen[-1] += (context.velocity(rows.observation),)
        return miss(rows, new, context)

    loss = Loss(compute, needs={"velocity"}, copies={"old"}, estimators={"regression"})
    learner = learner_with(loss, micro_batch_size=16)
    before = {name: t.clone() for name, t in learner.policy.get_state().items()}
    learn(learner, finished(learner), num_minibatches=2, num_epochs=2)
    after = learner.policy.get_state()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    learner.policy.set_state(before)
    for step, rows, velocity, old in seen:
        expected = learner.policy.velocity("image", rows.observation)
        torch.testing.assert_close(rows.old_velocity, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(old, expected, rtol=0, atol=1e-6)
        assert torch.allclose(velocity, expected, atol=1e-6) == (step == 0)


@pytest.mark.parametrize("estimator", ["elbo", "regression"])
def test_neither_micro_batches_nor_learners_change_the_gradient(estimator):
    def gradient(shards, **settings):
        learner = learner_with(miss if estimator == "regression" else None, **settings)
        total = 0.0
        start = trainable(learner).clone()
        for shard in shards:
            report = learner.update(training_data=TrainingData(batch=shard), lr=0.0)
            assert report.error is None
            total = total + torch.cat([p.grad.flatten() for p in learner._gradient.parameters])
            assert torch.equal(trainable(learner), start)
        return total

    settings = {"grad_clip": None, "reference_kl": 0.1, "noising": {"draws": 3}}
    batch = finished(learner_with(miss if estimator == "regression" else None, **settings))
    whole = gradient(shards_of(batch, num_minibatches=1), **settings)
    small = gradient(shards_of(batch, num_minibatches=1), micro_batch_size=5, micro_batch_steps=2, **settings)
    shared = gradient(shards_of(batch, num_minibatches=1, num_learners=2), **settings)
    assert whole.norm() > 1e-3
    torch.testing.assert_close(small, whole, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(shared, whole, rtol=1e-4, atol=1e-7)


def test_the_pull_is_to_the_untrained_velocity_weighted_as_the_bound():
    learner = learner_with(reference_kl=1.0, noising={"weight": "elbo"}, micro_batch_size=None)
    batch = finished(learner)
    learner.policy.set_state({k: v + 0.05 for k, v in learner.policy.get_state().items()})
    report = learn(learner, batch, num_minibatches=1, lr=0.0)
    phase = noised(learner, batch, num_minibatches=1)
    s = phase.observation["sigma"].flatten()
    point = batch.phases["image"].context["point"][batch.phases["image"].context_row]
    seen = {
        "latent": phase.observation["latent"].flatten(0, 1),
        "sigma": s,
        "point": point.repeat_interleave(4, 0),
    }
    new = learner.policy.velocity("image", seen)
    with learner.policy.reference():
        untrained = learner.policy.velocity("image", seen)
    expected = ((1 - s) / s * (new - untrained).square().mean(1)).mean()
    found = report.phases["image"].metrics[0]["reference_kl"] / 128
    torch.testing.assert_close(torch.tensor(found), expected.detach(), rtol=1e-3, atol=1e-6)


def test_what_makes_no_sense_is_refused_with_the_reason():
    for settings, words in (
        ({"config_class": FlowDPPOConfig}, r"`estimator` must be .*'trajectory' \(it needs the means"),
        ({"estimator": "regression"}, r"`estimator` must be .*'elbo', 'trajectory', got 'regression'"),
        ({"estimator": "trajectory", "sampler": "ode"}, "Some step must explore"),
        ({"noising": {"low": 0.5, "high": 0.5}}, r"noising.low` must be less than"),
        ({"estimator": None, "noising": {"draws": 8}}, "`noising` must stay as it is where transitions"),
        ({"rollout_weights": "ema"}, "must be 'trained' where no average is kept"),
        ({"ema_rise": 0.1}, "`ema_rise` must be null"),
    ):
        with pytest.raises(ConfigError, match=words):
            learner_with(**settings)
    with pytest.raises(ConfigError, match="`copies` must be some of 'old', 'ema', got 'reference'"):
        Loss(miss, copies={"reference"})
    with pytest.raises(ConfigError, match="`estimators` must be some of"):
        Loss(miss, estimators={"elbow"})


def test_weights_that_are_not_kept_are_refused_with_the_remedy():
    def asks(name):
        def compute(rows, new, context):
            with context.weights(name):
                pass
            return miss(rows, new, context)

        return compute

    for name, remedy in (("old", r"copies=\{'old'\}"), ("ema", "ema_decay"), ("older", "'reference', 'old'")):
        learner = learner_with(asks(name))
        with pytest.raises(ConfigError, match=f"got '{name}'.*{remedy}"):
            learn(learner, finished(learner))


def test_a_batch_without_finished_latents_says_so():
    learner = learner_with()
    batch = finished(learner)
    phase = replace(batch.phases["image"], final=None)
    with pytest.raises(ContractError, match="must hold finished latents"):
        learn(learner, replace(batch, phases={"image": phase}))


def test_where_no_latents_are_trained_their_settings_are_refused():
    config = GRPOConfig().environment("unirl/TabularTokens-v0").training(policy={"lora_rank": None})
    config.validate()
    for name, value in (("estimator", "elbo"), ("sampler", "ode")):
        with pytest.raises(ConfigError, match=f"`{name}` must be null where no latents are trained"):
            config.copy(copy_frozen=False).training(**{name: value}).validate()
    ELBOPGConfig().environment("unirl/TabularTokens-v0").training(policy={"lora_rank": None}).validate()
