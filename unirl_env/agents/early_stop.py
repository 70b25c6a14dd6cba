"""The early stop: no more optimizer steps in an iteration once the policy has gone far enough.

A trust region that masks gradients does not hold the weights: AdamW's momentum moves on where gradients are
masked, and what other rows still push moves all. FlowDPPO on the embedded Stable Diffusion 3 ends 8 epochs of
an iteration at ten times its threshold of 0.05 nats; with a stop there, at 0.9 to 1.5 times. A step
that is not taken moves nothing.

The distance is the mean KL between the policy that sampled and the present one, in nats of whole actions (a
token; all elements of a latent), over the rows of the step's own minibatch, on all learners: it costs no
forward pass, and the gradient of the first step that is not taken is thrown away.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.kinds import KINDS
from unirl_env.agents.rows import Rows
from unirl_env.errors import ConfigError
from unirl_env.functional import SDEStep


@torch.no_grad()
def drift(new: Any, rows: Rows, max_log_ratio: float) -> Tensor:
    """What a micro-batch adds to the measurement of its phase `[2]`: a sum over unmasked rows, their number.

    Of latents it is the exact KL where means were recorded, and else the squared log-ratio; of everything
    else r - 1 - ln r with r the ratio of new and old probability ("k3"), whose mean under the policy that
    sampled is the KL, and of which no term is negative.

    Args:
        new: The rows as they are scored now.
        rows: N rows as they were played.
        max_log_ratio: Where log-ratios of tokens are cut.

    Reference:
        Schulman, "Approximating KL divergence" (http://joschu.net/blog/kl-approx.html).
    """
    gaussian = isinstance(new, SDEStep)
    if gaussian and rows.old_mean is not None:
        values = F.gaussian_kl(new.mean, rows.old_mean, new.std, reduction="sum")
    else:
        elements = rows.action[0].numel() if KINDS[rows.kind].per_element else 1
        log_ratio = elements * (new.log_prob - rows.old_log_prob)
        cut = log_ratio.clamp(-max_log_ratio, max_log_ratio)
        values = log_ratio.square() if gaussian else cut.expm1() - cut
    return torch.stack([torch.where(rows.mask, values, 0.0).sum(), rows.mask.sum().to(values)])


def settled(total: float, rows: float, *, gaussian: bool, exact: bool) -> float:
    """The mean KL in nats, of the sums of `drift` over all learners; NaN without a row.

    Two Gaussians of one standard deviation whose KL is K have a log-ratio that is normal with mean -K and
    variance 2 K under the one that sampled, so that its mean square is 2 K + K^2 and K = sqrt(1 + it) - 1.
    Where rows differ in K, this is the mean or more.

    Args:
        total: What was summed.
        rows: Over how many rows.
        gaussian: Whether actions are latents.
        exact: Whether their means were recorded.
    """
    if not rows:
        return float("nan")
    mean = total / rows
    return float((1.0 + mean) ** 0.5 - 1.0) if gaussian and not exact else mean


def check_stop(config: Any) -> None:
    """Refuse an early stop that could never come.

    Raises:
        ConfigError: Naming the setting and the remedy.
    """
    if config.stop_kl is None:
        return
    if config.minibatches * config.num_epochs == 1:
        raise ConfigError(
            f"`stop_kl` must be null with one optimizer step in an iteration, got {config.stop_kl:g}: the "
            "first step is always taken; try `num_epochs=2` or `num_minibatches=2`."
        )
    if config.trained_kinds == ("latents",) and (config.looks_forward or not config.trained_steps(0)):
        raise ConfigError(
            f"`stop_kl` must be null where no transition is scored (`estimator` {config.estimating!r}), got "
            f"{config.stop_kl:g}: the policies' KL is that of steps that explore; try fewer epochs."
        )
