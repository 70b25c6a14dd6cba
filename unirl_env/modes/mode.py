"""A mode: one kind of environment, its models, and how an agent plays and trains in it.

Whoever adds one of their own most likely derives from `unirl_env.modes.playing.Playing`, which answers all of
this for any environment whose actions a head can draw; `Mode` itself is for what plays in another way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import gymnasium as gym

from unirl_env.episode import EpisodeBatch
from unirl_env.models.making import ModelChoice, model_choice
from unirl_env.registry import Registry
from unirl_env.types import Prompt

__all__ = ["MakeEnv", "Mode"]

MakeEnv = Callable[..., gym.vector.VectorEnv]
PLACEMENT = ("device", "offload")
"""Where the environment's half of a model lives; the policy's half goes where its runner or learner is."""


class Mode(ABC):
    """One kind of environment, as an agent and a run must know it. Stateless: all is read from settings.

    A user's own is named in an environment's arguments (`mode="package.module:Mine"`, or the class or an
    object), or registered (`MODES.register("mine", "package.module:Mine")`). Eight things must be said: the
    five attributes without a default, and `policy`, `phases` and `rollout`; the rest have defaults.

    `config` is everywhere the agent's `AgentConfig`.

    Attributes:
        name: What recipes call it: their `mode`.
        argument: Which argument of an environment names its model.
        models: Where short names of models are looked up; dotted paths need none.
        environment: What makes the vector environment: `environment(model, num_envs=, device=, **arguments)`,
            with `prompts`, `array_backend` and `autoreset_mode` among the arguments of a training run. The
            environment keeps the contract of `unirl_env.envs.contract`.
        embedded: An id that needs no download, for errors; empty if there is none.
        gives: Which fields of a `Sample` its episodes may fill, and whether every one does; rewards of other
            fields are refused before anything loads. None says nothing, and refuses nothing.
        engines: Whether an engine (vLLM, SGLang) may generate; otherwise `engine` must be `"local"`.
        generator: Whether environments take a `generator`, which draws what was written.
        steps: Whether the settings of denoising steps mean something: they are checked where they do.
        may_skip: Whether `num_steps=0` or `max_new_tokens=0` leaves a phase out instead of being a mistake.
    """

    name: ClassVar[str]
    argument: ClassVar[str]
    models: ClassVar[Registry] = Registry("model")
    environment: ClassVar[Callable[..., gym.vector.VectorEnv]]
    embedded: ClassVar[str] = ""
    gives: ClassVar[Mapping[str, bool] | None] = None
    engines: ClassVar[bool] = False
    generator: ClassVar[bool] = False
    steps: ClassVar[bool] = False
    may_skip: ClassVar[bool] = False

    @property
    @abstractmethod
    def policy(self) -> type:
        """The policy, as RLlib's module; imported on first use, because a world needs no Ray."""

    def policy_options(self, config: Any) -> dict[str, Any]:
        """The policy's `model_config`; its model is the environment's."""
        choice, policy = self.choice(config.env_options()), config.policy
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

    def choice(self, arguments: Mapping[str, Any]) -> ModelChoice:
        """The model that an environment's arguments describe."""
        return model_choice(arguments, self.argument)

    @abstractmethod
    def phases(self, config: Any) -> dict[str, str]:
        """The phases that its episodes have, and the kind of each.

        A kind is a name in `unirl_env.agents.phases.KINDS` or the dotted path of a `PhaseKind`: it says how
        episodes become rows, and which losses an agent must have.
        """

    @abstractmethod
    def rollout(self, config: Any, make_env: MakeEnv, actor: Any) -> Any:
        """What plays episodes; a `unirl_env.rollouts.base.Rollout` is a good start.

        Its `collect(prompts, *, seed, group_size, sample_offset, first_group, keep_samples, weights_version,
        base, ...)` returns an `EpisodeBatch`, and `close()` ends it. With `load_weights(version)` it is told
        of new weights.

        Args:
            config: The settings.
            make_env: `make_env(num_envs)` returns a scored environment.
            actor: The policy's actor.
        """

    def actor_options(self, config: Any) -> dict[str, Any]:
        """Arguments of the actor besides those that every actor takes."""
        return {}

    def env_options(self, config: Any) -> dict[str, Any]:
        """Arguments of a runner's environment besides those that the user gave."""
        return {}

    def rollout_options(self, config: Any) -> dict[str, Any]:
        """What every rollout is asked for: arguments of `collect`."""
        return {}

    def training_options(self, config: Any, iteration: int, *, checked: bool) -> dict[str, Any]:
        """What a training rollout is asked for.

        Args:
            config: The settings.
            iteration: Its number, from 0.
            checked: Whether the check of the first update is over.
        """
        return {}

    def evaluation_options(self, config: Any, num_steps: int | None) -> dict[str, Any]:
        """What a rollout is asked for that is to be compared with others.

        Args:
            config: The settings.
            num_steps: Denoising steps, where there are such; None takes those of training.
        """
        return {}

    def env_steps(self, batch: EpisodeBatch, config: Any) -> int:
        """Steps of the environment that a batch took: by default its unmasked transitions."""
        return sum(int(phase.mask.sum()) for phase in batch.phases.values())

    def check(self, config: Any) -> None:
        """Refuse settings that cannot work here.

        Raises:
            ConfigError: Naming the setting.
        """
        return

    def check_prompts(self, model: Any, prompts: Iterable[Prompt], arguments: Mapping[str, Any]) -> None:
        """Refuse prompts that an episode could not begin with, before the run.

        Args:
            model: The environment's.
            prompts: All of them.
            arguments: The environment's.

        Raises:
            PromptError: Naming the prompt.
        """
        return
