"""A learner's state in parts: each learner writes and reads its own, by torch.distributed.checkpoint.

Parts lie in safetensors files `shard-<learner>-model-<file>-of-<files>.safetensors`, whose headers say where
in the whole tensors they belong (`HuggingFaceStorageWriter`). There is no other index, and nothing is
pickled: torch's own format has its index in a pickle, which runs code of whoever wrote it while it is read.
Any number of learners reads what any other number wrote, divided in whatever way.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from unirl_env.errors import CheckpointError

# One process that reads for itself is what is meant.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)

FILE_BYTES = 500_000_000
"""The most bytes in one file of a learner, unless one part alone is larger; torch holds the file in memory
before it is written."""


class PartsWriter:
    """Writes the parts of a state that this process holds, while it does something else.

    Whoever learns beside this process makes one as well, and uses it alike: they agree on who writes what, in
    a group of their own, by gloo, which exchanges of gradients do not meet.
    """

    def __init__(self) -> None:
        several = dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo") if several else None
        self._rank = dist.get_rank() if several else 0
        self._thread: threading.Thread | None = None
        self._written: dict[str, Any] = {}
        self._error: BaseException | None = None

    def begin(
        self, state: Callable[[], Mapping[str, Tensor]], folder: Path, facts: Callable[[Path], Any]
    ) -> None:
        """Copy the state to the CPU, and begin to write the copy.

        A state that lies on the CPU is not copied: it is written at once, and whoever holds it waits.

        Args:
            state: Gives tensors by name, whole ones that are the same everywhere or parts; asked once.
            folder: The same, empty folder for all.
            facts: What is told of each file that was written here.

        Raises:
            CheckpointError: If another learner has no copy, for instance for want of memory.
        """
        self._written, self._error = {}, None
        failed: Exception | None = None
        tensors: dict[str, Tensor] = {}
        here = False
        try:
            found = {name: tensor.detach() for name, tensor in state().items()}
            here = all(tensor.device.type == "cpu" for tensor in found.values())
            # A DTensor stays one: its part is copied.
            tensors = found if here else {name: tensor.to("cpu", copy=True) for name, tensor in found.items()}
        except Exception as error:
            failed = error
        if self._anybody(failed is not None):
            raise failed or CheckpointError("Another learner could not copy its state; see its error.")
        self._thread = threading.Thread(target=self._write, args=(tensors, folder, facts), daemon=True)
        self._thread.start()
        if here:
            self._thread.join()

    def end(self) -> dict[str, Any]:
        """Wait until all is on the disk; the facts of the files that were written here, by their names.

        Raises:
            OSError: If a file could not be written, here or elsewhere.
            CheckpointError: If it failed otherwise.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error
        return self._written

    def _write(self, tensors: dict[str, Tensor], folder: Path, facts: Callable[[Path], Any]) -> None:
        try:
            writer = HuggingFaceStorageWriter(str(folder), _files_of(tensors), save_distributed=True)
            save(tensors, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
            own = sorted(folder.glob(f"shard-{self._rank + 1:05d}-model-*.safetensors"))
            self._written = {path.name: facts(path) for path in own}
        except BaseException as error:  # told by `end`
            self._error = _cause(error, folder)

    def _anybody(self, failed: bool) -> bool:
        if self._group is None:
            return failed
        found = torch.tensor([float(failed)])
        dist.all_reduce(found, group=self._group)
        return bool(found.item())


def read(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in a folder of parts, on the CPU; of those that this process divides, its own parts.

    Every process reads for itself, what it needs alone; none waits for another.

    Args:
        folder: Where all parts lie.
        like: By the last part of their names (`policy/a` and `optimizer/exp_avg/a` are both `a`), tensors of
            the same shape as whose they shall be divided; all others are read whole.

    Raises:
        CheckpointError: If the folder is not to be seen here.
    """
    reader = HuggingFaceStorageReader(str(folder))
    if not folder.is_dir():
        raise CheckpointError(
            f"A checkpoint in parts must be seen by every learner, got no folder {folder} here; try a "
            "`logging.folder` on a disk that all machines share."
        )
    tensors = {}
    for name, found in reader.read_metadata().state_dict_metadata.items():
        entry: Any = found
        dtype, size, model = entry.properties.dtype, entry.size, like.get(name.rpartition("/")[2])
        if model is not None and model.shape == size:
            tensors[name] = torch.empty_like(model, dtype=dtype, device="cpu", requires_grad=False)
        else:
            tensors[name] = torch.empty(size, dtype=dtype)
    load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def _files_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The number, from 1, of the file of each tensor: the same one on every learner."""
    files, number, filled = {}, 1, 0
    for name, tensor in tensors.items():
        size = tensor.nbytes // _parts_of(tensor)
        if filled and filled + size > FILE_BYTES:
            number, filled = number + 1, 0
        files[name] = number
        filled += size
    return files


def _parts_of(tensor: Tensor) -> int:
    """Into how many parts it is divided."""
    if not isinstance(tensor, DTensor):
        return 1
    return prod(
        tensor.device_mesh.size(dim) for dim, placed in enumerate(tensor.placements) if placed.is_shard()
    )


def _cause(error: BaseException, folder: Path) -> BaseException:
    """The error of the system behind one of torch's, which learners tell each other; it can be pickled."""
    failures = getattr(error, "failures", {})
    for failure in failures.values():
        if isinstance(failure[0], OSError):
            return failure[0]
    if isinstance(error, OSError):
        return error
    return CheckpointError(
        f"Learners must write their parts into {folder}, got {type(error).__name__}: {error}"
    )
