"""A bench's page and its other files, from what lies in the folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from unirl_env.bench.page import costs, figures, sections, seen, tables
from unirl_env.bench.page.cells import Table
from unirl_env.bench.page.figures import Figure
from unirl_env.bench.page.findings import Findings, find
from unirl_env.bench.page.formats import as_csv, as_latex, as_markdown, as_rich, markdown_text
from unirl_env.bench.page.reading import read_bench
from unirl_env.bench.page.resolved import with_settings
from unirl_env.bench.page.words import coverage_of, facts, sentences, warnings
from unirl_env.run.record.files import replace_text
from unirl_env.run.report.frame import header, section, write_page

MEMBERS = r"[a-z0-9_]+\.(csv|svg)"
"""What files in `figures/` are called."""


@dataclass(frozen=True)
class _Drawn:
    """All figures of a page."""

    forests: Sequence[Figure]
    tasks: Mapping[str, Figure]
    curves: Mapping[str, Sequence[Figure]]
    profiles: Figure | None
    improvements: Figure | None
    levels: Figure | None
    spending: Sequence[Figure]

    def all(self) -> list[Figure]:
        """Every figure once."""
        several = [*self.forests, *self.tasks.values(), *self.spending]
        several += [figure for part in self.curves.values() for figure in part]
        return [
            *several,
            *(figure for figure in (self.profiles, self.improvements, self.levels) if figure is not None),
        ]


def write_bench(folder: Path, console: Console | None = None) -> Path:
    """Write `index.html`, `table.md`, `table.tex` and `figures/` from the files of a bench.

    The folder may come from another machine, may be unfinished, and may have been written to by people: what
    cannot be read is left out and named on the page.

    Args:
        folder: With `bench.json`, `results.jsonl`, and folders of runs.
        console: Where the same tables are printed, but for long ones.

    Returns:
        The page.
    """
    found = find(with_settings(read_bench(folder), folder))
    made = tables.tables(found)
    drawn = _draw(found)
    palette = figures.palette(found)
    _write_files(folder / "figures", made, drawn, palette)
    replace_text(folder / "table.md", _markdown(found, made))
    replace_text(folder / "table.tex", "\n".join(as_latex(each) for each in made if not each.long))
    if console is not None:
        for each in made:
            if not each.long:
                console.print(as_rich(each))
    body = "".join(_body(found, drawn, palette, folder))
    return write_page(folder / "index.html", found.bench.title, body, style_of(palette))


def _body(found: Findings, drawn: _Drawn, palette: Mapping[str, str], folder: Path) -> list[str]:
    ranking, per_task, pairs = tables.ranking(found), tables.tasks(found), tables.pairs(found)
    reached = tables.thresholds(found)
    of_ranking = [e for part in found.ranking.values() for e in part.values()]
    return [
        header(found.bench.title, facts(found)),
        sections.finding(found),
        section(
            "Ranking",
            sections.charts(drawn.forests, palette, "three")
            + sections.table(ranking, coverage_of(of_ranking)),
            ranking.note,
        ),
        section(
            per_task.title,
            sections.table(per_task, coverage_of(list(found.cells.values())))
            + sections.charts([drawn.levels] if drawn.levels else [], palette, "one"),
            per_task.note,
        ),
        section("Curves", sections.axes(found, drawn.curves, palette), CURVES),
        section(
            "Performance profiles",
            sections.charts([drawn.profiles], palette, "one") if drawn.profiles else "",
            "The higher, the better: how many runs are above a score, whatever the score is.",
        ),
        section(pairs.title, sections.matrix(found, drawn.improvements, pairs, palette), MATRIX),
        section("Cost and score", sections.charts(drawn.spending, palette), ""),
        section(reached.title, sections.thresholds(reached), reached.note),
        section("Task by task", sections.details(found, drawn.tasks, palette)),
        section("What they made", seen.samples(found, folder), SEEN),
        _plain(tables.failures(found.bench)),
        _plain(tables.settings(found.bench)),
        section("Tuning", sections.tuning(found)),
        section("Where it comes from", sections.provenance(found.bench.provenance)),
    ]


CURVES = (
    "Mean score over seeds with its 95 % interval, as far as all runs have got. A run that failed counts as "
    "the untrained policy from where it stopped."
)
MATRIX = (
    "Row against column. Above, the probability that a run of the row scores higher, with its interval; "
    "below, the paired difference of normalised scores with the interval and the p-value that Holm's "
    "correction over all pairs leaves. Coloured where that interval excludes zero."
)
SEEN = (
    "The same prompts under the same noise, untrained and after each agent: the first prompts of a set, not "
    "picked, with the reward of each sample."
)


def _draw(found: Findings) -> _Drawn:
    names = figures.file_names(found.bench.tasks)
    axes = costs.axes(found.bench)
    return _Drawn(
        figures.forests(found),
        {t: figures.task_forest(found, t, names[t]) for t in found.bench.tasks if found.agents},
        {axis: [made for t in names if (made := figures.curves(found, t, axis, names[t]))] for axis in axes},
        figures.profiles(found),
        figures.improvements(found),
        figures.levels(found),
        figures.spending(found),
    )


def _write_files(folder: Path, made: Sequence[Table], drawn: _Drawn, palette: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for each in made:
        replace_text(folder / f"{each.name}.csv", as_csv(each))
    for figure in drawn.all():
        replace_text(folder / f"{figure.name}.csv", figure.csv)
        replace_text(folder / f"{figure.name}.svg", figure.svg(palette))


def _markdown(found: Findings, made: Sequence[Table]) -> str:
    said = [", ".join(facts(found)), *sentences(found)]
    head = [f"# {markdown_text(found.bench.title)}", *(f"\n{markdown_text(text)}" for text in said)]
    known = [f"\n**{markdown_text(name)}.** {markdown_text(words)}" for name, words in warnings(found)]
    return "\n".join([*head, *known, "", *(as_markdown(each) for each in made)])


def _plain(made: Table) -> str:
    return section(made.title, sections.table(made), made.note)


def style_of(palette: Mapping[str, str]) -> str:
    """The style of a page of benches: that of all of them, and the colours of agents in light and dark."""
    common = (Path(__file__).parent / "bench.css").read_text(encoding="utf-8")
    light = "".join(f".{style} {{ --hue: {colour}; }}" for style, colour in palette.items())
    dark = "".join(
        f".{style} {{ --hue: color-mix(in oklab, {colour} 72%, white); }}"
        for style, colour in palette.items()
    )
    return f"{common}{light} @media screen and (prefers-color-scheme: dark) {{ {dark} }}"
