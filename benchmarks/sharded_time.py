"""Two learners that each hold half of the weights, with one thread each, against one with two threads.

    python benchmarks/sharded_time.py [--rounds 9] [--prompts 2] [--group 8]

The network is Stable Diffusion 3's, smaller, with random weights, all of which are trained; an optimizer step
of it takes more than a second. The agents play the same episodes and take turns iteration by iteration, in
one Ray; what is compared is the seconds of their updates, each of one optimizer step. Two threads that wait
for each other suffer more from whatever else runs than two processes do, so on a busy machine that ratio
means nothing. Therefore one learner with one thread plays along, and the processor seconds of an update
stand beside: what two spend more than that one is what dividing costs. The table goes to
`benchmarks/results/sharded_time.md`.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import ray
import torch
from timing import ratio

from unirl_env.agents import GRPOConfig
from unirl_env.types import Scores

HERE = Path(__file__).parent
PAGE = HERE / "results" / "sharded_time.md"
PIXELS, STEPS = 256, 3
ONE, TWO, LEAST = "one learner, two threads", "two learners, one thread each", "one learner, one thread"
KINDS = {ONE: ("replicated", 1, 2), TWO: ("sharded", 2, 1), LEAST: ("replicated", 1, 1)}
"""How weights are divided, the number of learners, and the threads of each."""


def brightness(samples, prompts):
    """A reward that no two pictures share, so that every episode is trained on."""
    return Scores(torch.stack([sample.image.mean() for sample in samples]))


def agent_of(kind: str, prompts: int, group: int) -> Any:
    """An agent whose learners have as many threads as they are to have."""
    parallel, learners, threads = KINDS[kind]
    world = {
        "denoiser": "sizes:RandomSD3",
        "model_options": {"size": "small"},
        "pretrained": None,
        "prompts": [f"prompt {i}" for i in range(prompts)],
        "scorer": "sharded_time:brightness",
        "num_steps": STEPS,
        "height": PIXELS,
        "width": PIXELS,
        "dtype": "float32",
    }
    agent: Any = (
        GRPOConfig()
        .environment("unirl/SD3-T2I-v0", env_config=world)
        .learners(num_learners=learners)
        .training(
            num_prompts=prompts,
            group_size=group,
            num_minibatches=1,
            micro_batch_size=prompts * group // 2,
            steps={"kind": "all"},
            policy={"lora_rank": None},
            learner={"parallel": parallel},
            lr=1e-5,
            self_check=False,
        )
        .build_algo()
    )
    agent.learner_group.foreach_learner(lambda learner: torch.set_num_threads(threads))
    found = [each.get() for each in agent.learner_group.foreach_learner(lambda _: torch.get_num_threads())]
    if found != [threads] * learners:
        raise SystemExit(f"Learners must have {threads} threads each, got {found}.")
    agent.learner_group.foreach_learner(watch)
    return agent


def watch(learner: Any) -> None:
    """Let a learner note the processor seconds of its last update, in all of its threads."""
    learn = learner._learn

    def noted(*arguments: Any) -> None:
        began = time.process_time()
        learn(*arguments)
        learner.spent = time.process_time() - began

    learner._learn = noted


def processor_seconds(agent: Any) -> float:
    """Of the last update, of all learners."""
    return sum(each.get() for each in agent.learner_group.foreach_learner(lambda learner: learner.spent))


def measure(rounds: int, prompts: int, group: int) -> dict[str, Any]:
    """Seconds of the updates of both, in turns, and how far they lie apart."""
    agents = {kind: agent_of(kind, prompts, group) for kind in KINDS}
    loads = [os.getloadavg()[0]]
    rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    spent: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(-1, rounds):
        for kind, agent in agents.items():
            agent.train()
            if turn >= 0:
                rows[kind].append(dict(agent.iteration_metrics))
                spent[kind].append(processor_seconds(agent))
        loads.append(os.getloadavg()[0])
        print(turn, *(f"{rows[kind][-1]['seconds/update']:.2f}" for kind in KINDS if rows[kind]), flush=True)
    weights = sum(agents[ONE]._parameters)
    for agent in agents.values():
        agent.stop()
    seconds = {kind: [row["seconds/update"] for row in found] for kind, found in rows.items()}
    return {
        "seconds": seconds,
        "spent": spent,
        "ratio": ratio(seconds[TWO], seconds[ONE]),
        "more": ratio(spent[TWO], spent[LEAST]),
        "apart": {
            name: max(abs(a[name] - b[name]) for a, b in zip(rows[ONE], rows[TWO], strict=True))
            for name in ("reward", "loss")
        },
        "norms": max(
            abs(b["grad_norm"] / a["grad_norm"] - 1) for a, b in zip(rows[ONE], rows[TWO], strict=True)
        ),
        "weights": weights,
        "trained_rows": rows[ONE][-1]["trained_rows"],
        "loads": [min(loads), max(loads)],
    }


def page(found: dict[str, Any], command: str) -> str:
    """What is written down."""
    between, apart, (least, most) = found["ratio"], found["apart"], found["loads"]
    more, norms = found["more"], found["norms"]
    millions, rounds = found["weights"] / 1e6, len(found["seconds"][ONE])
    lines = [
        "# Learners that divide the weights, against one",
        "",
        f"`{command}`: Stable Diffusion 3's classes with {millions:.1f} million random weights,",
        f"all trained in float32, latents of {PIXELS} x {PIXELS} pixels, {found['trained_rows']:.0f} rows in",
        f"one optimizer step; gloo, {os.cpu_count()} cores, torch {torch.__version__}. Both take turns,",
        f"iteration by iteration; {rounds} rounds, in which the load of the machine was {least:.1f} to",
        f"{most:.1f}, this benchmark's own included.",
        "",
        "| learners | seconds of an update, median (least to most) | processor seconds |",
        "|---|---|---|",
    ]
    for kind, took in found["seconds"].items():
        cost = statistics.median(found["spent"][kind])
        middle = statistics.median(took)
        lines.append(f"| {kind} | {middle:.2f} ({min(took):.2f} to {max(took):.2f}) | {cost:.2f} |")
    lines += [
        "",
        f"Two learners take **{between['median']:.2f}** times as long as one with two threads",
        f"({between['min']:.2f} to {between['max']:.2f}; median, least and most of the rounds), and",
        f"spend **{more['median']:.2f}** times the processor seconds of one with one thread",
        f"({more['min']:.2f} to {more['max']:.2f}). Rewards lie at most {apart['reward']:.1g} apart, losses",
        f"{apart['loss']:.1g}, gradient norms {norms:.1g} relative.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    # Learners are other processes, which import the model, too.
    paths = [str(HERE), str(HERE / "gpu"), str(HERE.parent)]
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    torch.set_num_threads(1)
    ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    found = measure(args.rounds, args.prompts, args.group)
    args.page.parent.mkdir(parents=True, exist_ok=True)
    waiting = os.environ.get("OMP_WAIT_POLICY")
    prefix = f"OMP_WAIT_POLICY={waiting} " if waiting else ""
    args.page.write_text(page(found, f"{prefix}python benchmarks/sharded_time.py --rounds {args.rounds}"))
    print(args.page.read_text())


if __name__ == "__main__":
    main()
