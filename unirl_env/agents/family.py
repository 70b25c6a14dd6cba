"""What an agent must know of the kind of environment it trains in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym

from unirl_env.episode import EpisodeBatch
from unirl_env.models.options import model_choice
from unirl_env.policies.rl_module import GenerativePolicy
from unirl_env.policies.trained import TrainedNetwork

__all__ = ["Family", "MakeEnv"]

MakeEnv = Callable[..., gym.vector.VectorEnv]
PLACEMENT = ("device", "offload")
"""Where the environment's half of a model lives; the policy's half goes where its runner or learner is."""


class Family(ABC):
    """One kind of environment, from the agent's side. Stateless: everything is read from the settings."""

    policy: ClassVar[type[GenerativePolicy]]

    def policy_options(self, config: Any) -> dict[str, Any]:
        """The policy's `model_config`; its model is the environment's."""
        choice, policy = model_choice(config.env_options()), config.policy
        targets = policy.lora_targets
        return {
            "model": choice.name,
            "model_options": {k: v for k, v in choice.options.items() if k not in PLACEMENT},
            "lora": None
            if policy.lora_rank is None
            else {
                "rank": policy.lora_rank,
                "alpha": policy.lora_alpha,
                "targets": None if targets is None else tuple(targets),
            },
            "actor": {
                "keep_reference": policy.lora_rank is None,
                "gradient_checkpointing": policy.gradient_checkpointing,
                **self.actor_options(config),
            },
            "seed": config.run_seed,
        }

    @abstractmethod
    def phases(self, config: Any) -> dict[str, str]:
        """The phases that its episodes have, and the kind of each: the losses that an agent must know."""

    @abstractmethod
    def actor_options(self, config: Any) -> dict[str, Any]:
        """How the actor turns the network's output into a distribution."""

    @abstractmethod
    def env_options(self, config: Any) -> dict[str, Any]:
        """Arguments of a runner's environment besides those that the user gave."""

    @abstractmethod
    def rollout(self, config: Any, make_env: MakeEnv, actor: TrainedNetwork) -> Any:
        """What plays episodes."""

    @abstractmethod
    def rollout_options(self, config: Any) -> dict[str, Any]:
        """What every rollout is asked for."""

    @abstractmethod
    def training_options(self, config: Any, iteration: int, *, checked: bool) -> dict[str, Any]:
        """What a training rollout is asked for."""

    @abstractmethod
    def evaluation_options(self, config: Any, num_steps: int | None) -> dict[str, Any]:
        """What a rollout is asked for that is to be compared with others."""

    @abstractmethod
    def env_steps(self, batch: EpisodeBatch, config: Any) -> int:
        """Steps of the environment that a batch took."""

    @abstractmethod
    def check(self, config: Any) -> None:
        """Refuse settings that cannot work here.

        Raises:
            ConfigError: Naming the setting.
        """
