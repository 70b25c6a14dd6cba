"""Playing one cell: the ordinary run in this warm process, and the row of what came of it."""

from __future__ import annotations

import resource
import sys
import time
import traceback
from typing import Any

from rich.console import Console

from unirl_env.bench.cells import Cell
from unirl_env.bench.rows import CRASHED, DIVERGED, failed_row, row_of
from unirl_env.errors import ClusterError, DiskError, Diverged, MissingExtra, ModelNotFound, PromptError
from unirl_env.errors.masks import hide
from unirl_env.run.interrupt import EXIT_CODE

MACHINES = (DiskError, ClusterError, MissingExtra, ModelNotFound, PromptError)
"""What says nothing of an algorithm: the bench stops, and goes on when that is mended."""


class Player:
    """A process that plays cells one after another, and imports everything once.

    Args:
        threads: Of its computations.
    """

    def __init__(self, threads: int = 1):
        import torch

        torch.set_num_threads(threads)

    def play(self, cell: Cell, tuning: bool = False) -> dict[str, Any]:
        """The row of a cell; see `played`."""
        return played(cell, tuning)


def played(cell: Cell, tuning: bool = False) -> dict[str, Any]:
    """Do a cell's run, or go on with it, and keep its row; one that fails has a row, too.

    Args:
        cell: Which one; if its row is kept already, that is the answer.
        tuning: Whether it is scored by what configurations are chosen by.

    Raises:
        UnirlError: One of `MACHINES`, which concerns the machine and no algorithm: a full disk, weights or
            prompts that are not there.
        KeyboardInterrupt: If the process was asked to stop; the run goes on another time.
    """
    if (known := cell.row()) is not None:
        return known
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    _forget_peak()
    with cell.log.open("a", encoding="utf-8") as stream:
        row = _row(cell, tuning, Console(file=stream, width=110))
    row["metrics"] |= {"wall_seconds": time.perf_counter() - began, "peak_memory_bytes": _peak()}
    cell.keep(row)
    return row


def _row(cell: Cell, tuning: bool, console: Console) -> dict[str, Any]:
    from unirl_env.run.launch import launch

    try:
        cfg = cell.compose()
        if launch(cfg, console, cell.command) == EXIT_CODE:
            raise KeyboardInterrupt
        return row_of(cell, cfg, tuning)
    except MACHINES:
        raise
    except (Exception, SystemExit) as error:  # whatever a run ends with is what came of it
        console.print(hide(traceback.format_exc()), highlight=False, markup=False, soft_wrap=True)
        said = hide(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
        return failed_row(cell, DIVERGED if isinstance(error, Diverged) else CRASHED, said)


def _forget_peak() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak() -> float:
    """Bytes: of the accelerator since the run began, else of this process since it began."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
