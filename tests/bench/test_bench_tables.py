import csv
import io
import re
import statistics

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import trim_mean
from synthetic_bench import PAPER, bench, write

from unirl_env.bench.page import as_rich, numbers, table, write_bench
from unirl_env.bench.page.cells import amount, number, p_value, spelled
from unirl_env.bench.page.findings import find
from unirl_env.bench.page.numbers import Estimate
from unirl_env.bench.page.reading import as_bench
from unirl_env.bench.page.words import facts, warnings

THREE = dict(list(PAPER.items())[:3])
FAILING = {("line/stale", "pg", 1), ("line/stale", "pg", 4)}
NUMBER = r"[-+]?(?:\d[\d,]*\.?\d*(?:e[-+]\d+)?|∞)"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bench of which everything is written, with its rows."""
    known, rows = bench(THREE, failing=FAILING, seeds=8)
    folder = write(tmp_path_factory.mktemp("benches") / "quick", known, rows)
    write_bench(folder)
    return folder, known, rows


def read_csv(folder, name):
    return list(csv.DictReader((folder / "figures" / f"{name}.csv").open()))


def read_markdown(folder):
    """Title to rows, each a mapping of column to text."""
    found = {}
    for part in (folder / "table.md").read_text().split("\n## ")[1:]:
        title, lines = part.split("\n", 1)[0], [line for line in part.split("\n") if line.startswith("|")]
        split = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
        found[title] = [dict(zip(split[0], row, strict=True)) for row in split[2:]]
    return found


def plain(text):
    return re.sub(r"\\(.)", r"\1", text.replace("**", ""))


def places(text):
    """The largest error that the way in which a number is written allows."""
    text = text.replace(",", "").lstrip("+-")
    mantissa, _, exponent = text.partition("e")
    digits = len(mantissa.partition(".")[2])
    # Costs have three digits, whatever their size.
    least = 0.5 * 10.0**-digits * 10.0 ** int(exponent or 0)
    return 1.001 * least


TITLES = {
    "Ranking": "ranking",
    "The answer per task": "tasks",
    "Every two agents": "pairs",
    "What it costs to get there": "thresholds",
    "What else was measured": "measured",
    "Every two agents on each task": "pairs_by_task",
}


@pytest.mark.parametrize("title", TITLES)
def test_every_number_in_markdown_is_that_of_the_csv(made, title):
    folder, _, _ = made
    rows, lines = read_csv(folder, TITLES[title]), read_markdown(folder)[title]
    assert len(rows) == len(lines) > 0
    compared = 0
    for row, line in zip(rows, lines, strict=True):
        for column, cell in line.items():
            text, exact = plain(cell), row[plain(column)]
            if f"{plain(column)} low" in row and row[f"{plain(column)} low"]:
                shown = re.match(rf"({NUMBER}) \[({NUMBER}), ({NUMBER})\]", text).groups()
                wanted = [exact, row[f"{plain(column)} low"], row[f"{plain(column)} high"]]
            elif re.fullmatch(NUMBER, text) and re.fullmatch(r"[-\d.e]+", exact):
                shown, wanted = [text], [exact]
            else:
                remark = row.get(f"{plain(column)} remark")
                assert text in (exact, f"{exact} ({remark})", "<0.001"), (text, exact)
                continue
            for one, other in zip(shown, wanted, strict=True):
                if one == "∞":
                    assert other == "inf"
                else:
                    assert abs(float(one.replace(",", "")) - float(other)) <= places(one), (one, other)
                compared += 1
    assert compared >= 2 * len(rows)


def test_page_latex_and_console_print_what_markdown_prints(made):
    folder, known, rows = made
    page, tex = (folder / "index.html").read_text(), (folder / "table.tex").read_text()
    stream = io.StringIO()
    for each in table(rows, known):
        Console(file=stream, width=400).print(as_rich(each))
    console = " ".join(stream.getvalue().split())
    for title in ("Ranking", "The answer per task"):
        for line in read_markdown(folder)[title]:
            for cell in line.values():
                for shown in re.findall(rf"{NUMBER} \[{NUMBER}, {NUMBER}\]", plain(cell)):
                    value, bounds = shown.split(" ", 1)
                    assert shown in tex and shown in console
                    assert re.search(rf"{re.escape(value)}(</b>)? <small>{re.escape(bounds)}</small>", page)


def test_numbers_are_those_of_the_results(made):
    folder, known, rows = made
    titles = {name: about["title"] for name, about in known["suite"]["tasks"].items()}
    line = {row["task"]: row for row in read_csv(folder, "tasks")}
    for task, title in titles.items():
        for agent, shown in (("grpo", "GRPO"), ("pg", "pg")):
            mine = [row for row in rows if row["task"] == task and row["agent"] == agent]
            # A run that failed counts as the untrained policy.
            scores = [row["metrics"]["base"] if row["score"] is None else row["score"] for row in mine]
            assert float(line[title][shown]) == pytest.approx(statistics.fmean(scores), rel=1e-9)
    for row in read_csv(folder, "ranking"):
        agent = {"GRPO": "grpo", "pg": "pg", "FlowDPPO": "flow_dppo"}.get(row["agent"])
        if agent is not None:
            scores = [r["normalised"] or 0.0 for r in rows if r["agent"] == agent]
            assert float(row["IQM"]) == pytest.approx(trim_mean(scores, 0.25), rel=1e-9)
            assert float(row["mean"]) == pytest.approx(np.mean(scores), rel=1e-9)
            assert row["failed"] == ("2" if agent == "pg" else "0")


def test_a_failed_run_is_marked_where_it_counts(made):
    folder, _, _ = made
    line = next(row for row in read_markdown(folder)["The answer per task"] if "Stale" in row["task"])
    assert line["pg"].endswith("(2 of 8 failed)") and "failed" not in line["GRPO"]


@pytest.mark.parametrize("noise", range(3))
@pytest.mark.parametrize("agents", [{"a": 0.95, "b": 0.4, "c": 0.3}, {"a": 0.6, "b": 0.6, "c": 0.59}])
def test_a_winner_is_bold_only_where_every_interval_excludes_zero(tmp_path, agents, noise):
    folder = write(tmp_path, *bench(THREE, agents, seeds=8, noise=noise))
    write_bench(folder)
    pairs = read_csv(folder, "pairs_by_task")
    bold = 0
    for line in read_markdown(folder)["The answer per task"]:
        task = plain(line["task"].partition(" (")[0])
        for agent in agents:
            lows = []
            for row in pairs:
                if row["task"] == task and agent in (row["first"], row["second"]):
                    low, high = (float(row[f"corrected interval {side}"]) for side in ("low", "high"))
                    proven = float(row["corrected p"]) < 0.05
                    lows.append((low if row["first"] == agent else -high) if proven else -1.0)
            assert len(lows) == 2
            assert line[agent].startswith("**") == (min(lows) > 0)
            bold += line[agent].startswith("**")
    assert bold == 3 if agents["a"] == 0.95 else bold < 3


def test_holm_leaves_to_the_smallest_p_value_the_level_of_bonferroni(made):
    folder, _, _ = made
    rows = read_csv(folder, "pairs_by_task")
    levels = sorted({float(row["corrected interval level"]) for row in rows})
    assert len(rows) == 3 * 10
    assert levels[-1] == pytest.approx(1 - 0.05 / 30) and levels[0] >= 0.95
    # An interval of a higher level holds that of 95 %.
    for row in rows:
        assert float(row["corrected interval low"]) <= float(row["difference low"]) + 1e-12
        assert float(row["corrected interval high"]) >= float(row["difference high"]) - 1e-12


def test_pairs_are_of_common_seeds_only():
    known, rows = bench({"a": ("A", "")}, {"x": 0.5, "y": 0.5}, seeds=6)
    rows = [r for r in rows if not (r["agent"] == "x" and r["seed"] < 2)]
    rows = [r for r in rows if not (r["agent"] == "y" and r["seed"] == 5)]
    found = find(as_bench(rows, known))
    (pair,) = found.within.values()
    scores = {a: {r["seed"]: r["score"] for r in rows if r["agent"] == a} for a in "xy"}
    first, second = next(iter(found.within))[1:]
    apart = [scores[first][s] - scores[second][s] for s in (2, 3, 4)]
    assert pair.count == 3 and pair.difference.value == pytest.approx(statistics.fmean(apart))


def test_tasks_that_not_all_agents_have_are_left_out_of_the_ranking():
    known, rows = bench(THREE, {"x": 0.5, "y": 0.9}, seeds=3)
    rows = [r for r in rows if not (r["agent"] == "x" and r["task"] == "line/stale")]
    found = find(as_bench(rows, known))
    assert list(found.shared) == ["line/many_epochs", "mixture/noise"]
    mine = [r["normalised"] for r in rows if r["agent"] == "y" and r["task"] != "line/stale"]
    assert found.ranking["mean"]["y"].value == pytest.approx(statistics.fmean(mine))
    tables = {each.name: each for each in table(rows, known)}
    assert "1 more are left out" in tables["ranking"].note


def test_coverage_stands_beside_an_interval_that_does_not_cover():
    known, rows = bench(THREE, {"x": 0.5}, seeds=3)
    found = find(as_bench(rows, known))
    assert found.cells["line/stale", "x"].low < found.cells["line/stale", "x"].high
    measured = {"3": 0.80, "5": 0.9, "10": 0.95, "30": 0.96}
    for seeds, share in ((2, 0.80), (3, 0.80), (4, 0.80), (9, 0.9), (12, 0.95), (100, 0.96)):
        assert numbers._coverage(measured, seeds) == share
    assert numbers._coverage(None, 3) is None


@pytest.mark.parametrize(
    "value, text",
    [(0.0, "0.000"), (0.1234, "0.123"), (-2.5, "-2.500"), (1234.5, "1,234"), (4e-4, "4.00e-04"), (None, "-")],
)
def test_numbers_for_people(value, text):
    assert number(value) == text


def test_costs_and_p_values_for_people():
    texts = [amount(v) for v in (8.4371, 30.0, 129.6, 25600.0, float("inf"), None)]
    assert texts == ["8.44", "30", "130", "25,600", "∞", "-"]
    assert p_value(0.0004) == "<0.001" and p_value(0.0391) == "0.039"
    assert spelled(Estimate(0.5, 0.4, 0.6), sign=True) == "+0.500 [0.400, 0.600]"
    assert spelled(Estimate(-0.5), sign=True) == "-0.500" and spelled(None) == "-"


def test_the_console_has_no_tables_of_nothing():
    assert table([], {}) == []
    known, rows = bench({"a": ("A", "")}, {"x": 0.5}, seeds=1)
    names = [each.name for each in table(rows, known)]
    assert "pairs" not in names and "failures" not in names and "ranking" in names


def test_an_agent_that_is_not_defined_somewhere_takes_no_tasks_from_the_others():
    levels = {("a", "x"): 0.1, ("b", "x"): 0.2, ("a", "y"): 0.5, ("b", "y"): 0.6, ("b", "z"): 0.9}
    rows = [
        {"task": task, "agent": agent, "seed": seed, "status": "done", "score": score, "normalised": score}
        for (task, agent), level in levels.items()
        for seed in range(5)
        for score in (level + 0.01 * seed * level,)
    ]
    found = find(as_bench(rows, {"refused": {"a": {"z": "no loss on latents"}}, "seeds": [0, 1, 2, 3, 4]}))
    assert list(found.shared) == ["a", "b"] and ("y", "x") in found.pairs
    assert "z" not in found.ranking["iqm"] and found.best == {"a": "y", "b": "z"}
    heads = dict(warnings(found))
    assert "The bench is not finished" not in heads
    assert "is not defined on a" in heads["Not every agent runs everywhere"]
    assert table(rows, {"refused": {"a": {"z": "no loss"}}})


def test_a_task_without_stored_results_is_told_and_is_no_bench_that_is_not_finished():
    rows = [
        {"task": task, "agent": agent, "seed": seed, "status": "done", "score": score, "normalised": score}
        | ({"baseline": True} if agent == "grpo" else {})
        for agent, tasks, seeds in (("grpo", "ab", 3), ("mine", "abc", 5))
        for task in tasks
        for seed in range(seeds)
        for score in (0.5 + 0.01 * seed,)
    ]
    known = {
        "suite": {"tasks": {name: {"title": f"Task {name}"} for name in "abc"}},
        "agents": [{"label": "mine"}],
        "seeds": [0, 1, 2, 3, 4],
        "without_results": ["c"],
    }
    bench = as_bench(rows, known)
    assert bench.shipped == ["grpo"]
    found = find(bench)
    assert list(found.shared) == ["a", "b"], "means over tasks are of the same tasks for all"
    heads = dict(warnings(found))
    assert "The bench is not finished" not in heads and "21 of 21 runs done" in facts(found)
    said = heads["Not every task has stored results"]
    assert "No results ship for Task c" in said and "GRPO is shown from results that ship" in said
    unfinished = find(as_bench(rows[:-1], known))
    assert "20 of 21 runs" in dict(warnings(unfinished))["The bench is not finished"]
    alone = find(as_bench([row for row in rows if row["task"] == "c"], {**known, "suite": {}}))
    said = dict(warnings(alone))["Not every task has stored results"]
    assert said == "No results ship for c: nothing stands there but what was run for this bench."
