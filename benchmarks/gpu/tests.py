"""The tests that need a CUDA device."""

from __future__ import annotations

import re
import subprocess
import sys

from measure import arguments, report


def main() -> None:
    arguments(__doc__)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--durations=0"]
    done = subprocess.run(command, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    if done.returncode not in (0, 5):
        raise SystemExit(done.stdout[-2000:])
    report(counts)


if __name__ == "__main__":
    main()
