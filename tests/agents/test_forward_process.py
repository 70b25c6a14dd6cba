"""Losses that noise finished latents anew, as a user writes them: no learner of their own."""

import textwrap
from dataclasses import replace

import gymnasium as gym
import pytest
import torch
from batches import shards_of
from forward_losses import NegativeAwareConfig, WeightedMatchingConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData

import unirl_env  # noqa: F401, registers the ids
import unirl_env.agents.loss as loss_module
import unirl_env.functional as F
from unirl_env.agents import Agent, AgentConfig, GRPOConfig
from unirl_env.agents.selfcheck import FirstUpdate
from unirl_env.errors import ConfigError
from unirl_env.models.gaussian_mixture import GaussianMixture, mixture_velocity
from unirl_env.prompts.sources import PromptSource
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout

MIXTURE = {"means": [[-1.0, 0.3], [1.0, -0.2]], "stds": 0.4, "weights": [0.6, 0.4]}
WORLDS = {
    "mixture": (
        "unirl/GaussianMixture-v0",
        {"model_options": MIXTURE, "num_steps": 6, "scorer": "linear"},
        {"policy": {"lora_rank": None}, "num_prompts": 2, "group_size": 6},
    ),
    "unified": (
        "unirl/TinyUnified-T2I-v0",
        {"num_steps": 2, "max_new_tokens": 8},
        {"policy": {"lora_rank": 4}, "num_prompts": 2, "group_size": 4},
    ),
    "tiny_sd3 in earnest": (
        "unirl/TinySD3-T2I-v0",
        {"num_steps": 8},
        {"policy": {"lora_rank": 16, "lora_alpha": 32}, "num_prompts": 8, "group_size": 12, "grad_clip": 1.0},
    ),
    "tiny_sd3": (
        "unirl/TinySD3-T2I-v0",
        {"num_steps": 3},
        {"policy": {"lora_rank": 4}, "num_prompts": 2, "group_size": 4},
    ),
}
CONFIGS = {"negative_aware": NegativeAwareConfig, "weighted_matching": WeightedMatchingConfig}
each_loss = pytest.mark.parametrize("name", CONFIGS)
each_world = pytest.mark.parametrize("world", ["mixture", "tiny_sd3"])


def config_of(name, world, **settings):
    env, options, common = WORLDS[world]
    config_class = CONFIGS[name] if isinstance(name, str) else name
    config = config_class().environment(env, env_config=options)
    return config.training(**{"grad_clip": None, **common, **settings})


def learner_of(name, world, **settings):
    config = config_of(name, world, **settings)
    config.validate()
    env = make_env(world, 1)
    spaces = env.single_observation_space, env.single_action_space
    return config.build_learner(spaces={DEFAULT_MODULE_ID: spaces})


def make_env(world, num_envs, num_steps=None):
    env, options, _ = WORLDS[world]
    options = {**options, "array_backend": "torch", "autoreset_mode": "disabled"}
    return gym.make_vec(env, num_envs=num_envs, vectorization_mode="vector_entry_point", **options)


def played(learner, world, iteration=0):
    """An iteration's episodes, as the agent's own settings have them played."""
    config = learner.config
    rollout = Rollout(lambda *args, **more: make_env(world, *args, **more), learner.policy.actor)
    prompts = PromptSource.of(config.prompt_source()).take(0, config.num_prompts, seed=0)
    options = config.mode.training_options(config, iteration, checked=True)
    batch = rollout.collect(
        RolloutRequest(prompts, seed=3 + iteration, group_size=config.group_size, **options)
    )
    if world == "tiny_sd3":  # of an untrained judge's rewards many are alike
        value = torch.linspace(0, 1, len(batch))
        batch = replace(batch, scores=type(batch.scores)(value))
    return batch


def gradient(learner, shard, **more):
    """That of the one optimizer step of a shard, flat, and the report."""
    report = learner.update(training_data=TrainingData(batch=shard), lr=0.0, **more)
    if report.error is not None:
        raise report.error
    flat = torch.cat([weight.grad.flatten().clone() for weight in learner.get_parameters(learner.policy)])
    return flat, report.phases["image"]


def keyed(learner, batch, rows_per_episode, draws):
    """Sigma `[n]` and noise `[n, ...]` of every draw, from their keys alone."""
    salts = {
        what: [F.derive_seed("loss", what, learner.config.run_seed, 0, 0, "image", name, "row", draw)
               for draw in range(draws)]
        for what, name in (("uniform", "sigma"), ("noise", "noise"))
    }  # fmt: skip
    sigma, noise = [], []
    shape = batch.phases["image"].action.shape[2:]
    for seed in batch.episode_seed.tolist():
        for step in range(rows_per_episode):
            for draw in range(draws):
                sigma.append(F.keyed_uniform([seed ^ salts["uniform"][draw]], step))
                noise.append(F.keyed_noise([seed ^ salts["noise"][draw]], step, shape))
    return torch.cat(sigma).float(), torch.cat(noise)


@each_world
@each_loss
def test_the_gradient_is_that_of_the_advantage_times_the_squared_miss(name, world):
    """At the weights that sampled, both losses push the velocity by 2 A (v - u) / D, by hand."""
    learner = learner_of(name, world)
    batch = played(learner, world)
    phase, actor, draws = batch.phases["image"], learner.policy.actor, learner.config.draws
    (shard,) = shards_of(batch, num_minibatches=1)
    found, report = gradient(learner, shard)

    steps = phase.mask.shape[1]
    assert steps == (1 if name == "negative_aware" else len(learner.config.trained_steps(0)))
    sigma, noise = keyed(learner, batch, steps, draws)
    copies = torch.arange(len(batch)).repeat_interleave(steps * draws)
    final, s = phase.final[copies], sigma.view(-1, *[1] * (noise.ndim - 1))
    seen = {"latent": (1 - s) * final + s * noise, "sigma": sigma}
    seen |= {key: tensor[phase.context_row[copies]] for key, tensor in phase.context.items()}
    velocity = actor.velocity(seen)
    if world == "mixture":
        mixture = GaussianMixture.of(**MIXTURE)
        torch.testing.assert_close(velocity, mixture_velocity(seen["latent"], sigma, mixture))
    advantages = shard.advantages["image"][copies].view_as(s)
    push = 2 * advantages * (velocity.detach() - (noise - final)) / final[0].numel() / len(final)
    weights = learner.get_parameters(learner.policy)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(velocity, weights, push)])
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    if name == "negative_aware":
        miss = (velocity.detach() - (noise - final)).square().flatten(1).mean(1)
        (metrics,) = report.metrics
        assert metrics["miss"] / report.rows[0] == pytest.approx(float(miss.mean()), rel=1e-4)
        assert metrics["miss_worst"] == pytest.approx(float(miss.max()), rel=1e-4)
        assert metrics["draws"] == len(miss)


@each_world
@each_loss
def test_neither_micro_batches_nor_shards_change_the_gradient(name, world):
    learner = learner_of(name, world)
    batch = played(learner, world)
    (whole,) = shards_of(batch, num_minibatches=1)
    expected, report = gradient(learner, whole)
    limits = {"rtol": 1e-3, "atol": 1e-5 * float(expected.abs().max())}
    for size in (1, 5):
        learner.config = learner.config.copy(copy_frozen=False).training(micro_batch_size=size)
        cut, other = gradient(learner, whole)
        torch.testing.assert_close(cut, expected, **limits)
        assert other.metrics[0] == pytest.approx(report.metrics[0], rel=1e-3, abs=1e-6)
    shards = shards_of(batch, num_minibatches=1, num_learners=2)
    parts = [gradient(learner, shard)[0] for shard in shards]
    torch.testing.assert_close(sum(parts), expected, **limits)
    assert all((part - expected).abs().max() > limits["atol"] for part in parts)


def test_the_example_of_the_documentation_is_a_loss_as_it_stands():
    lines = loss_module.__doc__.splitlines()
    code = textwrap.dedent("\n".join(line for line in lines if not line or line.startswith("    ")))
    scope = {"AgentConfig": AgentConfig, "Loss": loss_module.Loss, "Metric": loss_module.Metric}
    exec(code, scope)

    class Config(scope["MyConfig"]):
        def __init__(self):
            super().__init__(algo_class=Agent)
            self.pull, self.num_minibatches = 0.1, 1

    learner = learner_of(Config, "mixture")
    (shard,) = shards_of(played(learner, "mixture"), num_minibatches=1)
    found, report = gradient(learner, shard, check=("image",))
    assert found.abs().max() > 1e-3 and {"miss", "drift_max"} <= report.metrics[0].keys()


@pytest.mark.parametrize(
    ("name", "settings", "scored"),
    [(WeightedMatchingConfig, {}, 0), (GRPOConfig, {"num_minibatches": 1, "clip_low": 1e-2}, 1)],
)
def test_what_a_loss_does_not_use_is_not_computed(name, settings, scored):
    learner = learner_of(name, "mixture", **settings)
    (shard,) = shards_of(played(learner, "mixture"), num_minibatches=1)
    calls, score = [], learner.policy.actor.score
    learner.policy.actor.score = lambda *given, **phase: calls.append(given) or score(*given, **phase)
    _, report = gradient(learner, shard)
    assert len(calls) == scored and bool(report.gap) == bool(scored)
    # The self-check scores all the same, once: whether the learner's policy is the one that sampled.
    _, report = gradient(learner, shard, check=("image",))
    assert len(calls) == 2 * scored + 1 and report.check["self_check/ratio"] < 1e-5


def test_of_the_ode_alone_the_last_step_is_recorded_and_no_self_check_applies(caplog):
    learner = learner_of("negative_aware", "mixture")
    batch = played(learner, "mixture")
    phase = batch.phases["image"]
    assert phase.action.shape == (12, 1, 2) and torch.equal(phase.final, phase.action[:, 0])
    assert not phase.drawn and not phase.observation["stochastic"].any() and phase.log_prob.eq(0).all()
    assert phase.observation["sigma_next"].eq(0).all()
    rescored = learner.policy.actor.score(*phase.rows(torch.arange(12)))
    assert rescored.std.eq(0).all() and rescored.log_prob.eq(0).all()
    torch.testing.assert_close(rescored.mean, phase.final, rtol=0, atol=1e-5)
    (shard,) = shards_of(batch, num_minibatches=1)
    first = FirstUpdate(learner.config)
    report = learner.update(training_data=TrainingData(batch=shard), lr=0.0, check=sorted(first.pending))
    assert report.error is None and report.phases["image"].check == {}
    first.note(batch, [report])
    assert not first.pending and not first.found
    assert "self-check of `image` does not apply" in caplog.text


def test_steps_that_cannot_be_scored_are_refused_to_losses_that_would():
    with pytest.raises(ConfigError, match=r"Some step must explore .*`steps.kind` 'none'.*grpo:latent_loss"):
        config_of(GRPOConfig, "mixture", steps={"kind": "none"}).validate()
    with pytest.raises(ConfigError, match=r"`reference_kl` must be 0 where no step explores"):
        config_of("negative_aware", "mixture", reference_kl=0.1).validate()
    config_of("weighted_matching", "mixture", reference_kl=0.1).validate()


def test_the_kl_to_the_untrained_model_is_charged_beside_a_loss_that_scores_nothing():
    free, charged = (learner_of("weighted_matching", "mixture", reference_kl=kl) for kl in (0.0, 0.5))
    (shard,) = shards_of(played(free, "mixture"), num_minibatches=1)
    for learner in (free, charged):
        learner.policy.set_state({name: t + 0.1 for name, t in learner.policy.get_state().items()})
    without, report = gradient(free, shard)
    along, other = gradient(charged, shard)
    assert "reference_kl" not in report.metrics[0] and other.metrics[0]["reference_kl"] > 0
    assert (along - without).norm() > 1e-3


def test_a_text_and_its_picture_may_have_unlike_losses():
    class Config(NegativeAwareConfig):
        losses = {"tokens": GRPOConfig.losses["tokens"], **NegativeAwareConfig.losses}
        max_log_ratio, token_clip_low, token_clip_high, dual_clip = 20.0, 0.2, None, None

    learner = learner_of(Config, "unified")
    config = learner.config
    rollout = config.mode.rollout(config, lambda *args: make_env("unified", *args), learner.policy.actor)
    prompts = PromptSource.of(config.prompt_source()).take(0, config.num_prompts, seed=0)
    options = config.mode.training_options(config, 0, checked=False)
    batch = rollout.collect(RolloutRequest(prompts, seed=3, group_size=config.group_size, **options))
    batch = replace(batch, scores=type(batch.scores)(torch.linspace(0, 1, len(batch))))
    image = batch.phases["image"]
    drawn = torch.tensor([sample.image is not None for sample in batch.samples])
    assert 0 < drawn.sum() and torch.equal(image.mask[:, 0], drawn)
    (shard,) = shards_of(batch, num_minibatches=1)
    report = learner.update(training_data=TrainingData(batch=shard), lr=0.0, check=("text", "image"))
    assert report.error is None and report.grad_norm[0] > 0
    text, picture = report.phases["text"], report.phases["image"]
    assert text.check["self_check/ratio"] < 1e-4 and picture.check == {}
    assert "ratio_max_deviation" in text.metrics[0] and picture.metrics[0]["draws"] == 4 * drawn.sum()


LEARNING = {"num_prompts": 1, "group_size": 256, "betas": (0.9, 0.98), "grad_clip": 1.0}


def curve_of(learner, world, iterations, lr):
    curve = []
    for iteration in range(iterations):
        batch = played(learner, world, iteration)
        curve.append(float(batch.rewards.mean()))
        (shard,) = shards_of(batch, num_minibatches=1, iteration=iteration)
        assert learner.update(training_data=TrainingData(batch=shard), lr=lr).error is None
    return curve


@each_loss
def test_training_raises_the_reward(name):
    curve = curve_of(learner_of(name, "mixture", **LEARNING), "mixture", 12, 0.02)
    assert sum(curve[-3:]) / 3 > curve[0] + 0.2, curve


@pytest.mark.slow
def test_training_raises_the_reward_of_the_embedded_diffusion_model():
    """From 0.53 to 0.69 in four iterations, measured."""
    world = "tiny_sd3 in earnest"
    curve = curve_of(learner_of("negative_aware", world, micro_batch_size=48), world, 5, 2e-3)
    assert curve[-1] > curve[0] + 0.08, curve


@pytest.mark.ray
@each_loss
def test_an_agent_trains_with_it_and_resumes_bit_for_bit(name, cluster):
    config = config_of(name, "mixture", **LEARNING, lr=0.02)
    stopped, resumed = config.build_algo(), config.copy(copy_frozen=False).build_algo()
    try:
        stopped.train()
        assert not stopped.first_update.pending, "checked, or known not to apply"
        resumed.load_run_state(*stopped.run_state())
        stopped.train(), resumed.train()
        state, other = stopped.run_state()[0], resumed.run_state()[0]
        assert state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)
        assert stopped.iteration_metrics["reward"] == resumed.iteration_metrics["reward"]
    finally:
        stopped.stop(), resumed.stop()
