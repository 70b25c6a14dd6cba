"""What a run writes down while it goes: one JSON object per line, TensorBoard events, Weights & Biases.

Every line is on the disk before the next iteration starts. A continued run takes out the lines that follow
its checkpoint, so that the curve is that of a run that was never interrupted; `<name>.aside.jsonl` has them.
TensorBoard's events of these iterations stay in their files, and are not shown.

What belongs to one of several phases begins with its name, as in `text/kl`.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unirl_env.errors import MissingExtra
from unirl_env.run.compose.yaml import flat
from unirl_env.run.record.files import replace_text
from unirl_env.settings import RunConfig

USUAL = ("text", "image", "video")
NO_PHASES = ("reward", "reward_std", "reward_failed", "reward_absent", "heldout", "heldout_std", "seconds")
"""What has parts of any name, `loss` included."""


class Logbook:
    """The metrics of a run, wherever they are wanted.

    Args:
        folder: The run's folder.
        cfg: Its settings.
        start: Iterations that were finished before; later lines are set aside.

    Raises:
        MissingExtra: If Weights & Biases is asked for and not installed.
    """

    def __init__(self, folder: Path, cfg: RunConfig, start: int = 0):
        self.metrics, self.evaluations = folder / "metrics.jsonl", folder / "evaluation.jsonl"
        self.alarms = folder / "alarms.jsonl"
        for path in (self.metrics, self.evaluations, self.alarms):
            cut(path, start)
        self._tensorboard = self._wandb = None
        self._laid_out = False
        if cfg.logging.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # Hides the events from `start` on: iterations that are about to be repeated, and the last numbers
            # on record, which may have been written down without their events. Those follow anew.
            self._tensorboard = SummaryWriter(str(folder / "tb"), purge_step=start)
            self._repeat(start)
        if cfg.logging.wandb:
            self._wandb = start_wandb(folder, cfg)

    def log(self, row: Mapping[str, Any]) -> None:
        """Write down one iteration."""
        append(self.metrics, row)
        self._lay_out(row)
        self._publish(_shown(row), row["iteration"])

    def log_evaluation(self, row: Mapping[str, Any]) -> None:
        """Write down one evaluation of one prompt set."""
        append(self.evaluations, row)
        self._publish(_means(row), row["iteration"])

    def log_alarm(self, row: Mapping[str, Any]) -> None:
        """Write down that an alarm rang."""
        append(self.alarms, row)
        self._publish(_rung(row), row["iteration"])

    def replace_alarms(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write down which alarms rang before; no file where none did."""
        if rows or self.alarms.exists():
            write_rows(self.alarms, rows)

    def rows(self) -> list[dict[str, Any]]:
        """All iterations so far."""
        return read_rows(self.metrics)

    def evaluation_rows(self) -> list[dict[str, Any]]:
        """All evaluations so far."""
        return read_rows(self.evaluations)

    def close(self) -> None:
        """Flush what is still on its way."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _lay_out(self, row: Mapping[str, Any]) -> None:
        """Let TensorBoard's page of custom scalars show the phases of a quantity in one chart."""
        shared, phases = shared_names(row), phases_of(row)
        if self._tensorboard is not None and shared and not self._laid_out:
            charts = {name: ["Multiline", [f"{phase}/{name}$" for phase in phases]] for name in shared}
            self._tensorboard.add_custom_scalars({"phases": charts})
            self._laid_out = True

    def _repeat(self, iteration: int) -> None:
        """Give TensorBoard what is on record of `iteration`."""
        for path, numbers in ((self.metrics, _shown), (self.evaluations, _means), (self.alarms, _rung)):
            for row in read_rows(path):
                if row["iteration"] == iteration:
                    self._to_tensorboard(_finite(numbers(row)), iteration)

    def _publish(self, values: Mapping[str, Any], step: int) -> None:
        numbers = _finite(values)
        self._to_tensorboard(numbers, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def _to_tensorboard(self, numbers: Mapping[str, float], step: int) -> None:
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, step)
            self._tensorboard.flush()


def start_wandb(folder: Path, cfg: RunConfig) -> Any:
    """A Weights & Biases run; its id stays in the folder, so that a continued run joins it again."""
    try:
        import wandb
    except ImportError as error:
        raise MissingExtra("wandb", "wandb") from error
    note = folder / "wandb_id"
    if not note.exists():
        replace_text(note, secrets.token_hex(8))
    return wandb.init(
        project=cfg.logging.wandb,
        name=cfg.name,
        id=note.read_text(encoding="utf-8").strip(),
        resume="allow",
        dir=str(folder),
        config=flat(cfg, public=True),
    )


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line, and return when it is on the disk."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(as_json(row)) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of `path`; one that a killed run left unfinished is skipped."""
    return _parsed(path.read_text(encoding="utf-8").splitlines() if path.exists() else ())


def _parsed(lines: Iterable[str]) -> list[dict[str, Any]]:
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("iteration"), int)]


def cut(path: Path, start: int) -> None:
    """Keep the lines up to iteration `start`; the others are added to `<name>.aside.jsonl`."""
    if not path.exists():
        return
    kept, others = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        rows = _parsed([line])
        (kept if rows and rows[0]["iteration"] <= start else others).append(line)
    if others:
        with path.with_name(f"{path.stem}.aside.jsonl").open("a", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in others)
            stream.flush()
            os.fsync(stream.fileno())
        replace_text(path, "".join(f"{line}\n" for line in kept))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Make `rows` the lines of a file, which is replaced in one step."""
    replace_text(path, "".join(json.dumps(as_json(row)) + "\n" for row in rows))


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "iteration"}


def _means(row: Mapping[str, Any]) -> dict[str, Any]:
    means = {f"evaluation/{row['set']}/{name}": part["mean"] for name, part in row["rewards"].items()}
    return means | {f"evaluation/drift/{name}": value for name, value in row.get("drift", {}).items()}


def _rung(row: Mapping[str, Any]) -> dict[str, Any]:
    return {f"alarm/{row['signal']}": row["value"]}


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in values.items() if isinstance(v, (int, float)) and math.isfinite(v)}


def as_json(value: Any) -> Any:
    """The value with everything that JSON knows; a number that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(name): as_json(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def phases_of(known: Iterable[str]) -> list[str]:
    """The phases of which there are numbers of their own: whatever has a loss, and the usual ones."""
    parts = [name.partition("/") for name in known]
    found = {phase for phase, _, last in parts if last == "loss" or (last and phase in USUAL)}
    others = dict.fromkeys(phase for phase, _, _ in parts if phase in found and phase not in NO_PHASES)
    return [*(phase for phase in USUAL if phase in others), *(p for p in others if p not in USUAL)]


def of_phases(name: str, known: Iterable[str]) -> dict[str, str]:
    """Where a quantity is found among the `known` names, by phase; by "" where it belongs to no single one.

    Returns:
        `{"": "kl"}`, `{"text": "text/kl", "image": "image/kl"}`, or nothing.
    """
    known = list(known)
    if name in known:
        return {"": name}
    return {phase: f"{phase}/{name}" for phase in phases_of(known) if f"{phase}/{name}" in known}


def shared_names(known: Iterable[str]) -> list[str]:
    """The quantities that every phase has, in the order in which they are known."""
    known = list(known)
    phases = phases_of(known)
    if len(phases) < 2:
        return []
    names = (name.removeprefix(f"{phases[0]}/") for name in known if name.startswith(f"{phases[0]}/"))
    return [name for name in names if all(f"{phase}/{name}" in known for phase in phases[1:])]
