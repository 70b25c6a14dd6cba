"""DiffusionNFT from outside: good samples are approached by one policy, bad ones by its mirror image."""

import unirl_env.functional as F
from unirl_env.agents import AgentConfig, Loss, Metric


def negative_aware(rows, new, context):
    """Both policies lie on a line through the one that sampled, one step to either side."""
    config, old = context.config, rows.old_velocity
    moved = new.velocity - old

    def miss(velocity):
        return F.surrogate(velocity, rows.action, rows.observation["sigma"], weight=config.noise_weight)

    share = 0.5 + rows.advantages.clamp(-config.best, config.best) / (2 * config.best)
    good, bad = miss(old + config.beta * moved), miss(old - config.beta * moved)
    loss = rows.mean(config.best / config.beta * (share * good + (1 - share) * bad))
    return loss, {"drift": Metric.over(rows, moved.square().flatten(1).mean(1))}


class NegativeAwareConfig(AgentConfig):
    """Its settings: `beta`, the step; `best`, the advantage of a sample that is only approached."""

    losses = {"latents": Loss(negative_aware, needs={"velocity"}, estimators={"regression"})}
    own_estimator = "regression"

    def __init__(self, algo_class=None):
        super().__init__(algo_class)
        self.beta, self.best = 1.0, 5.0
