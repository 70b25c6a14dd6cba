"""Texts with their pictures in a report: one beside the other, and a word where there is no picture."""

import io

import pytest
import torch
from door_fakes import FakeAgent, small_config
from rich.console import Console
from test_report import parse
from test_report_answers import HOSTILE, PROMPTS

from unirl_env.episode import EpisodeBatch
from unirl_env.run.agent_setup import Parts
from unirl_env.run.comparison import Options, compare
from unirl_env.run.launch import launch
from unirl_env.run.record.folder import RunFolder
from unirl_env.run.record.logbook import append
from unirl_env.run.record.samples import save_samples
from unirl_env.run.report.cards import are_drawn, drawn, gallery
from unirl_env.run.report.curves import process_charts
from unirl_env.run.summary import print_summary
from unirl_env.types import Prompt, Sample, Scores

GREEN = torch.tensor([0.0, 1.0, 0.0])[:, None, None].expand(3, 8, 8)
BASE = (
    Sample(text=HOSTILE, image=GREEN),
    Sample(text="It never ends", truncated=True, tokens=torch.zeros(5)),
    Sample(text="I would rather not"),
    Sample(text=" "),
)
TRAINED = (
    Sample(text="Green, then.", image=GREEN, pictures=GREEN.expand(3, 3, 8, 8)),
    Sample(text="", image=GREEN),
    Sample(text="word " * 200, image=GREEN),
    Sample(text="cut short", truncated=True),
)


class Painter(FakeAgent):
    """Writes, and paints of what it has written; the base often comes to no picture."""

    def rollout_eval(self, prompts, *, samples_per_prompt, seed, base=False, **options):
        rows = [prompt for prompt in prompts for _ in range(samples_per_prompt)]
        samples = tuple((BASE if base else TRAINED)[i % 4] for i in range(len(rows)))
        return EpisodeBatch(
            phases={},
            scores=Scores(torch.tensor([float(sample.image is not None) for sample in samples])),
            group=torch.arange(len(prompts)).repeat_interleave(samples_per_prompt),
            prompts=tuple(rows),
            episode_seed=torch.arange(len(rows)),
            samples=samples,
        )


def build(cfg):
    return Parts(Painter(cfg.seed), None, {"model": "fake"})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    cfg = small_config(folder, logging__eval_every=2, logging__eval_samples=4)
    cfg.prompts.train, cfg.prompts.heldout = PROMPTS, None
    cfg.rollout.num_prompts = 2
    launch(cfg, Console(file=io.StringIO()), ["python"], build)
    return RunFolder(folder / "fake")


def checked(text):
    links = parse(text).links
    assert links and all(link.startswith("data:image/") for link in links)
    assert text.count("<script>") == 1 and "<script>alert" not in text and "onerror=alert(2)>" not in text
    # Two requests, each with the picture to be edited and with four samples before and after.
    assert text.count('<article class="card question">') == text.count('<div class="seen"><img') == 2
    assert text.count('<div class="answer before">') == text.count('<div class="answer after">') == 8
    assert text.count('<div class="drawn several"><div class="pictures">') == 2
    assert "3 more samples" in text and "pictures drawn without exploration noise" in text
    assert 'class="gallery"' not in text, "a picture stands with its text, and nowhere else"
    return text


def test_the_report_shows_each_picture_with_its_text(run):
    text = checked(run.report.read_text(encoding="utf-8"))
    before, film = text.split("One seed over the run")
    assert before.count("<b>no picture</b>cut off before it") == 2 * 2
    assert before.count("<b>no picture</b>ended without one") == 2
    assert before.count("<b>no picture</b>nothing was written") == 2
    assert before.count('<div class="picture"><img class="pixels"') == 2 * 3
    assert film.count('<div class="written" dir="auto">Green, then.</div>') == 2 * 3


def test_the_comparison_shows_them_as_well(run, tmp_path):
    compare(str(run.path), Options(out=tmp_path), Console(file=io.StringIO()), build)
    checked((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert (tmp_path / "pictures/train/after/further/000-0-2.png").exists()


def test_the_phases_of_a_quantity_share_a_chart():
    rows = [
        {"iteration": i, "text/kl": 0.1 * i, "image/kl": 0.2, "grad_norm": 1.0, "text/clip_fraction": 0.1}
        for i in (1, 2)
    ]
    figures = process_charts(rows).split("</figure>")
    kl, clipped, norm = (figure for figure in figures if "<h3>Seconds" not in figure and "<h3>" in figure)
    assert '<span class="key main">text</span><span class="key second">image</span>' in kl
    assert kl.count('class="curve ') == 2
    assert '<span class="key main">text</span>' in clipped and "image" not in clipped
    assert '<span class="key main">norm</span>' in norm
    assert "Texts without a picture" not in process_charts(rows)
    lost = process_charts([{**row, "no_picture": 0.5, "truncated": 0.25, "tokens": 7.0} for row in rows])
    assert "Texts without a picture" in lost and "50 %" in lost and "Length of the texts" in lost


def test_the_last_words_tell_how_many_texts_came_to_no_picture(run):
    def last_words():
        console = Console(file=io.StringIO(), width=120)
        print_summary(console, run)
        return console.file.getvalue()

    assert "without a picture" not in last_words()
    for i, share in ((7, 0.75), (8, 0.5), (9, 0.125)):
        append(run.path / "metrics.jsonl", {"iteration": i, "no_picture": share})
    line = next(line for line in last_words().splitlines() if "texts without a picture" in line)
    assert line.split()[-3:-1] == ["75%", "12%"]


def test_what_counts_is_that_texts_are_meant_to_be_drawn(tmp_path):
    save_samples(tmp_path / "texts", [Sample(text="a")], 1)
    save_samples(tmp_path / "pictures", [Sample(image=GREEN)], 1)
    save_samples(tmp_path / "both", [Sample(image=GREEN, text="a")], 1)
    folders = [tmp_path / name for name in ("texts", "pictures", "both")]
    assert [are_drawn([folder]) for folder in folders] == [False, False, True]
    assert [are_drawn([folder], "pe") for folder in folders] == [True, False, True]
    assert are_drawn([tmp_path / "texts", tmp_path / "both"])


def test_a_picture_that_is_edited_without_words_stands_above_what_became_of_it(tmp_path):
    row = {"prompts": ["p", "q"], "samples": 1, "values": {"reward": [1.0, 0.5]}}
    columns = {name: (tmp_path / name, row) for name in ("before", "after")}
    for folder, _ in columns.values():
        save_samples(folder, [Sample(image=GREEN)] * 2, 1, [Prompt("p", images=(GREEN,)), Prompt("q")])
    found = gallery(columns)
    parse(found)
    assert found.count('<div class="seen"><img') == 1 and found.count("<img") == 1 + 4


def test_samples_that_are_gone_are_missed(tmp_path):
    save_samples(tmp_path / "before", [Sample(text="a", image=GREEN)], 2, [Prompt("p")])
    row = {"prompts": ["p"], "samples": 2, "values": {"reward": [1.0, None]}}
    found = drawn({"before": (tmp_path / "before", row), "after": (tmp_path / "after", row)})
    parse(found)
    assert found.count("<b>no picture</b>not saved") == found.count('<div class="said none">not saved') == 3
