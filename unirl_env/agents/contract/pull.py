"""The pull to the untrained model: what `reference_kl` adds to the gradient, against that of the KL."""

from __future__ import annotations

from typing import Any

import torch

from unirl_env.agents.contract.certificate import Check
from unirl_env.agents.contract.gradients import EPISODES, agreement
from unirl_env.agents.contract.ground import Ground
from unirl_env.errors import ConfigError

NAME = "pull"
PRICE, BATCHES = 0.5, 16
PULLED = {"latents": 0.3, "tokens": 1.0}
"""How far the policy is from the untrained one; near it, a KL and its reverse are alike."""
TOLERANCE = 0.15


def pull(ground: Ground) -> Check:
    """With `reference_kl`, the KL to the untrained model falls, by its own gradient."""
    place: dict[str, Any] = {"far": PULLED[ground.kind], "advantage_scale": "none"}
    free = ground.stand(**EPISODES, **place)
    try:
        bound = ground.stand(**EPISODES, **place, reference_kl=PRICE)
    except ConfigError as error:
        return ground.idle(NAME, str(error))
    whole = bound.config.kl_in == "return"
    exact = PRICE * bound.world.pull(bound.moved, bound.reference, bound.config, whole=whole)
    count = BATCHES // 2 if ground.quick else BATCHES
    found = []
    for number in range(count):
        charged = bound.iterate(number)
        # The same episodes: what was drawn follows from the iteration and from the weights, which are alike.
        found.append(charged.gradient - free.iterate(number, batch=charged.batch).gradient)
    result = agreement(torch.stack(found), exact)
    size, cosine = result.size[0], result.cosine
    ground.sizes[NAME] = size
    words = f"cosine {cosine:.3f}, size {size:.2f}"
    if ground.declared:
        return ground.check(
            NAME, result.size[1] > 0 and cosine > 0.3, cosine, "cosine > 0.3",
            f"The KL to the untrained model falls ({words}).",
            f"With a price on it, the KL to the untrained model does not fall ({words}); try its sign.",
        )  # fmt: skip
    return ground.check(
        NAME,
        result.low <= TOLERANCE and result.high < 0.6,
        result.bias,
        f"[{result.low:.3f}, {result.high:.3f}], <= {TOLERANCE:g}",
        f"`reference_kl` adds the gradient of the KL to the untrained model ({words}).",
        f"What `reference_kl` adds to the gradient is not that of the KL to the untrained model ({words})"
        + (": it pushes away from it; try the other sign." if size < 0 else
           "; try KL(policy || untrained), per row, by rows.mean."),
        interval=(result.low, result.high),
    )  # fmt: skip
