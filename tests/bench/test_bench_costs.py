import csv
import statistics
import xml.etree.ElementTree as ET

import pytest
from synthetic_bench import bench, write

from unirl_env.bench.page import costs, write_bench
from unirl_env.bench.page.drawings import forest, matrix
from unirl_env.bench.page.numbers import Estimate
from unirl_env.bench.page.reading import as_bench
from unirl_env.run.report.charts import Chart, Series

ONE = {"a": ("A", "")}


def with_curves(curves, status=None):
    """A bench of one task and agent whose runs have these curves: lists of (seconds, score)."""
    known, rows = bench(ONE, {"x": 0.5}, seeds=len(curves))
    for row, curve in zip(rows, curves, strict=True):
        row["curve"] = {"seconds": [x for x, _ in curve], "score": [y for _, y in curve]}
        row["metrics"] |= {"base": 0.0, "reference": 1.0}
        row |= {"score": curve[-1][1], "normalised": curve[-1][1]}
    for seed in status or ():
        rows[seed] |= {"status": "crashed", "score": None, "normalised": None}
    return as_bench(rows, known)


def test_a_band_is_the_mean_of_straight_lines():
    found = costs.band(
        with_curves([[(0, 0.0), (2, 1.0)], [(0, 0.0), (1, 0.2), (4, 0.8)]]), "a", "x", "seconds"
    )
    assert list(found.x) == [0.0, 1.0, 2.0]  # The first run ends at 2.
    assert [e.value for e in found.means] == pytest.approx([0.0, (0.5 + 0.2) / 2, (1.0 + 0.4) / 2])
    assert found.means[1].low < found.means[1].value < found.means[1].high


def test_a_run_that_failed_counts_as_untrained_from_where_it_stopped():
    curves = [[(0, 0.5), (1, 0.6), (2, 0.7)], [(0, 0.5), (1, 0.4)]]
    found = costs.band(with_curves(curves, status=[1]), "a", "x", "seconds")
    assert [e.value for e in found.means] == pytest.approx([0.5, 0.5, 0.35])


def test_curves_of_no_finished_run_are_drawn_as_far_as_all_got():
    found = costs.band(with_curves([[(0, 0.5), (1, 0.6)], [(0, 0.5)]], status=[0, 1]), "a", "x", "seconds")
    assert [e.value for e in found.means] == pytest.approx([0.5])


def test_the_end_of_a_curve_is_what_the_table_says(tmp_path):
    folder = write(tmp_path, *bench(ONE, {"x": 0.5, "y": 0.7}, seeds=5, failing={("a", "y", 2)}))
    write_bench(folder)
    lines = list(csv.DictReader((folder / "figures" / "curve_a_iteration.csv").open()))
    row = next(csv.DictReader((folder / "figures" / "tasks.csv").open()))
    for agent in "xy":
        last = [line for line in lines if line["agent"] == agent][-1]
        for column in ("estimate", "low", "high"):
            name = agent if column == "estimate" else f"{agent} {column}"
            assert float(last[column]) == pytest.approx(float(row[name]), rel=1e-9)


def test_long_curves_are_thinned():
    long = [(i, i / 500) for i in range(501)]
    found = costs.band(with_curves([long, long]), "a", "x", "seconds")
    assert len(found.x) == costs.POINTS and found.x[-1] == 500
    assert [e.value for e in found.means] == pytest.approx([x / 500 for x in found.x])


def test_the_cost_of_a_threshold_is_the_first_time_it_is_reached():
    curves = [[(0, 0.0), (t, 0.6), (20, 0.3)] for t in (3, 5, 9)]  # The threshold is 0.6.
    share, median = costs.time_to(with_curves(curves), "a", "x", "seconds")
    assert share == 1.0 and median.value == statistics.median([3, 5, 9])


def test_who_does_not_get_there_is_censored():
    curves = [[(0, 0.0), (3, 0.7)], [(0, 0.0), (10, 0.1)], [(0, 0.0), (10, 0.2)]]
    share, median = costs.time_to(with_curves(curves), "a", "x", "seconds")
    assert share == pytest.approx(1 / 3) and median is None
    # A run that was there and then failed has not got there.
    share, median = costs.time_to(with_curves(curves, status=[0]), "a", "x", "seconds")
    assert share == 0.0 and median is None


def test_an_interval_of_seven_runs_has_an_open_end_and_says_so():
    curves = [[(0, 0.0), (t, 0.9)] for t in (3, 5, 9, 11)] + [[(0, 0.0), (12, 0.1)]] * 3
    share, median = costs.time_to(with_curves(curves), "a", "x", "seconds")
    assert share == pytest.approx(4 / 7) and median.value == 11
    assert 0 < median.low < 11 and median.high == float("inf")


@pytest.mark.parametrize("change", [{"threshold": None}, {"threshold": "x"}])
def test_without_a_threshold_there_is_no_cost(change):
    known, rows = bench(ONE, {"x": 0.5}, seeds=2)
    known["suite"]["tasks"]["a"] |= change
    assert costs.time_to(as_bench(rows, known), "a", "x", "seconds") is None


def test_forests_and_matrices_are_well_formed_and_in_order():
    rows = [
        ("agent0", "one & two", Estimate(1.0, 0.5, 1.5)),
        ("agent1", "<b>", Estimate(2.0)),
        ("agent2", "c", None),
    ]
    text = forest("t", rows, marks=[(0.9, "base"), (50.0, "far")]).file(
        {"agent0": "#112233", "agent1": "#445566"}
    )
    root = ET.fromstring(text)
    points = [float(c.get("cx")) for c in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert len(points) == 2 and points[0] < points[1]
    assert "base" in text and "far" not in text and "#112233" in text
    drawn = matrix("m", ["a", "b"], [[None, 0.8], [0.2, None]], [[0, 1], [-1, 0]])
    ET.fromstring(drawn.file())
    assert drawn.marks.count("<rect") == 2 and 'class="up"' in drawn.marks and 'class="down"' in drawn.marks


def test_long_names_keep_their_ends():
    rows = [
        ("agent0", f"a_very_long_name_of_an_algorithm_number_{i}", Estimate(0.5, 0.4, 0.6)) for i in range(2)
    ]
    marks = forest("t", rows).marks
    assert "…" in marks and "_0<title>" in marks and "_1<title>" in marks


def test_a_chart_says_what_its_axis_counts():
    chart = Chart("t", [Series("a", [0.5, 1.25], [1.0, 2.0])], across="second", whole=False, start=None)
    assert "&quot;across&quot;: &quot;second&quot;" in chart.svg("<p>links</p>")
    assert "<p>links</p>" in chart.svg("<p>links</p>")
    ET.fromstring(chart.drawing().file())
    assert ">0.6<" in chart.svg() and ">0<" not in chart.drawing().marks.replace(">0<", "", 0)
