"""From a finished run's folder to its row: the score, what it cost, and what else was measured."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from unirl_env.arguments.values import is_number
from unirl_env.bench.cells import Cell
from unirl_env.errors import CheckpointError, ConfigError
from unirl_env.registry import Registry
from unirl_env.run.compose.yaml import flat
from unirl_env.run.record import checkpoint as checkpoints
from unirl_env.run.record.logbook import of_phases, read_rows
from unirl_env.run.world_setup import mode_of_run
from unirl_env.settings import RunConfig
from unirl_env.settings.fields import may_change
from unirl_env.settings.run_config import pinned

DONE, DIVERGED, CRASHED = "done", "diverged", "crashed"
COSTS = ("episodes", "function_evaluations", "seconds")
"""What a score may be seen as the price of."""
WATCHING = ("logging.", "alarm.")
LAST = ("diversity", "grad_norm", "truncated", "tokens")
MEASURES = Registry("measure")
Rows = Sequence[Mapping[str, Any]]


def row_of(cell: Cell, cfg: RunConfig, tuning: bool = False) -> dict[str, Any]:
    """The row of a run that has come to its end.

    Args:
        cell: Which one.
        cfg: Its settings.
        tuning: Whether it is scored by what configurations are chosen by.
    """
    folder = cell.folder
    metrics = read_rows(folder.path / "metrics.jsonl")
    evaluations = read_rows(folder.path / "evaluation.jsonl")
    by = cell.task.tuned_by if tuning else cell.task.score
    found = _evaluated(evaluations) | _costs(metrics) | _last(metrics)
    if by == "exact":
        scores, known = _exact(cell, cfg)
        found |= known
    else:
        scores = _scores(evaluations, by)
        found |= {"base": scores[0]} if 0 in scores else {}
    hacked = hacking(metrics)
    found |= {} if hacked is None else {"hacking": hacked}
    base = cell.task.base if cell.task.base is not None else found.get("base")
    reference = cell.task.reference if cell.task.reference is not None else found.get("optimum")
    found |= {name: value for name, value in (("base", base), ("reference", reference)) if value is not None}
    score = scores[max(scores)] if scores else None
    sound = score is not None and math.isfinite(score)
    return {
        **head(cell),
        "status": DONE if sound else DIVERGED,
        "error": "" if sound else f"The score at the end must be a finite number, got {score}.",
        "score": score if sound else None,
        "normalised": normalised(score, base, reference) if sound else 0.0,
        "metrics": {name: value for name, value in found.items() if is_number(value)},
        "prompts": _prompts(evaluations),
        "evaluation": {} if by == "exact" else evaluation_of(cfg, evaluations, by),
        "curve": _curve(metrics, scores),
        "folder": cell.name,
        "settings_key": settings_key(cfg),
    }


def failed_row(cell: Cell, status: str, error: str) -> dict[str, Any]:
    """The row of a run that has not come to its end: as if nothing had been trained, and shown as failed."""
    metrics = read_rows(cell.folder.path / "metrics.jsonl")
    known = {name: value for name, value in _costs(metrics).items() if is_number(value)}
    return {
        **head(cell),
        "status": status,
        "error": error,
        "score": None,
        "normalised": 0.0,
        "metrics": known,
        "prompts": {},
        "curve": {},
        "folder": cell.name,
    }


def head(cell: Cell) -> dict[str, Any]:
    """What a row begins with: which cell it is, and by which settings."""
    return {
        "task": cell.task.name,
        "agent": cell.contestant.label,
        "seed": cell.seed,
        "configuration": "tuned" if cell.contestant.tuned else "default",
        "words": [word for word in cell.words if not word.startswith(("name=", "logging.folder="))],
        "factors": dict(cell.contestant.configuration),
    }


def normalised(score: float | None, base: float | None, reference: float | None) -> float | None:
    """0 for the untrained model, 1 for the task's reference; None where one of them is unknown."""
    if score is None or base is None or reference is None or not reference != base:
        return None
    return (score - base) / (reference - base)


def settings_key(cfg: RunConfig) -> str:
    """What runs of the same training have in common: a hash of all settings that change its mathematics.

    Only those that differ from their defaults count, so that a setting which is added later changes no key.
    """
    free = {"name", "seed", "iterations"}
    kinds = {group.name: type(getattr(cfg, group.name)) for group in dataclasses.fields(cfg)}
    for section, kind in kinds.items():
        if dataclasses.is_dataclass(kind):
            free |= {f"{section}.{one.name}" for one in dataclasses.fields(kind) if may_change(one)}
    defaults = flat(RunConfig())
    kept = {
        name: value
        for name, value in flat(pinned(cfg)).items()
        if value != defaults.get(name)
        and name not in free
        and not name.startswith(WATCHING)
        and name != "resume"
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def evaluation_of(cfg: RunConfig, evaluations: Rows, by: str) -> dict[str, float]:
    """How a score was measured: on how many prompts and samples, and as what the policy acted there.

    Args:
        cfg: Settings of the run.
        evaluations: Lines of its `evaluation.jsonl`.
        by: The score: a set of prompts and a reward.
    """
    prompts, _, reward = by.partition("/")
    last = [row for row in evaluations if row["set"] == prompts and reward in row["values"]][-1]
    policy, mode = cfg.policy, mode_of_run(cfg)
    known: dict[str, float | None] = {
        "prompts": len(last["values"][reward]) // last["samples"],
        "samples": last["samples"],
    }
    if mode.steps:
        known["steps"] = cfg.model.num_steps if cfg.model.eval_num_steps is None else cfg.model.eval_num_steps
        known["guidance"] = policy.guidance if policy.eval_guidance is None else policy.eval_guidance
    if mode.may_skip or "temperature" in mode.head_settings:
        cooled = policy.eval_temperature
        known["temperature"] = policy.temperature if cooled is None else cooled
    return {name: value for name, value in known.items() if value is not None}


def hacking(metrics: Rows) -> float | None:
    """The share of the training reward's gain that the held-out reward does not share; None without one.

    Over the iterations in which both were measured on the same samples, gains are taken in standard
    deviations of the first: the area between them where training gains more, over the area of training's own
    gain. 0 says that both rise together, 1 that all of the gain is exploited.
    """
    both = [row for row in metrics if is_number(row.get("reward")) and is_number(row.get("heldout"))]
    if len(both) < 2:
        return None
    gains = []
    for name in ("reward", "heldout"):
        spread = both[0].get(f"{name}_std") or 0.0
        if not spread > 0:
            return None
        gains.append([(row[name] - both[0][name]) / spread for row in both])
    training = sum(max(0.0, gain) for gain in gains[0])
    apart = sum(max(0.0, min(gain, gain - other)) for gain, other in zip(*gains, strict=True))
    return apart / training if training > 0 else 0.0


def _exact(cell: Cell, cfg: RunConfig) -> tuple[dict[int, float], dict[str, float]]:
    """The objective of each checkpoint, by iteration, and all that is known of the last one."""
    from unirl_env.bench.exact import network_of

    measure = MEASURES.get(cell.task.measure or "")
    scores: dict[int, float] = {}
    known: dict[str, float] = {}
    for checkpoint in checkpoints.listing(cell.folder.checkpoints):
        known = dict(measure(cfg, network_of(cfg, checkpoint.path)))
        scores[checkpoint.iteration] = known["objective"]
    if not scores:
        raise CheckpointError(f"{cell.folder.path} must hold a checkpoint to be measured, got none.")
    scores[0] = known.get("base", scores[min(scores)])
    return scores, known


def _scores(evaluations: Rows, by: str) -> dict[int, float]:
    prompts, _, reward = by.partition("/")
    found = {}
    for row in evaluations:
        if row["set"] == prompts and reward in row["rewards"]:
            mean = row["rewards"][reward]["mean"]
            found[row["iteration"]] = math.nan if mean is None else mean
    if not found:
        known = sorted({f"{row['set']}/{name}" for row in evaluations for name in row["rewards"]})
        raise ConfigError(f"`score` of a task must be one of what its runs measure, {known}, got {by!r}.")
    return found


def _evaluated(evaluations: Rows) -> dict[str, float]:
    """Each reward of each set of prompts at the end, how many scores failed, and the drift if it is there.

    The mean is over prompts and their k samples (avg@k); `<set>/<reward>/best@k` is that of the best of them,
    pass@k where a reward is 0 or 1.
    """
    found: dict[str, float] = {}
    failed = 0
    for row in evaluations:
        for name, part in row["rewards"].items():
            if "/" not in name:
                found[f"{row['set']}/{name}"] = part["mean"]
                found |= _best(f"{row['set']}/{name}", row["values"].get(name) or (), row["samples"])
                failed += part.get("failed") or 0
        found |= {f"drift/{name}": value for name, value in row.get("drift", {}).items()}
    return {**found, "failed_scores": float(failed)}


def _best(name: str, values: Sequence[float | None], samples: int) -> dict[str, float]:
    groups = [values[start : start + samples] for start in range(0, len(values), samples)]
    best = [max(known) for group in groups if (known := [value for value in group if value is not None])]
    return {f"{name}/best@{samples}": sum(best) / len(best)} if best and samples > 1 else {}


def _costs(metrics: Rows) -> dict[str, float]:
    found = {name: _total(metrics, name) for name in (*COSTS, "trained_rows")}
    tokens = [row["tokens"] * row["episodes"] for row in metrics if is_number(row.get("tokens"))]
    phases = {name for row in metrics for name in row if name.startswith("seconds/")}
    found |= {name: _total(metrics, name) for name in sorted(phases)}
    found["iterations"] = float(len(metrics))
    failed = [row["reward/failed"] for row in metrics if is_number(row.get("reward/failed"))]
    found["training_failed_scores"] = float(sum(failed))
    return found | ({"generated_tokens": float(sum(tokens))} if tokens else {})


def _last(metrics: Rows) -> dict[str, float]:
    """What the last iteration, or the last one that measured it, says."""
    found: dict[str, float] = {}
    for row in metrics:
        found |= {name: row[name] for name in LAST if is_number(row.get(name))}
        found |= {} if (kl := _kl(row)) is None else {"kl": kl}
    if metrics and is_number(metrics[-1].get("reward")):
        found["training_reward"] = metrics[-1]["reward"]
    return found


def _kl(row: Mapping[str, Any]) -> float | None:
    """The KL to the untrained model of an iteration, of all phases; None where none was measured."""
    known = [name for name, value in row.items() if is_number(value)]
    kls = [row[name] for name in of_phases("reference_kl", known).values()]
    return sum(kls) if kls else None


def _prompts(evaluations: Rows) -> dict[str, list[float | None]]:
    """Of the last evaluation of each set: each reward's mean over samples, by prompt."""
    found = {}
    for row in {row["set"]: row for row in evaluations}.values():
        for name in ("reward", "heldout"):
            values = row["values"].get(name)
            if values:
                size = row["samples"]
                found[f"{row['set']}/{name}"] = [
                    known_mean(values[start : start + size]) for start in range(0, len(values), size)
                ]
    return found


def _curve(metrics: Rows, scores: Mapping[int, float]) -> dict[str, list[Any]]:
    """The score at each iteration that has one, against everything that it may be seen as the price of."""
    spent: dict[int, dict[str, float]] = {0: dict.fromkeys(COSTS, 0.0)}
    total = dict.fromkeys(COSTS, 0.0)
    reward: dict[int, Any] = {}
    kl: dict[int, Any] = {}
    for row in metrics:
        total = {name: total[name] + (row.get(name) or 0.0) for name in COSTS}
        spent[row["iteration"]] = total
        reward[row["iteration"]] = row.get("reward")
        kl[row["iteration"]] = _kl(row)
    shown = [iteration for iteration in sorted(scores) if iteration in spent]
    curve: dict[str, list[Any]] = {"iteration": shown}
    curve |= {name: [spent[iteration][name] for iteration in shown] for name in COSTS}
    curve["score"] = [scores[iteration] for iteration in shown]
    curve["reward"] = [reward.get(iteration) for iteration in shown]
    curve["kl"] = [kl.get(iteration) for iteration in shown]
    return curve


def _total(metrics: Rows, name: str) -> float:
    return float(sum(row[name] for row in metrics if is_number(row.get(name))))


def known_mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
