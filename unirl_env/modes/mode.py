"""A mode: one kind of environment, its models, and how an agent plays and trains in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gymnasium as gym

from unirl_env.episode import EpisodeBatch
from unirl_env.models.options import model_choice
from unirl_env.registry import Registry

__all__ = ["MakeEnv", "Mode"]

MakeEnv = Callable[..., gym.vector.VectorEnv]
PLACEMENT = ("device", "offload")
"""Where the environment's half of a model lives; the policy's half goes where its runner or learner is."""


class Mode(ABC):
    """One kind of environment. Stateless: everything is read from the settings.

    Attributes:
        argument: Which argument of an environment names its model.
        models: Where the names of models are looked up.
        environment: The vector environment, made of a model and options.
        embedded: An id that needs no download, for errors.
    """

    argument: ClassVar[str]
    models: ClassVar[Registry]
    environment: ClassVar[type[gym.vector.VectorEnv]]
    embedded: ClassVar[str]

    @property
    @abstractmethod
    def policy(self) -> type:
        """The policy, as RLlib's module; imported on first use, because a world needs no Ray."""

    @abstractmethod
    def named(self, arguments: Mapping[str, Any]) -> str:
        """What recipes call the mode of an environment with these arguments."""

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
    def rollout(self, config: Any, make_env: MakeEnv, actor: Any) -> Any:
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
