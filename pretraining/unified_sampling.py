"""What the embedded unified model writes and draws, and how a judge likes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unirl_env.models.tiny import TinyUnified
from unirl_env.registry import Registry
from unirl_env.types import Prompt, Sample

__all__ = ["evaluate", "sample"]

SCORER = "unirl_env.rewards.pictures.shapes_scorers:ShapesScorer"
PLAN_TOKENS = 8


@torch.no_grad()
def sample(
    model: TinyUnified, network: Any, prompts: Sequence[Prompt], *, num_steps: int = 8, seed: int = 0
) -> list[Sample]:
    """A plan sampled at temperature 1 and the picture behind it, without guidance, of each prompt.

    Args:
        model: The adapter.
        network: Its network.
        prompts: What is asked for.
        num_steps: Euler steps of the picture.
        seed: Fixes plans and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    encoded = [model.text.encode(prompt) for prompt in prompts]
    begin = torch.tensor([len(e.tokens) for e in encoded])
    tokens = torch.full((len(encoded), int(begin.max()) + PLAN_TOKENS), model.text.pad_id)
    for row, e in enumerate(encoded):
        tokens[row, : len(e.tokens)] = e.tokens
    inputs: dict[str, Tensor] = {}
    if any(e.inputs for e in encoded):
        inputs["patches"] = torch.cat([e.inputs["pixel_values"] for e in encoded if e.inputs])
        inputs["grid"] = torch.cat([e.inputs["image_grid_thw"] for e in encoded if e.inputs])
    length, rows = begin.clone(), torch.arange(len(encoded))
    ends = torch.tensor(model.text.eos_ids)
    going = torch.ones(len(encoded), dtype=torch.bool)
    for _ in range(PLAN_TOKENS):
        width = int(length.max())
        hidden = network.read_text(tokens[:, :width], length, **inputs)[0][rows, length - 1]
        said = (hidden @ model.text.head(network).T).softmax(-1).multinomial(1, generator=generator)[:, 0]
        tokens[rows[going], length[going]] = said[going]
        length += going
        going &= (said[:, None] != ends).all(1)
        if not going.any():
            break
    # A plan that does not end is followed by a picture all the same: here it is the drawing that is judged.
    prefix = network.read_text(tokens, length, **inputs)[1]
    latent = torch.randn(len(encoded), *model.image.latent_shape, generator=generator)
    sigmas = model.image.sigmas(num_steps)
    for sigma, after in pairwise(sigmas):
        velocity = model.image.velocity(network, latent, sigma.expand(len(encoded)), prefix)
        latent = latent + (after - sigma) * velocity
    drawn = model.image.decode(latent)
    texts = [model.text.decode(row[a:b]) for row, a, b in zip(tokens, begin, length, strict=True)]
    return [Sample(image=picture.image, text=text) for picture, text in zip(drawn, texts, strict=True)]


def shipped_prompts(name: str) -> list[Prompt]:
    """The prompts of a shipped set of requests."""
    path = Path(str(resources.files("unirl_env"))) / "prompts" / "sets" / f"{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Prompt(
            row["prompt"],
            id=row["id"],
            metadata={"caption": row["caption"]},
            images=(row["image"],) if "image" in row else (),
        )
        for row in rows
    ]


def evaluate(
    directory: str | Path,
    name: str = "unified_heldout",
    *,
    network: Any = None,
    samples: int = 2,
    count: int = 120,
    num_steps: int = 8,
    seed: int = 0,
    scorer: str = SCORER,
) -> dict[str, float]:
    """Mean scores of what a saved model writes and draws.

    Args:
        directory: The model's directory.
        name: A shipped set of requests.
        network: Its network; loaded if None.
        samples: Of each request.
        count: The most requests, evenly out of the set.
        num_steps: Euler steps of a picture.
        seed: Fixes plans and noise.
        scorer: The judge.

    Returns:
        `value` and the judge's parts; `planned`, the share of plans that say what is wanted; `followed`, the
        share of pictures that show strictly what a plan in the words of the shapes world says.
    """
    model = TinyUnified(directory)
    prompts = shipped_prompts(name)
    prompts = [prompts[i * len(prompts) // min(count, len(prompts))] for i in range(min(count, len(prompts)))]
    prompts = [prompt for prompt in prompts for _ in range(samples)]
    made = sample(model, network or model.network(), prompts, num_steps=num_steps, seed=seed)
    # Models do not know rewards: the judge comes in by its name.
    judge = Registry("scorer").get(scorer)()
    scores = judge(made, prompts)
    means = {"value": scores.value, **scores.parts}
    said = [_as_caption(s.text) for s in made]
    wanted = [prompt.metadata["caption"] for prompt in prompts]
    followed = judge(made, [Prompt(text) for text in said])
    means["planned"] = torch.tensor([float(a == b) for a, b in zip(said, wanted, strict=True)])
    means["followed"] = followed.parts["strict"]
    return {key: round(value.nanmean().item(), 3) for key, value in means.items()}


def _as_caption(plan: str) -> str:
    """The caption that a plan stands for."""
    words = plan.split()
    return f"a {' '.join(words[:2])} at the {' '.join(words[2:])}"
