"""A GRPO iteration on the embedded Qwen3 against TRL's `GRPOTrainer`, in one run and turn by turn.

Both have the same model, all weights trained in float32, the same prompts, group size, answer length, number
of optimizer steps per rollout and clip range, and a reward that is a Python function. An iteration is a
rollout, its rewards, and its optimizer steps. Needs `pip install trl`.

    python benchmarks/against_trl.py [--rounds 3] [--iterations 6]
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from itertools import pairwise

import ray
import torch
from timing import report

PROMPTS, GROUP, TOKENS, MINIBATCHES, LR = 32, 16, 8, 2, 1e-6


def ours():
    """An agent, and what runs some iterations of it."""
    from unirl_env.agents import GRPOConfig

    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    agent = (
        GRPOConfig()
        .environment("unirl/TinyQwen3-Math-v0", env_config={"max_new_tokens": TOKENS})
        .training(
            num_prompts=PROMPTS,
            group_size=GROUP,
            num_minibatches=MINIBATCHES,
            lr=LR,
            policy={"lora_rank": None},
        )
        .build_algo()
    )

    def run(iterations: int) -> list[float]:
        seconds = []
        for _ in range(iterations):
            began = time.perf_counter()
            agent.train()
            seconds.append(time.perf_counter() - began)
        return seconds

    return run, agent


def trl():
    """A trainer, and what runs some iterations of it."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from unirl_env.envs import PromptSource
    from unirl_env.models import LANGUAGE_MODELS

    directory = LANGUAGE_MODELS.get("tiny_qwen3")().pretrained
    prompts = PromptSource.of("sums_train")
    rows = [
        {"prompt": [{"role": "user", "content": prompt.text}], "answer": prompt.metadata["answer"]}
        for prompt in prompts
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
            per_device_train_batch_size=PROMPTS * GROUP // MINIBATCHES,
            steps_per_generation=MINIBATCHES,
            gradient_accumulation_steps=1,
            num_generations=GROUP,
            max_completion_length=TOKENS,
            max_steps=(iterations + 1) * MINIBATCHES,
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
            model=directory,
            reward_funcs=exact,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            callbacks=[clock],
        )
        trainer.train()
        # The first iteration warms up; each later one lasts from the end of the last one's steps to its own.
        ends = clock.ends[MINIBATCHES - 1 :: MINIBATCHES]
        return [after - before for before, after in pairwise(ends)]

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=6)
    args = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run_ours, agent = ours()
    run_trl = trl()
    run_ours(2)
    mine: list[float] = []
    theirs: list[float] = []
    for _ in range(args.rounds):
        mine += run_ours(args.iterations)
        theirs += run_trl(args.iterations)
    agent.stop()
    ray.shutdown()
    own, other = statistics.median(mine), statistics.median(theirs)
    report(
        "against_trl",
        {
            "episodes": PROMPTS * GROUP,
            "ours_s": own,
            "trl_s": other,
            "times_as_fast": other / own,
            "ours_fastest_s": min(mine),
            "trl_fastest_s": min(theirs),
        },
    )


if __name__ == "__main__":
    main()
