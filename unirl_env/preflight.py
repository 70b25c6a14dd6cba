"""What can be known to fail before a model is loaded: ids, prompts, extras, devices, steps.

`RunConfig.check()` looks at the settings alone; here they meet the machine and the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from unirl_env import build
from unirl_env.config import RunConfig
from unirl_env.envs.prompts import PromptSource
from unirl_env.errors import ConfigError, MissingExtra
from unirl_env.modes import MODES, Mode, mode_of_run
from unirl_env.named_parts import check_engine
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
    mode = mode_of_run(cfg)
    if cfg.mode != mode.name:
        known = "" if cfg.mode in MODES else f", which is none of {', '.join(MODES)}"
        raise ConfigError(
            f"`mode` must be {mode.name!r} for {cfg.model.env}, got {cfg.mode!r}{known}; try "
            f"`mode={mode.name}`, or another `model`."
        )
    for name in ("num_steps", "max_new_tokens"):
        if getattr(cfg.model, name) == 0 and not mode.may_skip:
            raise ConfigError(
                f"`model.{name}` must be at least 1, got 0: an episode of `mode={mode.name}` has no other "
                "phase; try null."
            )
    return mode


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
