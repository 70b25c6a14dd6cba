"""Freed memory stays with the process, unless somebody has chosen otherwise."""

import subprocess
import sys

import pytest

from unirl_env.rollouts.memory import OWN, keep_freed_memory

FAULTS = """
import ctypes, resource, torch
from unirl_env.rollouts.memory import MMAP_THRESHOLD, keep_freed_memory
ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 128 << 10)
keep_freed_memory() if {keep} else None
torch.set_num_threads(1)
def work():
    for _ in range(20):
        torch.ones(3 << 20).add(1.0).sum()
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Page faults of work on tensors of 12 MiB. glibc's first threshold is written down: left to itself it is
raised by what was freed, and memory is kept or handed back by where the process happens to lie."""


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch):
    for name in OWN:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_what_was_freed_is_used_again_without_a_fault():
    def faults(keep):
        ran = subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True)
        return int(ran.stdout)

    if not keep_freed_memory.__wrapped__():
        pytest.skip("no glibc")
    assert faults(keep=False) > 10_000 > 500 > faults(keep=True)


@pytest.mark.parametrize("name", OWN)
def test_a_persons_choice_stays(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert keep_freed_memory.__wrapped__() is False
