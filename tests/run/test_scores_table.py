"""Every part of every score, before and after: in the report, at the end of a run, in a comparison."""

import io
import math
import re

import pytest
import torch
from door_fakes import FakeAgent, small_config
from rich.console import Console

from unirl_env.run.agent_setup import Parts
from unirl_env.run.comparison import Options, compare
from unirl_env.run.evaluator import summarize
from unirl_env.run.launch import launch
from unirl_env.run.record.logbook import read_rows
from unirl_env.run.report.page import scores_table
from unirl_env.run.summary import headline, label, parts_table, score_rows
from unirl_env.types import Scores


def lamps(samples, prompts):
    """A held-out scorer of a part that counts only in bright rooms, and fails at the third sample."""
    light = torch.stack([sample.image.mean() for sample in samples])
    bright = torch.tensor(["bright" in prompt.text for prompt in prompts])
    value = light.index_fill(0, torch.tensor([2]), math.nan)
    return Scores(value, {"lamps": torch.where(bright, value, torch.nan), "room": light})


def parts(cfg):
    return Parts(FakeAgent(cfg.seed), lamps, {"model": "fake"})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    stream = io.StringIO()
    launch(small_config(folder), Console(file=stream, width=120), [], parts)
    return folder / "fake", stream.getvalue()


def cells(page):
    """The rows of the table, as texts by the name of their prompt set and score."""
    found, group = {}, ""
    for row in re.findall(r"<tr.*?</tr>", page.split('class="plain scores"')[1].split("</table>")[0]):
        texts = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[dh].*?</t[dh]>", row)]
        group = texts[0] if len(texts) == 1 else group
        found[group, texts[0].strip()] = texts[1:]
    return found


def test_a_row_of_the_record_has_means_deviations_and_both_counts(run):
    row = next(row for row in read_rows(run[0] / "evaluation.jsonl") if row["set"] == "heldout")
    lamp = row["rewards"]["heldout/lamps"]
    values = [value for value in row["values"]["heldout/lamps"] if value is not None]
    assert lamp["failed"] == 1 and lamp["absent"] == 4 - 1 - len(values)
    assert lamp["mean"] == pytest.approx(sum(values) / len(values))
    everything = torch.tensor(row["values"]["reward"])
    assert row["rewards"]["reward"]["std"] == pytest.approx(float(everything.std(unbiased=False)))
    assert row["rewards"]["heldout/room"]["failed"] == 0


def test_the_report_shows_every_part_on_every_set(run):
    shown = cells((run[0] / "report.html").read_text())
    rows = read_rows(run[0] / "evaluation.jsonl")
    for title, name in (("Training prompts", "train"), ("Held-out prompts", "heldout")):
        before, after = (row["rewards"] for row in rows if row["set"] == name)
        gap = next(row for row in rows if row["set"] == name and row["iteration"] == 6)["difference"]
        for key, score in (("reward", "reward"), ("heldout", "held-out reward"), ("heldout/room", "room")):
            first, last, difference, failed, absent = shown[title, score]
            assert first == f"{before[key]['mean']:.3f} ± {before[key]['std']:.3f}"
            assert last == f"{after[key]['mean']:.3f} ± {after[key]['std']:.3f}"
            assert difference.startswith(f"{gap[key]['mean']:+.3f}")
            assert (failed, absent) == (str(after[key]["failed"]), str(after[key]["absent"]))
    # Its prompts name no bright room: the part has nothing to say, and that is no failure but the one.
    assert shown["Training prompts", "lamps"] == ["-", "-", "-", "1", "3"]


def test_the_last_words_of_a_run_have_the_parts(run):
    lines = {line.split()[0]: line.split() for line in run[1].splitlines() if "→" in line}
    assert {"reward", "brightness", "held-out", "lamps", "room"} <= set(lines)
    assert lines["lamps"][1:4] == ["-", "→", "-"] and lines["lamps"][-1] == "4", (
        "failed, in four measurements"
    )
    assert lines["room"][-1] == "0"


def test_a_comparison_tells_what_failed_from_what_does_not_apply(run, tmp_path):
    stream = io.StringIO()
    rows = compare(str(run[0]), Options(out=tmp_path), Console(file=stream, width=160), parts)
    assert rows[1]["rewards"]["heldout/lamps"]["absent"] == 3
    lamp = next(line for line in stream.getvalue().splitlines() if "heldout/lamps" in line)
    assert [cell.strip() for cell in lamp.strip("│ ").split("│")][-2:] == ["1", "3"]
    assert "absent: a part that does not apply" in stream.getvalue()
    assert cells((tmp_path / "index.html").read_text())["Training prompts", "lamps"][-2:] == ["1", "3"]


def record(iteration, name="train", **values):
    return {"iteration": iteration, "set": name, "prompts": ["p"], "samples": 2, **summarize(values, 2)}


def test_parts_stand_under_their_reward_and_the_headline_is_the_rewards():
    rows = [record(0, **{"reward": [0, 1], "reward/a": [1, 1], "reward/a/b": [0, 0], "heldout": [1, 0]})]
    assert [row["key"] for row in score_rows(rows)] == ["reward", "reward/a", "reward/a/b", "heldout"]
    assert [row["reward"] for row in headline(rows)] == ["reward", "held-out reward"]
    names = [label(row["key"]) for row in score_rows(rows)]
    assert names == ["reward", "  a", "    b", "held-out reward"]
    assert parts_table([record(0, reward=[0, 1], heldout=[1, 0])]) is None


def test_before_training_there_is_no_after():
    shown = cells(scores_table([record(0, reward=[0.0, 1.0])]))
    assert shown["Training prompts", "reward"] == ["0.500 ± 0.500", "-", "-", "0", "0"]
    assert scores_table([]) == ""


def test_a_part_that_only_came_later_is_shown():
    rows = [record(0, reward=[0, 1]), record(4, **{"reward": [1, 1], "reward/late": [1, 0]})]
    assert cells(scores_table(rows))["Training prompts", "late"][0] == "0.500 ± 0.500"


def test_what_a_part_is_called_is_text():
    page = scores_table([record(0, **{"reward": [0, 1], "reward/<b>x": [0, 1]})])
    assert "&lt;b&gt;x" in page


def test_records_of_older_runs_are_shown_without_what_they_lack():
    old = record(0, reward=[0.0, 1.0])
    for part in old["rewards"].values():
        del part["std"], part["absent"]
    assert cells(scores_table([old]))["Training prompts", "reward"] == ["0.500", "-", "-", "0", "-"]
