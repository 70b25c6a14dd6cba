"""What becomes of memory that tensors on the CPU give back: it stays with the process, or goes at once."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from functools import cache

MiB = 1 << 20
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""Numbers of glibc's settings, as malloc.h has them."""
SETTINGS = {TRIM_THRESHOLD: 512 * MiB, TOP_PAD: 64 * MiB, MMAP_THRESHOLD: 32 * MiB}
"""Bytes: free memory at the heap's end above which it is handed back; what is fetched with each extension;
the size from which a piece is mapped by itself, and unmapped when it is freed (glibc allows no more)."""
PIECE = 16 * MiB
"""Bytes from which every piece goes back to the kernel by itself, where memory is short; smaller ones are
activations as a rule, and each of them would have to be mapped anew. From 1 MiB on an update takes 1.6 times
the processor time, from here on 1.2 times."""
OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Variables by which a person has chosen otherwise."""


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep what tensors on the CPU give back; returns whether it does so.

    By default it hands freed activations back to the kernel, which clears them page by page for the next
    forward pass: tens of thousands of page faults in a rollout. A process then stays about as large as it
    once was. Nothing is changed where a person has set glibc's variables, or where there is no glibc. Pieces
    of more than 32 MiB are handed back all the same.
    """
    return _told(SETTINGS)


@cache
def return_freed_memory() -> bool:
    """Let glibc hand back each large piece as it is freed; returns whether it does so.

    For processes that hold a part of a network and gather the rest piece by piece: pieces of many sizes leave
    holes in a heap that nothing else fits, and the process grows with every pass (here to twice its size).
    """
    return _told({MMAP_THRESHOLD: PIECE})


def _told(settings: Mapping[int, int]) -> bool:
    if not sys.platform.startswith("linux") or any(name in os.environ for name in OWN):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version") or not hasattr(library, "mallopt"):
        return False
    return all([library.mallopt(name, value) for name, value in settings.items()])
