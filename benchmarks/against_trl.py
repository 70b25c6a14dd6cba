"""GRPO iterations on the embedded Qwen3 against TRL's `GRPOTrainer`, in one run and turn by turn.

Both have the same model, all weights trained in float32, the same prompts, group size, answer length, number
of optimizer steps per rollout and clip range, and a reward that is a Python function. An iteration is a
rollout, its rewards, and its optimizer steps. With one optimizer step per rollout TRL takes the log-probs of
the policy that acted from training itself, and needs no pass for them. What each side gives its network is
counted by a hook: positions with gradient (training) and without (generating, old log-probs). Ours are fewer
because rows are not padded, and a group's prompt is read once. Needs `pip install trl`.

    python benchmarks/against_trl.py [--rounds 7] [--iterations 4] [--case 32x16/2 32x16/1 8x8/2]
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import ray
import torch
from timing import ratio, report

from unirl_env.models.tiny import tiny_path

TOKENS, LR = 8, 1e-6
Run = Callable[[int], list[float]]


class Positions:
    """Counts the positions that networks are given, while it is `on`."""

    def __init__(self):
        self.counted, self._on = Counter(), False

    def watch(self, network: torch.nn.Module) -> None:
        """Count those of a network of transformers."""
        network.get_input_embeddings().register_forward_pre_hook(self._count)

    @contextmanager
    def on(self) -> Iterator[Counter]:
        """Within it, count."""
        self.counted, self._on = Counter(), True
        try:
            yield self.counted
        finally:
            self._on = False

    def _count(self, module, args) -> None:
        if self._on:
            self.counted["with" if torch.is_grad_enabled() else "without"] += args[0].numel()


def ours(prompts: int, group: int, minibatches: int, seen: Positions) -> tuple[Run, Callable[[], None]]:
    """What runs some of our iterations, and what ends that."""
    from unirl_env.agents import GRPOConfig

    agent = (
        GRPOConfig()
        .environment("unirl/TinyQwen3-Math-v0", env_config={"max_new_tokens": TOKENS})
        .training(
            num_prompts=prompts,
            group_size=group,
            num_minibatches=minibatches,
            lr=LR,
            policy={"lora_rank": None},
        )
        .build_algo()
    )
    seen.watch(agent.get_module().actor.network)

    def run(iterations: int) -> list[float]:
        seconds = []
        for _ in range(iterations):
            began = time.perf_counter()
            agent.train()
            seconds.append(time.perf_counter() - began)
        return seconds

    return run, agent.stop


def trl(prompts: int, group: int, minibatches: int, seen: Positions) -> Run:
    """What runs some of TRL's iterations."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from unirl_env.envs import PromptSource

    rows = [
        {"prompt": [{"role": "user", "content": prompt.text}], "answer": prompt.metadata["answer"]}
        for prompt in PromptSource.of("sums_train")
    ]

    def exact(completions, answer, **rest):
        return [float(c[0]["content"].strip() == a) for c, a in zip(completions, answer, strict=True)]

    class Clock(TrainerCallback):
        """Notes when each optimizer step ends."""

        def __init__(self):
            self.ends: list[float] = []

        def on_step_end(self, *args, **rest):
            self.ends.append(time.perf_counter())

    def run(iterations: int) -> list[float]:
        clock, out = Clock(), tempfile.mkdtemp()
        settings = GRPOConfig(
            output_dir=out,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=prompts * group // minibatches,
            steps_per_generation=minibatches,
            gradient_accumulation_steps=1,
            num_generations=group,
            max_completion_length=TOKENS,
            max_steps=(iterations + 1) * minibatches,
            learning_rate=LR,
            epsilon=0.2,
            beta=0.0,
            report_to=[],
            save_strategy="no",
            logging_steps=10_000,
            disable_tqdm=True,
            model_init_kwargs={"dtype": "float32"},
        )
        trainer = GRPOTrainer(
            model=str(tiny_path("qwen3")),
            reward_funcs=exact,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            callbacks=[clock],
        )
        seen.watch(trainer.model)
        trainer.train()
        # The first iteration warms up; each later one lasts from the end of the last one's steps to its own.
        ends = clock.ends[minibatches - 1 :: minibatches]
        return [after - before for before, after in pairwise(ends)]

    return run


def compared(prompts: int, group: int, minibatches: int, rounds: int, iterations: int) -> dict[str, object]:
    """One row of the table."""
    seen = Positions()
    run_ours, stop = ours(prompts, group, minibatches, seen)
    run_trl = trl(prompts, group, minibatches, seen)
    run_ours(2)
    with seen.on() as mine_given:
        run_ours(iterations)
    mine_given = {name: count / iterations for name, count in mine_given.items()}
    with seen.on() as theirs_given:
        run_trl(iterations)
    theirs_given = {name: count / (iterations + 1) for name, count in theirs_given.items()}
    mine, theirs = [], []
    for _ in range(rounds):
        mine.append(statistics.median(run_ours(iterations)))
        theirs.append(statistics.median(run_trl(iterations)))
    stop()
    return {
        "episodes": f"{prompts} x {group}",
        "optimizer steps": minibatches,
        "ours_ms": 1e3 * statistics.median(mine),
        "trl_ms": 1e3 * statistics.median(theirs),
        "trl/ours": ratio(theirs, mine),
        "positions ours": mine_given,
        "positions trl": theirs_given,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument(
        "--case",
        nargs="+",
        default=["32x16/2", "32x16/1", "8x8/2"],
        help="prompts x group / optimizer steps",
    )
    args = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    for case in args.case:
        sizes = map(int, case.replace("/", "x").split("x"))
        report("against_trl", compared(*sizes, args.rounds, args.iterations))
    ray.shutdown()


if __name__ == "__main__":
    main()
