"""The page of two benches: what it says, draws and tells apart."""

import csv
import io
import re
from pathlib import Path
from statistics import fmean

import pytest
from page_parser import Page
from rich.console import Console
from synthetic_bench import bench, write

from unirl_env.bench.__main__ import main
from unirl_env.bench.compare import CompareSettings, compare
from unirl_env.bench.page.both import ranks
from unirl_env.bench.page.findings import find
from unirl_env.bench.page.reading import as_bench
from unirl_env.bench.stored import read_bench, scores
from unirl_env.run.compose.yaml import to_yaml
from unirl_env.settings import RunConfig

TASKS = {"a": ("Task A", ""), "b": ("Task B", "")}
OTHERS = {"c": ("Task C", "")}
LEVELS = {"grpo": 0.3, "drpo": 0.6, "pg": 0.9}


def two(place, first, second):
    """Two benches on the disk, each given as the arguments of `bench`."""
    return [write(place / name, *bench(**options)) for name, options in (("one", first), ("two", second))]


def page_of(first, second, settings=None):
    found = compare(first, second, Console(file=io.StringIO(), width=200), settings)
    path = first / f"compare_{second.name}.html" if settings is None else settings.output
    return found, Page(Path(path).read_text())


def table(page, name):
    return list(csv.DictReader(io.StringIO(page.downloads[name].decode())))


def test_ranks_are_as_certain_as_the_differences():
    known, rows = bench(TASKS, {**LEVELS, "gspo": 0.6}, seeds=10)
    for row in rows:
        if row["agent"] == "gspo":  # above it on every other seed
            key = ("drpo", row["task"], row["seed"])
            twin = next(each for each in rows if (each["agent"], each["task"], each["seed"]) == key)
            row["normalised"] = twin["normalised"] + 0.02 * (-1) ** row["seed"] + 1e-4
            row["score"] = 0.2 + 0.9 * row["normalised"]
    found = ranks(find(as_bench(rows, known)))
    assert found == {"pg": (1, 1, 1), "gspo": (2, 2, 3), "drpo": (3, 2, 3), "grpo": (4, 4, 4)}


def test_a_tuned_bench_is_held_against_an_untuned_one(tmp_path):
    one, two_ = two(
        tmp_path,
        {"tasks": TASKS, "agents": LEVELS},
        {"tasks": TASKS, "agents": {**LEVELS, "grpo": 0.7}, "tuned": {"grpo"}, "noise": 1},
    )
    found, page = page_of(one, two_)
    for words in (
        "A tuned agent is compared with an untuned one",
        "GRPO had settings searched for in two and not in one",
        "2 tasks in both", "3 agents in both", "10 seeds", "default in one, tuned in two",
        "GRPO is higher in two", "Where one comes from", "Where two comes from", "AMD EPYC",
        "Known in both at 95 % after Holm's correction: pg above DRPO and GRPO.",
        "DRPO is above GRPO in one and below it in two.",
        "By simulation, 94.0 % of such hold the truth",
    ):  # fmt: skip
        assert words in page.text, words
    lines = {(row["task"], row["agent"]): row for row in table(page, "differences.csv")}
    assert len(lines) == 9 and next(iter(lines))[0] == "mean over tasks"
    known = [scores(read_bench(place)[1])["grpo"]["a"] for place in (one, two_)]
    wanted = fmean(known[1][seed] - known[0][seed] for seed in known[0])
    assert float(lines["Task A", "GRPO"]["difference"]) == pytest.approx(wanted, rel=1e-8)
    shown = {row["agent"]: row for row in table(page, "ranks.csv")}
    assert [shown[a]["rank in one"] for a in ("pg", "DRPO", "GRPO")] == ["1", "2", "3"]
    assert [shown[a]["rank in two"] for a in ("pg", "GRPO", "DRPO")] == ["1", "2", "3"]
    drawn = {(row["bench"], row["agent"]): float(row["estimate"]) for row in table(page, "rankings.csv")}
    assert drawn["two", "GRPO"] == pytest.approx(float(shown["GRPO"]["mean in two"]))
    assert found.tau.estimate == pytest.approx(1 / 3), "one pair of three is turned round"
    agents = ("grpo", "flow_dppo")
    plain = two(tmp_path / "plain", *[{"tasks": TASKS, "agents": dict.fromkeys(agents, 0.5)}] * 2)
    assert "tuned" not in page_of(*plain)[1].text


def test_benches_of_other_tasks_are_compared_by_their_rankings_alone(tmp_path):
    one, other = two(
        tmp_path, {"tasks": TASKS, "agents": LEVELS}, {"tasks": OTHERS, "agents": {**LEVELS, "cispo": 0.1}}
    )
    _, page = page_of(one, other)
    assert "0 tasks in both" in page.text and "each side has its own axis" in page.text
    assert "Only in two" in page.text and "Common tasks" not in page.text
    assert "a, b" in page.text, "the tasks are among the settings that differ"
    assert not any(name.startswith("difference") for name in page.downloads)


def test_an_agent_that_is_not_defined_everywhere_takes_no_task_from_the_others(tmp_path):
    one, other = two(tmp_path, *[{"tasks": TASKS, "agents": {**LEVELS, "gspo": 0.5}}] * 2)
    for place in (one, other):
        lines = (place / "results.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in lines if not ('"agent": "gspo"' in line and '"task": "a"' in line)]
        (place / "results.jsonl").write_text("".join(kept))
    found, page = page_of(one, other)
    assert found.ranked == sorted(LEVELS) and found.tasks == (["a", "b"], ["a", "b"])
    assert "gspo" in found.agents and "GSPO cannot be ranked" in page.text
    assert {row["agent"] for row in table(page, "ranks.csv")} == {"GRPO", "DRPO", "pg"}
    assert "GSPO" in {row["agent"] for row in table(page, "differences.csv")}


def test_a_task_of_one_side_alone_is_told(tmp_path, capsys):
    levels = {"tasks": {**TASKS, "c": ("Task C", "")}, "agents": LEVELS}
    one, other = two(tmp_path, {"tasks": TASKS, "agents": LEVELS}, levels)
    _, page = page_of(one, other)
    said = "Task C: one has no runs there, so that no difference is told of it. The ranking in two counts it"
    assert "Tasks of two alone" in page.text and said in page.text and "Tasks of one alone" not in page.text
    assert "Task C" not in {row["task"] for row in table(page, "differences.csv")}


def test_settings_that_differ_are_those_of_runs_on_a_common_task(tmp_path):
    one, other = two(tmp_path, *[{"tasks": TASKS, "agents": LEVELS, "seeds": 2}] * 2)
    for place, epochs in ((one, 1), (other, 4)):
        for agent in LEVELS:
            cfg = RunConfig(name=agent)
            cfg.agent.name, cfg.agent.num_epochs = agent, epochs
            cfg.agent.lr = 1e-3 if (agent, epochs) == ("pg", 4) else 1e-4
            folder = place / f"runs/a/{agent}/seed_0"
            folder.mkdir(parents=True)
            (folder / "config.yaml").write_text(to_yaml(cfg))
    _, page = page_of(one, other)
    rows = {(row["of"], row["setting"]): (row["one"], row["two"]) for row in table(page, "settings.csv")}
    assert rows == {("all agents", "agent.num_epochs"): ("1", "4"), ("pg", "agent.lr"): ("0.0001", "0.001")}
    assert "those of their runs on Task A" in page.text


def test_the_page_needs_nothing_but_itself_and_believes_no_name(tmp_path):
    evil = {"<b>x</b>&": 0.4, "grpo": 0.8}
    one, other = two(tmp_path, *[{"tasks": {"a": ("<i>A</i>", "")}, "agents": evil, "seeds": 3}] * 2)
    _, page = page_of(one, other)
    assert "<b>x</b>&" in page.text and "<i>A</i>" in page.text
    assert all(link.startswith("data:") for link in page.links)
    text = (one / "compare_two.html").read_text()
    assert not re.search(r"https?:|url\(|@import|<link", text) and "prefers-color-scheme: dark" in text
    assert "@media print" in text and "width=device-width" in text and not re.search(r"\bnan\b", text)


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_and_equal_names_are_no_obstacle(tmp_path, seeds):
    options = {"tasks": OTHERS, "agents": LEVELS, "seeds": seeds}
    one, other = (write(tmp_path / side / "quick", *bench(**options)) for side in "xy")
    _, page = page_of(one, other, CompareSettings(output=str(tmp_path / "new" / "page.html")))
    assert "x/quick and y/quick" in page.text and "Few seeds" in page.text


def test_the_command_writes_the_page(tmp_path, capsys):
    one, other = two(tmp_path, *[{"tasks": OTHERS, "agents": LEVELS, "seeds": 2}] * 2)
    assert main(["compare", str(one), str(other)]) == 0
    assert (one / "compare_two.html").is_file()
    assert main(["compare", str(one), str(other), f"output={tmp_path / 'p.html'}"]) == 0
    assert (tmp_path / "p.html").is_file()
    assert main(["compare", str(one), str(other), "outputs=x"]) == 2
    assert "did you mean `output" in capsys.readouterr().err
