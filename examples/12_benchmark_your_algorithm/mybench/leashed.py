"""A policy gradient on a leash: the squared log-ratio is charged, in place of a clip."""

from ray import tune

from unirl_env.agents import AgentConfig, Loss, Metric


def leashed(rows, new, context):
    """The importance-weighted policy gradient, and the price of going away from whoever sampled."""
    log_ratio = (new.log_prob - rows.old_log_prob).clamp(-20, 20)
    away = log_ratio.square()
    loss = rows.mean(context.config.leash * away - rows.advantages * log_ratio.exp())
    return loss, {"away": Metric.over(rows, away)}


class LeashedConfig(AgentConfig):
    """`agent.name=mybench.leashed:LeashedConfig`; `leash` is the price of a squared nat."""

    losses = {"latents": Loss(leashed), "tokens": Loss(leashed)}

    def __init__(self, algo_class=None):
        super().__init__(algo_class)
        self.leash = 1.0

    def search_space(self):
        """What `tune=` may try besides the learning rate: factors."""
        return {**super().search_space(), "leash": tune.loguniform(0.1, 10.0)}
