"""From an algorithm's name in the settings to its configuration."""

from __future__ import annotations

import difflib
import inspect
import sys
from types import ModuleType
from typing import Any

from unirl_env.agents.agent import Agent
from unirl_env.agents.catalogue import AGENTS, path
from unirl_env.agents.config import AgentConfig
from unirl_env.errors import ConfigError, UnirlError

EXAMPLE = "package.module:ReinforceConfig"


def default_config(name: Any, field: str = "agent.name") -> AgentConfig:
    """The default configuration of the algorithm that a name means, ready to be set and built.

    Args:
        name: One of `AGENTS`, or the path of an `AgentConfig` or an `Agent`: `"package.module:Class"` or
            `"package.module.Class"`.
        field: What messages call the setting.

    Raises:
        ConfigError: If nothing can be imported from there, or it is no algorithm of this library's kind.
    """
    found = _found(name, field)
    try:
        if inspect.isclass(found) and issubclass(found, Agent):
            config = found.get_default_config()
            config.algo_class = found
            return config
        return found()
    except TypeError as error:
        raise ConfigError(
            f"`{field}` must name a configuration that is made without arguments, got {name!r} "
            f"({_line(error)}); try knobs with defaults, which `training` and `agent.options` set."
        ) from error


def _found(name: Any, field: str) -> type[AgentConfig] | type[Agent]:
    named = isinstance(name, str) and (name in AGENTS or all(_parts(name)))
    if not named:
        raise ConfigError(
            f"`{field}` must be one of {', '.join(AGENTS)} or the path of your own class "
            f"(`{EXAMPLE}`), got {name!r}{_meant(str(name))}"
        )
    try:
        found = AGENTS.get(name)
    except UnirlError as error:
        raise ConfigError(f"`{field}`: {error}{_listed(name)}") from error
    except Exception as error:
        raise ConfigError(
            f"`{field}` must name a module that can be imported, got {name!r} "
            f"({type(error).__name__}: {_line(error)}); try `python -c 'import {_parts(name)[0]}'`."
        ) from error
    if not (inspect.isclass(found) and issubclass(found, AgentConfig | Agent)):
        raise ConfigError(
            f"`{field}` must name a class derived from AgentConfig, got {name!r}, {_named_instead(found)}"
        )
    return found


def _parts(path: str) -> tuple[str, str]:
    """Module and attribute of a path; empty where there is none."""
    module, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    return module, attribute


def _agents_of(module: ModuleType | None) -> list[str]:
    """The configurations that a module defines, by their paths."""
    if module is None:
        return []
    kinds = [kind for _, kind in sorted(vars(module).items()) if inspect.isclass(kind)]
    return [path(k) for k in kinds if issubclass(k, AgentConfig) and k.__module__ == module.__name__]


def _listed(name: str) -> str:
    """The algorithms of the module that was named, if it is there and has any."""
    known = _agents_of(sys.modules.get(_parts(name)[0]))
    return f" Its algorithms are {', '.join(known)}." if known else ""


def _meant(name: str) -> str:
    """The nearest name, whether it was written as the name or as the class."""
    plain = {known.replace("_", ""): known for known in AGENTS}
    asked = name.lower().removesuffix("config").replace("_", "").replace("-", "")
    near = difflib.get_close_matches(asked, plain, n=1)
    return f"; did you mean {plain[near[0]]!r}?" if near else "."


def _named_instead(found: Any) -> str:
    """What was named instead, and what would be right."""
    if isinstance(found, AgentConfig):
        return f"which is a configuration and no class; try {path(type(found))!r}."
    if isinstance(found, ModuleType):
        own = _agents_of(found)
        return f"which is a module; try {own[0] if own else f'{found.__name__}:ReinforceConfig'!r}."
    kind = f"the class {found.__name__}" if inspect.isclass(found) else f"a {type(found).__name__}"
    return (
        f"which is {kind}; try a class with `losses`, as `unirl_env.agents.GRPOConfig`, or one of "
        f"{', '.join(AGENTS)}."
    )


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")
