"""Run a command that ends with the process that asked for it: `python leash.py PARENT COMMAND...`.

A trainer may be killed without a chance to clean up, and a forgotten server would hold the accelerator. So
this small process stands between both: it leads the server's process group, and ends the group when the
parent is gone. It needs the standard library alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

PATIENCE = 0.5
"""Seconds between two looks at the parent."""


def main(parent: int, command: list[str]) -> int:
    """Run `command`; its exit status, unless the parent ends first."""
    child = subprocess.Popen(command)
    while child.poll() is None:
        if os.getppid() != parent:
            os.killpg(os.getpgid(0), signal.SIGKILL)
        time.sleep(PATIENCE)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
