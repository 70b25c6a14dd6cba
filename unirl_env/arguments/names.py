"""What environment ids take: the names of their arguments, known without importing what takes them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from unirl_env.errors import ConfigError, UnknownArgument

MODEL_OPTIONS = (
    "pretrained",
    "revision",
    "height",
    "width",
    "num_frames",
    "fps",
    "dtype",
    "device",
    "offload",
    "max_sequence_length",
    "schedule",
    "rows_per_forward",
    "embedded_guidance",
    "tiling",
    "compile",
    "attention",
    "quantization",
    "system",
    "chat",
    "thinking",
    "max_images",
    "min_pixels",
    "max_pixels",
    "trust_remote_code",
)
"""Of models of several families; what one model alone takes goes into `model_options`."""
WORLD = ("mode", "env", "generator", "scorer", "on_invalid", "together", "overlap", "flat", "model_options")
"""What a world takes, whatever its environment."""
EPISODES = (
    "prompts",
    "group_size",
    "same_noise",
    "array_backend",
    "autoreset_mode",
    "render_mode",
    "max_characters",
    "info_objects",
)
"""What every `GenerativeVectorEnv` takes."""
LIMITS = ("max_new_tokens", "max_prompt_tokens", "with_inputs")
STEPS = ("num_steps", "levels", "stochastic_steps", "with_negative", "context_cache")
ENVIRONMENTS: Mapping[str, tuple[str, ...]] = {
    "denoiser": (*EPISODES, *STEPS),
    "language_model": (*EPISODES, *LIMITS, "tool", "max_turns"),
    "mdp": (*EPISODES, "max_steps"),
    "unified_model": (*EPISODES, *LIMITS, *STEPS, "edits"),
}
"""By the argument that names the model, what its environment takes beside it."""
DRAW = (
    "num_steps",
    "guidance",
    "pictures",
    "network",
    "together",
    "after",
    "max_characters",
    "rows",
    "context_cache",
)
"""What a `generator` takes, beside its model."""
FAMILIES = tuple(ENVIRONMENTS)
"""The arguments that name a model, one for each kind of environment."""


def check_names(id: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the environment of an id cannot take, as far as names tell.

    Raises:
        UnknownArgument: Naming the nearest that there is.
        ConfigError: If no argument names a model, or several do.
    """
    if "mode" in arguments:
        return  # Which names there are is the mode's affair.
    named = [name for name in FAMILIES if arguments.get(name) is not None]
    every = known_to(name for takes in ENVIRONMENTS.values() for name in takes)
    unknown = set(arguments) - every
    takes = ENVIRONMENTS[named[0]] if len(named) == 1 else every
    if arguments.get("env") is None:
        unknown |= set(arguments) - known_to(takes)
    if unknown and (len(named) != 1 or arguments.get("env") is None):
        said = unknown_arguments(f"{id}", unknown, known_to(takes))
        raise UnknownArgument(f"{said} What one model alone takes goes into `model_options`.")
    if len(named) != 1:
        raise ConfigError(
            f"One of {', '.join(f'`{family}`' for family in FAMILIES)} must name the model of {id}, got "
            f"{named or 'none'}; try denoiser='package.module:Class'."
        )
    generator = arguments.get("generator")
    if isinstance(generator, Mapping):
        if unknown := set(generator) - {*DRAW, *MODEL_OPTIONS, "model_options", "denoiser"}:
            raise UnknownArgument(unknown_arguments("`generator`", unknown, {*DRAW, *MODEL_OPTIONS}))


def known_to(takes: Iterable[str]) -> set[str]:
    """All arguments of an id whose environment takes `takes`."""
    return {*takes, *MODEL_OPTIONS, *FAMILIES, *WORLD}


def unknown_arguments(who: str, unknown: Iterable[str], known: Iterable[str]) -> str:
    """What is said of arguments that `who` does not have, with the nearest that it has."""
    told = []
    for name in sorted(unknown):
        near = difflib.get_close_matches(name, known, n=1)
        told.append(f"got an unexpected keyword argument {name!r}" + (f", try {near[0]!r}" if near else ""))
    return f"{who} {'; '.join(told)}: it has no arguments {sorted(unknown)}; it has {sorted(known)}."
