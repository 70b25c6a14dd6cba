"""Suites as data: environments in regimes, what is measured on each, and what that is held against.

A suite is a YAML file: `title`, `tasks` by name, and `settings` of every run. A task names a recipe of
`train`, the settings that make its regime, and its score; see `Task`. With `extends: full` a suite has the
tasks of another one, too, and what it says counts: a field of a task takes the place of what stands there,
settings come after all of the other one's.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from unirl_env.arguments.values import fits
from unirl_env.errors import ConfigError
from unirl_env.settings.literal import yaml_values

SUITES = Path(__file__).parent / "suites"
TASK = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*")
SCORES = ("exact", "train/reward", "train/heldout", "heldout/reward", "heldout/heldout")


@dataclass(frozen=True)
class Task:
    """An environment in a regime.

    Attributes:
        name: Its name, a folder's: `line/many_epochs`.
        recipe: A recipe of `train`; of a suite of your own, a YAML file beside the suite's, too.
        title: What it is, for people.
        why: What it asks of an algorithm.
        settings: What makes the regime, as `train` takes it.
        score: What counts in the end: `exact` (by `measure`), or prompts and reward of the last evaluation
            (`heldout/reward`). The higher, the better.
        measure: For `exact`, the path of a function `(cfg, network) -> {"objective": ..., ...}`.
        unit: Of the score.
        base: The untrained model's score; None takes what each run measures of it.
        reference: The score that counts as 1: the optimum where it is known (None: as measured), else what
            is worth reaching.
        threshold: The normalised score whose cost is compared.
        tuning: What configurations are chosen by; None takes the score on training prompts, so that what is
            reported has not been looked at.
    """

    name: str
    recipe: str
    title: str = ""
    why: str = ""
    settings: tuple[str, ...] = ()
    score: str = "heldout/reward"
    measure: str | None = None
    unit: str = ""
    base: float | None = None
    reference: float | None = None
    threshold: float = 0.8
    tuning: str | None = None

    def check(self, where: str) -> None:
        """Refuse a task that cannot be run or scored.

        Raises:
            ConfigError: Naming the field.
        """
        if not TASK.fullmatch(self.name):
            raise ConfigError(
                f"A task of {where} must be named as a folder, got {self.name!r}; try line/plain."
            )
        for name in ("score", "tuning"):
            value = getattr(self, name)
            if value not in SCORES and not (name == "tuning" and value is None):
                raise ConfigError(
                    f"`{name}` of {self.name} in {where} must be one of {', '.join(SCORES)}, got {value!r}."
                )
        if (self.measure is not None) != ("exact" in (self.score, self.tuning)):
            raise ConfigError(
                f"`measure` of {self.name} in {where} must be given with `score: exact` and no other, got "
                f"{self.measure!r} with {self.score}; try package.module:function."
            )
        if self.score != "exact" and self.reference is None:
            raise ConfigError(
                f"`reference` of {self.name} in {where} must be a number where the score is measured on "
                "samples, got null: nothing says what counts as 1; try the score that is worth reaching."
            )

    @property
    def tuned_by(self) -> str:
        """What configurations are chosen by."""
        if self.tuning is not None or self.score == "exact":
            return self.tuning or "exact"
        return f"train/{self.score.partition('/')[2]}"


@dataclass(frozen=True)
class Suite:
    """Tasks that are reported together.

    Attributes:
        name: What it is called.
        tasks: By name.
        title: For people.
        settings: Of every run.
        folder: Where its file lies, with recipes of its own.
        source: What was asked for.
    """

    name: str
    tasks: Mapping[str, Task]
    title: str = ""
    settings: tuple[str, ...] = ()
    folder: Path = field(default=SUITES, compare=False)
    source: str = ""

    def only(self, names: list[str] | None) -> Suite:
        """The suite with some of its tasks.

        Raises:
            ConfigError: If there is no such task.
        """
        if names is None:
            return self
        for name in names:
            if name not in self.tasks:
                near = difflib.get_close_matches(name, self.tasks, n=1)
                hint = f"did you mean {near[0]}?" if near else f"try one of {', '.join(self.tasks)}."
                raise ConfigError(f"`tasks` must name tasks of {self.source}, got {name!r}; {hint}")
        return dataclasses.replace(self, tasks={name: self.tasks[name] for name in names})

    def described(self) -> dict[str, Any]:
        """The suite as plain data, for the record."""
        tasks = {}
        for name, task in self.tasks.items():
            tasks[name] = {k: v for k, v in dataclasses.asdict(task).items() if k != "name"}
            tasks[name]["settings"] = list(task.settings)
        return {"name": self.name, "title": self.title, "settings": list(self.settings), "tasks": tasks}


def suites() -> list[str]:
    """The names of the suites that ship."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def load(source: str) -> Suite:
    """The suite that a name, a path, or `package:path` means.

    Raises:
        ConfigError: If there is none, or it is not one.
    """
    return _read(_place(source), source, ())


def _read(path: Path, source: str, over: tuple[Path, ...]) -> Suite:
    """The suite of a file.

    Args:
        path: The file.
        source: What was asked for.
        over: The files that extend it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"`suite` must be a YAML file in UTF-8, got {path}: {error}.") from error
    held = yaml_values(text, str(path))
    known = {"title", "extends", "settings", "tasks"}
    if unknown := sorted(set(held) - known):
        raise ConfigError(f"{path} must say {', '.join(sorted(known))}, got `{unknown[0]}`.")
    settings = _words("settings", held.get("settings"), path)
    base = _extended(held["extends"], path, (*over, path)) if "extends" in held else None
    tasks = held.get("tasks", {} if base else None)
    if not isinstance(tasks, Mapping) or not (tasks or base):
        raise ConfigError(f"`tasks` of {path} must be a mapping of tasks by name, got {tasks!r:.60}.")
    made = {str(name): values for name, values in tasks.items()}
    if base is None:
        found = {name: _task(name, values, path) for name, values in made.items()}
    else:
        every = {**{name: {} for name in base.tasks}, **made}
        found = {n: _task(n, values, path, base.tasks.get(n), settings) for n, values in every.items()}
        settings = base.settings
    return Suite(path.stem, found, str(held.get("title") or path.stem), settings, path.parent, source)


def _extended(source: Any, path: Path, over: tuple[Path, ...]) -> Suite:
    """The suite that one extends: its recipes must be found from there, too."""
    beside = isinstance(source, str) and source == Path(source).name and source.endswith((".yaml", ".yml"))
    if not beside and source not in suites():
        raise ConfigError(
            f"`extends` of {path} must be one of {', '.join(suites())}, or the name of a YAML file beside "
            f"it, got {source!r}; try full."
        )
    place = path.parent / source if beside else _place(source)
    if place in over:
        raise ConfigError(f"`extends` of {path} must be a suite that does not extend it, got {source!r}.")
    return _read(place, source, over)


def _place(source: str) -> Path:
    package, colon, inner = source.partition(":")
    if colon:
        try:
            return Path(str(files(package) / inner))
        except (ImportError, TypeError, ValueError) as error:
            raise ConfigError(
                f"`suite` must name a package that can be imported before its colon, got {source!r} "
                f"({error}); try mylab:suites/rings.yaml."
            ) from error
    if source.endswith((".yaml", ".yml")):
        return Path(source).expanduser()
    if source not in suites():
        near = difflib.get_close_matches(source, suites(), n=1)
        hint = f"did you mean {near[0]}?" if near else "or the path of a YAML file."
        raise ConfigError(f"`suite` must be one of {', '.join(suites())}, got {source!r}; {hint}")
    return SUITES / f"{source}.yaml"


def _task(
    name: str, values: Any, path: Path, base: Task | None = None, settings: tuple[str, ...] = ()
) -> Task:
    """A task of a file: as it stands there, or over `base` with further settings between both."""
    if not isinstance(values, Mapping) or (base is None and "recipe" not in values):
        raise ConfigError(f"The task {name} of {path} must be a mapping with a `recipe`, got {values!r:.80}.")
    fields = {one.name: one for one in dataclasses.fields(Task)}
    numbers = {"base": float | None, "reference": float | None, "threshold": float}
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields or key == "name":
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"try one of {', '.join(fields)}."
            raise ConfigError(f"`{key}` of the task {name} in {path} must be a field of a task; {hint}")
        if key in numbers and not fits(value, numbers[key]):
            raise ConfigError(f"`{key}` of the task {name} in {path} must be a number, got {value!r}.")
        given[key] = _words(f"settings of {name}", value, path) if key == "settings" else value
    given["settings"] = (base.settings if base else ()) + settings + given.get("settings", ())
    task = dataclasses.replace(base, **given) if base else Task(name=name, **given)
    task.check(str(path))
    return task


def _words(name: str, value: Any, path: Path) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) and "=" in each for each in value):
        raise ConfigError(f"`{name}` of {path} must be a list of `setting=value`, got {value!r:.80}.")
    return tuple(value)
