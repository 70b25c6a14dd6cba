"""A mode: one kind of environment, its models, and how an agent plays and trains in it.

Whoever adds one of their own most likely derives from `unirl_env.modes.mode.Playing`, which answers all of
this for any environment whose actions a head can draw; `Mode` itself is for what plays in another way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import gymnasium as gym

import unirl_env.functional as F
from unirl_env.errors import ConfigError
from unirl_env.models.making import ModelChoice, make_model, model_choice
from unirl_env.policies.distributions import distribution_over
from unirl_env.registry import Registry
from unirl_env.types import Prompt

__all__ = ["MakeEnv", "Mode", "Playing"]

MakeEnv = Callable[..., gym.vector.VectorEnv]
PLACEMENT = ("device", "offload")
"""Where the environment's half of a model lives; the policy's half goes where its runner or learner is."""


class Mode(ABC):
    """One kind of environment, as an agent and a run must know it. Stateless: all is read from settings.

    A user's own is named in an environment's arguments (`mode="package.module:Mine"`, or the class or an
    object), or registered (`MODES.register("mine", "package.module:Mine")`). Four things must be said:
    `name`, `argument`, `environment` and `phases`; the rest have defaults.

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
            fields are refused before anything loads. None says nothing, and refuses nothing. Where it depends
            on the model, `given` says it.
        engines: Whether an engine (vLLM, SGLang) may generate; otherwise `engine` must be `"local"`.
        generator: Whether environments take a `generator`, which draws what was written.
        steps: Whether the settings of denoising steps mean something: they are checked where they do.
        may_skip: Whether `num_steps=0` or `max_new_tokens=0` leaves a phase out instead of being a mistake.
        policy: An RLlib module of one's own; None takes `GenerativePolicy`, whose `Actor` has a head for each
            phase of the model.
        head_settings: Which settings of the group `policy` its heads are made with.
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
    policy: ClassVar[type | None] = None
    head_settings: ClassVar[tuple[str, ...]] = ()

    def policy_options(self, config: Any) -> dict[str, Any]:
        """The policy's `model_config`; its model is the environment's."""
        choice, policy = self.choice(config.env_options()), config.policy
        targets, name = policy.lora_targets, choice.name
        return {
            # By its path, because the policy does not know whose names these are.
            "model": self.models.target(name) if isinstance(name, str) and name in self.models else name,
            "models": self.models.kind,
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
                "keep_average": config.ema_decay is not None,
                "gradient_checkpointing": policy.gradient_checkpointing,
                "replay_routing": policy.replay_routing,
                "merge_adapters": config.merge_adapters,
                **self.actor_options(config),
            },
            "seed": config.run_seed,
        }

    def choice(self, arguments: Mapping[str, Any]) -> ModelChoice:
        """The model that an environment's arguments describe."""
        return model_choice(arguments, self.argument)

    def given(self, arguments: Mapping[str, Any]) -> Mapping[str, bool] | None:
        """What episodes of an environment with these arguments fill: `gives`."""
        return self.gives

    @abstractmethod
    def phases(self, config: Any) -> dict[str, str]:
        """The phases that its episodes have, and the kind of each.

        A kind is a name in `unirl_env.agents.kinds.KINDS` or the dotted path of a `PhaseKind`: it says how
        episodes become rows, and which losses an agent must have.
        """

    def rollout(self, config: Any, make_env: MakeEnv, actor: Any) -> Any:
        """What plays episodes: by default every phase is played with the actor, in this process.

        `Rollout(make_env, {"maze": MyDriver(actor)}, batch_size=config.rollout_batch_size)` plays a phase by
        a `unirl_env.rollouts.Driver` of one's own. Anything else has `collect(request)`, which answers a
        `RolloutRequest` with an `EpisodeBatch`, and `close()`; with `load_weights(version)` it is told of new
        weights.

        Args:
            config: The settings.
            make_env: `make_env(num_envs)` returns a scored environment.
            actor: The policy's actor.
        """
        from unirl_env.rollouts.play import Rollout

        return Rollout(make_env, actor, batch_size=config.rollout_batch_size)

    def actor_options(self, config: Any) -> dict[str, Any]:
        """Arguments of the `Actor` besides those that every actor takes: by default the heads' settings."""
        return {name: getattr(config.policy, name) for name in self.head_settings}

    def env_options(self, config: Any) -> dict[str, Any]:
        """Arguments of a runner's environment besides those that the user gave."""
        return {}

    def training_options(self, config: Any, iteration: int, *, checked: bool) -> dict[str, Any]:
        """What a training rollout is asked for: fields of its `RolloutRequest`.

        Of latents these are the steps that explore, none where pictures are not trained.

        Args:
            config: The settings.
            iteration: Its number, from 0.
            checked: Whether the check of the first update is over; it compares means, whatever losses need.
        """
        latents = self._latents(config)
        asked: dict[str, Any] = {"same_noise": config.same_noise, "weights": config.rollout_weights}
        if latents and not latents & set(config.trained):
            asked |= {"stochastic_steps": ()}
        elif latents:
            played = not config.looks_forward
            asked |= {
                "stochastic_steps": config.trained_steps(iteration),
                "levels": config.visited_levels(iteration),
                "second_order": config.sampling in ("dpm2m", "mixed"),
                "keep_steps": played,
                "keep_mean": played and (not checked or "mean" in config.needs),
                "keep_final": "final" in config.needs,
            }
        return asked

    def evaluation_options(self, config: Any, num_steps: int | None) -> dict[str, Any]:
        """What a rollout is asked for that is to be compared with others: fields of its `RolloutRequest`.

        Tokens and actions have the temperature of evaluation, latents its guidance and no noise on the way.

        Args:
            config: The settings.
            num_steps: Denoising steps, where there are such; None takes those of training.
        """
        asked = {"same_noise": config.same_noise, "temperature": config.policy.eval_temperature}
        asked |= {"weights": config.policy.eval_weights}
        if self._latents(config):
            asked |= {"stochastic_steps": (), "num_steps": num_steps}
            asked |= {"guidance": config.policy.eval_guidance}
            asked |= {"second_order": config.policy.eval_sampler == "dpm2m"}
            if config.policy.eval_size is not None:
                asked |= {"size": tuple(config.policy.eval_size)}
        return asked

    def drift_options(self, config: Any) -> dict[str, Any]:
        """What a rollout is asked for whose drift is measured: fields of its `RolloutRequest`.

        Tokens and actions are drawn as in training, and every step of trained latents but the last explores.

        Args:
            config: The settings.
        """
        asked: dict[str, Any] = {"same_noise": config.same_noise, "weights": config.policy.eval_weights}
        if latents := self._latents(config):
            steps = F.choose_steps("all", config.num_steps) if latents & set(config.trained) else ()
            asked |= {"stochastic_steps": steps, "keep_mean": True}
        return asked

    def _latents(self, config: Any) -> set[str]:
        """The phases that denoise."""
        return {name for name, kind in self.phases(config).items() if kind == "latents"}

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
        for name, idle in (("top_p", 1.0), ("top_k", 0), ("guidance", 1.0), ("eval_guidance", None)):
            if getattr(policy, name) != idle:
                raise ConfigError(
                    f"`policy.{name}` must stay {idle:g} in mode {self.name!r}, which has no such thing, got "
                    f"{getattr(policy, name)}."
                )
