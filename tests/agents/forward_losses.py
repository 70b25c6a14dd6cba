"""Algorithms that a user would write: finished latents are noised anew, and the velocity is trained there."""

import torch

from unirl_env.agents.agent import Agent
from unirl_env.agents.config import AgentConfig
from unirl_env.agents.loss import Loss
from unirl_env.functional import Metric
from unirl_env.settings import StepSettings


def noised(rows, context):
    """Finished latents on their way back to noise: what the network is to see, and the velocity there."""
    sigma, noise = context.uniform(rows, "sigma"), context.noise(rows, "noise")
    s = sigma.view(-1, *[1] * (noise.ndim - 1))
    return rows.observed(latent=(1 - s) * rows.final + s * noise, sigma=sigma), noise - rows.final


def per_row(values):
    return values.flatten(1).mean(1)


def negative_aware(rows, new, context):
    """Two policies on both sides of the sampling one: one learns from good samples, the other from bad ones.

    The policy that sampled is the present one, as there is one optimizer step for each iteration.
    """
    config = context.config
    rows = rows.repeat(config.draws)
    seen, target = noised(rows, context)
    velocity = context.velocity(seen)
    old = velocity.detach()
    good = config.beta * velocity + (1 - config.beta) * old
    bad = (1 + config.beta) * old - config.beta * velocity
    share = 0.5 + rows.advantages.clamp(-config.most, config.most) / (2 * config.most)
    pull = share * per_row((good - target) ** 2) + (1 - share) * per_row((bad - target) ** 2)
    miss = per_row((old - target) ** 2)
    return rows.mean(config.most / config.beta * pull), {
        "miss": Metric.over(rows, miss),
        "miss_worst": Metric.over(rows, miss, "max"),
        "draws": Metric.over(rows, torch.ones_like(miss), "sum"),
    }


def weighted_matching(rows, new, context):
    """Flow matching, weighted by the advantage, near the untrained model; one row for each explored step."""
    rows = rows.repeat(context.config.draws)
    seen, target = noised(rows, context)
    velocity = context.velocity(seen)
    with context.weights("reference"):
        untrained = context.velocity(seen)
    distance = per_row((velocity - untrained) ** 2)
    loss = rows.mean(
        rows.advantages * per_row((velocity - target) ** 2) + context.config.anchor_weight * distance
    )
    return loss, {"distance": Metric.over(rows, distance), "distance_max": Metric.over(rows, distance, "max")}


class NegativeAwareConfig(AgentConfig):
    losses = {"latents": Loss(negative_aware, needs={"final"}, scores=False)}

    def __init__(self, algo_class=None):
        super().__init__(algo_class=algo_class or Agent)
        self.steps = StepSettings(kind="none")
        self.num_minibatches = 1
        self.draws, self.beta, self.most = 4, 1.0, 5.0


class WeightedMatchingConfig(AgentConfig):
    losses = {"latents": Loss(weighted_matching, needs={"final"}, scores=False)}

    def __init__(self, algo_class=None):
        super().__init__(algo_class=algo_class or Agent)
        self.num_minibatches = 1
        self.draws, self.anchor_weight = 2, 0.5
