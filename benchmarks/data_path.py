"""The way of episodes from two players to two learners: through the driver, and by reference.

    python benchmarks/data_path.py [--rounds 9] [--megabytes 200] [--sizes 50 100 200]

Episodes are batches of random latents of the sizes of Stable Diffusion 3 at 512 x 512, in bfloat16, with text
encodings once for each group; what stands between players and learners is the library's own: `put_away`,
`EpisodeBatch.cat`, `share_out`, `fetched`. Both ways take turns in one process; the driver's peak memory is
taken in a process of its own for each way and size. The table goes to `benchmarks/results/data_path.md`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.rllib.core.learner.training_data import TrainingData
from timing import ratio

import unirl_env.functional as F
from unirl_env.agents.batching import share_out
from unirl_env.episode import EpisodeBatch, Phase
from unirl_env.rollouts.kept import fetched, put_away
from unirl_env.rollouts.memory import keep_freed_memory
from unirl_env.types import Prompt, Scores

PLAYERS, LEARNERS, GROUPS, SIZE, STEPS = 2, 2, 8, 16, 5
CHANNELS, HEIGHT, TOKENS, WIDTH, POOLED = 16, 64, 333, 4096, 2048
MB = 10**6
WAYS = {"through the driver": False, "by reference": True}
PAGE = Path(__file__).parent / "results" / "data_path.md"
NAMESPACE = "data_path"


def episodes(first: int, groups: int, megabytes: float) -> EpisodeBatch:
    """Whole groups, numbered from `first`, of so many megabytes, the encodings of texts included."""
    count = groups * SIZE
    contexts = groups * (TOKENS * WIDTH + POOLED) * 2
    columns = round((megabytes * MB - contexts) / (count * STEPS * 2 * CHANNELS * HEIGHT * 2))
    generator = torch.Generator().manual_seed(first)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(torch.bfloat16)

    sigmas = torch.linspace(1.0, 0.0, STEPS + 1)
    group = torch.arange(first, first + groups).repeat_interleave(SIZE)
    phase = Phase(
        observation={
            "latent": random(count, STEPS, CHANNELS, HEIGHT, columns),
            "sigma": sigmas[:-1].repeat(count, 1),
            "sigma_next": sigmas[1:].repeat(count, 1),
        },
        action=random(count, STEPS, CHANNELS, HEIGHT, columns),
        log_prob=torch.randn(count, STEPS, generator=generator),
        mask=torch.ones(count, STEPS, dtype=torch.bool),
        context={
            "prompt_embeds": random(groups, TOKENS, WIDTH),
            "pooled_prompt_embeds": random(groups, POOLED),
        },
        context_row=torch.arange(groups).repeat_interleave(SIZE),
    )
    return EpisodeBatch(
        {"image": phase},
        Scores(torch.rand(count, generator=generator)),
        group,
        tuple(Prompt(f"prompt {number}") for number in group.tolist()),
        F.derive_seed(0, "episodes") + torch.arange(count) + first * SIZE,
    )


def size_of(batch: EpisodeBatch) -> int:
    """Bytes of its tensors."""
    phase = batch.phases["image"]
    return sum(t.nbytes for t in (phase.action, *phase.observation.values(), *phase.context.values()))


@ray.remote(num_cpus=0)
class Player:
    """Has played; gives what it played as `GenerativeEnvRunner.collect` does."""

    def __init__(self, place: int):
        keep_freed_memory()
        self._place, self._batch = place, None

    def prepare(self, megabytes: float) -> int:
        """Play what is given from now on; returns its bytes."""
        groups = GROUPS // PLAYERS
        self._batch = episodes(self._place * groups, groups, megabytes / PLAYERS)
        return size_of(self._batch)

    def give(self, away: bool) -> EpisodeBatch:
        """What was played."""
        batch = self._batch.to("cpu")
        return put_away(batch) if away else batch


@ray.remote(num_cpus=0)
class Learner:
    """Takes its share as `GenerativeLearner.update` does."""

    def __init__(self):
        keep_freed_memory()
        self._shard: Any = None

    def take(self, data: TrainingData) -> None:
        """Have the share at hand."""
        self._shard = None
        data.solve_refs()
        shard: Any = data.batch
        if shard.kept is not None:
            shard = replace(shard, phases=fetched(shard.phases, shard.kept), kept=None)
        self._shard = shard.to("cpu")

    def sums(self) -> list[float]:
        """Of all numbers of the share."""
        phase, found = self._shard.phases["image"], []
        rows = phase.context["prompt_embeds"].double().sum((1, 2))[phase.context_row]
        for tensor in (phase.action, phase.observation["latent"], rows, self._shard.advantages["image"]):
            found.append(float((tensor.double().flatten(1) if tensor.ndim > 1 else tensor).sum()))
        return found


def iteration(players: list[Any], learners: list[Any], away: bool) -> float:
    """Bring episodes from players to learners; returns the seconds of the driver's own part."""
    batches = ray.get([player.give.remote(away) for player in players])
    batch = EpisodeBatch.cat(batches)
    del batches
    advantages = {"image": F.group_advantages(batch.rewards, batch.group)}
    began = time.perf_counter()
    shards: list[Any] = share_out(batch, advantages, num_minibatches=2, num_learners=LEARNERS)
    references = [ray.put(shard.to("cpu")) for shard in shards]
    own = time.perf_counter() - began
    ray.get(
        [
            learner.take.remote(TrainingData(batch_refs=[reference]))
            for learner, reference in zip(learners, references, strict=True)
        ]
    )
    return own


def actors() -> tuple[list[Any], list[Any]]:
    """The players and learners, made by whoever asks first."""
    made = []
    for kind, count in ((Player, PLAYERS), (Learner, LEARNERS)):
        name = kind.__ray_metadata__.class_name
        arguments = [(i,) if kind is Player else () for i in range(count)]
        made.append(
            [kind.options(name=f"{name} {i}", get_if_exists=True).remote(*arguments[i]) for i in range(count)]
        )
    return made[0], made[1]


def peak() -> float:
    """Megabytes that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


def memory(address: str, way: str) -> None:
    """Print what the driver of three iterations had before, and at most."""
    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    players, learners = actors()
    before = peak()
    for _ in range(3):
        iteration(players, learners, WAYS[way])
    print(json.dumps({"before": before, "peak": peak()}))


def compare(rounds: int, megabytes: float, sizes: list[float]) -> dict[str, Any]:
    """Seconds of both ways in turns, and the driver's memory."""
    context = ray.init(
        num_cpus=4,
        namespace=NAMESPACE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=3 * 10**9,
    )
    address = context.address_info["address"]
    players, learners = actors()
    peaks: dict[str, dict[float, list[float]]] = {way: {} for way in WAYS}
    bytes_of: dict[float, float] = {}
    for size in sizes:
        bytes_of[size] = sum(ray.get([player.prepare.remote(size) for player in players])) / MB
        for way in WAYS:
            command = [sys.executable, __file__, "--memory", way, "--address", address]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            peaks[way][size] = [found["before"], found["peak"]]
    total = sum(ray.get([player.prepare.remote(megabytes) for player in players])) / MB
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    own: dict[str, list[float]] = {way: [] for way in WAYS}
    sums: dict[str, list[list[float]]] = {}
    load = os.getloadavg()[0]
    for turn in range(-2, rounds):
        for way, away in WAYS.items():
            began = time.perf_counter()
            driver = iteration(players, learners, away)
            took = time.perf_counter() - began
            if turn < 0:
                sums[way] = ray.get([learner.sums.remote() for learner in learners])
                continue
            seconds[way].append(took)
            own[way].append(driver)
    if sums["by reference"] != sums["through the driver"]:
        raise SystemExit(f"Learners must be given the same by both ways, got {sums}.")
    return {
        "megabytes": total,
        "seconds": seconds,
        "own": own,
        "faster": ratio(seconds["through the driver"], seconds["by reference"]),
        "load": load,
        "peaks": peaks,
        "bytes": bytes_of,
    }


def page(found: dict[str, Any], command: str) -> str:
    """What is written down."""
    faster = found["faster"]
    rounds, cores = len(found["seconds"]["by reference"]), os.cpu_count()
    lines = [
        "# The way of episodes from players to learners",
        "",
        f"`{command}`: {found['megabytes']:.0f} MB of episodes like those of Stable Diffusion 3",
        f"(bfloat16, {GROUPS} groups of {SIZE}, {STEPS} steps), {PLAYERS} players, {LEARNERS} learners, one",
        f"machine with {cores} cores (load before them {found['load']:.1f}), torch {torch.__version__},",
        f"Ray {ray.__version__}. Medians of {rounds} rounds in which both ways take turns, and the quickest",
        "and the slowest. The driver's own part is sharing out and putting.",
        "",
        "| way | seconds | driver's own part, ms |",
        "|---|---|---|",
    ]
    for way, took in found["seconds"].items():
        mine = 1e3 * statistics.median(found["own"][way])
        lines.append(
            f"| {way} | {statistics.median(took):.3f} ({min(took):.3f} to {max(took):.3f}) | {mine:.1f} |"
        )
    lines += [
        "",
        f"By reference is **{faster['median']:.1f}** times as fast, the median over rounds "
        f"({faster['min']:.1f} to {faster['max']:.1f}).",
        "",
        "Peak memory of the driver's process in three iterations, and what of it is more than before them, "
        "each in a process of its own:",
        "",
        "| episodes | " + " | ".join(f"{way}, MB" for way in WAYS) + " |",
        "|---" * (1 + len(WAYS)) + "|",
    ]
    for size, megabytes in found["bytes"].items():
        cells = []
        for way in WAYS:
            before, most = found["peaks"][way][size]
            cells.append(f"{most:.0f} (+{most - before:.0f})")
        lines.append(f"| {megabytes:.0f} MB | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--sizes", type=float, nargs="*", default=[50, 100, 200])
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--memory", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory is not None:
        memory(args.address, args.memory)
        return
    found = compare(args.rounds, args.megabytes, args.sizes)
    args.page.parent.mkdir(parents=True, exist_ok=True)
    args.page.write_text(page(found, "python benchmarks/data_path.py"))
    print(args.page.read_text())


if __name__ == "__main__":
    main()
