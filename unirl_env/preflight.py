"""What can be known to fail before a model is loaded: ids, prompts, extras, devices, steps.

`RunConfig.check()` looks at the settings alone; here they meet the machine and the files.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib.util import find_spec

import unirl_env.functional as F
from unirl_env import build
from unirl_env.config import RunConfig
from unirl_env.envs.prompts import PromptSource
from unirl_env.errors import ConfigError, MissingExtra
from unirl_env.modes import MODES, Mode, mode_of_run
from unirl_env.named_parts import check_engine, first_words
from unirl_env.place import check_place
from unirl_env.rewards import for_mode, require_judgeable
from unirl_env.rewards.secrets import resolved
from unirl_env.rewards.spec_check import check_reward
from unirl_env.types import Prompt

__all__ = ["Prompts", "check_all", "preflight", "read_prompts"]

TRAIN, HELDOUT = "train", "heldout"


@dataclass(frozen=True)
class Prompts:
    """The prompt sources of a run, and what evaluation takes from them."""

    train: PromptSource
    heldout: PromptSource | None

    def evaluation_sets(self, count: int) -> dict[str, list[Prompt]]:
        """Up to `count` prompts of each source, the same ones for every run on these sources."""
        sources = {TRAIN: self.train, HELDOUT: self.heldout}
        return {
            name: source.take(0, min(count, len(source)), seed=0)
            for name, source in sources.items()
            if source is not None
        }

    def fingerprints(self) -> dict[str, str]:
        """A hash of each source's contents."""
        sources = {"prompts.train": self.train, "prompts.heldout": self.heldout}
        return {name: source.fingerprint for name, source in sources.items() if source is not None}


def preflight(cfg: RunConfig) -> Prompts:
    """Read the prompts and refuse what this machine or these files make impossible.

    Raises:
        ConfigError: Naming the setting, its value and the remedy.
        PromptError: If a prompt source cannot be used.
        MissingExtra: If an optional package is asked for and not installed.
    """
    check_all(cfg)
    prompts = read_prompts(cfg)
    _check_judgeable(cfg, prompts)
    _check_agent(cfg, prompts.train)
    return prompts


def check_all(cfg: RunConfig) -> None:
    """Refuse what the settings or this machine make impossible, the prompts aside.

    Raises:
        ConfigError: Naming the setting, its value and the remedy.
        MissingExtra: If an optional package is asked for and not installed.
    """
    cfg.check()
    check_place(cfg)
    mode = _check_environment(cfg)
    _check_numbers(cfg, mode)
    _check_steps(cfg, mode)
    _check_devices(cfg)
    _check_rewards(cfg, mode)
    check_engine(cfg, mode)
    if cfg.logging.wandb and find_spec("wandb") is None:
        raise MissingExtra("wandb", "wandb")
    build.check_world(cfg)


def _check_agent(cfg: RunConfig, prompts: PromptSource) -> None:
    """Last, because it imports RLlib, which takes seconds."""
    build.check_agent(cfg, prompts)


def _check_environment(cfg: RunConfig) -> Mode:
    import gymnasium as gym

    import unirl_env  # registers the ids

    try:
        gym.spec(cfg.model.env)  # imports the package before `:`
    except (gym.error.Error, ImportError, ValueError) as error:
        known = sorted(name for name in gym.registry if name.startswith(f"{unirl_env.__name__[:5]}/"))
        near = difflib.get_close_matches(cfg.model.env, known, n=1)
        hint = f"did you mean {near[0]}? Others are" if near else "try one of"
        raise ConfigError(
            f"`model.env` must be a registered environment, got {cfg.model.env!r} ({first_words(error)}); "
            f"{hint} {', '.join(known)}, or `package:namespace/Name-v0` for one of your own."
        ) from error
    mode = mode_of_run(cfg)
    if cfg.mode != mode.name:
        known = "" if cfg.mode in MODES else f" which is none of {', '.join(MODES)};"
        raise ConfigError(
            f"`mode` must be {mode.name!r} for {cfg.model.env}, got {cfg.mode!r};{known} try "
            f"`mode={mode.name}`, or another `model`."
        )
    return mode


def _check_numbers(cfg: RunConfig, mode: Mode) -> None:
    least = {
        "logging.eval_prompts": (cfg.logging.eval_prompts, 1),
        "logging.eval_samples": (cfg.logging.eval_samples, 1),
        "logging.keep_last": (cfg.logging.keep_last, 1),
        "logging.eval_every": (cfg.logging.eval_every, 0),
        "logging.checkpoint_every": (cfg.logging.checkpoint_every, 0),
        "agent.warmup_iterations": (cfg.agent.warmup_iterations, 0),
        "agent.weight_decay": (cfg.agent.weight_decay, 0),
        "policy.lora_alpha": (cfg.policy.lora_alpha, 1),
        "policy.temperature": (cfg.policy.temperature, 0),
        "policy.top_k": (cfg.policy.top_k, 0),
        "prompts.max_characters": (cfg.prompts.max_characters, 1),
        "rollout.num_gpus_per_env_runner": (cfg.rollout.num_gpus_per_env_runner, 0),
        "rollout.num_gpus_per_learner": (cfg.rollout.num_gpus_per_learner, 0),
        "seed": (cfg.seed, 0),
        "agent.reference_kl": (cfg.agent.reference_kl, 0),
        "rollout.num_env_runners": (cfg.rollout.num_env_runners, 0),
        "rollout.num_learners": (cfg.rollout.num_learners, 0),
        "reward.max_failed_iterations": (cfg.reward.max_failed_iterations, 1),
    }
    optional = {
        "policy.lora_rank": cfg.policy.lora_rank,
        "agent.micro_batch_size": cfg.agent.micro_batch_size,
        "agent.micro_batch_tokens": cfg.agent.micro_batch_tokens,
        "agent.horizon": cfg.agent.horizon,
        "rollout.batch_size": cfg.rollout.batch_size,
        "model.eval_num_steps": cfg.model.eval_num_steps,
        "model.rows_per_forward": cfg.model.rows_per_forward,
        "model.max_prompt_tokens": cfg.model.max_prompt_tokens,
    }
    least |= {name: (value, 1) for name, value in optional.items() if value is not None}
    for name in ("max_new_tokens", "num_steps"):
        # A picture without a text is a hybrid episode, too, and a text without a picture.
        if getattr(cfg.model, name) is not None:
            least[f"model.{name}"] = (getattr(cfg.model, name), int(not mode.may_skip))
    for name, (value, bound) in least.items():
        if value < bound:
            raise ConfigError(f"`{name}` must be at least {bound}, got {value}; try {max(bound, 1)}.")
    if not all(0 <= beta < 1 for beta in cfg.agent.betas):
        raise ConfigError(
            f"`agent.betas` must be two numbers in [0, 1), got {list(cfg.agent.betas)}; try [0.9,0.999]."
        )
    for name in ("grad_clip", "advantage_clip"):
        value = getattr(cfg.agent, name)
        if value is not None and value <= 0:
            raise ConfigError(f"`agent.{name}` must be positive, or null for no bound, got {value}; try 1.0.")
    if not 0 < cfg.policy.top_p <= 1:
        raise ConfigError(f"`policy.top_p` must lie in (0, 1], got {cfg.policy.top_p}; try 1.")
    if cfg.policy.lora_rank is None and cfg.policy.lora_targets is not None:
        raise ConfigError(
            f"`policy.lora_targets` must be null where `policy.lora_rank` is, got "
            f"{cfg.policy.lora_targets}: all weights are trained; try `policy.lora_rank=16`."
        )


def _check_steps(cfg: RunConfig, mode: Mode) -> None:
    steps = cfg.steps
    if not mode.steps or not cfg.model.num_steps:
        return
    try:
        F.choose_steps(
            steps.kind,
            cfg.model.num_steps,
            fraction=tuple(steps.fraction),
            count=steps.count,
            window=steps.window,
            stride=steps.stride,
            iterations_per_window=steps.iterations_per_window,
            seed=cfg.seed,
            iteration=0,
        )
    except ValueError as error:
        raise ConfigError(f"`steps` must fit `model.num_steps` ({cfg.model.num_steps}): {error}") from error


def _check_devices(cfg: RunConfig) -> None:
    import torch

    reserved = cfg.rollout.num_gpus_per_env_runner + cfg.rollout.num_gpus_per_learner
    wanted = cfg.model.device.startswith("cuda") or reserved > 0
    if wanted and not torch.cuda.is_available():
        name = "model.device" if cfg.model.device.startswith("cuda") else "rollout.num_gpus_per_..."
        raise ConfigError(
            f"`{name}` must fit this machine, got {cfg.model.device!r} and {reserved:g} GPUs reserved where "
            f"torch finds none; try `model.device=auto` and no reserved GPUs."
        )


def _check_rewards(cfg: RunConfig, mode: Mode) -> None:
    resolved(cfg.rollout.engine_options, "rollout.engine_options")
    for name, spec in (("reward.train", cfg.reward.train), ("reward.heldout", cfg.reward.heldout)):
        if spec is None and name == "reward.heldout":
            continue
        try:
            check_reward(spec)
            for_mode(spec, mode, name)
            resolved(spec, name)
        except ConfigError as error:
            said = "" if f"`{name}`" in str(error) else f"`{name}`: "
            raise ConfigError(f"{said}{error}") from error


def _check_judgeable(cfg: RunConfig, prompts: Prompts) -> None:
    """Every reward scores every prompt: that of training the held-out ones, and the other way round."""
    for reward, spec in (("reward.train", cfg.reward.train), ("reward.heldout", cfg.reward.heldout)):
        for source, found in (("prompts.train", prompts.train), ("prompts.heldout", prompts.heldout)):
            if spec is not None and found is not None:
                require_judgeable(spec, found, reward=reward, source=source)


def read_prompts(cfg: RunConfig) -> Prompts:
    """The prompts of a run.

    Raises:
        ConfigError: If there are too few, or held-out ones are among those of training.
        PromptError: If a source cannot be used.
    """
    longest = cfg.prompts.max_characters
    train = PromptSource.of(cfg.prompts.train, max_characters=longest)
    heldout = None
    if cfg.prompts.heldout is not None:
        heldout = PromptSource.of(cfg.prompts.heldout, max_characters=longest)
        shared = {_asked(prompt) for prompt in train} & {_asked(prompt) for prompt in heldout}
        if shared:
            raise ConfigError(
                f"`prompts.heldout` must hold prompts that training never sees, got {len(shared)} of "
                f"`prompts.train` ({min(shared)[0][:60]!r}); try removing them, or `prompts.heldout=null`."
            )
    if cfg.rollout.num_prompts > len(train):
        raise ConfigError(
            f"`rollout.num_prompts` must be at most the {len(train)} prompts of `prompts.train`, got "
            f"{cfg.rollout.num_prompts}: an iteration takes distinct prompts; try "
            f"rollout.num_prompts={len(train)} and a larger `rollout.group_size`."
        )
    return Prompts(train, heldout)


def _asked(prompt: Prompt) -> tuple[str, str, str]:
    """What a prompt asks, whatever its id: one question about two pictures is two prompts."""
    return prompt.text, repr(prompt.messages), repr(prompt.images)
