"""What must have no influence: rewards that tell nothing apart, scores that failed, rows that are masked."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from unirl_env.agents.contract.certificate import Check
from unirl_env.agents.contract.ground import Ground, apart, by_group, direction, paid, share

NOTHING = 1e-5
"""Relative size of a gradient that counts as none: terms that cancel leave rounding."""
SAME = 1e-4
FAILED_SCORES = (1, 8)
"""Of 24 episodes in groups of 6."""


def constant_rewards(ground: Ground) -> Check:
    """Groups of equal rewards move nothing, unless towards the untrained model by a term of the loss."""
    stand, still = ground.small(), ground.small(far=0.0)
    usual = stand.iterate()
    drift = stand.iterate(batch=by_group(usual.batch))
    begun = still.iterate()
    first = still.iterate(batch=by_group(begun.batch))
    figures = [share(drift.gradient, usual.gradient), share(first.gradient, begun.gradient)]
    figure, pulls = max(figures), False
    if figures[0] > NOTHING and figures[1] <= NOTHING:
        kl = stand.world.pull(stand.moved, stand.reference, stand.config)
        pulls = direction(drift.gradient, kl) > 0.1
    exact = max(float(drift.gradient.abs().max()), float(first.gradient.abs().max())) == 0
    bitwise = not exact or torch.equal(first.weights, still.start)
    return ground.check(
        "constant rewards",
        (figure <= NOTHING or pulls) and bitwise,
        figure,
        f"<= {NOTHING:g} of the usual",
        "Groups of equal rewards leave the weights as they are, bit for bit."
        if exact
        else "Groups of equal rewards leave rounding alone."
        if figure <= NOTHING
        else "Without a difference in rewards, a term of the loss pulls towards the untrained model.",
        f"Groups of equal rewards, which teach nothing, move the weights by {figures[0]:.1e} of the usual "
        f"gradient, the untrained ones by {figures[1]:.1e}, and not towards the untrained model. Compare "
        "rewards within each group alone, and check the sign of terms beside the advantage.",
    )


def invalid_scores(ground: Ground) -> Check:
    """An episode whose score failed counts as if it had not been played."""
    stand = ground.small()
    batch = stand.iterate().batch
    bad = torch.tensor(FAILED_SCORES)
    value, kept = batch.rewards.clone(), torch.ones(len(batch), dtype=torch.bool)
    # Far from the others, so that zeros in their places would be seen.
    value = value + 2.0
    kept[bad] = False
    failed, zero = value.clone(), value.clone()
    failed[bad], zero[bad] = math.nan, 0.0
    batch = paid(batch, failed)
    gradient = stand.iterate(batch=batch).gradient
    without = stand.iterate(batch=batch.select(kept)).gradient
    as_zero = stand.iterate(batch=paid(batch, zero)).gradient
    place = torch.arange(len(batch))
    place[bad] = 0  # whatever such an episode holds
    others = {name: phase.select(place) for name, phase in batch.phases.items()}
    content = stand.iterate(batch=dataclasses.replace(batch, phases=others)).gradient
    figures = apart(gradient, without), apart(content, gradient)
    counted = apart(gradient, as_zero) <= SAME
    return ground.check(
        "invalid scores",
        max(figures) <= SAME and not counted,
        max(figures),
        f"<= {SAME:g}",
        "Two failed scores give the gradient of the 22 other episodes.",
        "A failed score counts as a reward of 0"
        if counted
        else f"A failed score changes the gradient by {figures[0]:.1e} from that without the episode, what "
        f"such an episode holds by {figures[1]:.1e}"
        + ". It is NaN, and invalid: leave it out, of means and spreads, too (Scores.valid, rows.mask).",
    )


def idle_rows(ground: Ground) -> Check:
    """What a loss lets the learner leave out (`skips_idle`) has no gradient."""
    stand = ground.small()
    if not ground.config.losses[ground.kind].may_skip_idle(ground.config):
        return ground.idle("idle rows", "The loss is given rows of advantage 0, too.")
    batch = stand.iterate().batch
    batch = paid(batch, torch.where(batch.group < 2, batch.rewards, 0.5))
    left = stand.iterate(batch=batch).gradient
    figure = apart(left, ground.small(skips_idle=False).iterate(batch=batch).gradient)
    return ground.check(
        "idle rows",
        figure <= SAME,
        figure,
        f"<= {SAME:g}",
        "Rows of advantage 0, which the loss lets be left out, have no gradient.",
        "Rows of advantage 0 have a gradient, and the loss lets them be left out: its other terms would miss "
        "them. Try Loss(..., skips_idle=False).",
    )


def masks(ground: Ground) -> Check:
    """What stands in masked rows changes neither the loss nor its gradient."""
    stand = ground.small(micro_batch_size=None)
    found: list[float] = []

    def look(compute: Any, rows: Any, new: Any, context: Any) -> Any:
        mask = rows.mask & (torch.arange(len(rows)) % 2 == 0)
        masked = dataclasses.replace(rows, mask=mask)
        gradients = []
        for seen, step in ((masked, new), _spoiled(masked, new)):
            loss, _ = compute(seen, step, context)
            parts = torch.autograd.grad(loss, stand.trained, retain_graph=True, allow_unused=True)
            gradients.append(torch.cat([loss.detach().view(1), *(_flat(p) for p in parts)]))
        found.append(apart(gradients[1], gradients[0]))
        return compute(rows, new, context)

    stand.iterate(look=look)
    figure = max(found)
    return ground.check(
        "masks",
        figure <= 1e-6,
        figure,
        "<= 1e-06",
        "What stands in masked rows changes neither the loss nor its gradient.",
        "What stands in masked rows changes the loss or its gradient: they must not count. Try "
        "rows.mean(values), or torch.where(rows.mask, values, 0.0) before a sum.",
    )


def _spoiled(rows: Any, new: Any) -> tuple[Any, Any]:
    """The same with other numbers in masked rows."""
    mask = rows.mask

    def shifted(values: Tensor | None, by: float = 0.3) -> Tensor | None:
        if values is None or len(values) != len(mask) or not values.is_floating_point():
            return values
        return torch.where(mask.view(-1, *[1] * (values.ndim - 1)), values, values + by)

    action = shifted(rows.action, 0.5) if rows.action.is_floating_point() else rows.action
    changed = {
        name: shifted(getattr(rows, name))
        for name in ("old_log_prob", "old_mean", "old_velocity", "advantages", "weight", "final")
        if getattr(rows, name, None) is not None
    }
    if rows.kind != "latents":
        # No token is more than certain.
        changed["old_log_prob"] = shifted(rows.old_log_prob, -0.3)
    step = new
    if new is not None:
        names = [name for name in ("log_prob", "mean", "velocity") if hasattr(new, name)]
        by = 0.3 if rows.kind == "latents" else -0.3
        step = new._replace(**{name: shifted(getattr(new, name), by) for name in names})
    return dataclasses.replace(rows, action=action, **changed), step


def _flat(gradient: Tensor | None) -> Tensor:
    return torch.zeros(0) if gradient is None else gradient.flatten()
