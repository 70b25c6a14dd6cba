"""REINFORCE with a leash: a pull towards the untrained model, of good and of idle episodes alike."""

from unirl_env.agents import AgentConfig, Loss, Metric
from unirl_env.errors import ConfigError


def reinforce(rows, new, context):
    """The policy gradient, and the squared distance of the two policies' steps in units of their noise."""
    with context.weights("reference"):
        untrained = context.score(rows.observation, rows.action)
    drift = ((new.mean - untrained.mean) / new.std[:, None]).square().mean(1)
    loss = rows.mean(context.config.leash * drift - rows.advantages * new.log_prob)
    return loss, {"drift": Metric.over(rows, drift)}


class ReinforceConfig(AgentConfig):
    """Its settings: `leash`, the weight of the pull."""

    losses = {"latents": Loss(reinforce)}

    def __init__(self, algo_class=None):
        super().__init__(algo_class)
        self.leash = 0.01

    def validate(self):
        """Refuse what cannot work, before anything is built."""
        super().validate()
        if self.leash < 0:
            raise ConfigError(f"`leash` must be at least 0, got {self.leash}; try 0.01.")
