"""The gradient at ratio one, averaged over keyed batches, against that of the expected reward."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unirl_env.agents.contract.certificate import DECLARED, FAILED, Check
from unirl_env.agents.contract.ground import Ground, by_group, share
from unirl_env.agents.contract.stand import Stand
from unirl_env.errors import ConfigError
from unirl_env.statistics import mean_interval

EPISODES: dict[str, Any] = {"num_prompts": 12, "group_size": 24}
ROUND, MOST, QUICK = 16, 64, 32
"""Batches after which an average is looked at, and those that it takes at most."""
TOLERANCE = 0.05
"""Of the relative bias: what its interval must reach down to."""
WIDE, WIDEST = 0.15, 0.3
"""Where intervals of the relative bias should end, and where they must."""
ASCENDS = 0.3
"""The least cosine with the policy gradient of a gradient whose bias is declared."""
DRIFT = 1e-5
"""Relative size of a gradient that counts as none."""


class Agreement(NamedTuple):
    """How a mean of sampled gradients compares with an exact one.

    Attributes:
        size: The part of the exact gradient that is found, 1 is all; with its interval.
        cosine: Of the two.
        bias: The distance of the two over the length of the exact one, noise taken out.
        low: Of an interval of the bias.
        high: Likewise.
    """

    size: tuple[float, float, float]
    cosine: float
    bias: float
    low: float
    high: float


def agreement(found: Tensor, exact: Tensor) -> Agreement:
    """Compare gradients `[J, n]` of J independent batches with the exact one `[n]`.

    The squared bias is estimated by products of different batches, in which noise cancels; its interval is
    the jackknife's.
    """
    length = exact.square().sum()
    interval = mean_interval((found @ exact / length).tolist())
    bias = _jackknifed((found - exact) / length.sqrt())
    squared = _square(found)
    cosine = interval.estimate * float(length.sqrt()) / math.sqrt(max(squared, 1e-30))
    return Agreement((interval.estimate, interval.low, interval.high), min(1.0, cosine), *bias)


def policy_gradient(ground: Ground) -> Check:
    """Of the reward: at ratio one every loss has the policy gradient's gradient, or declares another one."""
    stand = ground.stand(**EPISODES, advantage_scale=_scale(ground), **_of_tokens(ground, None))
    exact = _expected(stand, "token_mean")
    return _judged(ground, "gradient", stand, exact, ground.declared)


def weights_of_texts(ground: Ground) -> Check:
    """With `aggregate` sequence_mean, tokens weigh by their text: the gradient of that very sum."""
    name = "weights of texts"
    if ground.kind != "tokens":
        return ground.idle(name, "Latents have one number of steps.")
    try:
        stand = ground.stand(
            **EPISODES, advantage_scale=_scale(ground), **_of_tokens(ground, "sequence_mean")
        )
    except ConfigError as error:
        return ground.idle(name, str(error))
    exact = _expected(stand, "sequence_mean")
    return _judged(ground, name, stand, exact, "")


def _judged(ground: Ground, name: str, stand: Stand, exact: Tensor, declared: str) -> Check:
    gradients, found = _averaged(ground, stand, exact, declared=bool(declared))
    ground.sizes[name] = found.size[0]
    words = f"cosine {found.cosine:.3f}, size {found.size[0]:.2f}"
    if declared:
        return _as_declared(ground, name, found, agreement(gradients, found.size[0] * exact), declared, words)
    if found.size[0] < 0:
        wrong = (
            f"A step of gradient descent lowers the expected reward ({words}): the sign of the advantage or "
            "of the loss is wrong. Losses are minimised: try -rows.advantages * ratio."
        )
    elif found.low <= TOLERANCE:
        wrong = f"The gradient is too noisy to be told from a wrong one ({words})."
    else:
        wrong = (
            f"At ratio one the gradient is not the policy gradient ({words}). Try rows.mean(values), which "
            "weighs rows and divides by rows.denominator; or, if it is meant so, say why in "
            f"`declared_bias = {{{ground.kind!r}: '...'}}` of the configuration."
        )
    return ground.check(
        name,
        found.low <= TOLERANCE and found.high <= WIDEST,
        found.bias,
        f"[{found.low:.3f}, {found.high:.3f}], <= {TOLERANCE:g}",
        f"The relative bias of the gradient; a step raises the expected reward ({words}).",
        wrong,
        interval=(found.low, found.high),
    )


def _as_declared(
    ground: Ground, name: str, found: Agreement, scaled: Agreement, declared: str, words: str
) -> Check:
    """Of a gradient that is not meant to be the policy gradient: how far off it is, but for its size."""
    ascends = found.size[1] > 0 and found.cosine > ASCENDS
    return Check(
        name,
        ground.kind,
        DECLARED if ascends else FAILED,
        scaled.bias,
        f"[{scaled.low:.3f}, {scaled.high:.3f}], cosine > {ASCENDS:g}",
        f"The relative bias of the gradient but for its size, as declared: {declared} ({words})."
        if ascends
        else f"A step of gradient descent does not raise the expected reward ({words}), which goes beyond "
        f"what is declared ({declared}). Losses are minimised: try the sign of the advantage.",
        interval=(scaled.low, scaled.high),
    )


def _averaged(
    ground: Ground, stand: Stand, exact: Tensor, *, declared: bool = False
) -> tuple[Tensor, Agreement]:
    """Gradients `[J, n]` of as many batches as it takes, without what the agent does for constant rewards."""
    most = QUICK if ground.quick or declared else MOST
    first = stand.iterate(0)
    own = share(stand.iterate(0, batch=by_group(first.batch)).gradient, first.gradient) > DRIFT
    gradients: list[Tensor] = []
    while True:
        for _ in range(ROUND):
            outcome = stand.iterate(len(gradients))
            gradient = outcome.gradient
            if own:
                gradient = gradient - stand.iterate(len(gradients), batch=by_group(outcome.batch)).gradient
            gradients.append(gradient)
        result = agreement(torch.stack(gradients), exact)
        told = result.high <= WIDE or result.low > TOLERANCE
        if (told and not declared) or len(gradients) >= most:
            return torch.stack(gradients), result


def _expected(stand: Stand, weighing: str) -> Tensor:
    """What a learner finds on average: the judged sample is in its own baseline, but for leave-one-out."""
    size = stand.config.group_size
    own = 1.0 if stand.config.advantage_scale == "leave_one_out" else (size - 1) / size
    return own * stand.world.policy_gradient(stand.moved, weighing)


def _scale(ground: Ground) -> str:
    """Rewards are not divided by what depends on the batch: the gradient of that is no exact number."""
    own: str = ground.config.advantage_scale
    return own if own == "leave_one_out" else "none"


def _of_tokens(ground: Ground, weighing: str | None) -> dict[str, Any]:
    return {"aggregate": weighing} if weighing and ground.kind == "tokens" else {}


def _square(values: Tensor) -> float:
    """The squared length of the mean of `values` `[J, n]`, without what noise adds to it."""
    count = len(values)
    return float((values.sum(0).square().sum() - values.square().sum()) / (count * (count - 1)))


def _jackknifed(values: Tensor) -> tuple[float, float, float]:
    """The length of the mean of `values` `[J, n]`, without noise, and an interval of it."""
    count, total, squares = len(values), values.sum(0), values.square().sum(1)
    whole = _square(values)
    left = (total - values).square().sum(1) - (squares.sum() - squares)
    left = left / ((count - 1) * (count - 2))
    spread = 2.1 * float(((count - 1) / count * (left - left.mean()).square().sum()).sqrt())
    low, high = whole - spread, whole + spread
    return tuple(math.sqrt(max(0.0, each)) for each in (whole, low, high))  # type: ignore[return-value]
