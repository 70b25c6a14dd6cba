"""Importance weights for samples that another policy has drawn than the one that is trained.

An engine computes with other kernels and another precision than the learner, so that its samples come from
a policy of its own, mu. With the learner's policy pi at the start of an update, `E_pi[f] = E_mu[f pi / mu]`:
the weight `pi / mu` takes the samples for what they are. It is unbounded, so it is cut, in one of two ways.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unirl_env.errors import ConfigError, ShapeError
from unirl_env.functional.require import require_choice, require_floating, require_shape

LARGEST = 20.0
"""Where logarithms of weights end: far beyond every bound, and finite in float32."""


def correction_weights(
    log_prob: Tensor,
    sampled_log_prob: Tensor,
    *,
    how: str = "truncate",
    level: str = "step",
    bound: float = 2.0,
    mask: Tensor | None = None,
    elements: int = 1,
) -> tuple[Tensor, Tensor]:
    """`w = pi / mu` of each transition or of each episode, cut at `bound`, without gradient.

    - "truncate": `min(w, bound)`. What mu draws too seldom counts more, but never more than this.
    - "mask": w where `1 / bound <= w <= bound`, else 0. What the two policies disagree about teaches nothing.

    By step, the weight is that of the action given what came before; which states the sampler came to is left
    as it was. By episode it is the product over the steps: exact for whole episodes, and the wilder the
    longer they are, since logarithms of weights add up.

    A weight is a ratio of probabilities of whole actions. Log-probs that are means over D elements are
    multiplied by D; what float32 loses of such a mean is multiplied, too: at D = 65 536 up to 0.01 nats.

    Args:
        log_prob: `[B, S]` under pi, before the first optimizer step of the iteration.
        sampled_log_prob: `[B, S]` under mu, as it was recorded.
        how: "truncate" or "mask".
        level: "step" or "episode".
        bound: Above 1.
        mask: `[B, S]` bool, which transitions are trained; None for all.
        elements: D, over which both log-probs are means; 1 where they are nats of an action.

    Returns:
        The weights `[B, S]` float32, 1 where masked, and which of them were cut `[B, S]` bool.

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ConfigError: A choice is unknown, or `bound` is not above 1.

    Reference:
        Truncated importance sampling of rollouts: Yao et al., "Your Efficient RL Framework Secretly Brings
        You Off-Policy RL Training" (2025); the truncation itself is Ionides, J. Comput. Graph. Stat. 17
        (2008). IcePop (Ring-1T, arXiv 2510.18855) for the mask.
    """
    require_choice("how", how, ("truncate", "mask"))
    require_choice("level", level, ("step", "episode"))
    if not bound > 1:
        raise ConfigError(f"`bound` must be above 1, got {bound}; try 2.0.")
    require_floating("log_prob", log_prob)
    if log_prob.ndim != 2:
        raise ShapeError(f"`log_prob` must be [B, S], got {list(log_prob.shape)}.")
    require_shape("sampled_log_prob", sampled_log_prob, log_prob.shape, "log_prob")
    mask = torch.ones_like(log_prob, dtype=torch.bool) if mask is None else mask
    require_shape("mask", mask, log_prob.shape, "log_prob")
    log = elements * torch.where(mask, log_prob.detach().float() - sampled_log_prob.float(), 0.0)
    if level == "episode":
        log = log.sum(1, keepdim=True).expand_as(log)
    weight = log.clamp(-LARGEST, LARGEST).exp()
    cut = weight > bound
    if how == "mask":
        cut = cut | (weight < 1 / bound)
    limit = bound if how == "truncate" else 0.0
    return torch.where(mask, torch.where(cut, limit, weight), 1.0), cut & mask
