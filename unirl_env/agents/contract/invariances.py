"""What must not change a gradient: memory, the number of learners, the order of episodes, chance."""

from __future__ import annotations

from typing import Any

import torch

from unirl_env.agents.contract.certificate import Check
from unirl_env.agents.contract.ground import Ground, apart, direction

TOLERANCE = 1e-4
"""Relative: sums of float32 in another order."""
STILL = 1e-12
"""A learning rate at which nothing moves."""
BOUND = f"<= {TOLERANCE:g}"


def repeatable(ground: Ground) -> Check:
    """The same episodes give the same gradient, whatever torch's own generator says."""
    stand = ground.small()
    first = stand.iterate()
    torch.manual_seed(ground.seed + 1)
    again = stand.iterate(batch=first.batch)
    torch.manual_seed(ground.seed + 2)
    figure = max(
        apart(again.gradient, first.gradient),
        apart(stand.iterate(batch=first.batch).gradient, first.gradient),
    )
    return ground.check(
        "repeatable",
        figure == 0,
        figure,
        "0, bit for bit",
        "The same episodes give the same gradient.",
        "The same episodes give another gradient each time: the loss draws numbers that no key decides. Try "
        "context.noise(rows, 'name') or context.uniform(rows, 'name').",
    )


def micro_batches(ground: Ground) -> Check:
    """However a minibatch is cut for memory, the gradient is the same."""
    whole = ground.small(micro_batch_size=None).iterate()
    figures = {
        size: apart(ground.small(micro_batch_size=size).iterate(batch=whole.batch).gradient, whole.gradient)
        for size in (1, 3)
    }
    return ground.check(
        "micro-batches",
        max(figures.values()) <= TOLERANCE,
        max(figures.values()),
        BOUND,
        "Micro-batches of 1, of 3 and of all episodes give one gradient.",
        f"Micro-batches of 1 episode change the gradient by {figures[1]:.1e}, of 3 by {figures[3]:.1e}: a "
        "row depends on which others it is computed with. Divide sums by rows.denominator (rows.mean does), "
        "which counts the whole minibatch, and take no means, maxima or ranks over rows.",
    )


def minibatches(ground: Ground) -> Check:
    """Each optimizer step is of its own minibatch, as if that were all there is."""
    fixed: dict[str, Any] = {
        "advantage_scale": "none"
    }  # what is divided by the batch's spread depends on all of it

    def look(compute: Any, rows: Any, new: Any, context: Any) -> Any:
        context.step = 0  # keyed noise follows from it, and is to be the same
        return compute(rows, new, context)

    stand = ground.small(num_minibatches=2, lr=STILL, **fixed)
    both = stand.iterate(look=look)
    half = torch.arange(len(both.batch)) >= len(both.batch) // 2
    alone = ground.small(**fixed).iterate(batch=both.batch.select(half), look=look).gradient
    figure = apart(both.gradient, alone)
    return ground.check(
        "minibatches",
        figure <= TOLERANCE,
        figure,
        BOUND,
        "A second minibatch has the gradient that it has alone.",
        "A second minibatch has not the gradient that it has alone: something is left of the first one, or "
        "is counted over all of them. Begin each step without gradients, and divide by rows.denominator.",
    )


def step(ground: Ground) -> Check:
    """An optimizer step goes down the gradient."""
    stand = ground.small()
    before = stand.begins
    outcome = stand.iterate()
    figure = direction(outcome.weights - before, outcome.gradient)
    return ground.check(
        "step",
        figure < 0,
        figure,
        "cosine < 0",
        "An optimizer step goes down the gradient of the loss.",
        "An optimizer step does not go down the gradient of the loss: it climbs, or stays. Try the "
        "optimizer's own sign (`maximize`), and lr.",
    )


def learners(ground: Ground) -> Check:
    """The gradients of two learners' shares add up to that of one."""
    stand = ground.small()
    alone = stand.iterate()
    figure = apart(stand.iterate(batch=alone.batch, learners=2).gradient, alone.gradient)
    return ground.check(
        "learners",
        figure <= TOLERANCE,
        figure,
        BOUND,
        "The shares of two learners add up to the gradient of one.",
        "The shares of two learners do not add up to the gradient of one: something is normalised over what "
        "one learner has. Divide by rows.denominator, which counts all of them.",
    )


def order(ground: Ground) -> Check:
    """The order of the episodes changes nothing."""
    stand = ground.small()
    straight = stand.iterate()
    generator = torch.Generator().manual_seed(ground.seed)
    mixed = straight.batch.select(torch.randperm(len(straight.batch), generator=generator))
    figure = apart(stand.iterate(batch=mixed).gradient, straight.gradient)
    return ground.check(
        "order",
        figure <= TOLERANCE,
        figure,
        BOUND,
        "Episodes in another order give the same gradient.",
        "Episodes in another order give another gradient: something depends on places in the batch. Try "
        "rows.episode, rows.group and keyed noise.",
    )
