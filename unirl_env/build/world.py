"""Worlds from the arguments of an environment id: model, prompts, reward, and the wrappers around them."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode

from unirl_env.checks import is_number, truth
from unirl_env.envs.base import GenerativeVectorEnv
from unirl_env.envs.single import SingleEnv
from unirl_env.errors import ConfigError, UnknownArgument
from unirl_env.models import Denoiser
from unirl_env.models.loading import require_source
from unirl_env.models.options import FAMILIES, MODEL_OPTIONS, ModelChoice, model_choice
from unirl_env.modes import Mode, mode_of
from unirl_env.registry import Registry
from unirl_env.rewards.background import Background
from unirl_env.rewards.spec import build_scorer
from unirl_env.rewards.spec_check import check_reward
from unirl_env.wrappers.draw import DrawWrapper
from unirl_env.wrappers.flatten import FlattenForPPO, flatten_for_ppo
from unirl_env.wrappers.reward import UNASKED, RewardWrapper

__all__ = ["make_env", "make_model", "make_vector_env", "pick_device"]

TOOLS = Registry("tool", {"calculator": "unirl_env.envs.tools:Calculator"})
OWN_ARGUMENTS = ("generator", "scorer", "on_invalid", "together", "overlap", "flat")
"""What `make_vector_env` itself takes, whatever the environment."""
ONE_EPISODE = {
    "num_envs": 1,
    "group_size": 1,
    "array_backend": "numpy",
    "autoreset_mode": "disabled",
    "overlap": False,
}


def make_vector_env(
    num_envs: int = 1,
    *,
    generator: Mapping[str, Any] | None = None,
    scorer: Any = None,
    on_invalid: str | float = UNASKED,
    together: bool = False,
    overlap: bool = False,
    device: str = "cpu",
    flat: bool | Sequence[str] = False,
    **arguments: Any,
) -> gym.vector.VectorEnv:
    """Entry point of the vector environments: the model's environment inside `RewardWrapper`.

    Args:
        num_envs: B.
        generator: Of a language model, what draws its texts: `{"denoiser": "tiny_sd3", ...}` with the
            options of that model and those of `DrawWrapper`; `together` is True by default in autoreset mode
            DISABLED. None leaves texts as they are.
        scorer: Anything that `build_scorer` understands; None leaves the episodes unscored.
        on_invalid: What an invalid score pays: `"raise"`, because no agent is handed NaN unasked, `"nan"`,
            or a number; this library's own agents, which read scores, take the default for `"nan"`. See
            `RewardWrapper`.
        together: Judge all episodes of a batch at its end, in one call of the scorer; see `RewardWrapper`.
        overlap: Judge in the background: a step does not wait for its scores; see `RewardWrapper`.
        device: For the model's frozen half and the episodes; `"auto"` is the GPU where there is one.
        flat: For unmodified agents: see one flat `Box`, the prompt included, and act in one, or by tokens
            (`FlattenForPPO`); a sequence names the entries that are seen. An argument, because
            `gym.make_vec` cannot wrap natively batched environments.
        **arguments: `denoiser`, `language_model` or `unified_model` (a name, a dotted path or an adapter),
            the model's options, and those of `DenoiseVectorEnv`, `TokenVectorEnv` or `HybridVectorEnv`.

    Raises:
        UnknownArgument: If an argument is unknown; a ConfigError and a TypeError.
        ConfigError: If an argument does not fit.
        PromptError: If a prompt cannot be used, or lacks what the scorer asks for.
    """
    device = require_device(pick_device(device))
    mode = mode_of({**arguments, "generator": generator})
    choice = mode.choice({**arguments, "device": device})
    _refuse_unknown(choice, mode)
    if scorer is not None:
        check_reward(scorer)
    if on_invalid not in ("nan", "raise") and not is_number(on_invalid):
        raise ConfigError(f"`on_invalid` must be 'nan', 'raise' or a finite number, got {on_invalid!r}.")
    _check_flat(flat)
    model = make_model(choice, mode) if isinstance(choice.name, str) else choice.name
    if "tool" in choice.rest:
        choice.rest["tool"] = _tool(choice.rest["tool"])
    env = mode.environment(model, num_envs=num_envs, device=device, **choice.rest)
    if generator is not None:
        env = _drawn(env, generator, mode, device)
    if scorer is not None:
        judge = build_scorer(scorer)
        if truth("overlap", overlap) and not isinstance(judge, Background):
            judge = Background(judge)
        env = RewardWrapper(env, judge, on_invalid=on_invalid, together=together)
    if not flat:
        return env
    return FlattenForPPO(env) if flat is True else FlattenForPPO(env, flat)


def make_env(*, flat: bool | Sequence[str] = False, **arguments: Any) -> gym.Env:
    """Entry point of the single environments: a view of a vector environment of one episode.

    Raises:
        ConfigError: If an argument is unknown or does not fit, or asks for more than one episode can be.
    """
    for name, value in ONE_EPISODE.items():
        if arguments.setdefault(name, value) != value:
            raise ConfigError(
                f"`{name}` must be {value!r} for a single environment, got {arguments[name]!r}; "
                "try gym.make_vec."
            )
    _check_flat(flat)
    env = SingleEnv(make_vector_env(**arguments))
    if not flat:
        return env
    return flatten_for_ppo(env) if flat is True else flatten_for_ppo(env, flat)


def pick_device(device: str) -> str:
    """`"auto"` as a real device."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def require_device(device: str) -> str:
    """`device`, if torch knows it and this machine has it.

    Raises:
        ConfigError: If not.
    """
    try:
        known = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"`device` must be a device of torch, got {device!r}; try 'auto', 'cpu' or 'cuda'."
        ) from error
    count = torch.cuda.device_count()
    if known.type == "cuda" and (known.index or 0) >= count:
        raise ConfigError(
            f"`device` must be one of this machine, got {device!r} where torch finds {count} GPUs; "
            "try 'auto'."
        )
    return device


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that `make_vector_env` would refuse, as far as can be said without loading anything.

    Raises:
        ConfigError: Naming the argument; an `UnknownArgument` if it is unknown.
        ModelNotFound: If the model's directory is missing, or holds no weights that can be read.
    """
    own = {name: arguments[name] for name in OWN_ARGUMENTS if name in arguments}
    mode = mode_of(arguments)
    choice = mode.choice({name: value for name, value in arguments.items() if name not in own})
    require_device(pick_device(choice.options.get("device", "cpu")))
    if isinstance(choice.name, str):
        _target(choice, mode)
    _refuse_unknown(choice, mode)
    _require_kinds(choice, mode)


def make_model(choice: ModelChoice, mode: Mode | None = None) -> Any:
    """The adapter of a model family; its two halves load on first use.

    Args:
        choice: The model.
        mode: Whose; None takes the one that the choice's argument tells.

    Raises:
        ConfigError: If the family is unknown or the options do not fit it.
    """
    mode = mode_of({choice.family: choice.name}) if mode is None else mode
    target = _target(choice, mode)
    _require_kinds(choice, mode)
    try:
        return target(**choice.options)
    except TypeError as error:
        # An adapter that passes its options on finds only inside that one is unknown.
        if "argument" not in str(error):
            raise
        raise _misfit(choice, error) from error


def _misfit(choice: ModelChoice, error: TypeError) -> ConfigError:
    kind = UnknownArgument if "unexpected keyword argument" in str(error) else ConfigError
    return kind(f"The options of model {choice.name!r} do not fit: {error}.")


def _target(choice: ModelChoice, mode: Mode) -> Any:
    """The class of an adapter, if its arguments fit."""
    target = mode.models.get(choice.name)
    try:
        inspect.signature(target).bind(**choice.options)
    except TypeError as error:
        raise _misfit(choice, error) from error
    return target


def _require_kinds(choice: ModelChoice, mode: Mode) -> None:
    """Refuse a source that is none, texts that are no texts, and truth values that are texts."""
    for name in ("pretrained", "revision", "system"):
        value = choice.options.get(name)
        if value is not None and not isinstance(value, str | os.PathLike):
            raise ConfigError(f"`{name}` must be a text or None, got {value!r}; try {str(value)!r}.")
    for name in ("chat", "thinking", "trust_remote_code", "offload"):
        if choice.options.get(name) is not None:
            truth(name, choice.options[name])
    if (source := choice.options.get("pretrained")) is not None:
        require_source(os.fspath(source), mode.embedded)


def _check_flat(flat: Any) -> None:
    named = isinstance(flat, Sequence) and not isinstance(flat, str) and all(isinstance(n, str) for n in flat)
    if not isinstance(flat, bool) and not named:
        raise ConfigError(
            f"`flat` must be True, False or a list of entries of the observation, got {flat!r}; try True."
        )


def _refuse_unknown(choice: ModelChoice, mode: Mode) -> None:
    known = _arguments(mode.environment)
    if known is None:
        return
    if unknown := set(choice.rest) - known:
        every = known | set(MODEL_OPTIONS) | {*FAMILIES, *OWN_ARGUMENTS}
        raise UnknownArgument(_unknown("The environment", unknown, every))


def _unknown(who: str, unknown: Iterable[str], known: Iterable[str]) -> str:
    """What is said of arguments that `who` does not have, with the nearest that it has."""
    told = []
    for name in sorted(unknown):
        near = difflib.get_close_matches(name, known, n=1)
        told.append(f"got an unexpected keyword argument {name!r}" + (f", try {near[0]!r}" if near else ""))
    return f"{who} {'; '.join(told)}: it has no arguments {sorted(unknown)}; it has {sorted(known)}."


def _arguments(kind: Any) -> set[str] | None:
    """What an environment's constructor takes, besides its model and what is set apart; None of anything."""
    named = dict(inspect.signature(kind).parameters)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in named.values()):
        if not (inspect.isclass(kind) and issubclass(kind, GenerativeVectorEnv)):
            return None
        named |= inspect.signature(GenerativeVectorEnv).parameters
    return set(named) - {next(iter(inspect.signature(kind).parameters)), "shared", "num_envs", "device"}


def _drawn(
    env: gym.vector.VectorEnv, spec: Mapping[str, Any], mode: Mode, device: str
) -> gym.vector.VectorEnv:
    """`env` inside a `DrawWrapper` with the generator that `spec` describes."""
    if not mode.generator:
        raise ConfigError(
            f"`generator` must be None for a `{mode.argument}`, which draws by itself, got {spec!r}."
        )
    if not isinstance(spec, Mapping) or not spec.get("denoiser"):
        raise ConfigError(
            f"`generator` must be a mapping that names a `denoiser`, got {spec!r}; try "
            '{"denoiser": "tiny_sd3", "num_steps": 6}.'
        )
    choice = model_choice({**spec, "device": pick_device(spec.get("device") or device)})
    signature = inspect.signature(DrawWrapper.__init__).parameters
    known = set(signature) - {"self", "env", "generator"}
    if unknown := set(choice.rest) - known:
        raise UnknownArgument(_unknown("`generator`", unknown, known | set(MODEL_OPTIONS)))
    model = choice.name if isinstance(choice.name, Denoiser) else make_model(choice)
    together = env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    settings = {name: value for name, value in choice.rest.items() if value is not None}
    return DrawWrapper(env, model, **{"together": together, **settings})


def _tool(tool: Any) -> Any:
    """A tool by its name or dotted path; what can be called is taken as it is."""
    if not isinstance(tool, str):
        return tool
    found = TOOLS.get(tool)
    return found() if inspect.isclass(found) else found
