"""Texts in a report: hostile ones stay texts, long ones are folded."""

import base64
import io
import re

import pytest
import torch
from door_fakes import FakeAgent, small_config
from PIL import Image
from rich.console import Console
from test_report import parse

import unirl_env.functional as F
from unirl_env.episode import EpisodeBatch
from unirl_env.rewards import ExactScorer
from unirl_env.run.agent_setup import Parts
from unirl_env.run.comparison import Options, compare
from unirl_env.run.launch import launch
from unirl_env.run.record.folder import RunFolder
from unirl_env.run.record.samples import save_samples
from unirl_env.run.report.cards import LONG, MOST, answers, folded, printable
from unirl_env.types import Prompt, Sample

HOSTILE = (
    "</div></details></script><script>alert(1)</script><img src=x onerror=alert(2)>\x00\u202e\ud800&amp;"
)


def picture():
    """A blue square as a data URI."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (0, 0, 255)).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


PROMPTS = [
    {"prompt": f"Which colour? <script>{i}</script>", "answer": "blue", "image": picture()} for i in range(4)
]


class Talker(FakeAgent):
    """Says something hostile, something long, and at times the answer."""

    def rollout_eval(self, prompts, *, samples_per_prompt, seed, base=False, **options):
        rows = [prompt for prompt in prompts for _ in range(samples_per_prompt)]
        texts = [HOSTILE, "word " * 200, "blue", ""] if base else ["blue", HOSTILE]
        samples = tuple(
            Sample(text=texts[i % len(texts)], tokens=torch.zeros(i + 1), truncated=i == 1)
            for i in range(len(rows))
        )
        return EpisodeBatch(
            phases={},
            scores=ExactScorer()(samples, rows),
            group=torch.arange(len(prompts)).repeat_interleave(samples_per_prompt),
            prompts=tuple(rows),
            episode_seed=torch.tensor([F.derive_seed("test", i) for i in range(len(rows))]),
            samples=samples,
        )


def build(cfg):
    return Parts(Talker(cfg.seed), None, {"model": "fake"})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talks")
    cfg = small_config(folder, logging__eval_every=2)
    cfg.prompts.train, cfg.prompts.heldout = PROMPTS, None
    cfg.rollout.num_prompts = 2
    launch(cfg, Console(file=io.StringIO()), ["python"], build)
    return RunFolder(folder / "fake")


def checked(text):
    """The page holds as many scripts as the program put there, and every element is closed."""
    links = parse(text).links
    assert links and all(link.startswith("data:image/") for link in links)
    assert text.count("<script>") == 1 and "<script>alert" not in text and "onerror=alert(2)>" not in text
    assert "&lt;script&gt;alert(1)" in text and "&amp;amp;" in text
    assert not re.search("[\x00\u202e\ud800]", text)
    return text


def test_the_report_shows_questions_and_both_answers(run):
    text = checked(run.report.read_text(encoding="utf-8"))
    assert text.count('<article class="card question">') == 2
    assert text.count('<div class="seen"><img class="pixels" src="data:image/png') == 2
    assert "Which colour? &lt;script&gt;" in text
    assert '<i>expected</i><div class="said" dir="auto">blue</div>' in text
    assert text.count('<div class="answer before">') == text.count('<div class="answer after">') == 4
    assert '<span class="gain up">1.00</span>' in text and '<span class="gain flat">0.00</span>' in text
    assert "another answer" in text and "2 tokens, cut off" in text and "1 token<" in text
    assert "exploration noise" not in text and "before and after training" in text


def test_the_comparison_shows_them_as_well(run, tmp_path):
    compare(str(run.path), Options(out=tmp_path), Console(file=io.StringIO()), build)
    text = checked((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert text.count('<article class="card question">') == 2
    assert (tmp_path / "pictures/train/after/prompts/000-0.png").exists()
    assert (tmp_path / "pictures/train/before/texts.json").exists()


@pytest.mark.parametrize(
    ("text", "folds"),
    [
        ("short", False),
        ("x" * LONG, False),
        ("x" * (LONG + 1), True),
        ("\n" * 7 + "x", False),
        ("a\n" * 20, True),
    ],
)
def test_long_texts_are_folded(text, folds):
    found = folded(text)
    parse(found)
    assert ("<details" in found) == folds
    assert text.strip("\n").replace("\n", "") in found.replace("\n", "")


def test_of_a_folded_text_the_end_is_seen():
    summary = folded("It begins. " + "word " * 500 + "It ends.").split("</summary>")[0]
    assert "It begins." in summary and "It ends." in summary and "2,519 characters" in summary
    assert len(summary) < 600


def test_a_text_without_end_is_cut():
    found = folded("a" * 10 * MOST + "the end")
    assert len(found) < 2 * MOST and found.count("the end") == 2


def test_no_text_is_said_to_be_none():
    assert "nothing" in folded("") and "nothing" in folded(" \n")


def test_what_cannot_be_printed_is_marked():
    assert (
        printable("a\x1b[31m\r\nb\rc\td\u2028\ud800\u202e多\U0001f600")
        == "a\ufffd[31m\nb\nc\td\u2028\ufffd\ufffd多\U0001f600"
    )


def test_a_folder_without_texts_or_with_missing_ones(tmp_path):
    row = {"prompts": ["p"], "samples": 2, "values": {"reward": [None, 1.0]}}
    columns = {"before": (tmp_path / "before", row), "after": (tmp_path / "after", row)}
    assert answers(columns) == ""
    save_samples(tmp_path / "before", [Sample(text="a"), Sample(text="b")], 2, [Prompt("p")])
    found = answers(columns)
    parse(found)
    assert found.count("not saved") == 2 and '<span class="gain flat">failed</span>' in found
