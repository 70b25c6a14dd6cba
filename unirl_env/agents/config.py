"""The settings of an agent in RLlib's dialect, and what they must satisfy."""

from __future__ import annotations

import dataclasses
import difflib
from typing import TYPE_CHECKING, Any, ClassVar

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

import unirl_env.functional as F
from unirl_env.agents.batch_size import BatchSize
from unirl_env.agents.checks import check_settings
from unirl_env.agents.epochs import EpochSettings
from unirl_env.agents.evaluation import EvaluationSettings
from unirl_env.agents.forms import env_spec, normalize, runners_options, runners_world
from unirl_env.agents.learner import GenerativeLearner
from unirl_env.agents.loss import Loss
from unirl_env.agents.of_mode import OfMode
from unirl_env.agents.rllib_words import RLLIBS_OWN, check_rllib_words, own_names, refuse_rllib_word
from unirl_env.agents.settings import NESTED, defaults, laid_over
from unirl_env.episode import Phase
from unirl_env.errors import ConfigError
from unirl_env.policies.rl_module import GenerativePolicy
from unirl_env.rollouts.runner import GenerativeEnvRunner
from unirl_env.worlds.world import ForeignWorld, World

__all__ = ["AgentConfig", "Loss"]


class AgentConfig(OfMode, EpochSettings, EvaluationSettings, BatchSize, AlgorithmConfig):
    """Settings that all agents share; an algorithm adds its losses and their knobs.

    Example:
        >>> from unirl_env.agents import FlowDPPOConfig
        >>> config = (
        ...     FlowDPPOConfig()
        ...     .environment("unirl/TinySD3-T2I-v0", env_config={"num_steps": 8})
        ...     .training(num_prompts=8, group_size=12, lr=3e-4, kl_threshold_nats=0.66)
        ... )

    Failed runners are not restarted unless `.fault_tolerance(restart_failed_env_runners=True)` says so.
    """

    engine_anchor: ClassVar[str] = "replay"  # The `anchor` of engines other than the local one.

    knobs: ClassVar[type | None] = None
    """A dataclass of the algorithm's own settings, made as those of `unirl_env.settings` are. They are
    attributes, too, after those of the classes that this one derives from; so is what `__init__` sets."""
    own_aggregate: ClassVar[str] = "token_mean"
    """How tokens of texts of unequal length are weighed where `aggregate` is None."""

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class)
        self.restart_failed_env_runners = False
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

    def training(self, **settings: Any) -> AgentConfig:
        """Set how an agent trains.

        Args:
            **settings: Fields of `AgentSettings` and of `RolloutSettings` (whose `batch_size` is called
                `rollout_batch_size` here), the algorithm's own knobs, and

                - `prompts`: what `PromptSource.of` understands; None takes the environment's own.
                - `seed`: every random number of the run follows from it; also `.debugging(seed=...)`.
                - `steps`: `StepSettings`, or a mapping of fields that is laid over the present ones.
                - `policy`: `PolicySettings`, likewise.
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

    def debugging(self, *, seed: int | None = None, **settings: Any) -> AgentConfig:
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

    def validate(self) -> None:
        """Refuse what cannot work, before anything is built.

        Raises:
            ConfigError: Naming the setting, its value and the remedy.
        """
        normalize(self)
        check_rllib_words(self)
        known = {*vars(type(self)()), "class"}
        unknown = [name for name in vars(self) if name not in known and not name.startswith("_")]
        if unknown:
            raise ConfigError(f"`{unknown[0]}` must be a setting of {type(self).__name__}, and is none.")
        if not self.losses:
            raise ConfigError("An agent must have a loss; try GRPOConfig, FlowDPPOConfig or DRPOConfig.")
        check_settings(self)
        super().validate()

    # What the settings say about an iteration.

    @property
    def episodes(self) -> int:
        """B, episodes per iteration."""
        return self.num_prompts * self.group_size

    @property
    def old_log_probs(self) -> str:
        """The `anchor` in use: `"rollout"` or `"replay"`."""
        return self.anchor or ("rollout" if self.engine == "local" else self.engine_anchor)

    @property
    def weighing(self) -> str:
        """The `aggregate` in use."""
        return self.aggregate or self.own_aggregate

    @property
    def num_steps(self) -> int:
        """T, denoising steps of an episode."""
        return int(self.env_options()["num_steps"])

    @property
    def needs(self) -> frozenset[str]:
        """What the rollout must record for the losses; means that are replayed need not be."""
        needs = frozenset().union(*(loss.needs for loss in self.losses.values()))
        return needs if self.old_log_probs == "rollout" else needs - {"mean"}

    @property
    def trained(self) -> tuple[str, ...]:
        """The phases that are trained."""
        phases = self.mode.phases(self)
        return tuple(phases) if self.train_phases is None else tuple(self.train_phases)

    def trained_steps(self, iteration: int) -> tuple[int, ...]:
        """The stochastic steps of an iteration."""
        choice = dataclasses.asdict(self.steps)
        kind = choice.pop("kind")
        choice["fraction"] = tuple(choice["fraction"])
        return F.choose_steps(kind, self.num_steps, **choice, seed=self.run_seed, iteration=iteration)

    def learning_rate(self, iteration: int) -> float:
        """`lr`, after a linear rise over the first `warmup_iterations`."""
        return self.lr * min(1.0, (iteration + 1) / max(1, self.warmup_iterations))

    def env_options(self) -> dict[str, Any]:
        """The environment's keyword arguments: those registered with its id, and the user's over them."""
        return {**env_spec(self).kwargs, **self.env_config}

    def prompt_source(self) -> Any:
        """What the agent takes prompts from."""
        return self.env_options().get("prompts") if self.prompts is None else self.prompts

    def rollout_env_options(self) -> dict[str, Any]:
        """Arguments of a runner's environment beside those of its id; the runner says where it lives."""
        return runners_options(self)

    def world(self, device: str) -> World | ForeignWorld:
        """What a runner on `device` makes its environments from."""
        return runners_world(self, device)

    @property
    def episodes_per_play(self) -> int:
        """Episodes that a runner steps together."""
        share = self.episodes // max(1, self.num_env_runners)
        return min(share, self.rollout_batch_size or share)

    def policy_options(self) -> dict[str, Any]:
        """The policy's `model_config`; its model is the environment's."""
        return self.mode.policy_options(self)
