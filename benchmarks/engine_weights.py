"""All weights of a language model into a vLLM of the same process: from the policy's memory, and by a folder.

    make .venv-vllm/.test
    OMP_NUM_THREADS=1 .venv-vllm/bin/python benchmarks/engine_weights.py [--megabytes 500] [--rounds 5]

A Qwen3 of random weights in float32, played by `VLLMEngine`. Both ways take turns in one engine, after one
publication of each that is not counted. The sums by which the policy is known again are taken on the way from
memory alone, and its seconds contain them. The folder lies in `/dev/shm`; while new weights are loaded,
the old ones are there, too. The table goes to `benchmarks/results/engine_weights.md`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from timing import ratio
from torch import nn

from unirl_env.models.causal_lm import CausalLM
from unirl_env.models.tiny import TinyQwen3
from unirl_env.policies.actor import Actor
from unirl_env.rollouts.engines.vllm import VLLMEngine, _prints

MB = 10**6
WIDTH, MEMORY, FOLDER = 1024, "memory", "folder"
PAGE = Path(__file__).parent / "results" / "engine_weights.md"


def write(folder: Path, megabytes: float) -> None:
    """A model like the embedded one, of so many megabytes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny = Path(str(TinyQwen3().pretrained))
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(tiny)
    config.hidden_size, config.intermediate_size = WIDTH, 4 * WIDTH
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 16, 16, 64
    config.num_hidden_layers = max(1, round(megabytes * MB / (4 * 16 * WIDTH**2)))
    if hasattr(config, "layer_types"):
        config.layer_types = ["full_attention"] * config.num_hidden_layers
    torch.manual_seed(0)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


def memory(name: str) -> float:
    """Megabytes of this process, by the kernel's name."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024 / MB


def size_of(network: nn.Module) -> float:
    """Megabytes of its weights."""
    return sum(weight.nbytes for weight in network.parameters()) / MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    load, place = os.getloadavg()[0], Path(tempfile.mkdtemp())
    try:
        write(place, args.megabytes)
        page = measure(place, args.rounds, load)
    finally:
        shutil.rmtree(place)
    print(page)
    if args.megabytes == 500:
        PAGE.write_text(page)


def measure(place: Path, rounds: int, load: float) -> str:
    """The page."""
    import vllm

    actor = Actor(CausalLM(str(place)), lora=None)
    settings = {"max_length": 256, "dtype": "float32", "cache_bytes": 64 << 20}
    engine = VLLMEngine(str(place), eos_ids=actor.model.eos_ids, **settings)
    seconds: dict[str, list[float]] = {MEMORY: [], FOLDER: []}
    more: dict[str, float] = dict.fromkeys(seconds, 0.0)
    kept: dict[str, float] = {}
    prints = []
    for turn in range(-1, rounds):
        for way, found in seconds.items():
            with torch.no_grad():
                for weight in actor.network.parameters():
                    weight.mul_(1.01)
            engine._in_memory = way == MEMORY
            Path("/proc/self/clear_refs").write_text("5")
            before, began = memory("VmRSS"), time.perf_counter()
            engine.load_weights(turn + 1, actor)
            took = time.perf_counter() - began
            kept[way] = (
                sum(path.stat().st_size for at in engine._folder._made for path in Path(at).iterdir()) / MB
            )
            engine._folder.close()
            if turn >= 0:
                found.append(took)
                more[way] = max(more[way], memory("VmHWM") - before)
        began = time.perf_counter()
        _prints(actor)
        prints.append(time.perf_counter() - began)
    engine.close()
    size = size_of(actor.network)
    times = ratio(seconds[FOLDER], seconds[MEMORY])
    lines = [
        "# All weights into a vLLM of the same process",
        "",
        f"`.venv-vllm/bin/python benchmarks/{Path(__file__).name}`: a Qwen3 of {size:.0f} MB in float32,",
        f"vLLM {vllm.__version__} on a CPU ({os.cpu_count()} cores, load before {load:.1f}), medians of",
        f"{rounds} rounds in which both ways take turns, and the quickest and the slowest.",
        "",
        "| way | seconds | this process's peak above what it held before, MB | left in the folder, MB |",
        "|---|---|---:|---:|",
    ]
    for way in seconds:
        found = seconds[way]
        middle = f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
        lines.append(f"| {way} | {middle} | {more[way]:.0f} | {kept[way]:.0f} |")
    told = f"From memory is **{times['median']:.2f}** times as fast, the median over rounds"
    told += f" ({times['min']:.2f} to {times['max']:.2f}). Its sums take {statistics.median(prints):.3f} s."
    return "\n".join([*lines, "", told, ""])


if __name__ == "__main__":
    main()
