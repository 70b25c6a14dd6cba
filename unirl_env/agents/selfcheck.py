"""The check of the first update: scoring what was just sampled must find ratio one and KL zero.

A run in which it does not would train on wrong numbers without anything looking broken, so it stops here. The
same measurement is the noise floor of this model on this machine, below which no threshold means anything.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.rows import Rows
from unirl_env.errors import SelfCheckError
from unirl_env.functional import SDEStep, TokenStep

__all__ = ["gap", "judge", "largest", "measure", "warn_of_noise"]

logger = logging.getLogger(__name__)

RATIO, LOG_PROB, KL = "self_check/ratio", "noise_floor/log_prob", "noise_floor/kl"


@torch.no_grad()
def measure(new: SDEStep | TokenStep, rows: Rows, recorded: Rows) -> dict[str, Tensor]:
    """How far scoring misses sampling, before any weight has changed; the largest of the unmasked rows.

    Args:
        new: The rows as the learner scores them.
        rows: The rows with the anchor that the ratio is taken against.
        recorded: The rows as the rollout recorded them.

    Returns:
        `self_check/ratio`, |ratio - 1| against the anchor; `noise_floor/log_prob`, the difference from the
        recorded log-prob; `noise_floor/kl`, mean-reduced, if means were recorded.
    """
    largest = {
        RATIO: (new.log_prob - rows.old_log_prob).expm1().abs(),
        LOG_PROB: (new.log_prob - recorded.old_log_prob).abs(),
    }
    if recorded.old_mean is not None:
        largest[KL] = F.gaussian_kl(new.mean, recorded.old_mean, new.std)
    # A NaN must fail the check: amax carries it on.
    return {name: value[rows.mask].amax() for name, value in largest.items()}


@torch.no_grad()
def gap(new: SDEStep | TokenStep, recorded: Rows) -> dict[str, Tensor]:
    """How far scoring misses what the rollout recorded: `max`, `sum` and `rows` of the unmasked rows."""
    distance = (new.log_prob - recorded.old_log_prob).abs()[recorded.mask]
    return {"max": distance.amax(), "sum": distance.sum(), "rows": recorded.mask.sum()}


def largest(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The measurement of several micro-batches together."""
    return {name: torch.stack([part[name] for part in parts]).amax() for name in parts[0]}


def judge(found: Mapping[str, float], tolerance: float, phase: str) -> None:
    """Refuse to go on unless the measurements of `phase` are within `tolerance`.

    Raises:
        SelfCheckError: With the numbers and the likely causes.
    """
    ratio, kl = found.get(RATIO, 0.0), found.get(KL, 0.0)
    if ratio <= tolerance and kl <= tolerance:
        return
    raise SelfCheckError(
        f"The first update of `{phase}` must find ratio 1 and KL 0 within {tolerance:g}, got |ratio - 1| = "
        f"{ratio:.3g}, "
        f"KL = {kl:.3g} and |difference of log-probs| = {found.get(LOG_PROB, float('nan')):.3g}. Likely "
        "causes: the rollout acted with other weights or another guidance than the learner; something "
        "changed latents, sigmas or log-probs on the way; low precision. Try `policy.storage_dtype` equal to "
        "`model.dtype`, `anchor='replay'`, float32, or (if this much error is acceptable) a larger "
        "`self_check_tolerance`."
    )


def warn_of_noise(found: Mapping[str, float], thresholds: Mapping[str, tuple[float, str]]) -> list[str]:
    """Warn of every threshold that lies below the noise floor; returns the warnings.

    Args:
        found: What `measure` found, over the whole first minibatch.
        thresholds: By setting, its value and what it bounds: `log_prob` or `kl`.
    """
    warnings = []
    for name, (value, quantity) in thresholds.items():
        floor = found.get(f"noise_floor/{quantity}")
        if floor is not None and value < floor:
            warnings.append(
                f"`{name}` is {value:g}, below this model's noise floor of {floor:.3g} ({quantity} between "
                "scoring and sampling under the same weights): it reacts to rounding as much as to learning. "
                "Try a larger value, `anchor='replay'`, or float32."
            )
    for warning in warnings:
        logger.warning(warning)
    return warnings
