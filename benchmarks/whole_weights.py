"""Whole weights from two learners with a half each to a player: gathered as one object, and by buckets.

    python benchmarks/whole_weights.py [--megabytes 1000] [--rounds 5]

Learners and player are processes of Ray with weights of transformers' shapes and nothing to compute; what
stands between them is the library's own: `WeightSync`, `GenerativeEnvRunner.load_weights`. The other way is
the one of a single object: every learner gathers each weight (`gathered`), the first puts all of them into
Ray's store, the player reads them. Both ways take turns, in processes of their own, so that each has its own
peak (`VmHWM`: what is read in Ray's store counts). The table goes to `benchmarks/results/whole_weights.md`.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
import torch
import torch.distributed as dist
from timing import ratio
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from unirl_env.policies.buckets import BUCKET_BYTES
from unirl_env.policies.parts import gathered
from unirl_env.policies.trained_weights import TrainedWeights
from unirl_env.rollouts.calls import call_runners, of_first_learner
from unirl_env.rollouts.memory import keep_freed_memory
from unirl_env.rollouts.runner import GenerativeEnvRunner
from unirl_env.rollouts.sync import WeightSync

LEARNERS, WIDTH, MB = 2, 1536, 10**6
PAGE = Path(__file__).parent / "results" / "whole_weights.md"
ONE, BUCKETS = "one object", "buckets"


def shapes(megabytes: float) -> dict[str, tuple[int, ...]]:
    """Of layers like a transformer's, of so many megabytes in float32."""
    layer = {"qkv": (3 * WIDTH, WIDTH), "out": (WIDTH, WIDTH), "up": (4 * WIDTH, WIDTH)}
    layer |= {"down": (WIDTH, 4 * WIDTH), "norm": (WIDTH,)}
    layers = round(megabytes * MB / (4 * sum(torch.Size(shape).numel() for shape in layer.values())))
    return {f"layers_{i}_{name}": shape for i in range(layers) for name, shape in layer.items()}


class Peak:
    """How much memory this process has had at most since a moment, and what it had then."""

    def reset(self) -> None:
        """The moment is now."""
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._read("VmRSS")

    def above(self) -> float:
        """Megabytes at most, above what there was."""
        return self._read("VmHWM") - self._before

    def _read(self, name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024 / MB


@ray.remote(num_cpus=0)
class Learner(Peak):
    """Holds its part of every weight."""

    def __init__(self, rank: int, port: int, megabytes: float):
        keep_freed_memory()
        torch.set_num_threads(1)
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=LEARNERS)
        mesh, state = init_device_mesh("cpu", (LEARNERS,)), {}
        for number, (name, shape) in enumerate(shapes(megabytes).items()):
            whole = torch.full(shape, float(number))
            state[name] = distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)
        self.policy = SimpleNamespace(actor=SimpleNamespace(state=lambda: state))

    def apply(self, function: Any) -> Any:
        """What `function(learner)` returns."""
        return function(self)


class Network(TrainedWeights):
    """A player's whole weights."""

    def __init__(self, megabytes: float):
        super().__init__()
        self.network = nn.ParameterDict({n: torch.ones(shape) for n, shape in shapes(megabytes).items()})

    def set_state(self, state: Any) -> None:
        """Take over weights."""
        self.load_trainable_state(state)

    def reference(self) -> Any:
        """None is kept."""
        raise NotImplementedError


@ray.remote(num_cpus=0)
class Player(GenerativeEnvRunner, Peak):
    """A runner without an environment."""

    def __init__(self, megabytes: float):
        keep_freed_memory()
        torch.set_num_threads(1)
        self.module, self.worker_index, self._names = Network(megabytes), 1, list(shapes(megabytes))
        self._awaited, self._rollout = None, object()

    def right(self) -> bool:
        """Whether all weights are those of the learners."""
        state = self.module.trainable_state()
        return all(bool((state[name] == number).all()) for number, name in enumerate(self._names))

    def spoil(self) -> None:
        """Let no weight be right."""
        for tensor in self.module.trainable_state().values():
            tensor.fill_(-1.0)


class Processes:
    """Learners and a player, as RLlib's groups have them."""

    is_remote, local_env_runner = True, None

    def __init__(self, megabytes: float):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.learners = [Learner.remote(rank, port, megabytes) for rank in range(LEARNERS)]
        self.player = Player.remote(megabytes)
        self.sync = WeightSync(self, self, divided=True)
        ray.get([process.reset.remote() for process in (*self.learners, self.player)])

    def foreach_learner(self, function: Any) -> list[Any]:
        """RLlib's."""
        found = ray.get([learner.apply.remote(function) for learner in self.learners])
        return [SimpleNamespace(ok=True, get=lambda answer=answer: answer) for answer in found]

    def num_remote_env_runners(self) -> int:
        """RLlib's."""
        return 1

    def healthy_env_runner_ids(self) -> list[int]:
        """RLlib's."""
        return [1]

    def foreach_env_runner(self, methods: Any, *, kwargs: Any, **options: Any) -> list[Any]:
        """RLlib's."""
        return ray.get([self.player.attempt.remote(**each) for each in kwargs])

    def publish(self, way: str) -> float:
        """Seconds of one publication."""
        began = time.perf_counter()
        if way == BUCKETS:
            self.sync.publish(1)
        else:
            put = of_first_learner(self, _put_whole, divided=True)
            call_runners(self, "load_weights", {1: {"version": 1, "weights": put["weights"]}})
        seconds = time.perf_counter() - began
        assert ray.get(self.player.right.remote())
        ray.get(self.player.spoil.remote())
        return seconds


def _put_whole(learner: Any) -> dict[str, Any]:
    weights = gathered(learner.policy.actor.state())
    return {"weights": ray.put(weights)} if weights else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=4 * 10**9,
    )
    ways = {way: Processes(args.megabytes) for way in (ONE, BUCKETS)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way, processes in ways.items():
            seconds[way].append(processes.publish(way))
    peaks = {
        way: ray.get([process.above.remote() for process in (*processes.learners, processes.player)])
        for way, processes in ways.items()
    }
    ray.shutdown()
    page = report(args, seconds, peaks, load)
    print(page)
    if args.megabytes == 1000:
        PAGE.write_text(page)


def report(args: Any, seconds: dict[str, list[float]], peaks: dict[str, list[float]], load: float) -> str:
    """The table, as Markdown."""
    size = sum(4 * torch.Size(shape).numel() for shape in shapes(args.megabytes).values()) / MB
    times = ratio(seconds[ONE], seconds[BUCKETS])
    lines = [
        "# Whole weights from learners to a player",
        "",
        f"`python benchmarks/{Path(__file__).name}`: {size:.0f} MB of float32 weights, {LEARNERS} learners",
        f"with a half each, a player with all of them, buckets of {BUCKET_BYTES / MB:.0f} MB, one machine",
        f"with {os.cpu_count()} cores (load before the rounds {load:.1f}), torch {torch.__version__},",
        f"Ray {ray.__version__}. Medians of {args.rounds} rounds in which both ways take turns, and the",
        "quickest and the slowest; of each process the peak above what it held before the first round, with",
        "what it read or wrote of Ray's store.",
        "",
        "| way | seconds | learner of rank 0, MB | the other learner, MB | player, MB |",
        "|---|---|---:|---:|---:|",
    ]
    for way, found in seconds.items():
        middle = f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
        lines.append(f"| {way} | {middle} | " + " | ".join(f"{each:.0f}" for each in peaks[way]) + " |")
    words = f"median over rounds ({times['min']:.2f} to {times['max']:.2f})"
    told = f"By buckets is **{times['median']:.2f}** times as fast as in one object, the {words}."
    return "\n".join([*lines, "", told, ""])


if __name__ == "__main__":
    main()
