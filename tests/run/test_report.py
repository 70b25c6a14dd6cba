import io
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from door_fakes import fake_parts, small_config
from PIL import Image
from rich.console import Console

from unirl_env.run.launch import launch
from unirl_env.run.record.folder import RunFolder
from unirl_env.run.record.samples import save_samples
from unirl_env.run.report import write_report
from unirl_env.run.report.cards import scatter
from unirl_env.run.report.charts import Chart, Series, smooth
from unirl_env.run.report.shown import data_uri
from unirl_env.types import Sample

VOID = {"meta", "img", "br", "line", "circle", "path", "polygon"}


class Balance(HTMLParser):
    """Whether every element is closed, and what the page refers to."""

    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def parse(text):
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    cfg = small_config(folder, logging__eval_every=2, logging__eval_prompts=8)
    cfg.prompts.train[0] = 'a <script>alert("lamp")</script> & more'
    launch(cfg, Console(file=io.StringIO()), ["python"], fake_parts())
    return RunFolder(folder / "fake")


def test_the_page_needs_nothing_but_itself(run):
    text = run.report.read_text()
    links = parse(text).links
    assert links
    assert all(link.startswith("data:image/") for link in links)
    assert not re.search(r"https?:|url\(|@import|<link", text)


def test_the_page_shows_what_the_run_reached(run):
    text = run.report.read_text()
    rows = [json.loads(line) for line in (run.path / "evaluation.jsonl").read_text().splitlines()]
    after = next(row for row in rows if row["iteration"] == 6 and row["set"] == "train")
    assert f"<b>{after['rewards']['reward']['mean']:.3f}</b>" in text
    for words in ("Training reward", "Seconds per iteration", "Before and after", "held-out prompts"):
        assert words in text
    assert f"resume={run.path.name}" in text or "resume=" in text


def test_what_a_prompt_says_is_text(run):
    text = run.report.read_text()
    assert "&lt;script&gt;" in text
    assert text.count("<script>") == 1


def test_a_run_that_only_began_has_a_page_as_well(tmp_path):
    launch(small_config(tmp_path), Console(file=io.StringIO()), [], fake_parts())
    folder = RunFolder(tmp_path / "fake")
    (folder.path / "metrics.jsonl").unlink()
    (folder.path / "evaluation.jsonl").write_text("")
    parse(write_report(folder).read_text())


def test_small_pictures_keep_their_pixels_and_large_ones_shrink(tmp_path):
    noise = torch.rand(3, 600, 600, generator=torch.Generator().manual_seed(0))
    save_samples(tmp_path, [Sample(image=noise), Sample(image=noise[:, :16, :16])], 1)
    large, pixels = data_uri(tmp_path / "000-0.png")
    assert not pixels
    assert large.startswith("data:image/jpeg")
    _, pixels = data_uri(tmp_path / "001-0.png")
    assert pixels
    assert Image.open(tmp_path / "000-0.png").size == (600, 600)


def test_pictures_on_disk_are_the_samples(tmp_path):
    image = torch.tensor([0.0, 0.5, 1.0])[:, None, None].expand(3, 2, 2)
    save_samples(tmp_path, [Sample(image=image)], 1)
    assert Image.open(tmp_path / "000-0.png").getpixel((0, 0)) == (0, 128, 255)


def test_latents_of_two_numbers_become_points(tmp_path):
    for name in ("before", "after"):
        save_samples(tmp_path / name, [Sample(latent=torch.randn(2)) for _ in range(5)], 1)
    assert scatter(tmp_path / "before", tmp_path / "after").count("<circle") == 10
    assert scatter(tmp_path / "before", tmp_path / "nowhere") == ""


@pytest.mark.parametrize(
    "y",
    [[], [None], [0.5], [0.5, 0.5], [1e-7, 3e-7], [float("nan"), 1.0, None], [-3e6, 2e6], [0.0, 0.0, 0.0]],
)
def test_a_chart_draws_any_numbers(y):
    text = Chart("title", [Series("a", list(range(1, len(y) + 1)), y)], floor=0.0).svg()
    parse(text)
    assert "nan" not in text.lower()
    assert "inf" not in text


def test_higher_values_are_drawn_higher():
    text = Chart("t", [Series("a", [0, 1, 2], [0.1, 0.5, 0.9])]).svg()
    points = re.search(r'class="curve main" d="M([^"]+)"', text).group(1).split("L")
    heights = [float(point.split(",")[1]) for point in points]
    assert heights == sorted(heights, reverse=True)


def test_smoothing_keeps_a_straight_line():
    line = [float(i) for i in range(20)]
    assert smooth(line, 4) == pytest.approx(line)
    assert smooth([1.0, None, 3.0], 1) == [1.0, 2.0, 3.0]


def test_what_happened_is_marked_where_it_happened():
    text = Chart("t", [Series("a", [0, 4], [0.0, 1.0])], marks=[(4, "<alarm>")]).svg()
    parse(text)
    x = re.search(r'<line class="mark" x1="([\d.]+)"', text).group(1)
    assert text.count(f'"{x}"') >= 2 and "&lt;alarm&gt;" in text
    assert re.search(r'curve main" d="M[^"]+L([\d.]+),', text).group(1) == x
