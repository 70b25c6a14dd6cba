"""Hybrid episodes step by step: every one goes on in its own phase."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from unirl_env.envs.token_rows import WAIT
from unirl_env.models.denoiser import NEGATIVE
from unirl_env.policies.actor import Actor
from unirl_env.policies.heads import ANNOUNCED

WRITTEN = ("tokens", "length", "prompt_length", "is_action", "pixel_values", "image_grid_thw", "positions")
"""Entries of an observation that a language model reads."""


class HybridStep(NamedTuple):
    """What B episodes do next.

    Attributes:
        action: Parts as `HybridVectorEnv` takes them: `token` `[B]`, -1 where an episode draws; `latent`
            `[B, ...]`, the present one where it writes, or `image_token` `[B]`, -1 there.
        log_prob: `[B]` float32.
    """

    action: dict[str, Tensor]
    log_prob: Tensor


@torch.no_grad()
def act_by_phase(
    actor: Actor, obs: Mapping[str, Tensor], uniform: Tensor | None = None, noise: Tensor | None = None
) -> HybridStep:
    """Go on with every episode in its own phase, without a cache.

    It reads the whole text for every step, for agents that act step by step; whole episodes come from
    `unirl_env.rollouts`.

    Args:
        actor: Of a unified model.
        obs: An observation of `HybridVectorEnv` as tensors.
        uniform: `[B]` in [0, 1), for tokens; None takes the likeliest.
        noise: Like the latents; None denoises without noise.
    """
    writes, draws = ((obs["phase"] == place).nonzero().flatten() for place in (0, 1))
    log_prob = torch.zeros(len(obs["phase"]), device=obs["phase"].device)
    action = {"token": torch.full_like(obs["phase"], WAIT)}
    if len(writes):
        step = actor.act(_said(obs, writes), None if uniform is None else uniform[writes], phase="text")
        action["token"][writes], log_prob[writes] = step.token, step.log_prob
    if "image_tokens" in obs:
        action["image_token"] = torch.full_like(obs["phase"], WAIT)
        if len(draws):
            drawn = None if uniform is None else uniform[draws]
            step = actor.act(_painted(obs, draws), drawn, phase="image")
            action["image_token"][draws], log_prob[draws] = step.token, step.log_prob
    elif "latent" in obs:
        action["latent"] = obs["latent"].clone()
        if len(draws):
            names = actor.model.context_keys
            names = (*ANNOUNCED, *names, *(NEGATIVE + name for name in names))
            seen = {name: obs[name][draws] for name in names if name in obs}
            if noise is None:
                step = actor.likeliest(seen, phase="image")
            else:
                step = actor.act(seen, noise[draws], phase="image")
            action["latent"] = action["latent"].to(step.latent.dtype)
            action["latent"][draws], log_prob[draws] = step.latent, step.log_prob
    return HybridStep(action, log_prob)


def _said(obs: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The texts at `rows`, as an observation of `TokenVectorEnv`."""
    return {name: obs[name][rows] for name in WRITTEN if name in obs}


def _painted(obs: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The texts at `rows`, and behind each of them the tokens of its picture so far."""
    said, painted = _said(obs, rows), obs["image_tokens"][rows]
    length, count = said["length"], obs["image_length"][rows]
    tokens = torch.cat([said["tokens"], torch.zeros_like(painted)], 1)
    place = length[:, None] + torch.arange(painted.shape[1], device=painted.device)
    return {**said, "tokens": tokens.scatter(1, place, painted), "length": length + count}
