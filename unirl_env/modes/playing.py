"""The mode of any environment whose actions a head can draw: what most modes of a user's own derive from."""

from __future__ import annotations

from typing import Any

from unirl_env.errors import ConfigError
from unirl_env.models.making import make_model
from unirl_env.modes.mode import Mode
from unirl_env.policies.distributions import distribution_over

__all__ = ["Playing"]


class Playing(Mode):
    """Episodes of one phase, `actions`, played step by step with an `ActionHead`.

    A subclass says its `name`, its `argument` and its `environment`. The model that the argument names has
    `action_space` (`Discrete`, or a `Box` of floating point numbers of rank 1 or more) and `network()`, a
    module from observations (a mapping of tensors `[N, ...]`) to logits `[N, n]`, or to a mean and a log-std.
    It may have `lora_targets`, `rows_per_forward`, `save_adapters` and `save_weights`, as `MDP` has them.

        class Mazes(Playing):
            name = "maze"
            argument = "maze"
            environment = MazeVectorEnv

    `policy.temperature` is the head's. Evaluation takes the likeliest actions with `policy.eval_temperature`
    0, and otherwise draws as training does.
    """

    head_settings = ("temperature",)

    def phases(self, config: Any) -> dict[str, str]:
        """One, of the kind that the model's actions are.

        Raises:
            ConfigError: If there is no distribution over them.
        """
        choice = self.choice(config.env_options())
        model = make_model(self.models, choice.name, choice.options)
        return {"actions": distribution_over(getattr(model, "action_space", None)).kind}

    def check(self, config: Any) -> None:
        """Engine, temperatures, and the words of token models, which would say nothing here."""
        policy = config.policy
        if config.engine != "local":
            raise ConfigError(
                f"`engine` must be 'local' in mode {self.name!r}, got {config.engine!r}: engines write texts."
            )
        if not policy.temperature > 0:
            raise ConfigError(
                f"`policy.temperature` must be positive, got {policy.temperature}: a greedy policy has no "
                "log-probability to train on; try 1.0."
            )
        if policy.eval_temperature not in (None, 0, policy.temperature):
            raise ConfigError(
                f"`policy.eval_temperature` must be 0, `policy.temperature` or None in mode {self.name!r}, "
                f"got {policy.eval_temperature}; 0 takes the likeliest actions."
            )
        for name, idle in (("top_p", 1.0), ("top_k", 0), ("guidance", 1.0)):
            if getattr(policy, name) != idle:
                raise ConfigError(
                    f"`policy.{name}` must stay {idle:g} in mode {self.name!r}, which has no such thing, got "
                    f"{getattr(policy, name)}."
                )
