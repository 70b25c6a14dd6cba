"""Pre-train the embedded prompt enhancer: `python -m pretraining.enhancer_pretrain --out DIR`.

Supervised learning on requests and the captions that they mean (see `requests_data`): first on right
rewrites, until the model understands, then briefly on loose ones, which leaves it a habit that reinforcement
learning corrects. It takes about 80 seconds of one core (OMP_NUM_THREADS=1). Seed 0:

    mean probability of the right caption    requests of training    held out
    after right rewrites                     0.998                   0.998
    after loose rewrites                     0.173                   0.170

What the embedded Stable Diffusion 3 draws of it (6 steps, guidance 3, 128 requests of each kind) has a reward
of 0.41 and 0.44 by `shapes` if rewrites are sampled, of 0.98 and 0.97 if they are greedy or right.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pretraining.enhancer_build import build_tiny_enhancer, enhancer_tokenizer
from pretraining.qwen3_build import save
from pretraining.qwen3_pretrain import Chat, likelihood
from pretraining.requests_data import Request, loose_rewrite, requests_of, write_prompts
from unirl_env.models.causal_lm import CausalLM
from unirl_env.types import Prompt

__all__ = ["PHASES", "evaluate", "pretrain", "train"]


class _Chats:
    """Makes chats of requests, in the model's own tokens."""

    def __init__(self, directory: str | Path):
        self.model = CausalLM(str(directory))
        self._known: dict[str, list[int]] = {}

    def of(self, request: str, rewrite: str) -> Chat:
        """A request and its rewrite, the end of the turn included."""
        if request not in self._known:
            self._known[request] = self.model.encode(Prompt(request)).tokens.tolist()
        if rewrite not in self._known:
            self._known[rewrite] = [*self.model.spelling.ids(rewrite), self.model.eos_ids[0]]
        return [(self._known[request], False), (self._known[rewrite], True)]


def train(
    directory: str | Path,
    network: nn.Module,
    *,
    steps: int,
    rng: np.random.Generator,
    loose_rate: float = 0.0,
    peak_lr: float = 2e-3,
    batch: int = 64,
) -> None:
    """Maximise the likelihood of rewrites.

    Args:
        directory: Where tokenizer and config are.
        network: Trained in place.
        steps: Optimizer steps.
        rng: Source of everything random.
        loose_rate: Probability that an attribute is replaced; see `loose_rewrite`.
        peak_lr: Learning rate after warm-up; it falls linearly to a twentieth.
        batch: Requests per step.
    """
    from rich.progress import track

    chats, requests = _Chats(directory), requests_of()
    optimizer = torch.optim.AdamW(network.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=1e-2)
    for step in track(range(steps), description=f"rewrites, {loose_rate:.0%} loose"):
        for group in optimizer.param_groups:
            group["lr"] = peak_lr * min((step + 1) / 50, 1 - 0.95 * step / steps)
        drawn = [requests[index] for index in rng.integers(len(requests), size=batch)]
        made = [chats.of(text, loose_rewrite(caption, loose_rate, rng)) for text, caption in drawn]
        log_prob, tokens = likelihood(chats.model, network, made)
        loss = -log_prob.sum() / tokens.sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def evaluate(
    directory: str | Path, *, network: nn.Module | None = None, count: int = 300, seed: int = 0
) -> dict[str, float]:
    """The mean probability of the right caption, of training requests and of held-out ones.

    Args:
        directory: The model's directory.
        network: Its network; loaded if None.
        count: How many requests of each kind.
        seed: Chooses them.
    """
    chats = _Chats(directory)
    network = network or chats.model.network()
    rng = np.random.default_rng(seed)
    found = {}
    for name, held_out in (("train", False), ("heldout", True)):
        requests = requests_of(held_out=held_out)
        asked: list[Request] = [requests[index] for index in rng.permutation(len(requests))[:count]]
        made = [chats.of(text, caption.text) for text, caption in asked]
        found[name] = likelihood(chats.model, network, made)[0].exp().mean().item()
    return found


# (steps, rate of loosening, peak learning rate): first to understand, then the looseness.
PHASES = ((600, 0.0, 3e-3), (150, 0.5, 1e-3))


def pretrain(
    directory: str | Path, *, seed: int = 0, phases: Sequence[tuple[int, float, float]] = PHASES
) -> Path:
    """Build, train and save the model.

    Args:
        directory: Where to write.
        seed: Fixes weights and data.
        phases: Steps, rate of loosening and learning rate of `train`, one after the other.
    """
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as untrained:
        build_tiny_enhancer(untrained, seed=seed)
        network = CausalLM(untrained).network()
        for steps, loose_rate, peak_lr in phases:
            train(untrained, network, steps=steps, rng=rng, loose_rate=loose_rate, peak_lr=peak_lr)
            print({name: round(value, 3) for name, value in evaluate(untrained, network=network).items()})
    return save(network, enhancer_tokenizer(), directory)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pre-train the embedded prompt enhancer.")
    parser.add_argument("--out", required=True, help="directory to write the model to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", help="write the prompt sets into this directory, too")
    options = parser.parse_args(arguments)
    pretrain(options.out, seed=options.seed)
    if options.prompts:
        write_prompts(options.prompts)


if __name__ == "__main__":
    main()
