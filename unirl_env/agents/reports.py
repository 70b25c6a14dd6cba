"""What learners report of an iteration, and the numbers that it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from unirl_env.episode import EpisodeBatch
from unirl_env.errors import ContractError
from unirl_env.monitor.alarm import SAME
from unirl_env.monitor.iteration_metrics import diversity, score_metrics

IDLE = ("loss", "kl", "grad_norm", "skipped_steps", "trained_rows", "scored_rows")
"""What an iteration without an update says."""


class FollowedFailure(ContractError):
    """This learner stopped because another one failed."""


@dataclass
class PhaseUpdate:
    """What a learner reports of one phase.

    Attributes:
        metrics: Per optimizer step: `loss`, as it was minimized, and what it reports of this learner's rows;
            of a mean, the sum over them.
        reduce: How each metric is reduced: `"mean"` unless it is said here.
        rows: Per optimizer step, how many unmasked rows this learner computed.
        scored: How many rows were scored without being trained: by the policy that sampled, and by the
            untrained one.
        gap: How far scoring misses what the rollout recorded, before any weight has changed: `max`, and
            `sum` over `rows` of |difference of log-probs|.
        check: What the self-check measured, if it ran.
        correction: Of importance weights on advantages, if there are any: the sum of `weight`, how many were
            `cut`, and over how many `rows`.
        grad_norm: Per optimizer step, of what this phase adds to all learners' gradient; empty where it is
            not measured.
        stop_kl: The last KL that was held against `stop_kl`, of all learners; None without one.
    """

    metrics: list[dict[str, Any]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    scored: int = 0
    gap: dict[str, float] = field(default_factory=dict)
    check: dict[str, float] = field(default_factory=dict)
    reduce: dict[str, str] = field(default_factory=dict)
    correction: dict[str, float] = field(default_factory=dict)
    grad_norm: list[float] = field(default_factory=list)
    stop_kl: float | None = None


@dataclass
class Update:
    """What a learner reports of one iteration.

    Attributes:
        phases: By the phase's name, what it reports of it.
        grad_norm: Per optimizer step, of all learners' gradient before clipping.
        skipped: Per optimizer step, whether the step was left out because the gradient was not finite.
        stopped: How many steps were not taken because the policy had gone far enough; None where nothing
            stops them.
        error: What stopped this learner.
        repeated: Whether another learner, which has the same episodes, reports the same.
    """

    phases: dict[str, PhaseUpdate] = field(default_factory=dict)
    grad_norm: list[float] = field(default_factory=list)
    skipped: list[bool] = field(default_factory=list)
    stopped: int | None = None
    error: Exception | None = None
    repeated: bool = False


def rollout_metrics(batch: EpisodeBatch, advantages: Tensor) -> dict[str, float]:
    """What the rewards look like; statistics are taken over valid scores, of parts over those that apply.

    Returns:
        Those of `score_metrics` under `reward`; `reward_max` and `reward_min`; `saturation` (the share of
        valid episodes that earn `reward_max`); `zero_std_groups` (the share of groups that teach nothing, of
        those with two valid scores),
        `advantage_max`, `advantage_zero` (the share of such episodes); of texts `tokens` (the mean length),
        `tokens_max`, and `truncated` (the share that the length limit ended). Where samples are kept, also
        `diversity`, and of texts that become pictures `no_picture` (the share that never came to one).
    """
    rewards = batch.rewards[batch.scores.valid]
    busy = batch.group[advantages != 0].unique()
    # Of a group without two scores nobody knows whether it would teach anything.
    judged = int((batch.group[batch.scores.valid].unique(return_counts=True)[1] > 1).sum())
    found = score_metrics("reward", batch.scores) | _extremes(rewards)
    found |= {
        "zero_std_groups": 1.0 - len(busy) / judged if judged else float("nan"),
        "advantage_max": float(advantages.abs().max()),
        "advantage_zero": float((advantages == 0).float().mean()),
    }
    if batch.samples:
        found |= diversity(batch.samples, batch.group)
    text = batch.phases.get("text")
    text = text if text is not None and text.kind == "tokens" else None
    if text is not None:
        lengths = (text.action >= 0).sum(1).float()
        found |= {"tokens": float(lengths.mean()), "tokens_max": float(lengths.max())}
    if batch.truncated is not None:
        found["truncated"] = float(batch.truncated.float().mean())
    pictures = [s.image is not None or s.video is not None for s in batch.samples or ()]
    # Answers never come to a picture, and are not meant to.
    meant = any(pictures) or "image" in batch.phases or any(map(_tells_pictures, batch.scores.parts))
    if text is not None and pictures and meant:
        found["no_picture"] = pictures.count(False) / len(pictures)
    return found


def function_evaluations(batch: EpisodeBatch, config: Any, num_steps: int | None = None) -> float:
    """Rows that the trained network read to play the episodes: the cost that no machine changes.

    A denoising step counts one for each episode that comes to its picture, two under guidance, whether it
    explores or not; a token or an action counts one. Prompts are not counted. Where pictures are drawn and
    nothing of them is recorded, because they are not trained, every episode counts as one with a picture.

    Args:
        batch: B episodes.
        config: An `AgentConfig`.
        num_steps: Denoising steps of these episodes; None takes the environment's number.
    """
    total = 0.0
    for name, kind in config.mode.phases(config).items():
        phase = batch.phases.get(name)
        if kind == "latents":
            drawn = len(batch) if phase is None else int(phase.mask.any(1).sum())
            total += drawn * (num_steps or config.num_steps) * (1 if config.policy.guidance == 1.0 else 2)
        elif phase is None:
            continue
        elif kind == "tokens":
            total += float((phase.action >= 0).sum())
        else:
            total += float(phase.mask.sum())
    return total


def update_metrics(updates: Sequence[Update]) -> dict[str, float]:
    """One number of each kind, from all learners, minibatches and epochs.

    The loss is averaged over optimizer steps, and a loss's metrics are reduced as each says of itself; a mean
    is one over the rows that were computed, in each epoch anew. Rows of advantage 0 are skipped where the
    loss has no gradient there, and count nowhere but in its denominator. `kl` is the exact one where the loss
    knows it, else the mean of the log-ratio. `gap` and `gap_max` tell how far scoring misses the rollout's
    log-probs before the first optimizer step; `correction` is the mean of the importance weights that correct
    for who sampled, and `correction_cut` the share of them that was cut. `trained_rows` were scored and
    differentiated, `scored_rows` scored alone: for old log-probs and by the untrained model.

    Where several phases are trained, what belongs to one begins with its name (`text/kl`, `image/kl`), and
    `loss` is their sum.
    """
    if not updates:  # nothing was scored
        return dict.fromkeys(IDLE, 0.0)
    names = list(dict.fromkeys(name for update in updates for name in update.phases))
    found: dict[str, float] = {}
    for name in names:
        of_phase = phase_metrics([update.phases[name] for update in updates if name in update.phases])
        found |= {f"{name}/{key}" if len(names) > 1 else key: value for key, value in of_phase.items()}
    if len(names) != 1:
        found["loss"] = sum(found[f"{name}/loss"] for name in names)
    # The exchanged gradient is the same on every learner.
    norms = updates[0].grad_norm
    found["grad_norm"] = sum(norms) / len(norms)
    found["skipped_steps"] = float(sum(updates[0].skipped))
    if updates[0].stopped is not None:
        found["stopped_steps"] = float(updates[0].stopped)
    parts = [part for update in updates for part in update.phases.values()]
    found["trained_rows"] = float(sum(sum(part.rows) for part in parts))
    found["scored_rows"] = float(sum(part.scored for part in parts))
    return found


def phase_metrics(updates: Sequence[PhaseUpdate]) -> dict[str, float]:
    """The numbers of one phase, from all learners; see `update_metrics`."""
    steps = [metrics for update in updates for metrics in update.metrics]
    rows = sum(sum(update.rows) for update in updates)
    how = {name: reduce for update in updates for name, reduce in update.reduce.items()}
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for metrics in steps for name in metrics):
        values = [metrics[name] for metrics in steps if name in metrics]
        if name == "loss":
            found[name] = sum(values) / len(updates[0].metrics)
        elif how.get(name) == "max":
            found[name] = max(values)
        else:
            found[name] = sum(values) / (1 if how.get(name) == "sum" else rows)
    if norms := updates[0].grad_norm:
        found["grad_norm"] = sum(norms) / len(norms)
    if updates[0].stop_kl is not None:
        found["stop_kl"] = updates[0].stop_kl
    found.setdefault("loss", 0.0)
    found.setdefault("kl", found.get("approx_kl", 0.0))
    gaps = [update.gap for update in updates if update.gap]
    if gaps:
        found["gap_max"] = max(gap["max"] for gap in gaps)
        found["gap"] = sum(gap["sum"] for gap in gaps) / sum(gap["rows"] for gap in gaps)
    corrections = [update.correction for update in updates if update.correction]
    if corrections:
        count = sum(each["rows"] for each in corrections)
        found["correction"] = sum(each["weight"] for each in corrections) / count
        found["correction_cut"] = sum(each["cut"] for each in corrections) / count
    for name in dict.fromkeys(name for update in updates for name in update.check):
        found[name] = max(update.check[name] for update in updates if name in update.check)
    return found


def _tells_pictures(part: str) -> bool:
    """Whether a part of a reward is that of `rewards.pictured`, wherever in a composed reward that stands."""
    return part.rpartition("/")[2] == "pictured"


def _extremes(rewards: Tensor) -> dict[str, float]:
    """The bounds of valid rewards `[n]`, and how many of them reach the upper one, up to rounding."""
    if not len(rewards):
        return dict.fromkeys(("reward_max", "reward_min", "saturation"), float("nan"))
    top = rewards.max()
    near = rewards >= top - SAME * top.abs().clamp(min=1.0)
    return {
        "reward_max": float(top),
        "reward_min": float(rewards.min()),
        "saturation": float(near.float().mean()),
    }
