"""What can be known to fail before a model is loaded: ids, prompts, extras, devices, steps.

`RunConfig.check()` looks at the settings alone; here they meet the machine and the files.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from unirl_env.arguments.extras import require_extra
from unirl_env.errors import ConfigError, EngineError, MissingExtra
from unirl_env.modes import MODES, Mode
from unirl_env.prompts.sources import PromptSource
from unirl_env.rewards import for_mode, require_judgeable
from unirl_env.rewards.secrets import resolved
from unirl_env.rewards.spec import check_reward
from unirl_env.rollouts.engines import ENGINES, check_engine_options
from unirl_env.run.world_setup import Prompts, check_world, mode_of_run, model_arguments, read_prompts
from unirl_env.settings import RunConfig

LONGEST = 240
"""Bytes of a run's name: file systems take 255, and a second run of the name adds a number."""
OF_ENGINES = {"sglang": ("httpx", "httpx", "sglang"), "vllm": ("vllm", "vllm", "vllm")}
"""By engine: the module that it needs, its package, and the extra that installs it."""


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
    _check_place(cfg)
    mode = _check_environment(cfg)
    _check_devices(cfg)
    _check_rewards(cfg, mode)
    _check_engine(cfg, mode)
    if cfg.logging.wandb and find_spec("wandb") is None:
        raise MissingExtra("wandb", "wandb")
    check_world(cfg)


def _check_agent(cfg: RunConfig, prompts: PromptSource) -> None:
    """Last, because it imports RLlib, which takes seconds."""
    from unirl_env.run.agent_setup import check_agent

    check_agent(cfg, prompts)


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
            for_mode(spec, mode, name, model_arguments(cfg))
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


def _check_place(cfg: RunConfig) -> None:
    """Refuse a name that is none of a folder, and a folder that cannot be written.

    Raises:
        ConfigError: Naming the setting, its value and the cause.
    """
    _check_name(cfg.name)
    folder = cfg.logging.folder
    if not folder or folder != folder.strip() or not folder.isprintable():
        raise ConfigError(
            f"`logging.folder` must be a path without blanks at its ends and without control characters, got "
            f"{folder!r}; try `logging.folder=runs`."
        )
    _try(Path(folder).expanduser(), cfg.name)


def _check_name(name: str) -> None:
    said = f"`name` must be the name of a folder, got {name!r:.120}"
    if not name.strip() or name.startswith((".", "~")) or set(name) & set("/\\") or not name.isprintable():
        raise ConfigError(f"{said}; try `name=my_run`.")
    if name != name.strip():
        raise ConfigError(f"{said}, with blanks at its ends; try `name={name.strip()}`.")
    length = len(os.fsencode(name))
    if length > LONGEST:
        raise ConfigError(f"{said}, of {length} bytes where at most {LONGEST} fit; try a shorter one.")


def _try(root: Path, name: str) -> None:
    """Write a trace where the run is to go, and take it away again."""
    try:
        place = next(path for path in (root / name, root, *root.absolute().parents) if path.exists())
        if not place.is_dir():
            raise NotADirectoryError(20, "it is a file", str(place))
        trace = tempfile.mkdtemp(prefix=".", dir=place)
        try:
            if place != root / name:
                # What is missing may be too long, or lie where folders cannot be made.
                Path(trace, root.name, name).mkdir(parents=True)
        finally:
            for path in (Path(trace, root.name, name), Path(trace, root.name), Path(trace)):
                with suppress(OSError):
                    path.rmdir()
    except OSError as error:
        cause = error.strerror or str(error)
        raise ConfigError(
            f"`logging.folder` must be a folder that can be written, got {str(root)!r}: {cause}"
            f"{f' ({error.filename})' if error.filename else ''}; try `logging.folder=` another one."
        ) from error


def _check_engine(cfg: RunConfig, mode: Mode) -> None:
    """Refuse an engine that is unknown, not installed, of another mode, or does not take its options.

    Raises:
        ConfigError: Naming the setting.
        MissingExtra: If the engine's package is not installed.
        EngineError: If SGLang is to be started here, and is not installed.
    """
    name, options = cfg.rollout.engine, cfg.rollout.engine_options
    if name not in ENGINES and not ("." in name or ":" in name):
        near = difflib.get_close_matches(name, list(ENGINES), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "try 'local', or 'package.module:attribute'."
        raise ConfigError(f"`rollout.engine` must be one of {', '.join(ENGINES)}, got {name!r}; {hint}")
    if name != "local" and not mode.engines:
        raise ConfigError(
            f"`rollout.engine` must be 'local' in mode {mode.name!r}, got {name!r}: other engines generate "
            "texts only; try `rollout.engine=local`."
        )
    here = options.get("url") is None
    if name in OF_ENGINES:
        require_extra(*OF_ENGINES[name])
    elif name == "vllm_server" and here:
        require_extra(*OF_ENGINES["vllm"])
    if name == "sglang" and here and find_spec("sglang") is None:
        raise EngineError(
            "`rollout.engine_options` must have a `url` where SGLang is not installed, got none; try "
            "`rollout.engine_options.url=http://127.0.0.1:30000` of one that runs."
        )
    check_engine_options(name, options, "rollout.engine_options")
