"""Who is compared: agents by name or path, under a label, with settings of their own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unirl_env.agents.catalogue import AGENTS
from unirl_env.errors import ConfigError
from unirl_env.registry import is_path
from unirl_env.run.report.charts import titles


@dataclass(frozen=True)
class Contestant:
    """One that is compared.

    Attributes:
        label: What it is called, in pictures and as a folder.
        name: The agent's name or path.
        settings: What is set for it in every task, as `train` takes it.
        tuned: Whether its configuration was chosen by trying some.
        configuration: Factors on the recipe's own values, by setting.
    """

    label: str
    name: str
    settings: tuple[str, ...] = ()
    tuned: bool = False
    configuration: tuple[tuple[str, float], ...] = ()

    @property
    def words(self) -> list[str]:
        """What chooses it on the command line of `train`, without its configuration."""
        choice = f"agent.name={self.name}" if is_path(self.name) else f"agent={self.name}"
        return [choice, *self.settings]

    def described(self) -> dict[str, Any]:
        """As plain data, for the record."""
        return {
            "label": self.label,
            "name": self.name,
            "settings": list(self.settings),
            "tuned": self.tuned,
            "configuration": dict(self.configuration),
        }


def contestants(given: Sequence[Any]) -> list[Contestant]:
    """Those that `agents=[...]` names.

    Raises:
        ConfigError: If one is no name, path or mapping, or two have one label.
    """
    entries = [_entry(value) for value in given]
    short = titles([name for name, label, _ in entries if label is None])
    found = []
    for name, label, settings in entries:
        label = label or (short[name] if is_path(name) else name)
        found.append(Contestant(re.sub(r"[^\w.+-]+", "_", label), name, settings))
    labels = [one.label for one in found]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(
                f"`agents` must have a label each, got {label!r} twice; try {{name: {label}, label: other}}."
            )
    return found


def _entry(value: Any) -> tuple[str, str | None, tuple[str, ...]]:
    if isinstance(value, str):
        return _known(value), None, ()
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ConfigError(
            f"`agents` must hold names, paths or mappings with a `name`, got {value!r}; try "
            '[grpo,{name: grpo, label: wide, settings: ["agent.lr=1e-3"]}].'
        )
    if unknown := sorted(set(value) - {"name", "label", "settings"}):
        raise ConfigError(f"An agent must say `name`, `label`, `settings`, got `{unknown[0]}` in {value!r}.")
    settings = value.get("settings") or []
    if not isinstance(settings, list) or not all(isinstance(each, str) and "=" in each for each in settings):
        raise ConfigError(
            f"`settings` of an agent must be a list of `setting=value`, got {settings!r}; try "
            '["agent.lr=1e-3"].'
        )
    label = value.get("label")
    return _known(value["name"]), None if label is None else str(label), tuple(settings)


def _known(name: str) -> str:
    known = [*AGENTS]
    if name in known or is_path(name):
        return name
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "try package.module:ReinforceConfig for your own."
    raise ConfigError(f"`agents` must be of {', '.join(known)} or paths, got {name!r}; {hint}")
