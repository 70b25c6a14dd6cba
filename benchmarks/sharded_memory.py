"""The peak memory of each process that trains about a billion weights: whole in one, and divided among two.

A Stable Diffusion 3 of published classes, in the published layout and with random weights, is read, plays,
takes an update of all its weights by AdamW in float32, and leaves its state. Whole, one process does all of
it; divided, two learners do (`learner.parallel=sharded`), and the driver has no network. Peaks are the
kernel's (`ru_maxrss`): pages of files that were read count.

    python benchmarks/sharded_memory.py              # 20 GB of memory and 20 GB of disk
    python benchmarks/sharded_memory.py --layers 2   # to try it
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "results" / "sharded_memory.md"
WIDTH, HEADS = 1536, 24
KINDS = {"whole": "one process", "sharded": "two learners, half of it each"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--part", choices=("write", *KINDS), help="what a process of this script does")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.part is None:
        measure(args.layers)
    elif args.part == "write":
        write(args.folder, args.layers)
    else:
        print(json.dumps(train(args.folder, args.part)))


def measure(layers: int) -> None:
    """Each part in a process of its own, and the page."""
    folder = Path(tempfile.mkdtemp())
    try:
        run("write", layers, folder)
        found = {kind: json.loads(run(kind, layers, folder).splitlines()[-1]) for kind in KINDS}
    finally:
        shutil.rmtree(folder)
    page = report(found)
    print(page)
    if layers == 12:
        PAGE.write_text(page)


def run(part: str, layers: int, folder: Path) -> str:
    """What a process of this script prints."""
    command = [sys.executable, __file__, "--part", part, "--layers", str(layers), "--folder", str(folder)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def write(folder: Path, layers: int) -> None:
    """The embedded pipeline with a transformer of `layers` blocks of SD3's width."""
    import torch
    from diffusers import SD3Transformer2DModel

    from unirl_env.models.tiny import TinySD3Denoiser

    tiny = Path(str(TinySD3Denoiser().pretrained))
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "transformer")
    config = json.loads((tiny / "transformer" / "config.json").read_text())
    config |= {
        "num_layers": layers,
        "num_attention_heads": HEADS,
        "attention_head_dim": WIDTH // HEADS,
        "caption_projection_dim": WIDTH,
    }
    torch.manual_seed(0)
    SD3Transformer2DModel.from_config(config).save_pretrained(folder / "transformer", max_shard_size="1GB")


def train(folder: Path, kind: str) -> dict[str, Any]:
    """Two iterations and a checkpoint; what each process took at most, in bytes."""
    from unirl_env.agents import GRPOConfig

    began = time.perf_counter()
    config = GRPOConfig().environment(
        "unirl/SD3-T2I-v0",
        env_config={
            "pretrained": str(folder),
            "num_steps": 2,
            "height": 32,
            "width": 32,
            "rows_per_forward": None,
            "prompts": ["a red square", "a blue circle"],
            "scorer": "colour",
        },
    )
    config.training(
        num_prompts=2,
        group_size=2,
        num_minibatches=1,
        micro_batch_size=2,
        lr=1e-5,
        policy={"lora_rank": None},
        steps={"kind": "all"},
        learner={"parallel": "sharded" if kind == "sharded" else "replicated"},
    )
    config.learners(num_learners=2 if kind == "sharded" else 0)
    agent = config.build_algo()
    for _ in range(2):
        agent.train()
    weights, _ = agent._parameters
    peaks = {"driver": peak()}
    if kind == "sharded":
        peaks |= {f"learner {n}": each for n, each in enumerate(agent._on_learners(lambda learner: peak()))}
    seconds = time.perf_counter() - began
    agent.stop()
    return {"weights": weights, "peaks": peaks, "seconds": seconds}


def peak() -> int:
    """Bytes that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def report(found: dict[str, dict[str, Any]]) -> str:
    """The table, as Markdown."""
    most = max(found["whole"]["peaks"].values())
    lines = [
        "# Memory of divided learners",
        "",
        f"{found['whole']['weights'] / 1e9:.2f} billion weights of a Stable Diffusion 3, all trained by AdamW in float32: "
        "read from files, two iterations, a checkpoint.",
        "",
        "| what | process | peak, GB | of the whole one's | seconds |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for kind, words in KINDS.items():
        for process, size in found[kind]["peaks"].items():
            share, seconds = size / most, found[kind]["seconds"]
            lines.append(f"| {words} | {process} | {size / 1e9:.2f} | {share:.2f} | {seconds:.0f} |")
    return "\n".join(
        [*lines, "", f"By `python benchmarks/{Path(__file__).name}`, {os.cpu_count()} processors.", ""]
    )


if __name__ == "__main__":
    main()
