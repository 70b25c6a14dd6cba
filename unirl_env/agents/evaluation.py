"""RLlib's `evaluate()` and its settings: fixed prompts and noise, played by the runners of training.

There is one copy of the model for each runner, and evaluation has none of its own: it is played between two
iterations, under the weights of the last one. Latents are denoised without noise on the way, texts are drawn
at `policy.eval_temperature`, and neither depends on what was trained, so that evaluations can be compared.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

import unirl_env.functional as F
from unirl_env.arguments.values import whole
from unirl_env.errors import ConfigError
from unirl_env.prompts.sources import PromptSource
from unirl_env.types import Prompt

BETWEEN = "evaluation is played by the runners of training, between two iterations; try `num_env_runners`"
ONLINE = "there is no data of before to evaluate on; try `evaluation_interval`"
WHOLE = "every evaluation plays whole episodes from their beginning, and waits for them"
MEANINGLESS = {
    "evaluation_num_env_runners": BETWEEN,
    "evaluation_parallel_to_training": BETWEEN,
    "evaluation_sample_timeout_s": WHOLE,
    "evaluation_force_reset_envs_before_iteration": WHOLE,
    "evaluation_auto_duration_min_env_steps_per_sample": WHOLE,
    "evaluation_auto_duration_max_env_steps_per_sample": WHOLE,
    "evaluation_unhealthy_workers_timeout_s": BETWEEN,
    "evaluation_error_after_n_consecutive_skips": BETWEEN,
    "off_policy_estimation_methods": ONLINE,
    "offline_evaluation_interval": ONLINE,
    "num_offline_eval_runners": ONLINE,
}
"""RLlib's settings of evaluation that nothing here would read, and why."""
OVERRIDES = ("prompts", "group_size", "seed", "explore", "policy", "env_config")
"""What `evaluation_config` can say."""
ROUNDS = 1000
"""Of an evaluation that lasts a number of steps; an episode has one at least."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation plays.

    Attributes:
        source: Where its prompts are from.
        samples: Per prompt.
        seed: The key of its noise.
        num_steps: Denoising steps; None takes those of training.
        duration: How many episodes or steps.
        in_steps: Whether it is steps that are counted.
    """

    source: PromptSource
    samples: int
    seed: int
    num_steps: int | None
    duration: int
    in_steps: bool

    @classmethod
    def of(cls, config: Any) -> Evaluation:
        """As the settings say.

        Args:
            config: An `AgentConfig`.
        """
        found = _overrides(config)
        prompts = found.get("prompts")
        return cls(
            source=PromptSource.of(config.prompt_source() if prompts is None else prompts),
            samples=found.get("group_size", 1),
            seed=found.get("seed", config.run_seed),
            num_steps=(found.get("env_config") or {}).get("num_steps"),
            duration=config.evaluation_duration,
            in_steps=config.evaluation_duration_unit == "timesteps",
        )

    def rounds(self, lengths: list[int]) -> Iterator[tuple[list[Prompt], int]]:
        """The prompts of each round and the key of its noise, until all is played.

        Args:
            lengths: The steps of each episode so far; whoever plays adds to it.
        """
        taken = 0
        for number in range(ROUNDS):
            if self.in_steps and lengths and not any(lengths):
                raise ConfigError(
                    "`evaluation_duration_unit` must be 'episodes' where a mode records no steps in "
                    "evaluation, got 'timesteps'."
                )
            left = self.duration - (sum(lengths) if self.in_steps else len(lengths))
            if left <= 0:
                return
            # The first round measures how long episodes are.
            each = max(1.0, sum(lengths) / len(lengths)) if lengths else float(self.duration)
            count = math.ceil(left / (each if self.in_steps else 1) / self.samples)
            key = ("evaluation", self.seed, *((number,) if number else ()))
            yield self.source.take(taken, count, seed=0), F.derive_seed(*key)
            taken += count


def check_evaluation(config: Any) -> None:
    """Refuse settings of evaluation that cannot work, or that nothing would read.

    Args:
        config: An `AgentConfig`.

    Raises:
        ConfigError: Naming the setting, its value and the remedy.
        PromptError: If its prompts cannot be used.
    """
    if config.evaluation_interval:
        whole("evaluation_interval", config.evaluation_interval, 1)
    defaults = vars(AlgorithmConfig())
    for name, reason in MEANINGLESS.items():
        value = getattr(config, name)
        if value != defaults[name]:
            raise ConfigError(f"`{name}` must stay {defaults[name]!r}, got {value!r}: {reason}.")
    if config.evaluation_duration == "auto":
        raise ConfigError(
            "`evaluation_duration` must be a number, got 'auto', which lasts as long as the training beside "
            f"it: {BETWEEN}, and evaluation_duration=10."
        )
    whole("evaluation_duration", config.evaluation_duration, 1)
    if config.evaluation_duration_unit not in ("episodes", "timesteps"):
        raise ConfigError(
            f"`evaluation_duration_unit` must be 'episodes' or 'timesteps', got "
            f"{config.evaluation_duration_unit!r}; try 'episodes'."
        )
    _check_overrides(config)


def _check_overrides(config: Any) -> None:
    found = _overrides(config)
    for name in found:
        if name not in OVERRIDES:
            near = difflib.get_close_matches(str(name), OVERRIDES, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else "try `agent.rollout_eval(...)`."
            raise ConfigError(
                f"`evaluation_config` must say {', '.join(OVERRIDES)}, got {name!r}, which evaluation takes "
                f"from training; {remedy}"
            )
    samples = whole("group_size of evaluation_config", found.get("group_size", 1), 1)
    if config.evaluation_duration_unit == "episodes" and config.evaluation_duration % samples:
        raise ConfigError(
            f"`evaluation_duration` must be divisible by the `group_size` of `evaluation_config`, {samples}, "
            f"got {config.evaluation_duration}; try {samples * -(-config.evaluation_duration // samples)}."
        )
    whole("seed of evaluation_config", found.get("seed", 0))
    options = found.get("env_config") or {}
    if not isinstance(options, Mapping) or set(options) - {"num_steps"}:
        raise ConfigError(
            f"`env_config` of `evaluation_config` must say `num_steps` alone, got {options!r}: the rest of "
            "the world is that of training; try another reward by `agent.rollout_eval(...)`, whose samples "
            "any scorer can judge."
        )
    if options.get("num_steps") is not None:
        whole("num_steps of evaluation_config", options["num_steps"], 1)
    policy = found.get("policy") or {}
    if not isinstance(policy, Mapping) or set(policy) - {"eval_temperature"}:
        raise ConfigError(
            f"`policy` of `evaluation_config` must say `eval_temperature` alone, got {policy!r}: the rest is "
            "the policy that is trained."
        )
    if found.get("explore") and "latents" in config.mode.phases(config).values():
        raise ConfigError(
            "`explore` of `evaluation_config` must be False, got True: latents are denoised without noise in "
            "evaluation, so that only the start of an episode is random; try `seed`."
        )
    if found.get("prompts") is not None:
        PromptSource.of(found["prompts"])


def _overrides(config: Any) -> Mapping[str, Any]:
    found = config.evaluation_config or {}
    if not isinstance(found, Mapping):
        raise ConfigError(
            f"`evaluation_config` must be a mapping, got {type(found).__name__}; try {{'group_size': 4}}."
        )
    return found


def temperature(config: Any) -> float | None:
    """What texts are drawn at: whoever says that nothing is explored means the likeliest token."""
    found = _overrides(config)
    given = (found.get("policy") or {}).get("eval_temperature", config.policy.eval_temperature)
    return 0.0 if found.get("explore") is False and given is None else given
