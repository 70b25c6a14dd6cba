"""Which numbers of a run are drawn, and how: rewards, how training went, whether the reward was exploited."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unirl_env.monitor.alarm import Finding, HackingAlarm, Level
from unirl_env.run.record.logbook import of_phases
from unirl_env.run.report.charts import Chart, Series, smooth, styles
from unirl_env.run.summary import SETS
from unirl_env.settings import AlarmSettings

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
    return "".join(chart.svg() for chart in [*charts, *_evaluations(evaluations), *_drift(evaluations)])


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


def _drift(evaluations: Rows) -> list[Chart]:
    known = [row for row in evaluations if "drift" in row]
    x = [0, *(row["iteration"] for row in known)]  # at first, the policy is the untrained model
    drifts = [row["drift"] for row in known]
    charts = []
    for end, title, note, start in (
        ("kl", "KL to the untrained model", "In nats of whole episodes, as training explores.", 0.0),
        ("velocity_norm", "Size of velocities", "Beside those of the untrained model.", 1.0),
    ):
        names = list(dict.fromkeys(name for row in drifts for name in row if name.endswith(end)))
        series = [
            Series(
                name.removesuffix(end).strip("/") or "policy",
                x,
                [start, *_column(drifts, name)],
                style,
            )
            for style, name in zip(styles(len(names)), names, strict=True)
        ]
        charts += [Chart(title, series, note=note)] if series else []
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


WIDE = 500
"""The width of a chart's drawing where two stand side by side."""

HACKING = (
    "A reward stands in for what is wanted; a policy may learn the one without the other. A reward that "
    "training never sees watches the very samples that were trained on, and an alarm says when the two part, "
    "when the samples of a prompt become alike, and when there is nothing left to learn."
)
TITLES = {
    "gap": "Training and held-out reward part",
    "diversity": "Samples become alike",
    "saturation": "The reward is at its ceiling",
    "zero_std_groups": "Groups teach nothing",
}
WATCHED = {
    "gap": "the held-out reward of the training samples",
    "diversity": "the variety within groups",
    "saturation": "the share of episodes with the highest reward",
    "zero_std_groups": "the share of groups that teach nothing",
}


def hacking(settings: AlarmSettings, metrics: Rows) -> str:
    """The charts of a run's alarm and its findings as HTML, or nothing.

    Args:
        settings: Of the alarm.
        metrics: The rows of `metrics.jsonl`.
    """
    alarm = HackingAlarm.replay(settings, metrics)
    charts = [*_together(alarm), *_variety(alarm), *_nothing_left(alarm)]
    if not charts:
        return ""
    pairs = len(charts) == 4  # two and two look better than three and one
    figures = "".join(replace(chart, width=WIDE if pairs else chart.width).svg() for chart in charts)
    return f'{_words(alarm)}<div class="charts{" pairs" if pairs else ""}">{figures}</div>'


def _words(alarm: HackingAlarm) -> str:
    watched = [words for name, words in WATCHED.items() if _is_watched(alarm, name)]
    blind = [words for name, words in WATCHED.items() if not _is_watched(alarm, name)]
    said = f"Watched: {', '.join(watched) or 'nothing'}."
    if blind:
        said += f" Not watched, for want of a bound or of numbers: {', '.join(blind)}."
    items = [_item(finding, alarm) for finding in alarm.findings]
    if not items:
        items = [f'<li class="calm"><b>No alarm rang.</b>{html.escape(said)}</li>']
        said = ""
    note = f'<p class="lead">{html.escape(said)}</p>' if said else ""
    return f'<ul class="findings">{"".join(items)}</ul>{note}'


def _item(finding: Finding, alarm: HackingAlarm) -> str:
    ended = ", and ended the run" if alarm.ended_by == finding else ""
    head = f"{TITLES[finding.signal]}: rang at iteration {finding.iteration}{ended}"
    sentence = finding.sentence[0].upper() + finding.sentence[1:]
    return f"<li><b>{html.escape(head)}</b>{_prose(sentence)}</li>"


def _prose(text: str) -> str:
    """Plain text as HTML, with names of settings as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _is_watched(alarm: HackingAlarm, name: str) -> bool:
    return any(level.bound is not None for level in alarm.levels[name])


def _together(alarm: HackingAlarm) -> list[Chart]:
    """Both rewards of the same samples on one scale: that of the alarm."""
    rows = alarm.compared()
    if not rows:
        return []
    x = [row[0] for row in rows]
    return [
        Chart(
            "Training and held-out reward",
            [
                Series("held-out", x, [row[2] for row in rows], "second"),
                Series("training", x, [row[1] for row in rows], "main"),
            ],
            note="Of the same samples, since the start, in standard deviations of the start; smoothed.",
            marks=_marks(alarm, "gap"),
        )
    ]


def _variety(alarm: HackingAlarm) -> list[Chart]:
    levels = alarm.levels["diversity"]
    if not levels:
        return []
    return [
        Chart(
            "Variety within groups",
            [*_bound(levels), Series("variety", *_curve(levels), "main")],
            note="How much the samples of a prompt differ, as a share of the start.",
            floor=0.0,
            percent=True,
            marks=_marks(alarm, "diversity"),
        )
    ]


def _nothing_left(alarm: HackingAlarm) -> list[Chart]:
    charts = []
    for name, title, label, note in (
        ("saturation", "Saturation", "at the ceiling", "Episodes that earn the highest reward of the run."),
        (
            "zero_std_groups",
            "Groups without variance",
            "groups",
            "All members earn the same: nothing to learn.",
        ),
    ):
        levels = alarm.levels[name]
        if levels:
            series = [*_bound(levels), Series(label, *_curve(levels), "main")]
            marks = _marks(alarm, name)
            charts.append(Chart(title, series, note=note, floor=0.0, percent=True, marks=marks))
    return charts


def _curve(levels: Sequence[Level]) -> tuple[list[int], list[float]]:
    return [level.iteration for level in levels], [level.value for level in levels]


def _bound(levels: Sequence[Level]) -> list[Series]:
    if all(level.bound is None for level in levels):
        return []
    return [
        Series("bound", [level.iteration for level in levels], [level.bound for level in levels], "bound")
    ]


def _marks(alarm: HackingAlarm, signal: str) -> list[tuple[float, str]]:
    return [(finding.iteration, "alarm") for finding in alarm.findings if finding.signal == signal]
