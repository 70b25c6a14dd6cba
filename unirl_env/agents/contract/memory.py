"""Whether later steps of an iteration know who sampled: old log-probs are those of before the first step.

A ratio to log-probs that were taken anew after a step is always 1. Its gradient is that of fresh samples, its
trust region bounds nothing, and no metric shows it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from unirl_env.agents.contract.certificate import Check
from unirl_env.agents.contract.ground import SMALL, Ground, apart
from unirl_env.agents.contract.stand import Stand
from unirl_env.agents.estimators import estimator_of

NAME = "old policy"
STEP = 0.02
"""How far each weight moves between the two epochs."""
REACTS = 1e-5
"""Relative change of a gradient by which a loss is seen to know the policy that sampled."""


@dataclasses.dataclass
class Seen:
    """What was seen of two epochs over the same episodes.

    Attributes:
        old: The old log-probs in each call of the first epoch.
        again: How far those of the second epoch are from them, at most.
        moved: How far the policy is from them, at most.
        reacts: How much the gradient of the second epoch differs from that of fresh samples.
        honest: The slope of the loss along its own gradient, over the one that the gradient promises.
    """

    old: list[Tensor]
    again: float = 0.0
    moved: float = 0.0
    reacts: float = 0.0
    honest: float | None = None


def old_policy(ground: Ground) -> Check:
    """In a second epoch, the loss knows what the policy was that sampled."""
    stand = ground.stand(**SMALL, num_epochs=2, lr=STEP, micro_batch_size=None)
    seen = Seen([])
    stand.iterate(look=_watching(stand, seen))
    if seen.again > max(1e-5, 0.01 * seen.moved):
        return ground.check(
            NAME,
            False,
            seen.again,
            "0",
            "",
            f"After a step, old log-probs have become others, by up to {seen.again:.1e} (the policy moved by "
            f"{seen.moved:.1e}): they must stay those of the policy that sampled. Take them before the first "
            "step of an iteration, once.",
        )
    if seen.reacts > REACTS:
        return ground.check(
            NAME,
            True,
            seen.reacts,
            f"> {REACTS:g}",
            "After a step, the gradient differs from that of fresh samples: the loss knows who sampled.",
            "",
        )
    steps = ground.config.minibatches * ground.config.num_epochs
    honest = seen.honest is None or abs(seen.honest - 1.0) < 0.5
    return ground.check(
        NAME,
        honest or steps == 1,
        seen.reacts,
        f"> {REACTS:g}, or no ratio",
        "The loss has no ratio to the policy that sampled: all steps of an iteration after the first train "
        "as if their samples were fresh (num_minibatches=1, num_epochs=1 takes one).",
        "After a step, the loss still sees a ratio of 1: its old log-probs are the present ones. Try "
        "rows.old_log_prob, which were taken before the first step.",
    )


def _watching(stand: Stand, seen: Seen) -> Any:
    calls = 0

    def look(compute: Any, rows: Any, new: Any, context: Any) -> Any:
        nonlocal calls
        if context.step == 0:
            seen.old.append(rows.old_log_prob.detach().clone())
            return compute(rows, new, context)
        before = seen.old[calls]
        calls += 1
        seen.again = max(seen.again, float((rows.old_log_prob - before).abs().max()))
        if new is not None:
            seen.moved = max(seen.moved, float((new.log_prob.detach() - before).abs().max()))
        gradient = _gradient(compute(rows, new, context)[0], stand)
        fresh = _gradient(compute(*_fresh(rows, new, context))[0], stand)
        seen.reacts = max(seen.reacts, apart(gradient, fresh))
        if seen.reacts <= REACTS:
            seen.honest = _slope(compute, rows, new, context, stand, gradient)
        return compute(rows, new, context)

    return look


def _gradient(loss: Tensor, stand: Stand) -> Tensor:
    parts = torch.autograd.grad(loss, stand.trained, retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(weight) if part is None else part).flatten()
            for weight, part in zip(stand.trained, parts, strict=True)
        ]
    )


def _fresh(rows: Any, new: Any, context: Any) -> tuple[Any, Any, Any]:
    """The same rows as if the present policy had sampled them."""
    now: Mapping[str, str] = {"old_log_prob": "log_prob", "old_mean": "mean", "old_velocity": "velocity"}
    changed = {
        old: getattr(new, name).detach()
        for old, name in now.items()
        if getattr(rows, old, None) is not None and hasattr(new, name)
    }
    return dataclasses.replace(rows, **changed), new, _Fresh(context)


class _Fresh:
    """A context in which the policy that sampled is the present one."""

    def __init__(self, context: Any):
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def weights(self, name: str) -> AbstractContextManager[Any]:
        return torch.no_grad() if name == "old" else self._context.weights(name)


def _slope(compute: Any, rows: Any, new: Any, context: Any, stand: Stand, gradient: Tensor) -> float | None:
    """How the loss changes along its own gradient, by differences, over the length of that."""
    length = float(gradient.norm())
    if not length:
        return None
    estimator = estimator_of(stand.config, rows.kind)
    here, along, values = stand.weights(), gradient / length, []
    for side in (1.0, -1.0):
        with stand.putting(here + side * STEP * along), torch.no_grad():
            step = None if new is None else estimator.score(rows, context)
            values.append(float(compute(rows, step, context)[0]))
    return (values[0] - values[1]) / (2 * STEP * length)
