"""The settings of an agent in RLlib's dialect, and what they must satisfy."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.checks import check_settings
from unirl_env.agents.epochs import EpochSettings
from unirl_env.agents.forms import env_spec, normalize
from unirl_env.agents.learner import GenerativeLearner
from unirl_env.agents.of_mode import OfMode
from unirl_env.agents.phases import Step
from unirl_env.agents.rllib_words import RLLIBS_OWN, check_rllib_words, own_names, refuse_rllib_word
from unirl_env.agents.rows import Rows
from unirl_env.config import PolicySettings, StepSettings
from unirl_env.config_check import NUM_MINIBATCHES
from unirl_env.episode import Phase
from unirl_env.errors import ConfigError
from unirl_env.rollouts.runner import GenerativeEnvRunner

__all__ = ["AgentConfig", "Loss"]


@dataclass(frozen=True)
class Loss:
    """The loss of one kind of phase, and what it wants recorded.

    Attributes:
        compute: `(rows, new step, config) -> loss, metrics`, pure. Masked rows must not count, rows count by
            their weight, and sums are divided by `rows.denominator`.
        needs_mean: Whether the means of the sampling policy are wanted, too.
    """

    compute: Callable[[Rows, Step, AgentConfig], tuple[Tensor, dict[str, Tensor]]]
    needs_mean: bool = False


class AgentConfig(OfMode, EpochSettings, AlgorithmConfig):
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

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class)
        self.restart_failed_env_runners = False
        self.env_runner_cls = GenerativeEnvRunner
        # There are no connectors whose states would have to be gathered and sent around.
        self.merge_env_runner_states = False
        self.broadcast_env_runner_states = False
        self.run_seed = 0
        self.cluster_wait: float | None = None
        self.prompts: Any = None
        self.num_prompts = 8
        self.group_size = 12
        self.same_noise = False
        self.rollout_batch_size: int | None = None
        self.engine = "local"
        self.engine_options: dict[str, Any] = {}
        self.keep_samples = True
        self.steps = StepSettings()
        self.policy = PolicySettings()
        self.lr = 3e-4
        self.warmup_iterations = 0
        self.betas = (0.9, 0.999)
        self.weight_decay = 0.0
        self.adam_epsilon = 1e-8
        self.grad_clip = 1.0
        self.num_epochs = 1
        self.num_minibatches = NUM_MINIBATCHES
        self.micro_batch_size: int | None = None
        self.micro_batch_tokens: int | None = None
        self.aggregate = "token_mean"
        self.horizon: int | None = None
        self.mask_truncated = False
        self.idle_episodes = "count"
        self.train_phases: list[str] | None = None
        self.phase_rewards: dict[str, str] = {}
        self.phase_weights: dict[str, float] = {}
        self.advantage_scale = "group"
        self.advantage_parts: dict[str, float] = {}
        self.advantage_clip: float | None = None
        self.max_log_ratio = 20.0
        self.reference_kl = 0.0
        self.kl_estimator = "k2"
        self.anchor: str | None = None
        self.self_check = True
        self.self_check_tolerance: float | None = 1e-4
        self.self_check_gap_mean: float | None = 0.25
        self.self_check_gap_max: float | None = 5.0
        self.self_check_kl: float | None = 0.25

    def training(self, **settings: Any) -> AgentConfig:
        """Set how an agent trains.

        Args:
            **settings: Any of

                - `prompts`: what `PromptSource.of` understands; None takes the environment's own.
                - `num_prompts`, `group_size`: P prompts x G episodes make an iteration.
                - `same_noise`: start the episodes of a group from one initial noise.
                - `rollout_batch_size`: episodes that a runner steps together; None takes its whole share.
                - `engine`, `engine_options`: what generates tokens: `"local"`, `"vllm"`, `"vllm_server"`,
                  `"sglang"`, and its arguments.
                - `keep_samples`: keep an iteration's finished samples in `agent.last_batch`.
                - `steps`: `StepSettings` or a dict of them; which denoising steps are trained.
                - `policy`: `PolicySettings` or a dict of them; how the network acts.
                - `lr`, `warmup_iterations`, `betas`, `weight_decay`: AdamW, `grad_clip` its norm.
                - `num_epochs`: passes over an iteration's episodes, each of N optimizer steps on disjoint
                  parts: `num_minibatches`, which keeps the curve whatever the number of learners, or by
                  `minibatch_size`, the episodes that each learner takes in one, as RLlib counts.
                - `shuffle_batch_per_epoch`: deal the episodes out anew in every epoch, the first included:
                  `"group"` by whole groups, `"episode"` one by one, True by groups where minibatches hold
                  whole ones, False not at all.
                - `micro_batch_size`, `micro_batch_tokens`: episodes and packed tokens per backward pass at
                  most; they change memory, not results.
                - `aggregate`: how tokens of texts of unequal length are weighed: `"token_mean"` (each token
                  alike), `"sequence_mean"` (each text alike), `"horizon"` (sums over `horizon`, as Dr. GRPO).
                - `mask_truncated`: leave texts out of the loss that the length limit ended.
                - `idle_episodes`: whether episodes of advantage 0 `"count"` in what sums are divided by, or
                  are left out (`"leave_out"`) of that and of the KL to the untrained model, too.
                - `train_phases`: which phases of a hybrid episode are trained; None trains all.
                - `phase_rewards`: for a phase, the part of the scores that it is paid instead of the reward.
                - `phase_weights`: for a phase, the weight of its loss; 1 without.
                - `advantage_scale`: `"group"`, `"batch"`, `"none"` or `"leave_one_out"` (RLOO);
                  `advantage_clip`, in units of what rewards were divided by.
                - `max_log_ratio`: where log-ratios are cut, in nats per token or per latent element.
                - `adam_epsilon`: what AdamW adds to the root of the second moment, in units of a gradient.
                - `advantage_parts`: parts of the scores with weights; each is normalised within its group
                  before they are added (GDPO), and takes the place of the reward.
                - `reference_kl`: weight of the KL to the untrained model; `kl_estimator`: `"k2"` or `"k3"`.
                - `anchor`: old log-probs of the `"rollout"`, or by `"replay"` before the update; None takes
                  the rollout's of the engine `"local"`, and of others `engine_anchor`.
                - `self_check`: whether the first update must find what the rollout recorded, within
                  `self_check_tolerance` (|ratio - 1| against the anchor), and in nats `self_check_gap_mean`,
                  `self_check_gap_max` (recorded log-probs), `self_check_kl` (on latents); None: no bound.
                - `cluster_wait`: seconds to wait for room in Ray's cluster; None: 60, or 0 if too small.
                - `seed`: every random number of the run follows from it; also `.debugging(seed=...)`.
                - the algorithm's own knobs.

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
        return RLModuleSpec(module_class=self.mode.policy, model_config=self.policy_options())

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
    def num_steps(self) -> int:
        """T, denoising steps of an episode."""
        return int(self.env_options()["num_steps"])

    @property
    def needs_mean(self) -> bool:
        """Whether the rollout must record means: some loss wants them and does not replay."""
        return self.old_log_probs == "rollout" and any(loss.needs_mean for loss in self.losses.values())

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

    # What the settings say to the parts.

    def env_options(self) -> dict[str, Any]:
        """The environment's keyword arguments: those registered with its id, and the user's over them."""
        return {**env_spec(self.env).kwargs, **self.env_config}

    def prompt_source(self) -> Any:
        """What the agent takes prompts from."""
        return self.env_options().get("prompts") if self.prompts is None else self.prompts

    def rollout_env_options(self) -> dict[str, Any]:
        """Keyword arguments of a runner's environment, which plays groups by hand."""
        return {
            # A runner says itself where its environment lives.
            **{name: value for name, value in self.env_config.items() if name != "device"},
            "array_backend": "torch",
            "autoreset_mode": "disabled",
            **self.mode.env_options(self),
        }

    @property
    def episodes_per_play(self) -> int:
        """Episodes that a runner steps together."""
        share = self.episodes // max(1, self.num_env_runners)
        return min(share, self.rollout_batch_size or share)

    def policy_options(self) -> dict[str, Any]:
        """The policy's `model_config`; its model is the environment's."""
        return self.mode.policy_options(self)
