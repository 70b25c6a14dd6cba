"""The peak memory of each process that trains about a billion weights: whole in one, and divided among two.

A Stable Diffusion 3 of published classes and layout, with random weights, is trained by the command line for
two iterations: read from its files, played, all weights updated (SGD, so that it fits a small machine), a
checkpoint written. Whole, one process does all of it; divided, two learners do (`learner.parallel=sharded`),
and the driver has no network. Peaks are the kernel's (`VmHWM`): pages of files that were read count.

    python benchmarks/sharded_memory.py              # 20 GB of memory and of disk
    python benchmarks/sharded_memory.py --layers 2   # to try it
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

PAGE = Path(__file__).parent / "results" / "sharded_memory.md"
WIDTH, HEADS, LAYERS = 1088, 17, 22
WAYS: dict[str, list[str]] = {
    "one process": [],
    "two learners, half of it each": ["learner.parallel=sharded", "rollout.num_learners=2"],
}
SETTINGS = [
    *("--config-name=diffusion/tiny_sd3", "model.env=unirl/SD3-T2I-v0", "model.height=32", "model.width=32"),
    *("model.num_steps=2", "model.rows_per_forward=null", "policy.lora_rank=null", "steps={kind: all}"),
    *("rollout.num_prompts=2", "rollout.group_size=2", "agent.num_minibatches=1", "agent.micro_batch_size=2"),
    *("iterations=2", "logging.checkpoint_every=2", "logging.eval_prompts=2", "logging.eval_samples=1"),
    *("logging.tensorboard=false", "logging.progress=false", "agent.optimizer=torch.optim.SGD"),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write is not None:
        print(write(args.write, args.layers))
        return
    folder = Path(tempfile.mkdtemp())
    try:
        # In a process of its own, whose memory is given back.
        command = [sys.executable, __file__, "--layers", str(args.layers), "--write", str(folder / "model")]
        weights = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        found = {words: train(folder, settings) for words, settings in WAYS.items()}
    finally:
        shutil.rmtree(folder)
    page = report(weights, found)
    print(page)
    if args.layers == LAYERS:
        PAGE.write_text(page)


def write(folder: Path, layers: int) -> int:
    """The embedded pipeline with a transformer of `layers` blocks of SD3's width; its number of weights."""
    import torch
    from diffusers import SD3Transformer2DModel

    from unirl_env.models.tiny import TinySD3Denoiser

    tiny = Path(str(TinySD3Denoiser().pretrained))
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("transformer"))
    config = json.loads((tiny / "transformer" / "config.json").read_text())
    config |= {"num_layers": layers, "num_attention_heads": HEADS, "attention_head_dim": WIDTH // HEADS}
    torch.manual_seed(0)
    network = SD3Transformer2DModel.from_config(config | {"caption_projection_dim": WIDTH})
    network.save_pretrained(folder / "transformer", max_shard_size="1GB")
    return sum(parameter.numel() for parameter in network.parameters())


def train(folder: Path, settings: list[str]) -> tuple[dict[str, int], float]:
    """A run by the command line: by process the most bytes that it held, and seconds."""
    began, runs = time.perf_counter(), folder / "runs"
    command = [sys.executable, "-m", "unirl_env.train", *SETTINGS, *settings]
    command += [f"model.pretrained={folder / 'model'}", f"logging.folder={runs}"]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peaks: dict[int, tuple[str, int]] = {}
    while run.poll() is None:
        driver = psutil.Process(run.pid)
        for process in [driver, *driver.children(recursive=True)]:
            try:
                name = "driver" if process.pid == run.pid else " ".join(process.cmdline())
                peaks[process.pid] = name, high_water(process.pid)
            except (psutil.Error, OSError, StopIteration):  # it has just ended
                continue
        time.sleep(0.1)
    if run.returncode:
        raise SystemExit(f"The run ended with {run.returncode}.")
    shutil.rmtree(runs)
    learners = sorted(size for name, size in peaks.values() if "WrappedExecutable" in name)
    found = {"driver": next(size for name, size in peaks.values() if name == "driver")}
    found |= {f"learner {number}": size for number, size in enumerate(learners)}
    return found, time.perf_counter() - began


def high_water(pid: int) -> int:
    """The most bytes that a process has held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def report(weights: int, found: dict[str, tuple[dict[str, int], float]]) -> str:
    """The table, as Markdown."""
    lines = [
        "# Memory of divided learners",
        "",
        f"{weights / 1e9:.2f} billion weights of a Stable Diffusion 3 in float32, all trained by SGD: read",
        "from files, two iterations, a checkpoint.",
        "",
        "| what | process | peak, GB | of the whole one's | seconds |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    most = max(max(peaks.values()) for peaks, _ in found.values())
    for words, (peaks, seconds) in found.items():
        for process, size in peaks.items():
            lines.append(f"| {words} | {process} | {size / 1e9:.2f} | {size / most:.2f} | {seconds:.0f} |")
    return "\n".join(
        [*lines, "", f"By `python benchmarks/{Path(__file__).name}`, {os.cpu_count()} processors.", ""]
    )


if __name__ == "__main__":
    main()
