"""Which numbers of a run are drawn, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unirl_env.report.charts import Chart, Series, smooth
from unirl_env.summary import SETS

__all__ = ["process_charts", "reward_charts"]

Rows = Sequence[Mapping[str, Any]]
STYLES = ("main", "second", "third", "fourth")
SECONDS = ("rollout", "reward", "update", "sync")


def reward_charts(metrics: Rows, evaluations: Rows) -> str:
    """What a run reached: the rewards, in training and in evaluation."""
    charts = [_reward(metrics)] if metrics else []
    return "".join(chart.svg() for chart in [*charts, *_evaluations(evaluations)])


def process_charts(metrics: Rows) -> str:
    """How a run went: distances, masks, gradients, seconds."""
    if not metrics:
        return ""
    x = [row["iteration"] for row in metrics]
    charts = []
    kl = next((name for name in ("kl", "approx_kl") if _has(metrics, name)), None)
    if kl:
        charts.append(
            _simple(
                "KL to the rollout's policy",
                "KL",
                kl,
                metrics,
                x,
                "Mean per latent element or token.",
                floor=0.0,
            )
        )
    for name, title, note in (
        ("masked_fraction", "Masked transitions", "Updates that would leave the trust region."),
        ("clip_fraction", "Clipped transitions", "Updates beyond the clip range."),
    ):
        if _has(metrics, name):
            charts.append(_simple(title, title.split()[0].lower(), name, metrics, x, note, 0.0, percent=True))
    if _has(metrics, "reference_kl"):
        charts.append(
            _simple(
                "KL to the untrained model", "KL", "reference_kl", metrics, x, "How far it has moved.", 0.0
            )
        )
    if _has(metrics, "grad_norm"):
        charts.append(_simple("Gradient norm", "norm", "grad_norm", metrics, x, "Before clipping.", 0.0))
    charts.append(_seconds(metrics, x))
    return "".join(chart.svg() for chart in charts)


def _reward(metrics: Rows) -> Chart:
    x = [row["iteration"] for row in metrics]
    y = _column(metrics, "reward")
    reach = max(1, len(y) // 25)
    return Chart(
        "Training reward",
        [Series("each iteration", x, y, "raw"), Series("smoothed", x, smooth(y, reach), "main")],
        note="On the training prompts, as the policy explores.",
    )


def _evaluations(evaluations: Rows) -> list[Chart]:
    charts = []
    for key, title in (("reward", "Reward in evaluation"), ("heldout", "Held-out reward in evaluation")):
        series = []
        for style, name in zip(STYLES, dict.fromkeys(row["set"] for row in evaluations), strict=False):
            mine = [row for row in evaluations if row["set"] == name and key in row["rewards"]]
            parts = [row["rewards"][key] for row in mine]
            if mine:
                series.append(
                    Series(
                        SETS.get(name, name),
                        [row["iteration"] for row in mine],
                        [part["mean"] for part in parts],
                        style,
                        [part["low"] for part in parts],
                        [part["high"] for part in parts],
                        points=True,
                    )
                )
        if series and any(len(s.x) > 1 for s in series):
            charts.append(Chart(title, series, note="Fixed prompts and seeds, 95 % intervals."))
    return charts


def _seconds(metrics: Rows, x: Sequence[float]) -> Chart:
    series = [Series("whole iteration", x, _column(metrics, "seconds"), "raw")]
    named = [name for name in SECONDS if _has(metrics, f"seconds/{name}")]
    for style, name in zip(STYLES, named, strict=False):
        series.append(Series(name, x, _column(metrics, f"seconds/{name}"), style))
    return Chart("Seconds per iteration", series, note="Where the time goes.", floor=0.0)


def _simple(
    title: str,
    label: str,
    name: str,
    metrics: Rows,
    x: Sequence[float],
    note: str,
    floor: float | None = None,
    percent: bool = False,
) -> Chart:
    series = [Series(label, x, _column(metrics, name), "main")]
    return Chart(title, series, note=note, floor=floor, percent=percent)


def _column(rows: Rows, name: str) -> list[float | None]:
    return [row.get(name) for row in rows]


def _has(rows: Rows, name: str) -> bool:
    return any(row.get(name) is not None for row in rows)
