"""Worlds from the arguments of an environment id: model, prompts, reward, and the wrappers around them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode

from unirl_env.checks import truth
from unirl_env.envs.base import GenerativeVectorEnv
from unirl_env.envs.denoise import DenoiseVectorEnv
from unirl_env.envs.hybrid import HybridVectorEnv
from unirl_env.envs.single import SingleEnv
from unirl_env.envs.tokens import TokenVectorEnv
from unirl_env.errors import ConfigError, UnknownArgument
from unirl_env.models import (
    DENOISERS,
    LANGUAGE_MODELS,
    UNIFIED_MODELS,
    Denoiser,
    LanguageModel,
    UnifiedModel,
)
from unirl_env.models.options import FAMILIES, MODEL_OPTIONS, ModelChoice, model_choice
from unirl_env.registry import Registry
from unirl_env.rewards.background import Background
from unirl_env.rewards.spec import build_scorer
from unirl_env.wrappers.draw import DrawWrapper
from unirl_env.wrappers.flatten import FlattenForPPO, flatten_for_ppo
from unirl_env.wrappers.reward import UNASKED, RewardWrapper

__all__ = ["make_env", "make_model", "make_vector_env", "pick_device"]

TOOLS = Registry("tool", {"calculator": "unirl_env.envs.tools:Calculator"})
KINDS = {
    "denoiser": (DENOISERS, DenoiseVectorEnv),
    "language_model": (LANGUAGE_MODELS, TokenVectorEnv),
    "unified_model": (UNIFIED_MODELS, HybridVectorEnv),
}
"""By the argument that names the model: where names are looked up, and what is made of it."""
MODELS = Denoiser | LanguageModel | UnifiedModel
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
        flat: For unmodified agents: see and act in one flat `Box` (`FlattenForPPO`); a sequence names the
            entries that are seen. An argument, because `gym.make_vec` cannot wrap natively batched
            environments.
        **arguments: `denoiser`, `language_model` or `unified_model` (a name, a dotted path or an adapter),
            the model's options, and those of `DenoiseVectorEnv`, `TokenVectorEnv` or `HybridVectorEnv`.

    Raises:
        UnknownArgument: If an argument is unknown; a ConfigError and a TypeError.
        ConfigError: If an argument does not fit.
        PromptError: If a prompt cannot be used, or lacks what the scorer asks for.
    """
    device = pick_device(device)
    choice = model_choice({**arguments, "device": device})
    _, kind = KINDS[choice.family]
    model = choice.name if isinstance(choice.name, MODELS) else make_model(choice)
    known = _arguments(kind)
    if unknown := set(choice.rest) - known:
        every = known | set(MODEL_OPTIONS) | {*FAMILIES, *OWN_ARGUMENTS}
        raise UnknownArgument(_unknown("The environment", unknown, every))
    if "tool" in choice.rest:
        choice.rest["tool"] = _tool(choice.rest["tool"])
    env = kind(model, num_envs=num_envs, device=device, **choice.rest)
    if generator is not None:
        env = _drawn(env, generator, choice.family, device)
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
    env = SingleEnv(make_vector_env(**arguments))
    if not flat:
        return env
    return flatten_for_ppo(env) if flat is True else flatten_for_ppo(env, flat)


def pick_device(device: str) -> str:
    """`"auto"` as a real device."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_model(choice: ModelChoice) -> Denoiser | LanguageModel | UnifiedModel:
    """The adapter of a model family; its two halves load on first use.

    Raises:
        ConfigError: If the family is unknown or the options do not fit it.
    """
    registry, _ = KINDS[choice.family]
    target = registry.get(choice.name)
    try:
        inspect.signature(target).bind(**choice.options)
        return target(**choice.options)
    except TypeError as error:
        # An adapter that passes its options on finds only inside that one is unknown.
        if "argument" not in str(error):
            raise
        kind = UnknownArgument if "unexpected keyword argument" in str(error) else ConfigError
        raise kind(f"The options of model {choice.name!r} do not fit: {error}.") from error


def _unknown(who: str, unknown: Iterable[str], known: Iterable[str]) -> str:
    """What is said of arguments that `who` does not have, with the nearest that it has."""
    told = []
    for name in sorted(unknown):
        near = difflib.get_close_matches(name, known, n=1)
        told.append(f"got an unexpected keyword argument {name!r}" + (f", try {near[0]!r}" if near else ""))
    return f"{who} {'; '.join(told)}: it has no arguments {sorted(unknown)}; it has {sorted(known)}."


def _arguments(kind: type[GenerativeVectorEnv]) -> set[str]:
    """What an environment's constructor takes, besides its model and what is set apart."""
    signatures = (inspect.signature(made.__init__) for made in (kind, GenerativeVectorEnv))
    named = {parameter for signature in signatures for parameter in signature.parameters}
    return named - {"self", "shared", "num_envs", "device", *FAMILIES}


def _drawn(
    env: gym.vector.VectorEnv, spec: Mapping[str, Any], family: str, device: str
) -> gym.vector.VectorEnv:
    """`env` inside a `DrawWrapper` with the generator that `spec` describes."""
    if family != "language_model":
        raise ConfigError(f"`generator` must be None for a `{family}`, which draws by itself, got {spec!r}.")
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
