"""The figures of a bench: each a drawing with the numbers that it shows."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from unirl_env.bench.page import costs, numbers
from unirl_env.bench.page.drawings import forest, matrix, strips
from unirl_env.bench.page.findings import Findings
from unirl_env.bench.page.formats import csv_text, digits
from unirl_env.bench.page.numbers import PERCENT, STATISTICS, Estimate
from unirl_env.run.report.charts import Chart, Series, colours
from unirl_env.run.report.drawing import Drawing

THRESHOLDS = 41
"""Of a performance profile."""
BOUNDS = ("estimate", "low", "high", "runs")


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: Of its files, without an ending.
        drawing: What is seen.
        csv: The numbers.
    """

    name: str
    drawing: Drawing
    csv: str

    def html(self, palette: Mapping[str, str]) -> str:
        """The figure for the page, with both files to take away."""
        return self.drawing.figure(
            links({f"{self.name}.csv": self.csv, f"{self.name}.svg": self.svg(palette)})
        )

    def svg(self, palette: Mapping[str, str]) -> str:
        """The figure as a file."""
        return self.drawing.file(palette)


def links(files: Mapping[str, str]) -> str:
    """Files that lie in the page itself, to be taken away: they are there wherever it goes."""
    kinds = {"csv": "text/csv", "svg": "image/svg+xml"}
    several = len({name.rpartition(".")[0] for name in files}) > 1
    parts = []
    for name, text in files.items():
        ending = name.rpartition(".")[2]
        data = base64.b64encode(text.encode()).decode()
        parts.append(
            f'<a download="{name}" href="data:{kinds[ending]};base64,{data}">'
            f"{name if several else ending.upper()}</a>"
        )
    return f'<p class="files">{" ".join(parts)}</p>'


def file_names(names: Iterable[str]) -> dict[str, str]:
    """For each name one that any file system takes, no two alike."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:60] or "unnamed"
        free, count = plain, 1
        while free in found.values():
            count += 1
            free = f"{plain}_{count}"
        found[name] = free
    return found


def palette(found: Findings) -> dict[str, str]:
    """The colour of each agent by its style: the one that it has in all pictures of the library."""
    return palette_of(list(found.bench.agents))


def palette_of(agents: Sequence[str]) -> dict[str, str]:
    """The colour of each agent by its style: `agent` and its place among them."""
    return {f"agent{place}": colour for place, colour in enumerate(colours(agents).values())}


def style(found: Findings, agent: str) -> str:
    """The class of an agent on the page."""
    return f"agent{list(found.bench.agents).index(agent)}"


def forests(found: Findings) -> list[Figure]:
    """The ranking, once for each statistic."""
    made = []
    for name, title in STATISTICS.items():
        part = found.ranking[name]
        if not part:
            continue
        rows = [(style(found, a), _title(found, a), part.get(a)) for a in found.agents]
        drawing = forest(f"{title[0].upper()}{title[1:]}", rows, "Normalised score over all tasks.")
        lines = [[_title(found, a), *bounds(part.get(a))] for a in found.agents]
        made.append(Figure(f"ranking_{name}", drawing, csv_text(["agent", *BOUNDS], lines)))
    return made


def task_forest(found: Findings, task: str, name: str) -> Figure:
    """The agents on one task."""
    about = found.bench.tasks[task]
    rows = [(style(found, a), _title(found, a), found.cells.get((task, a))) for a in found.agents]
    marks = [(v, text) for v, text in ((about.base, "base"), (about.reference, "reference")) if v is not None]
    unit = f", {about.unit}" if about.unit else ""
    note = f"Mean {about.score}{unit}. Dotted: the untrained policy and the reference, where they are near."
    lines = [[_title(found, a), *bounds(found.cells.get((task, a)))] for a in found.agents]
    drawing = forest(about.title, rows, note, marks=marks)
    return Figure(f"task_{name}", drawing, csv_text(["agent", *BOUNDS], lines))


def levels(found: Findings) -> Figure | None:
    """The agents on all tasks, normalised; None where nothing is."""
    rows, lines = [], []
    for name, task in found.bench.tasks.items():
        scores = {a: found.bench.normalised(name, a) for a in found.agents}
        part = {a: numbers.mean([scores[a][seed] for seed in sorted(scores[a])]) for a in found.agents}
        if any(estimate is not None for estimate in part.values()):
            rows.append((task.title, [(style(found, a), _title(found, a), e) for a, e in part.items()]))
            lines += [[task.title, _title(found, a), *bounds(e)] for a, e in part.items()]
    if not rows:
        return None
    note = "Mean normalised score: 0 is the untrained policy, 1 the task's reference."
    drawing = strips("All tasks", rows, note)
    return Figure("all_tasks", drawing, csv_text(["task", "agent", *BOUNDS], lines))


def curves(found: Findings, task: str, axis: str, name: str) -> Figure | None:
    """The score of each agent on a task against a cost; None where no run has it."""
    about = found.bench.tasks[task]
    series, lines = [], []
    # The best agent is drawn last, so that it lies on top.
    for agent in reversed(found.agents):
        band = costs.band(found.bench, task, agent, axis)
        if not band.x:
            continue
        low = [e.low if e.low is not None else e.value for e in band.means]
        high = [e.high if e.high is not None else e.value for e in band.means]
        y = [e.value for e in band.means]
        series.append(Series(_title(found, agent), band.x, y, style(found, agent), low, high))
        lines += [
            [_title(found, agent), digits(x), *bounds(e)] for x, e in zip(band.x, band.means, strict=True)
        ]
    if not series:
        return None
    note = f"{about.score[0].upper()}{about.score[1:]} against {costs.AXES[axis]}."
    chart = Chart(
        about.title,
        series,
        note=note,
        across=costs.SINGULAR[axis],
        whole=axis != "seconds",
    )
    csv = csv_text(["agent", costs.AXES[axis], *BOUNDS], lines)
    return Figure(f"curve_{name}_{axis}", _from_the_best(chart), csv)


def profiles(found: Findings) -> Figure | None:
    """The share of runs above each score, over all tasks."""
    scores = {a: {t: list(found.bench.normalised(t, a).values()) for t in found.shared} for a in found.agents}
    every = [v for part in scores.values() for values in part.values() for v in values]
    if not every:
        return None
    low, high = min([0.0, *every]), max([1.0, *every])
    low -= 0.02 * (high - low)  # Where all runs are above, even the worst.
    at = [low + (high - low) * i / (THRESHOLDS - 1) for i in range(THRESHOLDS)]
    series, lines = [], []
    for agent in reversed(found.agents):
        known = numbers.profile(scores[agent], at)
        if known is None:
            continue
        share, under, over = known
        series.append(Series(_title(found, agent), at, share, style(found, agent), under, over))
        lines += [
            [_title(found, agent), *map(digits, row)] for row in zip(at, share, under, over, strict=True)
        ]
    note = f"Share of runs that score above what stands below; bands of {PERCENT}, each point by itself."
    chart = Chart(
        "Performance profiles", series, 420, 250, note, 0.0, True, across="score", whole=False, start=None
    )
    head = ["agent", "normalised score", "share", "low", "high"]
    return Figure("profiles", _from_the_best(chart), csv_text(head, lines))


def improvements(found: Findings) -> Figure | None:
    """The matrix of probabilities of improvement."""
    agents = found.agents
    if len(agents) < 2 or not found.improvement:
        return None
    known = [[found.improvement.get((a, b)) for b in agents] for a in agents]
    shares = [[None if e is None else e.value for e in row] for row in known]
    sides = [[found.side(a, b) if a != b else 0 for b in agents] for a in agents]
    note = "Row above column. Coloured and bold: the paired difference excludes zero after Holm's correction."
    drawing = matrix("Probability of improvement", [_title(found, a) for a in agents], shares, sides, note)
    lines = [
        [_title(found, a), _title(found, b), *bounds(known[i][k])]
        for i, a in enumerate(agents)
        for k, b in enumerate(agents)
        if i != k
    ]
    return Figure("improvement", drawing, csv_text(["row", "column", *BOUNDS], lines))


SPENDING = {
    "seconds": "seconds",
    "function_evaluations": "function evaluations",
    "episodes": "episodes",
    "tokens": "tokens",
    "kl": "KL to the base",
}


ALWAYS = ("seconds", "kl")
"""What is drawn even where all agents have spent the same."""


def spending(found: Findings) -> list[Figure]:
    """What a run costs against what it reaches, means over the shared tasks, for each kind of cost."""
    made = []
    for axis, title in SPENDING.items():
        series, lines = [], []
        spent = {agent: _spent(found, agent, axis) for agent in found.agents}
        if axis not in ALWAYS and len({round(x, 6) for x in spent.values() if x is not None}) < 2:
            continue
        for agent, x in spent.items():
            y = found.ranking["mean"].get(agent)
            if x is None or y is None:
                continue
            low, high = (y.value if bound is None else bound for bound in (y.low, y.high))
            name = _title(found, agent)
            series.append(Series(name, [x], [y.value], style(found, agent), [low], [high], points=True))
            lines.append([name, digits(x), *bounds(y)])
        if series:
            chart = Chart(
                f"Score against {title}",
                series,
                note="Mean of a run over all tasks; up and to the left is better.",
                across=costs.SINGULAR.get(axis, title),
                whole=False,
                dodge=False,
            )
            csv = csv_text(["agent", title, *BOUNDS], lines)
            made.append(Figure(f"score_against_{axis}", chart.drawing(), csv))
    return made


def _from_the_best(chart: Chart) -> Drawing:
    """A drawing whose legend begins with what is drawn last."""
    drawing = chart.drawing()
    return replace(drawing, keys=drawing.keys[::-1])


def _spent(found: Findings, agent: str, axis: str) -> float | None:
    means = []
    for task in found.shared:
        known = [
            v
            for row in found.bench.cell(task, agent)
            if row.done and (v := costs.spent(row, axis)) is not None
        ]
        if not known:
            return None
        means.append(sum(known) / len(known))
    return sum(means) / len(means) if means else None


def bounds(estimate: Estimate | None) -> Sequence[str]:
    """An estimate as the columns `BOUNDS` of a file."""
    if estimate is None:
        return ["", "", "", "0"]
    return [digits(estimate.value), digits(estimate.low), digits(estimate.high), str(estimate.count)]


def _title(found: Findings, agent: str) -> str:
    return found.bench.agents[agent].title
