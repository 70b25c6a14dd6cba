"""Pictures of hybrid episodes whose texts are finished: denoising steps, or picture tokens from an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import gymnasium as gym
import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.episode import Phase
from unirl_env.functional import SDEStep
from unirl_env.models.denoiser import NEGATIVE
from unirl_env.policies.actor import FlowActor
from unirl_env.rollouts.base import Told, distinct
from unirl_env.rollouts.engines.base import Answer, Request
from unirl_env.rollouts.recording import kept_steps, seen_of
from unirl_env.rollouts.texts import Written, text_phase
from unirl_env.rollouts.writing import Played
from unirl_env.types import Prompt

__all__ = ["draw_latents", "draw_tokens"]

SEEN = ("latent", "sigma", "sigma_next", "stochastic")
"""What the policy sees of a step, beside the context."""


@torch.no_grad()
def draw_latents(
    env: gym.vector.VectorEnv,
    played: Played,
    actor: FlowActor,
    seeds: Tensor,
    *,
    keep_mean: bool = False,
    keep_final: bool = False,
) -> Phase | None:
    """Denoise the pictures of all episodes that have come to theirs.

    Args:
        env: A hybrid environment with the torch backend and autoreset DISABLED.
        played: The episodes, which are changed.
        actor: What denoises.
        seeds: `[B]` int64, the key of each episode's noise.
        keep_mean: Record the means of the sampling distribution.
        keep_final: Record the finished latents, zeros where an episode has none.

    Returns:
        The phase of the steps that `kept_steps` names, masked where an episode has no picture; None without.
    """
    world, device = Told(env), played.obs["latent"].device
    rows = (~played.done).nonzero().flatten().to(device)
    context, row = _contexts(world, played.obs)
    explored = set(world.stochastic_steps)
    kept = kept_steps(explored, world.num_steps, keep_final)
    shape, keys = played.obs["latent"].shape[1:], seeds[rows.cpu()].tolist()
    steps: list[tuple[dict[str, Tensor], SDEStep]] = []
    if len(rows):
        # Only what is drawn is read: texts that ended without a picture are not in it.
        used, place = row[rows].unique(return_inverse=True)
        reading = actor.read({**{name: each[used] for name, each in context.items()}, "context_row": place})
        for k in range(world.num_steps):
            obs = {name: played.obs[name][rows] for name in SEEN}
            # What is stored is what the policy sees: rounding later would score another state.
            obs["latent"] = obs["latent"].to(actor.storage_dtype)
            noise = F.keyed_noise(keys, k, shape, device=device) if k in explored else None
            step = actor.act(obs, noise, reading=reading)
            if k in kept:
                steps.append(({name: obs[name] for name in seen_of(explored)}, step))
            played.step(env, {"latent": _spread(step.latent, rows, len(played.done))})
    if not kept:
        return None
    phase = _phase(steps, rows, context, row, len(kept), shape, actor.storage_dtype, keep_mean)
    if not explored:
        never = torch.zeros(phase.mask.shape, dtype=torch.bool, device=device)
        phase = replace(phase, observation={**phase.observation, "stochastic": never})
    if not keep_final:
        return phase
    last = step.latent if steps else phase.action[:0, 0]
    return replace(phase, final=_spread(last, rows, len(played.done)))


@torch.no_grad()
def draw_tokens(
    env: gym.vector.VectorEnv,
    played: Played,
    ask: Callable[[Sequence[Request]], list[Answer]],
    prompts: Sequence[Prompt],
    seeds: Tensor,
) -> Phase:
    """Draw the pictures, token by token, of all episodes that have come to theirs.

    Args:
        env: A hybrid environment with the torch backend and autoreset DISABLED.
        played: The episodes, which are changed.
        ask: Answers requests with picture tokens.
        prompts: B of them.
        seeds: `[B]` int64, the key of each episode's draws.

    Returns:
        The phase of the picture tokens; episodes without a picture have none.
    """
    world, obs = Told(env), played.obs
    count, width = len(prompts), world.unified_model.image.num_tokens
    rows = (~played.done).nonzero().flatten()
    texts, length = torch.as_tensor(obs["tokens"]), torch.as_tensor(obs["length"])
    written = Written(count, width)
    if len(rows):
        requests = [
            Request(
                tokens=tuple(texts[row, : length[row]].tolist()),
                prompt=prompts[row],
                inputs=world.encodings[row].inputs,
                seed=int(seeds[row]),
                # Behind every place that a text can have: its draws are never drawn again.
                position=world.max_new_tokens,
                max_new_tokens=width,
            )
            for row in rows.tolist()
        ]
        answers = ask(requests)
        for action in written.lay_out(answers, rows, [0] * len(rows), ()):
            played.step(env, {"image_token": action})
    drawn = torch.as_tensor(played.obs["image_tokens"])
    tokens = torch.nn.functional.pad(texts, (0, width))
    place = length[:, None] + torch.arange(width, device=texts.device)
    has = torch.zeros(count, dtype=torch.bool, device=texts.device)
    has[rows.to(texts.device)] = True
    tokens[has] = tokens[has].scatter(1, place[has], drawn[has])
    whole = {
        "tokens": tokens,
        "is_action": torch.arange(tokens.shape[1], device=texts.device) >= length[:, None],
        "prompt_length": length,
        "length": length + has * width,
    }
    # Each episode has a text of its own, which is the context of its picture.
    encodings = [replace(encoded) for encoded in world.encodings]
    return text_phase(whole, encodings, world.unified_model.text.input_spaces, written)


def _contexts(world: Told, obs: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """What the image view reads `[P, ...]`, and for each episode `[B]` which of it."""
    names = world.unified_model.context_keys
    names = [*names, *(NEGATIVE + name for name in names if NEGATIVE + name in obs)]
    context = {name: torch.as_tensor(obs[name]) for name in names}
    for prefix in ("", NEGATIVE):
        if f"{prefix}length" in context:
            longest = int(context[f"{prefix}length"].max())
            context[f"{prefix}tokens"] = context[f"{prefix}tokens"][:, :longest].clone()
    device = obs["latent"].device
    if world.max_new_tokens:
        return context, torch.arange(len(obs["latent"]), device=device)
    # Without a text, the episodes of a prompt have one context.
    first, row = distinct([id(encoded) for encoded in world.encodings])
    return {name: each[first.to(device)] for name, each in context.items()}, row.to(device)


def _phase(
    steps: Sequence[tuple[dict[str, Tensor], SDEStep]],
    rows: Tensor,
    context: dict[str, Tensor],
    row: Tensor,
    count: int,
    shape: torch.Size,
    dtype: torch.dtype,
    keep_mean: bool,
) -> Phase:
    """`count` recorded steps of the episodes at `rows`, as a phase of all episodes."""
    total = len(row)
    mask = torch.zeros(total, count, dtype=torch.bool, device=row.device)
    mask[rows] = True

    def of_all(values: list[Tensor], *sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        if not values:
            return torch.zeros(total, count, *sizes, dtype=dtype, device=row.device)
        return _spread(torch.stack(values, 1), rows, total)

    return Phase(
        observation={
            "latent": of_all([obs["latent"] for obs, _ in steps], *shape, dtype=dtype),
            "sigma": of_all([obs["sigma"] for obs, _ in steps]),
            "sigma_next": of_all([obs["sigma_next"] for obs, _ in steps]),
        },
        action=of_all([step.latent for _, step in steps], *shape, dtype=dtype),
        log_prob=of_all([step.log_prob for _, step in steps]),
        mask=mask,
        context=context,
        context_row=row,
        mean=of_all([step.mean for _, step in steps], *shape) if keep_mean else None,
    )


def _spread(values: Tensor, rows: Tensor, total: int) -> Tensor:
    """`values` `[n, ...]` of the episodes at `rows` among `total` ones, zeros elsewhere."""
    if len(rows) == total:
        return values
    return values.new_zeros(total, *values.shape[1:]).index_copy(0, rows, values)
