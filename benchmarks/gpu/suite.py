"""Runs the parts of `benchmarks/gpu.sh` one after another and puts their numbers into one JSON."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
PARTS = {"tests": 120, "latents": 170, "tokens": 170, "masters": 60, "compiled": 120, "learners": 120}
"""Seconds that each may take: 13 minutes together."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("published", "tiny"), default="published")
    parser.add_argument("--table", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--parts", default=",".join(PARTS))
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("No CUDA device was found; try `SIZE=tiny DEVICE=cpu`, which tries only the script.")
    found: dict[str, Any] = {"machine": machine(args.device), "size": args.size, "parts": {}}
    for part in args.parts.split(","):
        began = time.perf_counter()
        result = play(part, args.device, args.size)
        found["parts"][part] = {**result, "seconds": round(time.perf_counter() - began, 1)}
        args.table.parent.mkdir(parents=True, exist_ok=True)
        # After every part: what was measured is not lost if the machine goes away.
        args.table.write_text(json.dumps(found, indent=1) + "\n")
        print(part, json.dumps(found["parts"][part]), flush=True)
    if any("error" in result for result in found["parts"].values()):
        raise SystemExit("Some parts failed; their errors stand in the table.")


def play(part: str, device: str, size: str) -> dict[str, Any]:
    """The numbers of a part, or what stopped it."""
    command = [sys.executable, str(HERE / f"{part}.py"), "--device", device, "--size", size]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PARTS[part])
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {PARTS[part]} seconds"}
    if done.returncode:
        return {"error": (done.stderr or done.stdout)[-2000:]}
    return json.loads(done.stdout.splitlines()[-1])


def machine(device: str) -> dict[str, Any]:
    """Where this was measured."""
    known: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    if device == "cuda":
        known["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        known["gpu_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
        known["cuda"] = torch.version.cuda
    return known


if __name__ == "__main__":
    main()
