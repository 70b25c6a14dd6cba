"""The arguments of a world, held against what takes them before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from unirl_env.arguments.names import DRAW, MODEL_OPTIONS, WORLD, known_to, unknown_arguments
from unirl_env.arguments.values import is_number, truth
from unirl_env.errors import ConfigError, UnknownArgument
from unirl_env.models.making import ModelChoice, check_options, is_model, label_of, model_choice, model_class
from unirl_env.models.shared.loading import EMBEDDED, require_source
from unirl_env.modes import Mode, mode_of
from unirl_env.registry import Registry
from unirl_env.rewards.spec import check_reward

ENVIRONMENTS = Registry("env", {})
"""A class of the user's own goes by its path."""


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that no world takes, as far as can be said without loading anything.

    Raises:
        ConfigError: Naming the argument; an `UnknownArgument` if it is unknown.
        ModelNotFound: If the model's directory is missing, or holds no weights that can be read.
    """
    mode, choice, _ = parted(arguments)
    require_device(pick_device(choice.options.get("device", "cpu")))
    check_words(arguments)
    require_kinds(mode, choice)


def check_words(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments whose names or model no world knows; what they ask of a machine is not looked at.

    Raises:
        ConfigError: Naming the argument; an `UnknownArgument` if it is unknown.
    """
    mode, choice, own = parted(arguments)
    target = model_class(mode.models, choice.name)
    if not is_model(mode.models, target):
        check_options(target, choice.options, label_of(choice.name))
    refuse_unknown(mode, choice, own)
    if own.get("generator") is not None:
        check_generator(own["generator"], mode)


def parted(arguments: Mapping[str, Any]) -> tuple[Mode, ModelChoice, dict[str, Any]]:
    """The mode of a world's arguments; its model and the environment's arguments; and the world's own.

    Raises:
        ConfigError: Unless one argument names a model.
    """
    mode = mode_of(arguments)
    own = {name: arguments[name] for name in WORLD if name in arguments and name != "model_options"}
    rest = {name: value for name, value in arguments.items() if name not in own}
    return mode, model_choice(rest, mode.argument), own


def environment_of(mode: Mode, own: Mapping[str, Any]) -> Any:
    """The class of the environment: the mode's, unless `env` is a class or the path of one."""
    env = own.get("env")
    found = ENVIRONMENTS.get(env) if isinstance(env, str) else env
    if found is not None and not callable(found):
        raise ConfigError(
            f"`env` must be the class of a vector environment, or its path, got {env!r}; try "
            "'package.module:Class'."
        )
    return mode.environment if found is None else found


def refuse_unknown(mode: Mode, choice: ModelChoice, own: Mapping[str, Any]) -> None:
    """Refuse what the environment's class does not declare; one that declares nothing is asked by its call.

    Raises:
        UnknownArgument: Naming the nearest that there is.
    """
    takes = vars(environment_of(mode, own)).get("arguments")
    if takes is None:
        return
    if unknown := set(choice.rest) - set(takes):
        said = unknown_arguments("The environment", unknown, known_to(takes))
        raise UnknownArgument(f"{said} What one model alone takes goes into `model_options`.")


def check_own(own: Mapping[str, Any]) -> None:
    """Refuse a reward that cannot be, an `on_invalid` that pays nothing, and a `flat` that shows nothing.

    Raises:
        ConfigError: Naming the argument.
    """
    if own.get("scorer") is not None:
        check_reward(own["scorer"])
    value = own.get("on_invalid", "raise")
    if value not in ("nan", "raise") and not is_number(value):
        raise ConfigError(f"`on_invalid` must be 'nan', 'raise' or a finite number, got {value!r}.")
    check_flat(own.get("flat", False))


def check_flat(flat: Any) -> None:
    """Refuse a `flat` that is no truth value and no list of names."""
    named = isinstance(flat, Sequence) and not isinstance(flat, str) and all(isinstance(n, str) for n in flat)
    if not isinstance(flat, bool) and not named:
        raise ConfigError(
            f"`flat` must be True, False or a list of entries of the observation, got {flat!r}; try True."
        )


def check_generator(spec: Any, mode: Mode) -> None:
    """Refuse a generator where nothing is written, and one without a model.

    Raises:
        ConfigError: Saying what it must be; an `UnknownArgument` if one of its arguments is unknown.
    """
    if not mode.generator:
        raise ConfigError(
            f"`generator` must be None for a `{mode.argument}`, which draws by itself, got {spec!r}."
        )
    if not isinstance(spec, Mapping) or not spec.get("denoiser"):
        raise ConfigError(
            f"`generator` must be a mapping that names a `denoiser`, got {spec!r}; try "
            '{"denoiser": "tiny_sd3", "num_steps": 6}.'
        )
    if unknown := set(model_choice(spec).rest) - set(DRAW):
        raise UnknownArgument(unknown_arguments("`generator`", unknown, {*DRAW, *MODEL_OPTIONS}))


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


def require_kinds(mode: Mode, choice: ModelChoice) -> None:
    """Refuse a source that is none, texts that are no texts, and truth values that are texts."""
    for name in ("pretrained", "revision", "system"):
        value = choice.options.get(name)
        if value is not None and not isinstance(value, str | os.PathLike):
            raise ConfigError(f"`{name}` must be a text or None, got {value!r}; try {str(value)!r}.")
    for name in ("chat", "thinking", "trust_remote_code", "offload"):
        if choice.options.get(name) is not None:
            truth(name, choice.options[name])
    # What a user's own model is made from, it knows itself.
    known = isinstance(choice.name, str) and choice.name in mode.models
    if known and (source := choice.options.get("pretrained")) is not None:
        makes = getattr(model_class(mode.models, choice.name), "makes", "")
        require_source(os.fspath(source), EMBEDDED.get(makes, mode.embedded))
