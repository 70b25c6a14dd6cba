"""Environments by id: how one is registered, with Gymnasium and with RLlib, and what an id means.

Imports nothing large, so that a package can register its ids as it is imported.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Mapping
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, parse_env_id

from unirl_env.arguments.names import check_names
from unirl_env.errors import ConfigError

OURS = "unirl_env.worlds:make_vector_env"
"""The entry point of environments that are described by the arguments of their ids."""
SINGLE = "unirl_env.worlds:make_env"
RLLIBS_TABLE = "ray.tune.registry"
"""The module in which RLlib keeps environments by name, for all processes of a cluster."""

_homes: dict[str, str] = {}
"""Id to the module that registers it as it is imported."""


def register(id: str, *, override: bool = False, **arguments: Any) -> None:
    """Register an environment of your own under an id, as the shipped ones are.

    From then on the id works wherever one is taken: `gym.make`, `gym.make_vec`, `model.env=` (as
    `package:namespace/Name-v0`, where the package does this as it is imported), the agents'
    `.environment(...)`, and RLlib's own agents, on remote runners too. Nothing is imported or loaded here:
    parts are named by their paths. The names of the arguments are looked at now, what they say when an
    environment is made.

    Example:
        >>> unirl_env.register(
        ...     "mylab/Ring-v0",
        ...     denoiser="mylab.ring:RingDenoiser",
        ...     num_steps=6,
        ...     prompts=["near the ring", "far from it"],
        ...     scorer="mylab.ring:nearness",
        ... )

    Args:
        id: `"namespace/Name-v0"`.
        override: Take the place of another environment of this id.
        **arguments: Those of `unirl_env.worlds.make_vector_env`: one of `denoiser`, `language_model` and
            `unified_model` (a registered name, a path `"package.module:Class"`, or the class or model
            itself), `prompts`, `scorer`, what the environment takes (`num_steps`, `max_new_tokens`, ...), the
            model's options, and in `model_options` those that it alone takes. `env` names the class of an
            environment of your own, which is called `env(model, num_envs=..., device=..., **the others)`.

    Raises:
        UnknownArgument: If an argument is unknown, naming the nearest.
        ConfigError: If the id is none, no model is named, or the id stands for other arguments already.
    """
    wrong = f"`id` must be 'namespace/Name-v0', without a package before it, got {id!r}; try 'mylab/Ring-v0'."
    try:
        parse_env_id(id)
    except (gym.error.Error, TypeError) as error:
        raise ConfigError(wrong) from error
    if ":" in id:
        raise ConfigError(wrong)
    check_names(id, arguments)
    if id in gym.registry and not override:
        known = gym.registry[id]
        if known.vector_entry_point == OURS and _alike(known.kwargs, arguments):
            return
        raise ConfigError(
            f"`id` must be free, got {id!r}, which stands for {_difference(known, arguments)}; try another "
            "id, or override=True."
        )
    gym.registry.pop(id, None)
    announce(id, arguments, home=_importing())


def announce(name: str, arguments: Mapping[str, Any], home: str) -> None:
    """Register an id with Gymnasium, and with RLlib as soon as that is there.

    Args:
        name: The id.
        arguments: What describes the environment.
        home: The module that does this when it is imported.
    """
    gym.register(name, entry_point=SINGLE, vector_entry_point=OURS, kwargs=dict(arguments))
    _homes[name] = home
    if RLLIBS_TABLE in sys.modules:
        _register_with_rllib(sys.modules[RLLIBS_TABLE], [name])
    elif not any(isinstance(finder, _WithRLlib) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WithRLlib())


def spec_of(name: Any, label: str = "environment") -> EnvSpec:
    """What an id means, everywhere where one is taken; a prefix says which package to import first.

    Args:
        name: `"namespace/Name-v0"`, or `"package:namespace/Name-v0"`.
        label: What an error calls the setting.

    Raises:
        ConfigError: If the package cannot be imported, or no such id is registered.
    """
    if not isinstance(name, str):
        raise ConfigError(
            f"`{label}` must be a registered environment, got {name!r}; try 'unirl/TinySD3-T2I-v0', or "
            "`package:namespace/Name-v0` for one of your own."
        )
    module, colon, bare = name.rpartition(":")
    if colon:
        _import(module, name, label)
    if bare not in gym.registry:
        raise ConfigError(_unknown(module, bare, name, label))
    return gym.registry[bare]


def full_id(name: str) -> str:
    """An id with the prefix by which a process that has imported nothing finds it, where that is known."""
    home = _homes.get(name)
    return name if home in (None, "__main__") else f"{home}:{name}"


def make_for_rllib(name: str, spec: EnvSpec, context: Mapping[str, Any]) -> Any:
    """The environment that RLlib means by an id and an `env_config`: a batch of them where it asks for one.

    Args:
        name: The id, with its prefix.
        spec: What it meant where it was registered, which no import may repeat here.
        context: The keyword arguments, with `num_envs` for a batch.
    """
    recall(name, spec)
    options = dict(context)
    if "num_envs" in options:
        return gym.make_vec(name, vectorization_mode="vector_entry_point", **options)
    return gym.make(name, **options)


def recall(name: str, spec: EnvSpec | None) -> None:
    """In a process of a run: let an id mean what it meant in the one that began the run."""
    module, _, bare = name.rpartition(":")
    if module:
        _import(module, name, "environment")
    if spec is not None and bare not in gym.registry:
        gym.registry[bare] = spec


def _import(module: str, name: str, label: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        if absent or not module.strip("."):
            namespace = name.rpartition(":")[2].partition("/")[0]
            hint = f"did you mean {namespace}:{name.rpartition(':')[2]}? " if _is_package(namespace) else ""
            remedy = f"{hint}`package:namespace/Name-v0` imports an installed package first"
            raise ConfigError(
                f"`{label}` must name a package that is there before its colon, got {name!r} (No module "
                f"named {module!r}); {remedy}."
            ) from error
        raise ConfigError(
            f"`{label}` must name a package that can be imported, got {name!r}, where {module!r} ends with "
            f"{type(error).__name__}: {error}"
        ) from error


def _is_package(name: str) -> bool:
    try:
        return name.isidentifier() and find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _unknown(module: str, bare: str, name: str, label: str) -> str:
    """What is said of an id that nobody has registered, with the nearest that there is."""
    namespace = bare.partition("/")[0]
    known = sorted({*_homes, *(each for each in gym.registry if each.startswith(f"{namespace}/"))})
    near = difflib.get_close_matches(bare, known, n=1, cutoff=0.5)
    if near and near[0].startswith(f"{namespace}/"):
        prefix = f"{module}:" if module else ""
        hint = f"did you mean {prefix}{near[0]}? Others are"
    elif not module and _is_package(namespace):
        hint = f"did you mean {namespace}:{bare}, which imports the package {namespace} first? Others are"
    else:
        hint = f"did you mean {near[0]}? Others are" if near else "try one of"
    after = f"is registered once {module!r} is imported" if module else "is registered"
    return (
        f"`{label}` must be a registered environment, got {name!r}, and no {bare!r} {after}; {hint} "
        f"{', '.join(known)}, or `package:namespace/Name-v0` for one of your own."
    )


def _importing() -> str:
    """The module whose import makes this call, or `__main__` where no other process could import it."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    name = frame.f_globals.get("__name__", "__main__")
    return name if name in sys.modules else "__main__"


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)


def _equal(one: Any, other: Any) -> bool:
    try:
        return one is other or bool(one == other)
    except Exception:  # Arrays, for example, have no truth.
        return False


def _difference(known: EnvSpec, arguments: Mapping[str, Any]) -> str:
    """In what a registered environment is another one, in words."""
    if known.vector_entry_point != OURS:
        return f"an environment of the entry point {known.vector_entry_point or known.entry_point!r}"
    names = {**known.kwargs, **arguments}
    other = [name for name in names if not _equal(known.kwargs.get(name), arguments.get(name))]
    return "another environment: " + ", ".join(
        f"{name}={known.kwargs[name]!r:.80}" if name in known.kwargs else f"no {name}" for name in other
    )


def _register_with_rllib(table: ModuleType, names: list[str]) -> None:
    # A remote runner has imported nothing of ours: the creator, which is found by its module, does that.
    for name in names:
        table.register_env(name, partial(make_for_rllib, full_id(name), gym.registry[name]))


class _WithRLlib(MetaPathFinder):
    """Registers the ids with RLlib right after its import, whichever comes first; imports nothing itself."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != RLLIBS_TABLE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register_with_rllib(module, list(_homes))

            loader.exec_module = exec_module
        return spec
