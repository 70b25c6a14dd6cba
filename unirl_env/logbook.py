"""What a run writes down while it goes: one JSON object per line, TensorBoard events, Weights & Biases.

Every line is on the disk before the next iteration starts. A continued run cuts the lines that follow its
checkpoint, so that the curve is that of a run that was never interrupted.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unirl_env.config import RunConfig
from unirl_env.errors import MissingExtra
from unirl_env.metric_names import PHASES, shared_names
from unirl_env.settings import flat

__all__ = ["Logbook", "append", "as_json", "cut", "read_rows", "write_rows"]


class Logbook:
    """The metrics of a run, wherever they are wanted.

    Args:
        folder: The run's folder.
        cfg: Its settings.
        start: Iterations that were finished before; later lines are cut.

    Raises:
        MissingExtra: If Weights & Biases is asked for and not installed.
    """

    def __init__(self, folder: Path, cfg: RunConfig, start: int = 0):
        self.metrics, self.evaluations = folder / "metrics.jsonl", folder / "evaluation.jsonl"
        self.alarms = folder / "alarms.jsonl"
        cut(self.metrics, start)
        cut(self.evaluations, start)
        self._tensorboard = self._wandb = None
        self._laid_out = False
        if cfg.logging.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step hides the events of the iterations that are about to be repeated.
            self._tensorboard = SummaryWriter(str(folder / "tb"), purge_step=start + 1 if start else None)
        if cfg.logging.wandb:
            self._wandb = start_wandb(folder, cfg)

    def log(self, row: Mapping[str, Any]) -> None:
        """Write down one iteration."""
        append(self.metrics, row)
        self._lay_out(row)
        self._publish({name: value for name, value in row.items() if name != "iteration"}, row["iteration"])

    def log_evaluation(self, row: Mapping[str, Any]) -> None:
        """Write down one evaluation of one prompt set."""
        append(self.evaluations, row)
        means = {f"evaluation/{row['set']}/{name}": part["mean"] for name, part in row["rewards"].items()}
        self._publish(means, row["iteration"])

    def log_alarm(self, row: Mapping[str, Any]) -> None:
        """Write down that an alarm rang."""
        append(self.alarms, row)
        self._publish({f"alarm/{row['signal']}": row["value"]}, row["iteration"])

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
        shared = shared_names(row)
        if self._tensorboard is not None and shared and not self._laid_out:
            charts = {name: ["Multiline", [f"{phase}/{name}$" for phase in PHASES]] for name in shared}
            self._tensorboard.add_custom_scalars({"phases": charts})
            self._laid_out = True

    def _publish(self, values: Mapping[str, Any], step: int) -> None:
        numbers = {k: v for k, v in values.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, step)
            self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)


def start_wandb(folder: Path, cfg: RunConfig) -> Any:
    """A Weights & Biases run; its id stays in the folder, so that a continued run joins it again."""
    try:
        import wandb
    except ImportError as error:
        raise MissingExtra("wandb", "wandb") from error
    note = folder / "wandb_id"
    if not note.exists():
        note.write_text(secrets.token_hex(8))
    return wandb.init(
        project=cfg.logging.wandb,
        name=cfg.name,
        id=note.read_text().strip(),
        resume="allow",
        dir=str(folder),
        config=flat(cfg, public=True),
    )


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line, and return when it is on the disk."""
    with path.open("a") as stream:
        stream.write(json.dumps(as_json(row)) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of `path`; one that a killed run left unfinished is skipped."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict) and "iteration" in row]


def cut(path: Path, start: int) -> None:
    """Keep the lines up to iteration `start`."""
    if not path.exists():
        return
    write_rows(path, [row for row in read_rows(path) if row["iteration"] <= start])


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Make `rows` the lines of a file, which is replaced in one step."""
    draft = path.with_name(f".{path.name}")
    with draft.open("w") as stream:
        for row in rows:
            stream.write(json.dumps(as_json(row)) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(path)


def as_json(value: Any) -> Any:
    """The value with everything that JSON knows; a number that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(name): as_json(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
