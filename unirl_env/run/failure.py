"""What stopped a run, in the words of this library: full disks, missing memory, exits and lost processes."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

from unirl_env.errors import ContractError, DiskError, LearnerLost, OutOfMemory, UnirlError

REMEDIES = {
    errno.ENOSPC: "make room on that disk (`logging.keep_last` says how many checkpoints stay)",
    errno.EDQUOT: "make room within your quota there (`logging.keep_last` says how many checkpoints stay)",
    errno.EFBIG: "raise the limit on file sizes there (`ulimit -f`)",
    errno.EROFS: "mount that disk for writing",
    errno.EIO: "look after that disk: it reports errors",
    errno.EACCES: "give yourself the right to write there",
    errno.EPERM: "give yourself the right to write there",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
    errno.ESTALE: "mount that network disk again",
}
"""What helps against an error of the system that a file meets."""


def disk_error(error: BaseException, folder: Path) -> DiskError:
    """What a failure to write below `folder` is called, with the room that its disk has and a remedy."""
    number = getattr(error, "errno", None)
    if number is None:
        # safetensors tells the system's number in words only.
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else None
    cause = os.strerror(number) if number is not None else str(error)
    remedy = REMEDIES.get(number, "look after that folder")
    wrapped = DiskError(
        f"{folder} must take what a run writes, got: {cause}{_room(folder)}; try to {remedy}."
    )
    wrapped.errno = number
    return wrapped


def explained(error: BaseException, folder: Path) -> BaseException:
    """The error as one of this library's, where its cause is known; otherwise itself.

    Args:
        error: What stopped a run.
        folder: The run's folder.
    """
    if isinstance(error, UnirlError):
        return error
    if isinstance(error, SystemExit):
        return ContractError(
            f"A reward, an environment or a model must return or raise, got an attempt to end the process "
            f"(SystemExit({error.code!r})) in {_where(error)}; try raising an Exception there."
        )
    if _no_memory(error):
        return OutOfMemory(
            f"A run must fit into memory, got: {_first_line(error)}; try a smaller `agent.micro_batch_size` "
            f"(update), `rollout.batch_size` (rollout), or `policy.gradient_checkpointing=true`."
        )
    if _of_the_disk(error, folder):
        return disk_error(error, _place(error, folder))
    if _lost_process(error):
        return LearnerLost(
            f"Processes must live as long as the run, got: {type(error).__name__}: {_first_line(error)}; its "
            f"log in Ray's folder of the session tells why (often memory: try a smaller "
            f"`agent.micro_batch_size`)."
        )
    return error


def _no_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    import torch

    # The CPU's allocator raises a plain RuntimeError.
    words = ("DefaultCPUAllocator: can't allocate memory", "not enough memory: you tried to allocate")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _of_the_disk(error: BaseException, folder: Path) -> bool:
    """Whether writing failed; what a user's code cannot open is that code's own affair."""
    if type(error).__name__ == "SafetensorError":
        return "os error" in str(error)
    if not isinstance(error, OSError) or error.errno is None:
        return False
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE):
        return True
    name = error.filename
    return error.errno in REMEDIES and isinstance(name, str | Path) and Path(name).is_relative_to(folder)


def _place(error: BaseException, folder: Path) -> Path:
    """The folder of the file that could not be written, where the error names one."""
    name = getattr(error, "filename", None)
    return Path(name).parent if isinstance(name, str) and Path(name).parent.is_dir() else folder


def _lost_process(error: BaseException) -> bool:
    from ray.exceptions import RayError

    return isinstance(error, RayError)


def _room(folder: Path) -> str:
    place: Any = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        usage = shutil.disk_usage(place)
    except OSError:
        return ""
    return f" ({usage.free / 2**20:,.0f} MiB free of {usage.total / 2**20:,.0f})"


def _where(error: BaseException) -> str:
    """The last line of the code that raised."""
    trace = error.__traceback__
    if trace is None:
        return "an unknown place"
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
