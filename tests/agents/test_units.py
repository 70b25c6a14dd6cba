"""Trust regions in nats, and the settings whose units are stated: each against a closed form."""

import logging
import math
from dataclasses import replace

import pytest
import torch
from batches import advantages_of, play, trainable
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from toy import POINTS, make_points, toy_config

import unirl_env.functional as F
from unirl_env import train
from unirl_env.agents import DRPOConfig, FlowDPPOConfig, GRPOConfig, GRPOGuardConfig
from unirl_env.agents.batching import share_out
from unirl_env.agents.grpo import latent_loss as grpo_latent_loss
from unirl_env.agents.guard import latent_loss as guard_latent_loss
from unirl_env.agents.loss import Context
from unirl_env.agents.rows import Rows
from unirl_env.agents.step_credit import warn_of_idle_clip
from unirl_env.episode import Phase
from unirl_env.errors import ConfigError
from unirl_env.functional import SDEStep
from unirl_env.run.agent_setup import agent_config

SIZES = {
    "diffusion/line": 1,
    "diffusion/gaussian_mixture": 2,
    "diffusion/tiny_sd3": 4 * 8 * 8,
    "diffusion/tiny_video": 6 * 3 * 8 * 8,
    "diffusion/sd3": 16 * 64 * 64,
    "diffusion/flux1": 32 * 32 * 64,
    "unified_model/tiny_unified": 4 * 8 * 8,
    "unified_model/tiny_writer_and_painter": 4 * 8 * 8,
    "unified_model/enhancer_and_sd3": 16 * 64 * 64,
    "unified_model/bagel": 16 * 64 * 64,
    "unified_model/hunyuan_image3": 32 * 64 * 64,
}
PER_ELEMENT = {
    1: (0.2, 0.04),
    2: (0.1, 0.02),
    256: (1e-3, 5e-5),
    1152: (1e-3, 0.0576 / 1152),
    65536: (1e-4, 1e-5),
    131072: (1e-4, 1e-5),
}


def phase_of(elements):
    """A phase of latents with so many elements, or of tokens."""
    action = torch.zeros(1, 1, dtype=torch.int64) if elements is None else torch.zeros(1, 1, elements)
    mask = torch.ones(1, 1, dtype=torch.bool)
    return Phase(observation={}, action=action, log_prob=torch.zeros(1, 1), mask=mask)


@pytest.mark.parametrize("recipe", SIZES)
def test_recipes_in_nats_are_per_element_what_they_were(recipe):
    elements = SIZES[recipe]
    clip, kl_threshold = PER_ELEMENT[elements]
    config = agent_config(train.settings(recipe, ["agent=grpo"]))
    assert config.clip_low_nats is not None and config.clip_range(elements) == (clip, clip)
    assert config.thresholds(phase_of(elements)) == {
        f"clip_low_nats / {elements}": (clip, "log_prob"),
        "clip_high": (clip, "log_prob"),
    }
    config = agent_config(train.settings(recipe, ["agent=flow_dppo"]))
    assert config.kl_threshold_nats is not None and config.kl_border(elements) == kl_threshold
    assert config.thresholds(phase_of(elements)) == {f"kl_threshold_nats / {elements}": (kl_threshold, "kl")}


@pytest.mark.parametrize("recipe", [name for name, elements in SIZES.items() if elements <= 1152])
def test_the_centred_range_of_a_small_recipe_is_grpos_at_its_mean_step(recipe):
    elements = SIZES[recipe]
    grpo = agent_config(train.settings(recipe, ["agent=grpo"]))
    guard = agent_config(train.settings(recipe, ["agent=grpo_guard"]))
    model = guard.world("cpu").model
    sigmas = getattr(model, "image", model).sigmas(guard.num_steps).tolist()
    deviations = []
    for step in guard.trained_steps(0):
        here, after = sigmas[step : step + 2]
        singular = after if here == 1 else here
        deviations.append(guard.policy.eta * math.sqrt(here / (1 - singular) * (here - after)))
    mean = sum(deviations) / len(deviations)
    assert guard.centred_clip_nats == pytest.approx(grpo.clip_low_nats * mean, rel=1e-3)
    phase = phase_of(elements)
    steps = torch.tensor([[sigmas[step + after] for step in guard.trained_steps(0)] for after in (0, 1)])
    phase = replace(
        phase,
        observation={"sigma": steps[:1], "sigma_next": steps[1:]},
        action=torch.zeros(1, steps.shape[1], elements),
        log_prob=torch.zeros(1, steps.shape[1]),
        mask=torch.ones(1, steps.shape[1], dtype=torch.bool),
    )
    ((name, (value, quantity)),) = guard.thresholds(phase).items()
    assert (name, quantity) == (f"centred_clip_nats / {elements}", "log_prob")
    assert value == pytest.approx(guard.centred_clip_nats / elements / max(deviations), rel=1e-5)


@pytest.mark.parametrize("folder", sorted(path.name for path in (train.CONFIGS / "knobs").iterdir()))
def test_temp_flow_has_the_range_of_grpo_in_every_recipe(folder):
    recipes = [name for name in train.recipes() if f"knobs/{folder}:" in recipe_text(name)]
    assert recipes
    for recipe in recipes:
        of_grpo, of_temp_flow = (
            train.settings(recipe, [f"agent={agent}"]).agent.options for agent in ("grpo", "temp_flow")
        )
        assert of_grpo and of_grpo == of_temp_flow


def recipe_text(name):
    return (train.CONFIGS / f"{name}.yaml").read_text()


def test_without_either_the_published_values_hold():
    assert GRPOConfig().clip_range(64) == (1e-4, 1e-4)
    assert FlowDPPOConfig().kl_border(64) == 1e-5
    assert GRPOGuardConfig().centred_range(64) == 2e-6
    assert FlowDPPOConfig().thresholds(phase_of(64)) == {"kl_threshold": (1e-5, "kl")}
    assert GRPOConfig().thresholds(phase_of(None))["token_clip_high"] == (0.2, "log_prob")
    config = GRPOConfig().training(clip_low=0.01, clip_high_nats=3.2)
    assert config.clip_range(64) == (0.01, 0.05)


@pytest.mark.parametrize(
    ("config_class", "settings", "message"),
    [
        (
            GRPOConfig,
            {"clip_low": 1e-3, "clip_low_nats": 0.3},
            "`clip_low` and `clip_low_nats`.*either of them alone",
        ),
        (GRPOConfig, {"clip_high": 1e-3, "clip_high_nats": 0.3}, "`clip_high` and `clip_high_nats`"),
        (GRPOConfig, {"clip_low_nats": 0.0}, "`clip_low_nats` must be positive"),
        (GRPOConfig, {"clip_high_nats": math.nan}, "`clip_high_nats`"),
        (FlowDPPOConfig, {"kl_threshold": 1e-5, "kl_threshold_nats": 0.66}, "`kl_threshold_nats`"),
        (FlowDPPOConfig, {"kl_threshold_nats": -1.0}, "`kl_threshold_nats`"),
        (GRPOGuardConfig, {"centred_clip": 1e-6, "centred_clip_nats": 0.2}, "`centred_clip_nats`"),
        (GRPOGuardConfig, {"token_clip_low": 1.0}, r"`token_clip_low` must lie in \(0, 1\)"),
        (GRPOConfig, {"adam_epsilon": 0.0}, "`adam_epsilon`"),
        (GRPOConfig, {"adam_epsilon": "small"}, "`adam_epsilon`"),
        (GRPOConfig, {"max_log_ratio": 100.0}, "`max_log_ratio`.*40"),
        (GRPOConfig, {"max_log_ratio": 0}, "`max_log_ratio`"),
        (GRPOConfig, {"idle_episodes": "drop"}, "`idle_episodes`.*count, leave_out"),
    ],
)
def test_impossible_units_are_refused(config_class, settings, message):
    with pytest.raises(ConfigError, match=message):
        toy_config(config_class, **settings).validate()


def test_a_range_in_nats_too_wide_for_an_action_is_refused():
    with pytest.raises(ConfigError, match="`clip_low_nats` must be less than the 2 elements"):
        GRPOConfig().training(clip_low_nats=3.0).clip_range(2)
    with pytest.raises(ConfigError, match="`centred_clip_nats` must be less than the 2 elements"):
        GRPOGuardConfig().training(centred_clip_nats=3.0).centred_range(2)


@pytest.mark.parametrize("elements", [2, 64, 4096])
def test_a_range_in_nats_bounds_the_joint_ratio_alike_at_every_size(elements):
    """Where the gradient of an entry ends, in nats of the joint policies: 0.5, to first order in 0.5 / D."""
    nats, clipped = torch.tensor([0.4, 0.495, 0.66, -0.4, -0.505, -0.7]), []
    log_prob = (nats / elements).requires_grad_()
    count = len(nats)
    rows = rows_of(nats, elements)
    config = GRPOConfig().training(clip_low_nats=0.5)
    new = SDEStep(rows.action, log_prob, rows.action, torch.ones(count))
    loss, _ = grpo_latent_loss(rows, new, Context(None, config, phase="image", kind="latents"))
    clipped = torch.autograd.grad(loss, log_prob)[0] == 0
    up, down = elements * math.log1p(0.5 / elements), -elements * math.log1p(-0.5 / elements)
    assert clipped.tolist() == [x > up for x in nats[:3].tolist()] + [-x > down for x in nats[3:].tolist()]
    assert [bool(clipped[i]) for i in (0, 2, 3, 5)] == [False, True, False, True]


def rows_of(nats, elements, old_mean=None):
    """A row for each of `nats`, whose advantage has its sign."""
    count = len(nats)
    return Rows(
        kind="latents",
        observation={},
        action=torch.zeros(count, elements),
        episode=torch.arange(count),
        step=torch.zeros(count, dtype=torch.int64),
        old_log_prob=torch.zeros(count),
        old_mean=old_mean,
        advantages=nats.sign(),
        weight=torch.ones(count),
        mask=torch.ones(count, dtype=torch.bool),
        denominator=1.0,
    )


@pytest.mark.parametrize("elements", [4, 64, 4096])
@pytest.mark.parametrize("std", [0.25, 2.0])
def test_a_centred_range_in_nats_bounds_an_action_by_its_steps_std(elements, std):
    """0.1 over the std, to either side of minus the KL."""
    bound = 0.1 / std
    nats = bound * torch.tensor([0.9, 1.1, 1.5, -0.9, -1.1, -1.5])
    old_mean = torch.zeros(len(nats), elements)
    mean = old_mean + 0.3
    kl = 0.3**2 / (2 * std**2)
    rows = rows_of(nats, elements, old_mean)
    log_prob = (nats / elements - kl).requires_grad_()
    new = SDEStep(rows.action, log_prob, mean, torch.full((len(nats),), std))
    config = GRPOGuardConfig().training(centred_clip_nats=0.1)
    loss, metrics = guard_latent_loss(rows, new, Context(None, config, phase="image", kind="latents"))
    clipped = torch.autograd.grad(loss, log_prob)[0] == 0
    assert clipped.tolist() == [False, True, True] * 2
    assert float(metrics["clip_fraction"].value) == 4.0


def make_learner(config_class=DRPOConfig, **settings):
    config = toy_config(config_class, **settings)
    config.validate()
    env = make_points(1, prompts=POINTS, num_steps=6)
    spaces = (env.single_observation_space, env.single_action_space)
    return config.build_learner(spaces={DEFAULT_MODULE_ID: spaces})


def learn(learner, batch, *, num_minibatches=1, lr=5e-3, **settings):
    advantages = {name: advantages_of(batch) for name in batch.phases}
    (shard,) = share_out(batch, advantages, num_minibatches=num_minibatches, num_learners=1, **settings)
    report = learner.update(training_data=TrainingData(batch=shard), lr=lr)
    if report.error is not None:
        raise report.error
    return report


@pytest.mark.parametrize("epsilon", [1e-8, 0.05])
def test_the_epsilon_of_adam_is_in_units_of_a_gradient(epsilon):
    learner = make_learner(adam_epsilon=epsilon)
    before = trainable(learner)
    learn(learner, play(learner.policy))
    moments = {name: t for name, t in learner.run_state().items() if "/exp_avg/" in name}
    gradient = torch.cat([tensor.flatten() for tensor in moments.values()]) / (1 - 0.9)
    moved = (trainable(learner) - before).sort().values
    expected = (-5e-3 * gradient / (gradient.abs() + epsilon)).sort().values
    torch.testing.assert_close(moved, expected, atol=2e-6, rtol=1e-3)
    assert float(gradient.abs().max()) > 0.01


def with_a_group_that_teaches_nothing(batch):
    value = batch.scores.value.clone()
    value[4:8] = 0.25
    return replace(batch, scores=type(batch.scores)(value))


@pytest.mark.parametrize("reference_kl", [0.0, 0.1])
def test_idle_episodes_count_or_are_left_out(reference_kl):
    """16 episodes, of which 4 are idle: sums are divided by 12 / 16 as much, and nothing else changes."""
    reports = {}
    for choice in ("count", "leave_out"):
        learner = make_learner(reference_kl=reference_kl)
        batch = with_a_group_that_teaches_nothing(play(learner.policy, group_size=4))
        reports[choice] = learn(learner, batch, idle_episodes=choice)
    norms = [reports[choice].grad_norm[0] for choice in ("count", "leave_out")]
    assert norms[1] == pytest.approx(norms[0] * 16 / 12, rel=1e-4)
    rows = [reports[choice].phases["image"].rows for choice in ("count", "leave_out")]
    assert rows == [[(16 if reference_kl else 12) * 5], [12 * 5]]


def test_the_bound_on_log_ratios_reaches_the_loss():
    learner = make_learner(GRPOConfig, clip_low=0.9, max_log_ratio=1e-3)
    report = learn(learner, play(learner.policy), num_minibatches=2, lr=0.05)
    deviation = report.phases["image"].metrics[1]["ratio_max_deviation"]
    assert deviation == pytest.approx(math.expm1(1e-3), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({"group_size": 26, "advantage_clip": 5.0}, True),
        ({"group_size": 27, "advantage_clip": 5.0}, False),
        ({"group_size": 8, "advantage_clip": 2.0}, False),
        ({"group_size": 8, "advantage_clip": 5.0, "advantage_scale": "none"}, False),
        ({"group_size": 8, "advantage_clip": 5.0, "advantage_scale": "batch"}, False),
        ({"group_size": 8, "advantage_clip": 5.0, "advantage_parts": {"a": 1.0}}, False),
        ({"group_size": 8}, False),
    ],
)
def test_a_clip_of_advantages_that_cannot_act_is_told(settings, warns, caplog):
    config = toy_config(GRPOConfig, **settings)
    with caplog.at_level(logging.WARNING):
        warn_of_idle_clip(config)
    assert ("`advantage_clip` is 5" in caplog.text) == warns


@pytest.mark.parametrize("size", [8, 26])
def test_no_advantage_of_a_group_exceeds_the_root_of_its_others(size):
    rewards = torch.zeros(size)
    rewards[0] = 1.0
    advantages = F.group_advantages(rewards, torch.zeros(size, dtype=torch.int64))
    assert float(advantages.max()) == pytest.approx(math.sqrt(size - 1), rel=1e-5)
    assert torch.equal(
        advantages,
        F.group_advantages(rewards, torch.zeros(size, dtype=torch.int64), clip=math.sqrt(size - 1) + 1e-4),
    )
