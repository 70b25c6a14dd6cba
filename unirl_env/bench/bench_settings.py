"""What a bench is told: which suite, which agents, how many seeds, how much tuning, and on how many cores."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unirl_env.arguments.values import is_whole
from unirl_env.errors import ConfigError
from unirl_env.settings.fields import Settings, setting
from unirl_env.settings.literal import first_line, yaml_values

NAME = re.compile(r"[\w][\w.+-]*")


@dataclass
class BenchSettings(Settings):
    """The settings of `python -m unirl_env.bench`; each is given as `name=value`."""

    suite: str = setting("quick")
    """A suite that ships (`exact`, `quick`, `tiny`, `full`), the path of a YAML file, or one in an installed
    package: `mylab:suites/rings.yaml`."""
    agents: list[Any] = setting(["grpo", "flow_dppo", "drpo"])
    """What is compared: names of agents that ship, paths of your own
    (`mylab.alg:ReinforceConfig`), or mappings `{name: grpo, label: wide, settings: ["agent.lr=1e-3"]}`."""
    seeds: Any = setting(10)
    """How many runs of each agent on each task, or a list of seeds."""
    tune: int = setting(0, least=0)
    """Configurations that each agent may try before, the recipe's own included; 0 takes that one alone."""
    tune_seeds: int = setting(2, least=1)
    """Runs of each of them on each task, under seeds that nothing else uses."""
    tasks: list[str] | None = setting(None)
    """Some of the suite's tasks; null takes all."""
    settings: list[str] = setting([])
    """Further settings of every run, as `train` takes them: `["iterations=20"]`."""
    folder: str = setting("runs/bench")
    """Where benches lie."""
    name: str | None = setting(None)
    """The bench's own folder; null takes the suite's name. The same command goes on with what is there."""
    workers: int | None = setting(None, least=1)
    """Runs at once; null takes a process for each `threads` cores, or for each share of a GPU."""
    threads: int = setting(1, least=1)
    """Threads of each process. The last bits of a run may depend on it."""
    gpus_per_run: float = setting(0.0, least=0)
    """GPUs, or a share of one, that each run reserves."""
    attempts: int = setting(2, least=1)
    """How often a run is begun whose process dies before it counts as failed."""
    retry_failed: bool = setting(False)
    """Begin failed runs anew, in place of keeping them as what came of them."""
    baselines: bool = setting(True)
    """Show the results that ship for agents which are not run, where their settings are the same."""

    def check(self, prefix: str = "") -> None:
        """Refuse what cannot be run."""
        super().check(prefix)
        if not self.agents:
            raise ConfigError(f"`{prefix}agents` must name an agent at least, got none; try [grpo,drpo].")
        if not is_whole(self.seeds) and not (
            isinstance(self.seeds, list) and self.seeds and all(map(is_whole, self.seeds))
        ):
            raise ConfigError(
                f"`{prefix}seeds` must be a whole number or a list of them, got {self.seeds!r}; try 10."
            )
        chosen = self.chosen_seeds
        if not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen) or max(chosen) >= TUNING_SEEDS:
            raise ConfigError(
                f"`{prefix}seeds` must be different numbers from 0 to {TUNING_SEEDS - 1}, at least one, got "
                f"{self.seeds!r}; try 10."
            )
        if self.name is not None and not NAME.fullmatch(self.name):
            raise ConfigError(f"`{prefix}name` must name a folder, got {self.name!r}; try quick-mine.")

    @property
    def chosen_seeds(self) -> list[int]:
        """The seeds one by one."""
        return list(range(self.seeds)) if is_whole(self.seeds) else list(self.seeds)

    def place(self, suite: str) -> Path:
        """The bench's folder."""
        return Path(self.folder).expanduser() / (self.name or suite)


TUNING_SEEDS = 1_000_000
"""The first of the seeds by which configurations are chosen: none of them is reported."""


def read_settings(words: Sequence[str], kind: type[Any] = BenchSettings) -> Any:
    """Settings from `name=value` words; values are YAML, so that lists are `[a,b]`.

    Args:
        words: What was typed.
        kind: The dataclass.

    Raises:
        ConfigError: If a name is unknown, or a value does not fit.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.replace("-", "_").lstrip("_+")
        if not equals or name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean `{near[0]}=...`?" if near else f"try one of {', '.join(fields)}."
            raise ConfigError(f"What is set must be `name=value` of a bench, got {word!r}; {hint}")
        values[name] = text if fields[name].type == "str" else read_value(name, text)
    made = kind(**values)
    made.check()
    return made


def read_value(name: str, text: str) -> Any:
    """A value that was typed, by YAML.

    Raises:
        ConfigError: If it is none.
    """
    try:
        return yaml_values(f"v: {text}", name)["v"]
    except ConfigError as error:
        raise ConfigError(f"`{name}` must have a value in YAML, got {text}: {first_line(error)}") from error
