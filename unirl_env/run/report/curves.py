"""Which numbers of a run are drawn, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unirl_env.run.record.metric_names import of_phases
from unirl_env.run.report.charts import Chart, Series, smooth
from unirl_env.run.report.names import styles
from unirl_env.run.summary import SETS

__all__ = ["process_charts", "reward_charts"]

Rows = Sequence[Mapping[str, Any]]
SECONDS = ("rollout", "reward", "update", "sync", "heldout")
CHARTS = (
    {
        "names": ("kl", "approx_kl"),
        "title": "KL to the rollout's policy",
        "label": "KL",
        "note": "Mean per latent element or token.",
    },
    {
        "names": ("masked_fraction",),
        "title": "Masked transitions",
        "label": "masked",
        "note": "Updates that would leave the trust region.",
        "percent": True,
    },
    {
        "names": ("clip_fraction",),
        "title": "Clipped transitions",
        "label": "clipped",
        "note": "Updates beyond the clip range.",
        "percent": True,
    },
    {
        "names": ("reference_kl",),
        "title": "KL to the untrained model",
        "label": "KL",
        "note": "How far it has moved.",
    },
    {"names": ("grad_norm",), "title": "Gradient norm", "label": "norm", "note": "Before clipping."},
)
"""How a run went. Of each chart the first of its names that was measured is drawn."""


def reward_charts(metrics: Rows, evaluations: Rows) -> str:
    """What a run reached: the rewards, in training and in evaluation."""
    charts = [_reward(metrics)] if metrics else []
    return "".join(chart.svg() for chart in [*charts, *_evaluations(evaluations)])


def process_charts(metrics: Rows) -> str:
    """How a run went: distances, masks, gradients, seconds."""
    if not metrics:
        return ""
    charts = [chart for options in CHARTS for chart in _chart(metrics, **options)]
    return "".join(chart.svg() for chart in [*charts, *_texts(metrics), _seconds(metrics)])


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
        sets = list(dict.fromkeys(row["set"] for row in evaluations))
        for style, name in zip(styles(len(sets)), sets, strict=True):
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


def _seconds(metrics: Rows) -> Chart:
    x = [row["iteration"] for row in metrics]
    series = [Series("whole iteration", x, _column(metrics, "seconds"), "raw")]
    named = [name for name in SECONDS if _has(metrics, f"seconds/{name}")]
    for style, name in zip(styles(len(named)), named, strict=True):
        series.append(Series(name, x, _column(metrics, f"seconds/{name}"), style))
    return Chart("Seconds per iteration", series, note="Where the time goes.", floor=0.0)


def _chart(
    metrics: Rows, names: Sequence[str], title: str, label: str, note: str, percent: bool = False
) -> list[Chart]:
    """The first of the quantities that there is, with a line for each phase that has its own; or nothing."""
    known = dict.fromkeys(name for row in metrics for name, value in row.items() if value is not None)
    found = next(filter(None, (of_phases(name, known) for name in names)), {})
    series = [
        Series(phase or label, [row["iteration"] for row in metrics], _column(metrics, name), style)
        for style, (phase, name) in zip(styles(len(found)), found.items(), strict=True)
    ]
    return [Chart(title, series, note=note, floor=0.0, percent=percent)] if series else []


def _texts(metrics: Rows) -> list[Chart]:
    """Of texts that are to become pictures: how many do not, and how long they are."""
    if not _has(metrics, "no_picture"):
        return []
    x = [row["iteration"] for row in metrics]
    lost = [Series("cut off", x, _column(metrics, "truncated"), "second")]
    lost.append(Series("no picture", x, _column(metrics, "no_picture"), "main"))
    length = [Series("tokens", x, _column(metrics, "tokens"), "main")]
    return [
        Chart("Texts without a picture", lost, note="Of all episodes.", floor=0.0, percent=True),
        Chart("Length of the texts", length, note="Mean number of tokens."),
    ]


def _column(rows: Rows, name: str) -> list[float | None]:
    return [row.get(name) for row in rows]


def _has(rows: Rows, name: str) -> bool:
    return any(row.get(name) is not None for row in rows)
