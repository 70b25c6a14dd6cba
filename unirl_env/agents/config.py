"""The settings of an agent in RLlib's dialect, and what they must satisfy before anything is built."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from ray import tune
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

import unirl_env.functional as F
from unirl_env.agents.attributes import (
    NESTED,
    RLLIBS_OWN,
    BatchSize,
    check_groups,
    check_rllib_words,
    defaults,
    laid_over,
    own_names,
    rebuilt,
    refuse_rllib_word,
)
from unirl_env.agents.catalogue import AGENTS
from unirl_env.agents.cluster import place_on_devices
from unirl_env.agents.correction import check_correction, rounds_apart
from unirl_env.agents.early_stop import check_stop
from unirl_env.agents.estimators import check_estimator
from unirl_env.agents.evaluation import check_evaluation, temperature
from unirl_env.agents.kinds import Losses
from unirl_env.agents.learner import GenerativeLearner
from unirl_env.agents.optimizer import check_optimizer, learning_rate
from unirl_env.agents.parallel import check_parallel
from unirl_env.agents.parallel.group import AgentLearnerGroup, DividedLearnerGroup
from unirl_env.agents.phases import check_phases
from unirl_env.agents.step_credit import check_step_credit
from unirl_env.arguments.values import whole
from unirl_env.episode import EpisodeBatch, Phase
from unirl_env.errors import ConfigError
from unirl_env.modes import Mode, mode_of
from unirl_env.policies.rl_module import GenerativePolicy
from unirl_env.prompts.sources import PromptSource
from unirl_env.rollouts.callbacks import check_callbacks
from unirl_env.rollouts.engines import check_engine_options
from unirl_env.rollouts.runner import GenerativeEnvRunner
from unirl_env.settings import AgentSettings, RolloutSettings
from unirl_env.settings.run_config import check_anchor, check_division, check_shares, check_weights
from unirl_env.worlds.arguments import check_words
from unirl_env.worlds.registration import OURS, full_id, recall, spec_of
from unirl_env.worlds.world import ForeignWorld, World, world_of

PLAIN_AGENT = "unirl_env.agents.agent:Agent"
"""What trains by a loss alone: an algorithm needs no class of its own."""


class AgentConfig(BatchSize, AlgorithmConfig):
    """Settings that all agents share; an algorithm adds its losses and their knobs.

    Example:
        >>> from unirl_env.agents import FlowDPPOConfig
        >>> config = (
        ...     FlowDPPOConfig()
        ...     .environment("unirl/TinySD3-T2I-v0", env_config={"num_steps": 8})
        ...     .training(num_prompts=8, group_size=12, lr=3e-4, kl_threshold_nats=0.66)
        ... )

    Failed runners are not restarted unless `.fault_tolerance(restart_failed_env_runners=True)` says so. Then
    the others play on, and an iteration waits `env_runner_health_probe_timeout_s` seconds (1) for one that is
    not back; where none is left, a run waits `env_runner_restore_timeout_s` seconds (300) for the first.
    """

    losses: ClassVar[Mapping[str, Any]] = {}
    """The loss of each kind of phase: of `latents`, of `tokens`. A kind without one takes that of the kind
    which it is `like`."""
    engine_anchor: ClassVar[str] = "replay"  # The `anchor` where sampling rounds otherwise than scoring.

    knobs: ClassVar[type | None] = None
    """A dataclass of the algorithm's own settings, made as those of `unirl_env.settings` are. They are
    attributes, too, after those of the classes that this one derives from; so is what `__init__` sets."""
    declared_bias: ClassVar[Mapping[str, str]] = {}
    """By kind of phase, why the gradient at ratio one is meant to be another than that of the expected
    reward; `check_agent` measures how far it is off, and refuses a bias that is not declared."""
    own_estimator: ClassVar[str] = "trajectory"
    """How probabilities of latents are scored where `estimator` is None."""
    own_noise_weight: ClassVar[str] = "adaptive"
    """How errors at noised latents are weighed where `noising.weight` is None."""
    own_step_weights: ClassVar[str] = "none"
    """How steps of latents weigh where `step_weights` is None."""
    own_aggregate: ClassVar[str] = "token_mean"
    """How tokens of texts of unequal length are weighed where `aggregate` is None."""
    own_correction_level: ClassVar[str] = "step"
    """What has an importance weight of its own where `correction_level` is None."""

    # Of these, RLlib's type is that of what they begin with.
    env: Any
    env_runner_cls: Any
    merge_env_runner_states: Any

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        cls.losses = Losses(cls.losses)

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or AGENTS.get(PLAIN_AGENT))
        self.restart_failed_env_runners = False
        self.env_runner_health_probe_timeout_s = 1.0  # RLlib's 30 s would hold up every iteration
        self.env_runner_restore_timeout_s = 300.0  # a node may have to come, and a large model to be read
        self.env_runner_cls = GenerativeEnvRunner
        # There are no connectors whose states would have to be gathered and sent around.
        self.merge_env_runner_states = False
        self.broadcast_env_runner_states = False
        self.run_seed = 0
        self.prompts: Any = None
        self.train_batch_size = None  # RLlib's default is no wish of anybody's
        for name, value in defaults(type(self)).items():
            setattr(self, name, value)
        self._num_prompts_given = False

    if TYPE_CHECKING:  # The attributes that stand for fields of settings and knobs.

        def __getattr__(self, name: str) -> Any: ...

    def __setattr__(self, name: str, value: Any) -> None:
        if name in NESTED:
            value = laid_over(NESTED[name], vars(self).get(name), value)
        super().__setattr__(name, value)

    def training(self, **settings: Any) -> Self:
        """Set how an agent trains.

        Args:
            **settings: Fields of `AgentSettings` and of `RolloutSettings` (whose `batch_size` is called
                `rollout_batch_size` here), the algorithm's own knobs, and

                - `prompts`: what `PromptSource.of` understands; None takes the environment's own.
                - `seed`: every random number of the run follows from it; also `.debugging(seed=...)`.
                - `steps`: `StepSettings`, or a mapping of fields that is laid over the present ones.
                - `policy`: `PolicySettings`, likewise; `noising` and `learner`, too.
                - `train_batch_size`, `train_batch_size_per_learner`: the episodes of an iteration, as RLlib
                  says it; `num_prompts` follows from them.

                `docs/settings.md` has a table of all, with their defaults and reasons.

        Raises:
            ConfigError: If a setting is unknown.
        """
        if "seed" in settings:
            settings["run_seed"] = settings.pop("seed")
        # RLlib sends its own groups through here when it takes a configuration from a dictionary, as Tune's.
        super().training(**{name: settings.pop(name) for name in RLLIBS_OWN if name in settings})
        known = set(own_names(type(self)))
        for name, value in settings.items():
            if name not in known:
                refuse_rllib_word(name, value)
                close = difflib.get_close_matches(name, known, n=1)
                remedy = f"try `{close[0]}`" if close else f"known are {', '.join(sorted(known))}"
                raise ConfigError(
                    f"`{name}` must be a setting of {type(self).__name__}.training(); {remedy}."
                )
            setattr(self, name, value)
        return self

    def debugging(self, *, seed: int | None = None, **settings: Any) -> Self:
        """RLlib's own, except that `seed` keys our random numbers.

        RLlib would seed the global generators of every process with it and force slow deterministic kernels;
        here, every random number is a function of its key, and needs neither.
        """
        super().debugging(**settings)
        if seed is not None:
            self.run_seed = seed
        return self

    def get_default_learner_class(self) -> type:
        """The one learner of all agents."""
        return GenerativeLearner

    def build_learner_group(
        self, *, env: Any = None, spaces: Any = None, rl_module_spec: Any = None, **more: Any
    ) -> Any:
        """A group that goes on only with all learners, and asks all where each holds a part of the policy."""
        spec = rl_module_spec or self.get_multi_rl_module_spec(env=env, spaces=spaces)
        kind = DividedLearnerGroup if self.divides else AgentLearnerGroup
        return kind(config=self.copy(), module_spec=spec, **more)

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """The policy of the environment's own model."""
        return RLModuleSpec(
            module_class=self.mode.policy or GenerativePolicy, model_config=self.policy_options()
        )

    def thresholds(self, phase: Phase) -> dict[str, tuple[float, str]]:
        """Settings that must lie above the noise floor of a phase.

        Args:
            phase: Whose kind and size of an action count.

        Returns:
            Name to (value, `log_prob` or `kl`).
        """
        return {}

    def search_space(self) -> dict[str, Any]:
        """What a benchmark may try of this algorithm: domains of `ray.tune` by the name of a setting.

        They are factors on what a recipe says, because one configuration serves environments whose learning
        rates and trust regions differ by orders of magnitude. Without more, those of the learning rate and of
        every real number among the algorithm's own knobs.
        """
        knobs = dataclasses.fields(self.knobs) if self.knobs is not None else ()
        real = [knob.name for knob in knobs if str(knob.type) in ("float", "float | None")]
        return {"lr": tune.loguniform(0.2, 5.0), **{name: tune.loguniform(0.25, 4.0) for name in real}}

    def validate(self) -> None:
        """Refuse what cannot work, before anything is built.

        Raises:
            ConfigError: Naming the setting, its value and the remedy.
        """
        self._normalize()
        check_rllib_words(self)
        known = {*vars(type(self)()), "class"}
        unknown = [name for name in vars(self) if name not in known and not name.startswith("_")]
        if unknown:
            raise ConfigError(f"`{unknown[0]}` must be a setting of {type(self).__name__}, and is none.")
        if not self.losses:
            raise ConfigError("An agent must have a loss; try GRPOConfig, FlowDPPOConfig or DRPOConfig.")
        self._check()
        super().validate()

    def _normalize(self) -> None:
        """Bring what may be written in several ways, ids, seeds and devices, into one form."""
        # A remote runner has imported nothing: the prefix tells it what registers the id, and the spec what
        # it means where no import does, as of one that was registered in a notebook.
        self._env_spec = self.env_spec
        self.env = full_id(self.env)
        if self._env_spec.vector_entry_point == OURS:
            check_words(self.env_options())
        if self.seed is not None:
            # RLlib would seed every process's global generators and force slow deterministic kernels.
            self.run_seed, self.seed = whole("seed", self.seed), None
        place_on_devices(self)

    def _check(self) -> None:
        """Refuse settings that cannot work, alone or together."""
        whole("seed", self.run_seed, 0)
        check_groups(self)
        check_division(self.learner, self)
        self.solve_batch_size()
        groups = rebuilt(AgentSettings, self), rebuilt(RolloutSettings, self)
        check_shares(*groups, learner=self.learner)
        check_anchor(*groups)
        check_optimizer(self)
        check_weights(*groups, self.policy)
        check_parallel(self)
        self.mode.check(self)
        check_engine_options(self.engine, self.engine_options)
        check_phases(self)
        check_stop(self)
        check_estimator(self)
        check_step_credit(self)
        check_correction(self)
        check_evaluation(self)
        check_callbacks(self)

    def get_evaluation_config_object(self) -> Any:
        """The configuration under which evaluation plays; None of one that is for evaluation itself."""
        if self.in_evaluation:
            return None
        config = self.copy(copy_frozen=False)
        config.in_evaluation, config.evaluation_config = True, None
        config.evaluation_interval = None  # RLlib would make runners and a model of its own.
        config.policy = dataclasses.replace(self.policy, eval_temperature=temperature(self))
        return config

    # What the settings say about an iteration.

    @property
    def mode(self) -> Mode:
        """What kind of environment this is."""
        # What it follows from: another id, or anything else in the arguments, may mean another mode.
        asked = (self.env, *self.env_config.keys(), *self.env_config.values())
        held = vars(self).get("_mode")
        if (
            held is None
            or len(held[0]) != len(asked)
            or any(a is not b for a, b in zip(held[0], asked, strict=True))
        ):
            # Past RLlib's own `__setattr__`, which refuses to change settings once they are frozen.
            held = vars(self)["_mode"] = (asked, mode_of(self.env_options()))
        return held[1]

    @property
    def episodes(self) -> int:
        """B, episodes per iteration."""
        return self.num_prompts * self.group_size

    @property
    def minibatches(self) -> int:
        """N, optimizer steps of an epoch."""
        if self.minibatch_size is None:
            return int(self.num_minibatches)
        return self.episodes // (self.minibatch_size * self.num_shares)

    @property
    def shuffle(self) -> str | None:
        """What is dealt out anew in every epoch: None, `"group"` or `"episode"`."""
        chosen = self.shuffle_batch_per_epoch
        if chosen is True:
            return "episode" if self.episodes // self.minibatches % self.group_size else "group"
        return chosen or None

    def epochs(self, iteration: int) -> dict[str, Any]:
        """What `share_out` must know of an iteration: its number, and the arguments of `optimizer_steps`."""
        return {
            "iteration": iteration,
            "num_minibatches": self.minibatches,
            "num_epochs": self.num_epochs,
            "shuffle": self.shuffle,
            "seed": F.derive_seed(self.run_seed, "shuffle", iteration),
        }

    @property
    def divides(self) -> bool:
        """Whether each learner holds a part of the policy."""
        return self.learner.parallel != "replicated" and self.num_learners > 1

    @property
    def learners_play(self) -> bool:
        """Whether learners that hold parts of the policy play with it, and no other process has it."""
        return self.divides and not self.num_env_runners

    @property
    def old_log_probs(self) -> str:
        """The `anchor` in use: `"rollout"` or `"replay"`."""
        return self.anchor or (self.engine_anchor if rounds_apart(self) else "rollout")

    @property
    def correcting(self) -> str:
        """The `correction` in use."""
        if self.correction is not None:
            return str(self.correction)
        return "truncate" if self.engine != "local" and self.old_log_probs == "replay" else "none"

    @property
    def weighs_steps(self) -> str:
        """The `step_weights` in use."""
        return self.step_weights or self.own_step_weights

    @property
    def weighing(self) -> str:
        """The `aggregate` in use."""
        return self.aggregate or self.own_aggregate

    @property
    def estimating(self) -> str:
        """The `estimator` in use."""
        return self.estimator or self.own_estimator

    @property
    def looks_forward(self) -> bool:
        """Whether an update looks at finished latents, noised anew, and not at the steps that were played."""
        return self.estimating != "trajectory"

    @property
    def noise_weight(self) -> str:
        """The `noising.weight` in use."""
        return self.noising.weight or self.own_noise_weight

    @property
    def sampling(self) -> str:
        """The `sampler` in use."""
        return self.sampler or ("ode" if self.looks_forward else "sde")

    def average_decay(self, iteration: int) -> float | None:
        """How much of the average of the weights an iteration keeps; None where there is none."""
        if self.ema_decay is None or self.ema_rise is None:
            return self.ema_decay
        taken = (iteration + 1) * self.num_epochs * self.minibatches
        return min(self.ema_decay, self.ema_rise * max(0, taken - self.ema_delay))

    @property
    def num_steps(self) -> int:
        """T, denoising steps of an episode."""
        return int(self.env_options()["num_steps"])

    @property
    def needs(self) -> frozenset[str]:
        """What the rollout must record for the losses; means that are replayed need not be."""
        needs = frozenset().union(*(loss.needs for loss in self.losses.values()))
        if self.looks_forward:
            return needs | {"final"}
        return needs if self.old_log_probs == "rollout" else needs - {"mean"}

    @property
    def trained(self) -> tuple[str, ...]:
        """The phases that are trained."""
        phases = self.mode.phases(self)
        return tuple(phases) if self.train_phases is None else tuple(self.train_phases)

    @property
    def trained_kinds(self) -> tuple[str, ...]:
        """The kinds of the trained phases, once each, in their order."""
        phases = self.mode.phases(self)
        return tuple(dict.fromkeys(phases[name] for name in self.trained))

    def trained_steps(self, iteration: int) -> tuple[int, ...]:
        """The stochastic steps of an iteration."""
        if self.sampling in ("ode", "dpm2m"):
            return ()
        choice = dataclasses.asdict(self.steps) | {"fraction": tuple(self.steps.fraction)}
        kind, _ = choice.pop("kind"), choice.pop("tail")
        return F.choose_steps(kind, self.num_steps, **choice, seed=self.run_seed, iteration=iteration)

    def visited_levels(self, iteration: int) -> tuple[int, ...] | None:
        """The levels of the schedule that training episodes visit; None if all."""
        tail, steps = self.steps.tail, self.trained_steps(iteration)
        return None if tail == 1 else F.shortened_tail(self.num_steps, steps, tail)

    def learning_rate(self, iteration: int) -> float:
        """The learning rate of an iteration, from 0; see `optimizer.learning_rate`."""
        return learning_rate(self, iteration)

    # The environment.

    @property
    def env_spec(self) -> EnvSpec:
        """The registered spec of the environment.

        Raises:
            ConfigError: If there is no such id.
        """
        held, name = vars(self).get("_env_spec"), str(self.env).rpartition(":")[2]
        if held is not None and held.id == name:
            if name in gym.registry:
                return gym.registry[name]
            recall(self.env, held)
        return spec_of(self.env)

    def env_options(self) -> dict[str, Any]:
        """The environment's keyword arguments: those registered with its id, and the user's over them."""
        return {**self.env_spec.kwargs, **self.env_config}

    def episode_lengths(self, batch: EpisodeBatch, num_steps: int | None = None) -> list[int]:
        """Steps of the environment in each of B episodes, with denoising steps as in training by default."""
        kinds = self.mode.phases(self)
        # Texts have no denoising steps to ask for.
        steps = (num_steps or self.num_steps) if "latents" in kinds.values() else 0
        return batch.lengths(kinds, steps)

    def prompt_source(self) -> Any:
        """What the agent takes prompts from."""
        return self.env_options().get("prompts") if self.prompts is None else self.prompts

    def prompts_of(self, runner: Any) -> PromptSource:
        """Those that the agent was given, or those that its own process's `runner` has read."""
        if self.prompts is None and runner.world is not None and runner.world.prompts is not None:
            return runner.world.prompts
        return PromptSource.of(self.prompt_source())

    def rollout_env_options(self) -> dict[str, Any]:
        """Arguments of a runner's environment, which plays groups by hand, beside those of its id."""
        return {
            # A runner says itself where its environment lives.
            **{name: value for name, value in self.env_config.items() if name != "device"},
            "array_backend": "torch",
            "autoreset_mode": "disabled",
            **self.mode.env_options(self),
        }

    def world(self, device: str) -> World | ForeignWorld:
        """What a runner on `device` makes its environments from.

        Raises:
            ConfigError: If an argument of the environment does not fit.
            ModelNotFound: If its model cannot be loaded.
        """
        _ = self.env_spec  # a remote runner has to be told of it
        return world_of(self.env, {**self.rollout_env_options(), "device": device})

    @property
    def episodes_per_play(self) -> int:
        """Episodes that a runner steps together."""
        share = self.episodes // max(1, self.num_env_runners)
        if self.learners_play:
            share = -(-self.num_prompts // self.num_shares) * self.group_size
        return min(share, self.rollout_batch_size or share)

    def policy_options(self) -> dict[str, Any]:
        """The policy's `model_config`; its model is the environment's."""
        return self.mode.policy_options(self)
