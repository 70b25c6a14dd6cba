"""Settings of schedulers of diffusers: each is honoured, or refused by its name."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from unirl_env.arguments.values import like_default
from unirl_env.errors import ConfigError

FILE = "scheduler/scheduler_config.json"
SOLVER = "DPMSolverMultistepScheduler"
UNIPC = "UniPCMultistepScheduler"
SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
CLIPS = {
    "clip_sample": "a step that clips x_0 is none of an ODE",
    "thresholding": "a step that clips x_0 is none of an ODE",
}


def require_same(named: Any, configured: Any) -> None:
    """Refuse an index that names another scheduler than the scheduler's own file.

    Raises:
        ConfigError: Naming both.
    """
    if named != configured:
        raise ConfigError(
            f"The scheduler of model_index.json must be that of {FILE}, got {named} and {configured}; change "
            "one of them."
        )


def honoured(
    name: str, config: Mapping[str, Any], family: Sequence[str], refused: Mapping[str, str]
) -> dict[str, Any]:
    """All settings of a scheduler, its defaults filled in.

    Args:
        name: Its class in diffusers.
        config: `scheduler_config.json`.
        family: Classes whose settings may stand beside its own, and say nothing: files keep those of the
            scheduler that a checkpoint was first published with.
        refused: Settings that must be false or null, and why.

    Raises:
        ConfigError: If one is unknown, of a wrong type, or nothing that episodes can honour.
    """
    own = defaults_of(name)
    known = {field for each in (name, *family) for field in defaults_of(each)}
    for field, value in config.items():
        if field not in known and not field.startswith("_") and value not in (None, False):
            raise ConfigError(
                f"`{field}` must be a setting of diffusers' {name}, got {value!r} for one that it does not "
                f"have; take it out of {FILE}, or try a newer diffusers."
            )
    settings = {**own, **{field: value for field, value in config.items() if field in own}}
    for field, default in own.items():
        if not (isinstance(default, float) and math.isinf(default)):
            like_default(f"scheduler.{field}", settings[field], default)
    for field, reason in {**CLIPS, **refused}.items():
        if settings.get(field):
            raise ConfigError(
                f"`{field}` of the scheduler must be false or null, got {settings[field]!r}: {reason}; "
                f"change it in {FILE}."
            )
    algorithm = settings.get("algorithm_type")
    if str(algorithm).startswith("sde"):
        raise ConfigError(
            f"`algorithm_type` of the scheduler must be dpmsolver++, got {algorithm!r}: noise belongs to the "
            f"policy, whose `dynamics` and `eta` say how much; change it in {FILE}."
        )
    return settings


def made(name: str, settings: Mapping[str, Any]) -> Any:
    """The scheduler itself, of those settings that it has.

    Raises:
        ConfigError: If they do not fit together.
    """
    try:
        kind = getattr(import_module("diffusers"), name)
        return kind(**{field: settings[field] for field in defaults_of(name) if field in settings})
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise ConfigError(f"The settings of the scheduler must fit together, got: {error}.") from error


def set_timesteps(scheduler: Any, num_steps: int) -> None:
    """Ask the scheduler for its own steps.

    Raises:
        ConfigError: If its settings do not fit together.
    """
    try:
        # It divides by zero on its way, and makes arrays in a manner that numpy wishes away.
        quiet = warnings.catch_warnings(action="ignore", category=DeprecationWarning)
        with np.errstate(all="ignore"), quiet:
            scheduler.set_timesteps(num_steps)
    except (ValueError, TypeError, ZeroDivisionError, IndexError) as error:
        raise ConfigError(f"The settings of the scheduler must fit together, got: {error}.") from error


def changed_of(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of the settings is not the default of the scheduler `name`."""
    known = defaults_of(name)
    return {field: value for field, value in settings.items() if value != known[field]}


def defaults_of(name: str) -> dict[str, Any]:
    """A scheduler's settings, as this version of diffusers has them."""
    parameters = inspect.signature(getattr(import_module("diffusers"), name).__init__).parameters
    return {field: each.default for field, each in parameters.items() if field != "self"}
