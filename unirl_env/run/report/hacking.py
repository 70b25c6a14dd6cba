"""Whether a run exploited its reward: what the alarm watched, drawn and in words."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unirl_env.monitor.alarm import Finding, HackingAlarm, Level
from unirl_env.run.report.charts import Chart, Series
from unirl_env.settings import AlarmSettings

__all__ = ["LEAD", "hacking"]

Rows = Sequence[Mapping[str, Any]]
WIDE = 500
"""The width of a chart's drawing where two stand side by side."""

LEAD = (
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
