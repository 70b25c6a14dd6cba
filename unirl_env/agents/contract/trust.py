"""On which side a trust region bounds: what has gone far enough must not be pushed on, and may come back.

Every row of a real micro-batch is given a policy that has gone from the old one by a known number of nats,
and the same advantage. How much the loss then pushes, over the ratio, is compared between the two sides.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from unirl_env.agents.contract.certificate import Check
from unirl_env.agents.contract.ground import Ground

NAME = "trust region"
NATS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.25, 0.5, 0.9)
"""How far policies have gone: of a token, or of an element of a latent."""
LATENT_SCORE = 3.0
"""How many stds from the old mean the actions of latents lie, so that means can go far."""
TOKEN = -1.0
"""The old log-probability of tokens."""
SLACK = 1.2


def trust_region(ground: Ground) -> Check:
    """Rows that have gone far in the direction of their advantage are not pushed more than those behind."""
    stand = ground.small(micro_batch_size=None)
    pushes: dict[tuple[int, float], float] = {}

    def look(compute: Any, rows: Any, new: Any, context: Any) -> Any:
        if not pushes and new is not None:
            for sign in (1, -1):
                for nats in (0.0, *NATS, *(-n for n in NATS)):
                    found = _push(compute, rows, new, context, sign, nats)
                    if found is None:
                        break
                    pushes[sign, nats] = found
        return compute(rows, new, context)

    stand.iterate(look=look)
    start = [pushes.get((sign, 0.0), 0.0) for sign in (1, -1)]
    if not pushes or not any(start):
        return ground.idle(NAME, "The loss does not push log-probs.")
    if min(start) <= 0:
        return ground.check(
            NAME,
            False,
            min(start),
            "> 0 at ratio one",
            "",
            "At ratio one, a good action's log-prob is not raised, or a bad one's not lowered: the sign of "
            "the advantage is wrong, or one of them is left out. Losses are minimised: -advantage * ratio.",
        )
    worst, where = _worst(pushes)
    bounded = any(pushes[sign, sign * n] < 0.9 * pushes[sign, -sign * n] for sign in (1, -1) for n in NATS)
    return ground.check(
        NAME,
        worst <= SLACK,
        worst,
        f"onward / back <= {SLACK:g}",
        "What has gone far with its advantage is not pushed on."
        if bounded
        else "There is no trust region within 0.9 nats: rows are pushed alike on both sides.",
        f"At {where:g} nats from the old policy, rows that have already gone with their advantage are pushed "
        f"{worst:.2g} times as hard as those that have gone against it: the clip is on the wrong side. Try "
        "max(-A r, -A clip(r)), or torch.where on the sign of the advantage.",
    )


def _worst(pushes: dict[tuple[int, float], float]) -> tuple[float, float]:
    """The largest push onward over the push back, and at how many nats.

    Of good actions, whatever the loss; of both kinds together, because a ratio that is cut from above counts
    bad actions less where they come back.
    """
    worst, where = 0.0, 0.0
    for nats in NATS:
        onward = {sign: max(0.0, pushes[sign, sign * nats]) for sign in (1, -1)}
        back = {sign: max(0.0, pushes[sign, -sign * nats]) for sign in (1, -1)}
        for on, behind in ((onward[1], back[1]), (sum(onward.values()), sum(back.values()))):
            found = on / max(behind, 1e-6) if on > 1e-3 else 0.0
            if found > worst:
                worst, where = found, nats
    return worst, where


def _push(compute: Any, rows: Any, new: Any, context: Any, sign: int, nats: float) -> float | None:
    """How much the loss pushes rows of advantage `sign` that have gone `nats` from the old policy, by ratio.

    Terms that push whatever the advantage is, such as a pull to the untrained model, are taken out.
    """
    make = _gaussian if hasattr(new, "mean") and hasattr(new, "std") else _token
    slopes = []
    for advantage in (float(sign), 0.0):
        gone = torch.tensor(nats, requires_grad=True)
        seen, step = make(rows, new, gone)
        seen = dataclasses.replace(seen, advantages=torch.full_like(rows.advantages, advantage))
        loss, _ = compute(seen, step, context)
        (slope,) = torch.autograd.grad(loss, gone, allow_unused=True) if loss.requires_grad else (None,)
        if slope is None:
            if advantage:
                return None
            slope = torch.zeros(())
        slopes.append(float(slope))
    return -sign * (slopes[0] - slopes[1]) * math.exp(-nats)


def _gaussian(rows: Any, new: Any, gone: Tensor) -> tuple[Any, Any]:
    """Steps whose action lies 3 stds from the old mean, under a mean that has gone along the way to it."""
    shape = (-1, *[1] * (new.mean.ndim - 1))
    old, std = new.mean.detach(), new.std.detach().view(shape)
    action = old + LATENT_SCORE * std
    # log p = -z^2 (1 - t)^2 / 2 for a mean that has gone the share t of the way.
    half = LATENT_SCORE**2 / 2
    share = 1.0 - torch.sqrt(1.0 - gone / half)
    log_prob = torch.full_like(rows.old_log_prob, -half)
    changed: dict[str, Any] = {"action": action, "old_log_prob": log_prob}
    if rows.old_mean is not None:
        changed["old_mean"] = old
    mean = old + share * (action - old)
    step = new._replace(log_prob=log_prob + gone, mean=mean)
    return dataclasses.replace(rows, **changed), step


def _token(rows: Any, new: Any, gone: Tensor) -> tuple[Any, Any]:
    """Tokens of one probability."""
    old = torch.full_like(rows.old_log_prob, TOKEN)
    return dataclasses.replace(rows, old_log_prob=old), new._replace(log_prob=old + gone)
