"""The check of the first update: scoring what was just sampled must find what the rollout recorded.

A run in which it does not would train on wrong numbers without anything looking broken, so it stops here. The
same measurement is the noise floor of this model on this machine, below which no threshold means anything.

Two things are compared. The ratio is taken against the old log-probs of the loss; where those are replayed,
it asks whether the learner agrees with itself. The gap is taken against what the rollout recorded, whatever
the loss uses: it asks whether the learner's policy is the one that sampled.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.kinds import KINDS
from unirl_env.agents.reports import Update, phase_metrics
from unirl_env.agents.rows import Rows, Step
from unirl_env.episode import EpisodeBatch
from unirl_env.errors import SelfCheckError
from unirl_env.functional import SDEStep

logger = logging.getLogger(__name__)

RATIO, GAP_MEAN, GAP_MAX, KL = (f"self_check/{name}" for name in ("ratio", "gap_mean", "gap_max", "kl"))
LOG_PROB_FLOOR, KL_FLOOR = "noise_floor/log_prob", "noise_floor/kl"
ROWS = "rows"
BOUNDS = {
    RATIO: ("self_check_tolerance", "|ratio - 1|"),
    GAP_MEAN: ("self_check_gap_mean", "mean gap"),
    GAP_MAX: ("self_check_gap_max", "largest gap"),
    KL: ("self_check_kl", "KL"),
}
"""What is bounded: the setting that does, and what it is called."""
ROUNDING = 8 * torch.finfo(torch.float32).eps
"""What float32 may lose of a log-prob of latents, relative to it: no gap can be seen below."""


@torch.no_grad()
def measure(new: Step, rows: Rows, recorded: Rows) -> dict[str, Tensor]:
    """How far scoring misses sampling before any weight has changed, over a micro-batch's unmasked rows.

    Args:
        new: The rows as the learner scores them.
        rows: The rows with the anchor that the ratio is taken against.
        recorded: The rows as the rollout recorded them.

    Returns:
        The largest of each row: `self_check/ratio`, |ratio - 1| against the anchor; `self_check/gap_max`, the
        difference from the recorded log-prob in nats of the whole action (a token, or all elements of a
        latent); `noise_floor/log_prob`, the same as losses see it, of latents per element; and, if means were
        recorded, `self_check/kl` in nats and `noise_floor/kl` per element. Sums over rows:
        `self_check/gap_mean` and their number, `rows`.
    """
    per_element = KINDS[rows.kind].per_element
    elements = rows.action[0].numel() if per_element else 1
    miss = (new.log_prob - recorded.old_log_prob).abs()
    nats = miss
    if per_element:
        # Log-probs of latents are means over elements; times their number, rounding would look like a gap.
        nats = elements * (miss - ROUNDING * recorded.old_log_prob.abs().clamp_min(1.0)).clamp_min(0.0)
    largest = {
        RATIO: (new.log_prob - rows.old_log_prob).expm1().abs(),
        GAP_MAX: nats,
        LOG_PROB_FLOOR: miss,
    }
    if recorded.old_mean is not None:
        latents = cast(SDEStep, new)
        kl = F.gaussian_kl(latents.mean, recorded.old_mean, latents.std)
        largest |= {KL: kl * elements, KL_FLOOR: kl}
    # A NaN must fail the check: amax and sum carry it on.
    found = {name: value[rows.mask].amax() for name, value in largest.items()}
    return found | {GAP_MEAN: nats[rows.mask].sum(), ROWS: rows.mask.sum()}


def summary(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The measurement of several micro-batches together: largest values, and the mean gap."""
    stacked = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    mean = stacked.pop(GAP_MEAN).sum() / stacked.pop(ROWS).sum()
    return {name: values.amax() for name, values in stacked.items()} | {GAP_MEAN: mean}


def judge(found: Mapping[str, float], config: Any, phase: str) -> None:
    """Refuse to go on unless the measurements of `phase` are within the bounds that `config` sets.

    Raises:
        SelfCheckError: With the numbers and the likely causes.
    """
    limits = {name: getattr(config, setting) for name, (setting, _) in BOUNDS.items()}
    beyond = [name for name, most in limits.items() if most is not None and not found.get(name, 0.0) <= most]
    if not beyond:
        return
    numbers = [
        f"{words} = {found[name]:.3g}" + (f" (`{setting}` is {limits[name]:g})" if name in beyond else "")
        for name, (setting, words) in BOUNDS.items()
        if name in found
    ]
    raise SelfCheckError(
        f"The first update of `{phase}` must find ratio 1, and gap and KL 0 between the learner and what the "
        f"rollout recorded, within its bounds, got {', '.join(numbers)}; gaps and KL in nats. Likely causes: "
        "the rollout acted with other weights, another guidance or temperature than the learner; something "
        "changed latents, sigmas or log-probs on the way; low precision. Try `policy.storage_dtype` equal to "
        "`model.dtype`, float32, `anchor='replay'` for a ratio that an engine's rounding disturbs, or (if "
        f"this much error is acceptable) a larger {', '.join(f'`{BOUNDS[name][0]}`' for name in beyond)}."
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


class FirstUpdate:
    """Every process checks each phase in the first update that has rows of it to train.

    A run that is continued is checked anew, because its machine or its engine may be another. Its log must be
    that of a run which was never interrupted, so what is found goes there once only.

    Args:
        config: An `AgentConfig`.

    Attributes:
        pending: The phases that are still to be checked.
        reported: Those whose findings the log has.
        found: What this process found, by the names of the log.
    """

    def __init__(self, config: Any):
        self.config = config
        self.found: dict[str, float] = {}
        self.begin(())

    def begin(self, reported: Sequence[str]) -> None:
        """Check all phases anew; the log has what was found of `reported` before."""
        self.pending = set(self.config.trained) if self.config.self_check else set()
        self.reported = set(reported)

    def note(self, batch: EpisodeBatch, updates: Sequence[Update]) -> None:
        """Take over what learners found, and leave in their reports what the log has not seen."""
        for name in sorted(self.pending):
            if name in batch.phases and not batch.phases[name].drawn:
                if not self.config.looks_forward:  # finished latents were never scored before
                    logger.warning(
                        "The self-check of `%s` does not apply: none of its steps was drawn.", name
                    )
                self.pending.discard(name)
                continue
            parts = [update.phases[name] for update in updates if name in update.phases]
            if not any(part.check for part in parts):
                continue  # Nothing to compare yet.
            metrics = phase_metrics(parts)
            warn_of_noise(metrics, self.config.thresholds(batch.phases[name]))
            prefix = f"{name}/" if len(updates[0].phases) > 1 else ""
            self.found |= {prefix + key: metrics[key] for part in parts for key in part.check}
            self.pending.discard(name)
            if name in self.reported:
                for part in parts:
                    part.check = {}
            self.reported.add(name)
