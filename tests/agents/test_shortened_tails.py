"""Episodes with fewer steps behind the last one that explores: what they visit, and what stays as it is."""

from itertools import pairwise

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from test_learner import learn, play_spaces
from toy import POINTS, PointDenoiser, make_points, toy_config

import unirl_env.functional as F
from unirl_env.agents import GRPOConfig
from unirl_env.errors import ConfigError
from unirl_env.policies.actor import Actor
from unirl_env.prompts.sources import PromptSource
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout

WINDOW, LEVELS = (1, 2), (0, 1, 2, 3, 5, 6)
"""Of six steps, the second and the third explore; of the three behind them two are left."""


@pytest.mark.parametrize("num_steps", [2, 10, 25])
@pytest.mark.parametrize("tail", [0.2, 0.4, 0.5, 1.0])
def test_levels_are_those_of_the_schedule_up_to_the_tail_and_evenly_spaced_behind(num_steps, tail):
    for last in range(num_steps):
        levels = F.shortened_tail(num_steps, (0, last), tail)
        rest = num_steps - last - 1
        assert levels[: last + 2] == (*range(last + 1), last + 1)
        assert levels[-1] == num_steps
        tail_levels = levels[last + 1 :]
        assert tail_levels[0] == last + 1 and len(tail_levels) - 1 == min(
            rest, max(1, int(rest * tail + 0.5))
        )
        lengths = {b - a for a, b in pairwise(tail_levels)}
        assert not lengths or (min(lengths) >= 1 and max(lengths) - min(lengths) <= 1)
    assert F.shortened_tail(num_steps, (0,), 1.0) == tuple(range(num_steps + 1))


def test_published_counts_of_flash():
    """25 steps, a window of four: 12 forwards at its first place (11 as published)."""
    counts = [len(F.shortened_tail(25, range(start, start + 4), 0.4)) - 1 for start in range(21)]
    assert counts[0] == 12 and counts[-1] == 25 and counts == sorted(counts)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((6, (), 0.5), r"`steps` must name some of the 6 steps, got \[\]"),
        ((6, (6,), 0.5), "`steps` must name some of the 6 steps"),
        ((6, (1,), 0.0), "`tail` must lie in"),
        ((6, (1,), 1.5), "`tail` must lie in"),
    ],
)
def test_what_has_no_tail_is_refused(arguments, said):
    with pytest.raises(ConfigError, match=said):
        F.shortened_tail(*arguments)


def rollout_of(actor, made=None, **options):
    def make_env(num_envs, **asked):
        if made is not None:
            made.append(asked)
        own = {"num_steps": 6, "prompts": POINTS, "array_backend": "torch", "autoreset_mode": "disabled"}
        return make_points(num_envs, **{**own, **asked})

    return Rollout(make_env, actor, **options)


def collected(rollout, **asked):
    asked = {"group_size": 4, "keep_mean": True, "stochastic_steps": WINDOW, **asked}
    return rollout.collect(RolloutRequest(POINTS, seed=3, **asked))


def latents(batch):
    return torch.stack([sample.latent for sample in batch.samples])


def test_without_noise_it_is_diffusers_euler_on_the_same_sigmas():
    schedulers = pytest.importorskip("diffusers.schedulers.scheduling_flow_match_euler_discrete")
    denoiser, network = PointDenoiser(), PointDenoiser().network()
    actor = Actor(denoiser)
    batch = collected(rollout_of(actor), stochastic_steps=(), levels=LEVELS, group_size=1)
    sigmas = denoiser.sigmas(6)[list(LEVELS)]
    scheduler = schedulers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=sigmas[:-1].tolist())
    torch.testing.assert_close(scheduler.sigmas, sigmas, rtol=0, atol=1e-7)
    env = make_points(4, num_steps=6, prompts=POINTS, array_backend="torch", autoreset_mode="disabled")
    points = list(batch.prompts)
    start, _ = env.reset(seed=3, options={"prompts": points, "sample_offset": [0] * 4, "group_size": 1})
    theirs, context = start["latent"], denoiser.encode(points)
    with torch.no_grad():
        for step, time in enumerate(scheduler.timesteps):
            velocity = denoiser.velocity(network, theirs, sigmas[step].expand(4), context)
            theirs = scheduler.step(velocity, time, theirs).prev_sample
    torch.testing.assert_close(latents(batch), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("second_order", [False, True])
def test_what_explores_is_what_it_was_and_is_scored_again_exactly(second_order):
    actor = Actor(PointDenoiser())
    whole, short = (
        collected(rollout_of(actor), second_order=second_order, levels=levels) for levels in (None, LEVELS)
    )
    one, other = (batch.phases["image"] for batch in (whole, short))
    for name in ("log_prob", "action", "mean", "mask"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert not torch.equal(latents(whole), latents(short))
    observation, action = other.rows(torch.arange(16))
    scored = actor.score(observation, action).log_prob.view(16, 2)
    torch.testing.assert_close(scored, other.log_prob, rtol=0, atol=1e-5)
    parts = collected(rollout_of(actor, batch_size=5), second_order=second_order, levels=LEVELS)
    torch.testing.assert_close(latents(parts), latents(short), rtol=0, atol=1e-6)


def test_runners_are_asked_alike_and_a_tail_that_has_passed_is_closed():
    request = RolloutRequest(list(PromptSource.of(POINTS)), seed=3, levels=LEVELS)
    assert [share.levels for share in request.share_out(2)] == [LEVELS] * 2
    assert request.steps_taken == 5 and RolloutRequest(POINTS, seed=3, num_steps=4).steps_taken == 4
    made = []
    rollout = rollout_of(Actor(PointDenoiser()), made)
    for levels in (None, LEVELS, LEVELS, (0, 1, 2, 6), None, LEVELS):
        collected(rollout, levels=levels)
    assert made == [{}, {"levels": LEVELS}, {"levels": (0, 1, 2, 6)}, {"levels": LEVELS}]


def short(**settings):
    steps = {"kind": "window", "window": 2, "stride": 1, "iterations_per_window": 1, "tail": 0.5}
    return toy_config(GRPOConfig, **{"clip_low": 1e-2, "steps": steps, **settings})


def test_an_iteration_asks_for_the_tail_behind_its_window_and_counts_what_it_costs():
    config = short()
    config.validate()
    levels = [(0, 1, 2, 4, 6), (0, 1, 2, 3, 5, 6), (0, 1, 2, 3, 4, 6)]
    for iteration, visited in enumerate(levels):
        asked = config.mode.training_options(config, iteration, checked=True)
        assert asked["levels"] == visited == config.visited_levels(iteration)
    assert "levels" not in config.mode.evaluation_options(config, None)
    assert toy_config(GRPOConfig).visited_levels(0) is None
    agent = config.build_algo()
    for visited in levels:
        agent.train()
        steps = len(visited) - 1
        assert agent.iteration_metrics["function_evaluations"] == 32 * steps
        assert set(agent.config.episode_lengths(agent.last_batch, steps)) == {steps}
    agent.stop()


def test_a_learner_finds_ratio_one_on_shortened_episodes():
    config = short()
    config.validate()
    learner = config.build_learner(spaces={DEFAULT_MODULE_ID: play_spaces()})
    batch = collected(rollout_of(learner.policy.actor), levels=LEVELS, group_size=8)
    report = learn(learner, batch)
    assert report.phases["image"].metrics


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": {"kind": "all", "tail": 0.5}}, "`steps.tail` must be 1 with `steps.kind` all"),
        ({"estimator": "elbo"}, "`steps.tail` must be 1 where no step of latents explores"),
        ({"sampler": "ode", "estimator": "elbo"}, "`steps.tail` must be 1"),
    ],
)
def test_a_tail_behind_nothing_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        short(**settings).validate()


def test_a_tail_keeps_what_is_said_of_the_other_steps():
    config = short(sampler="mixed")
    config.validate()
    asked = config.mode.training_options(config, 0, checked=True)
    assert asked["second_order"] and asked["stochastic_steps"] == (0, 1)
