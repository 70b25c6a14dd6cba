import json
import random
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from page_parser import Page
from synthetic_bench import AGENTS, PAPER, bench, write

from unirl_env.bench.page import write_bench
from unirl_env.bench.page.findings import find
from unirl_env.bench.page.reading import as_bench
from unirl_env.bench.page.words import sentences
from unirl_env.run.record.samples import save_samples
from unirl_env.types import Prompt, Sample

TWO = dict(list(PAPER.items())[:2])


def made(folder, *args, **options):
    write_bench(write(folder, *bench(*args, **options)))
    return Page((folder / "index.html").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    failing = {("line/stale", "pg", 1), ("line/stale", "pg", 4)}
    place = write(
        tmp_path_factory.mktemp("benches") / "quick", *bench(TWO, failing=failing, tuned={"flow_dppo"})
    )
    write_bench(place)
    return place


def test_the_page_needs_nothing_but_itself(folder):
    text = (folder / "index.html").read_text()
    links = [link for link in Page(text).links if not link.startswith("data:")]
    assert links and all(link.startswith("runs/") for link in links)
    assert not re.search(r"https?:|url\(|@import|<link", text)
    assert text.count("<script>") == 1


def test_every_figure_is_there_to_be_taken_away_and_is_the_same_as_its_file(folder):
    page = Page((folder / "index.html").read_text())
    files = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert page.downloads.keys() >= {"profiles.svg", "ranking_iqm.csv", "improvement.svg", "tasks.csv"}
    assert all(files[name] == content for name, content in page.downloads.items())
    assert files.keys() == page.downloads.keys()
    assert all(f"{name[:-4]}.csv" in files for name in files)


def test_figures_are_drawings_that_any_program_reads(folder):
    for path in (folder / "figures").glob("*.svg"):
        text = path.read_text()
        root = ET.fromstring(text)
        assert float(root.get("width")) > 0 and "nan" not in text
        assert not re.search(r"var\(|color-mix", text)
        styles = set(re.findall(r'(?:curve|error|key|circle class=")\s?(agent\d+)', text))
        assert all(f".curve.{style}" in text for style in styles)


def test_sections_say_what_was_compared(folder):
    text = Page((folder / "index.html").read_text()).text
    for words in (
        "2 tasks", "5 agents", "10 seeds", "98 of 100 runs done", "tuned and default settings",
        "A tuned agent is compared with an untuned one", "FlowDPPO had settings searched for",
        "2 of 10 failed", "RuntimeError: the loss is nan", "runs/line/stale/pg/seed_4",
        "Old batches are used again", "python -m unirl_env.bench suite=quick", "d4777e5c1b", "AMD EPYC",
        "function evaluations", "Performance profiles", "hacking index", "peak memory, MiB",
        "agent.lr", "0.0006", "configurations",
    ):  # fmt: skip
        assert words in text, words
    assert "group_size" not in text  # The same for all.


def test_the_sentence_says_what_the_numbers_say(folder):
    text = Page((folder / "index.html").read_text()).text
    assert re.search(r"Over 2 tasks together, FlowDPPO is above every other agent", text)
    # Both were made with nearly the same level.
    assert not re.search(r"Reinforce is above (pg|GRPO)|pg is above", text)
    assert "Nothing else can be told apart at 95 % after Holm's correction." in text


def test_agents_that_are_alike_are_not_told_apart():
    wrong = 0
    for noise in range(40):
        known, rows = bench(TWO, {"one": 0.5, "other": 0.5}, seeds=5, noise=noise)
        wrong += "cannot be told apart at 95 %" not in sentences(find(as_bench(rows, known)))[0]
    # Two families of claims at 5 % each: eleven of forty or more have a chance below 1 in 500.
    assert wrong < 11


def test_an_agent_against_itself_is_never_different(tmp_path):
    known, rows = bench(TWO, {"one": 0.5}, seeds=5)
    known["agents"].append({"label": "other", "name": "one"})
    rows += [row | {"agent": "other"} for row in rows]
    write_bench(write(tmp_path, known, rows))
    assert "The two agents cannot be told apart at 95 %" in Page((tmp_path / "index.html").read_text()).text


@pytest.mark.parametrize(
    "options, said",
    [
        ({"agents": {"grpo": 0.7}}, "Only one agent has runs: nothing is compared."),
        ({"seeds": 1}, "No two agents have two seeds in common"),
        (
            {"failing": {(t, a, s) for t in TWO for a in AGENTS for s in range(10)}},
            "No run came to its end with a score",
        ),
        ({"tasks": {"a": ("A", "")}, "agents": {"g": 0.1}, "seeds": 1}, "Only one agent has runs"),
        ({"seeds": 2}, "Few seeds"),
    ],
)
def test_too_little_claims_nothing(tmp_path, options, said):
    page = made(tmp_path, **({"tasks": TWO} | options))
    assert said in page.text
    assert " is above " not in page.text.replace("is above every other one", "")
    assert not re.search(r"\*\*[^*]+\*\* \||\| \*\*", (tmp_path / "table.md").read_text())
    assert "textbf" not in (tmp_path / "table.tex").read_text()
    assert not re.search(r"<b>[-\d.]+</b> <small>", (tmp_path / "index.html").read_text())


def test_a_bench_that_has_only_begun(tmp_path):
    known, rows = bench(TWO)
    page = Page(write_bench(write(tmp_path, known, [])).read_text())
    assert "No run has ended yet" in page.text and "0 of 100 runs done" in page.text
    some = [row for row in rows if row["agent"] == "grpo" and row["task"] == "line/stale"][:3]
    page = Page(write_bench(write(tmp_path, known, some)).read_text())
    assert "The bench is not finished" in page.text and "3 of 100 runs have ended" in page.text
    assert "Nothing is there yet of" in page.text


@pytest.mark.parametrize(
    "known",
    ["", "{", "[]", "null", '{"suite": 3, "agents": "x", "seeds": {}, "tune": [], "provenance": 5}',
     '{"suite": {"tasks": {"line/stale": null}}, "agents": [null, {"label": 3}, {}], "seeds": [1, null]}'],
)  # fmt: skip
def test_a_broken_description_leaves_the_results(tmp_path, known):
    _, rows = bench(TWO, seeds=3)
    write(tmp_path, {}, rows)
    (tmp_path / "bench.json").write_text(known)
    page = Page(write_bench(tmp_path).read_text())
    assert "line/many_epochs" in page.text and "FlowDPPO" in page.text


@pytest.mark.parametrize("missing", ["bench.json", "results.jsonl"])
def test_a_missing_file_is_no_error(tmp_path, missing):
    write(tmp_path, *bench(TWO, seeds=2))
    (tmp_path / missing).unlink()
    assert Page(write_bench(tmp_path).read_text()).text


BROKEN = [
    {"score": None},
    {"score": float("nan"), "normalised": float("inf")},
    {"score": "high"},
    {"normalised": None},
    {"metrics": None},
    {"metrics": {"base": None, "kl": "x", "seconds": float("nan")}},
    {"curve": None},
    {"curve": {"iteration": [0, 1], "score": [0.1]}},
    {"curve": {"iteration": [0, None], "score": [None, 0.2], "seconds": [None, None]}},
    {"curve": {"iteration": [3, 3, -1], "score": [0.1, 0.2, 0.3]}},
    {"curve": {"iteration": [], "score": []}},
    {"status": "diverged", "error": None},
    {"folder": "../../outside"},
    {"folder": 7},
    {"seed": "three"},
    {"task": None},
    {"configuration": None},
    {"metrics": {"base": 1.0, "reference": 1.0}},
    {"metrics": {"base": 2.0, "reference": 1.0}},
]


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("change", BROKEN, ids=lambda change: json.dumps(change)[:40])
def test_odd_rows_break_nothing(tmp_path, change, everywhere):
    known, rows = bench(TWO, {"grpo": 0.5, "pg": 0.4}, seeds=3)
    rows = [row | change if everywhere or i == 0 else row for i, row in enumerate(rows)]
    write(tmp_path, known, rows)
    text = write_bench(tmp_path).read_text()
    page = Page(text)
    assert page.text and "outside" not in str(page.links)
    for path in (tmp_path / "figures").iterdir():
        assert not re.search(r"\b(nan|inf)\b", path.read_text().lower()), path.name


def test_lines_that_are_none_are_counted(tmp_path):
    known, rows = bench(TWO, seeds=2)
    write(tmp_path, known, [*rows, rows[0], {"task": 3}])
    with (tmp_path / "results.jsonl").open("a") as stream:
        stream.write('{"task": "line/st')
    text = Page(write_bench(tmp_path).read_text()).text
    assert "1 line that cannot be read" in text
    assert "1 line without a task, an agent or a seed" in text
    assert "takes the place of an earlier one in 1 line" in text
    assert "20 of 20 runs done" in text


def test_names_are_text(tmp_path):
    evil = '</style><script>alert("1")</script>'
    tasks = {"<img src=x>": ("<img src=x onerror=y>", "</details><b>why")}
    page = made(tmp_path, tasks, {evil: 0.9, "a\"b'c&d|e": 0.1, "=cmd()": 0.4}, seeds=4)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any("onerror" in named for _, named in page.tags)
    assert evil in page.text and "</details><b>why" in page.text
    for path in (tmp_path / "figures").glob("*.csv"):
        assert not re.search(r"(^|,)=", path.read_text(), re.M)
    for path in (tmp_path / "figures").glob("*.svg"):
        ET.fromstring(path.read_text())
    assert evil not in (tmp_path / "table.md").read_text()
    assert "a\"b'c\\&d|e" in (tmp_path / "table.tex").read_text()


def test_many_agents_with_long_names(tmp_path):
    agents = {f"some.very.long.package.name:ALongNameOfAnAlgorithm{i}": i / 12 for i in range(12)}
    page = made(tmp_path, TWO, agents, seeds=3)
    assert all(f"ALongNameOfAnAlgorithm{i}" in page.text for i in range(12))
    style = (tmp_path / "index.html").read_text()
    colours = re.findall(r"\.agent\d+ \{ --hue: (#[0-9a-f]{6})", style)
    assert len(set(colours)) == 12


def test_two_tasks_whose_names_look_alike_have_files_of_their_own(tmp_path):
    made(tmp_path, {"a/b": ("A", ""), "a b": ("B", ""), "A-B": ("C", "")}, {"grpo": 0.5}, seeds=2)
    names = sorted(path.name for path in (tmp_path / "figures").glob("task_*.csv"))
    assert names == ["task_a_b.csv", "task_a_b_2.csv", "task_a_b_3.csv"]


def test_the_same_files_give_the_same_page(tmp_path):
    known, rows = bench(TWO, seeds=4, failing={("line/stale", "pg", 1)})
    first = write(tmp_path / "here" / "quick", known, rows)
    shuffled = random.Random(1).sample(rows, len(rows))
    second = write(tmp_path / "there" / "quick", known, shuffled)
    found = []
    for folder in (first, second):
        write_bench(folder)
        written = [path for path in folder.rglob("*") if path.is_file() and path.name != "results.jsonl"]
        found.append({str(path.relative_to(folder)): path.read_bytes() for path in written})
    assert found[0] == found[1]


def sample(kind, text, rng):
    if kind == "texts":
        return Sample(text=text)
    if kind == "points":
        return Sample(latent=torch.randn(2, generator=rng))
    if kind == "clips":
        return Sample(video=torch.randint(0, 256, (5, 3, 16, 16), generator=rng).byte())
    return Sample(image=torch.rand(3, 16, 16, generator=rng))


def pictures(folder, task, agent, seed, rng, kind):
    """A run's folder with samples of a base and of a policy."""
    place = folder / f"runs/{task}/{agent}/seed_{seed}"
    prompts = ["a <lamp> in a room", "two chairs"]
    place.mkdir(parents=True)
    rows = []
    for iteration in (0, 100):
        samples = [sample(kind, f"{agent} says <b> {iteration}", rng) for _ in range(4)]
        where = place / "pictures" / f"{iteration:06d}" / "heldout"
        save_samples(where, samples, 2, [Prompt(text) for text in prompts])
        rows.append(
            {"iteration": iteration, "set": "heldout", "prompts": prompts, "samples": 2,
             "values": {"reward": [0.25, None, 0.5, 0.75]}, "rewards": {}}
        )  # fmt: skip
    (place / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


@pytest.mark.parametrize("kind", ["pictures", "clips", "texts", "points"])
def test_what_agents_made_stands_side_by_side(tmp_path, kind):
    task, rng = {"tiny": ("Tiny", "")}, torch.Generator().manual_seed(0)
    agents = {"grpo": 0.5, "pg": 0.4, "after": 0.3}
    write(tmp_path, *bench(task, agents, seeds=2))
    for agent in agents:
        for seed in range(2):
            pictures(tmp_path, "tiny", agent, seed, rng, kind)
    page = Page(write_bench(tmp_path).read_text())
    assert "What they made" in page.text and "Seed 0, held-out prompts" in page.text
    if kind == "points":
        assert page.text.count("before after") == 3
        return
    assert "a <lamp> in a room" in page.text and "untrained" in page.text
    if kind == "pictures":
        images = [named for tag, named in page.tags if tag == "img"]
        assert len(images) == 2 * 4 * 2 and all(each["src"].startswith("data:image/png") for each in images)
    elif kind == "clips":
        classes = [named["class"] for tag, named in page.tags if tag == "img"]
        assert classes == ["clip pixels", "still pixels"] * 2 * 4 * 2
    else:
        assert "grpo says <b> 100" in page.text and "grpo says <b> 0" in page.text


def test_samples_that_cannot_be_read_break_nothing(tmp_path):
    write(tmp_path, *bench({"tiny": ("Tiny", "")}, {"grpo": 0.5}, seeds=1))
    place = pictures(tmp_path, "tiny", "grpo", 0, torch.Generator(), "pictures")
    for path in place.rglob("*.png"):
        path.write_bytes(b"no picture")
    assert "cannot be read" in Page(write_bench(tmp_path).read_text()).text


def test_a_folder_from_elsewhere_opens_no_others(tmp_path):
    known, rows = bench({"tiny": ("Tiny", "")}, {"grpo": 0.5}, seeds=1)
    pictures(tmp_path / "outside", "tiny", "grpo", 0, torch.Generator(), "texts")
    for odd in ("../outside/runs/tiny/grpo/seed_0", str(tmp_path / "outside/runs/tiny/grpo/seed_0")):
        folder = write(tmp_path / "quick", known, [rows[0] | {"folder": odd}])
        assert "What they made" not in Page(write_bench(folder).read_text()).text
    failed = rows[0] | {"folder": "javascript:alert(1)", "status": "crashed", "score": None}
    page = Page(write_bench(write(tmp_path / "quick", known, [failed])).read_text())
    assert not any(unquote(link) == link and ":" in link for link in page.links if "data:" not in link)


def test_what_intervals_hold_is_said_beside_them(tmp_path, monkeypatch):
    def table(share):
        of = {"coverage": {"3": share, "5": 0.95}, "rare": {"3": 0.7}}
        return lambda: dict.fromkeys(("mean", "iqm", "median", "paired"), of)

    monkeypatch.setattr("unirl_env.statistics.interval._table", table(0.8))
    page = made(tmp_path / "few", TWO, seeds=3)
    assert "covers 80 %" in page.text and "do so in 80 % at so few seeds" in page.text
    assert (
        "By simulation, 80.0 % of such hold the truth" in page.text and "70 % where a run in ten" in page.text
    )
    monkeypatch.setattr("unirl_env.statistics.interval._table", table(0.948))
    page = made(tmp_path / "enough", TWO, seeds=3)
    assert "covers" not in page.text and "By simulation, 94.8 % of such hold the truth" in page.text


def test_secrets_in_errors_and_commands_are_hidden(tmp_path):
    known, rows = bench({"tiny": ("Tiny", "")}, {"grpo": 0.5}, seeds=1)
    known["provenance"]["command"].append("reward.options.api_key=sk-abcdefghijklmnop")
    rows[0] |= {"status": "crashed", "score": None, "error": "HTTPError: api_key=sk-abcdefghijklmnop refused"}
    folder = write(tmp_path, known, rows)
    write_bench(folder)
    files = [path for path in folder.rglob("*") if path.name not in ("bench.json", "results.jsonl")]
    assert all(b"sk-abcdef" not in path.read_bytes() for path in files if Path(path).is_file())
