"""The last complete expression of texts that models wrote."""

import time

import pytest

from unirl_env.rewards.texts.expressions import last_expression


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 2 + 3 = 5", "5"),
        ("#### 72", "72"),
        ("it costs $18.", "$18"),
        ("it costs $18 and $20 in all, no more.", "$20"),
        ("we earn $5 and lose 3$ a day", "3$"),
        (r"hence $\frac{3}{4}$.", r"\frac{3}{4}"),
        (r"hence \frac{3}{4}", r"\frac{3}{4}"),
        (r"hence \(x + 1\)", "x + 1"),
        ("hence \\[\n\\pi\n\\]", r"\pi"),
        (r"it is 2\sqrt{3}", r"2\sqrt{3}"),
        (r"$x = 5$, which is what $x$ had to be", "x = 5"),
        ("1,234.50 people", "1,234.50"),
        ("12, 13, 14,", "12, 13, 14"),
        ("about -7", "-7"),
        ("about \u22127", "-7"),
        ("about .5", ".5"),
        ("so...5", "5"),
        ("3/4 of it", "3/4"),
        ("50 % of it", "50 %"),
        ("50 percent of it", "50 percent"),
        ("100m2 of H2O", "100m2"),
        ("no number", None),
        ("", None),
    ],
)
def test_the_last_number_or_expression(text, answer):
    assert last_expression(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The area is 2\u03c0 cm", r"2\pi"),
        ("the point (2, 6).", "(2, 6)"),
        ("x = 3 or x = 5", "x = 3 or x = 5"),
        ("x = 2 and y = 6", "6"),
        ("x < 6", "x < 6"),
        ("y = 2x + 1", "2x + 1"),
        ("5 feet 3 inches", "5 feet 3 inches"),
        ("5 km + 3 km = 8 km", "8 km"),
        ("In 2020, 5 people", "5"),
        ("The roots are 2, 6.", "2, 6"),
        ("a 5-year plan", "5"),
        ("COVID-19, v2.0.1, H2O, 0x1F, C3", None),
        ("<answer>7</answer>.", "7"),
        ("vitamin C 5", "5"),
        ("$a_1$", None),
        ("5 million dollars", "5 million dollars"),
        ("12 (since 3*4 = 12)", "12"),
        ("1 + 2\n\nDone.", "1 + 2"),
        ("1+" * 300 + "1 people", None),
        ("so $$\nx = 5\n$$\nas wanted", "x = 5"),
        ("|-5|", "|-5|"),
        ("log_2(8)", r"\log_{2}(8)"),
    ],
)
def test_nothing_is_cut_out_of_an_expression(text, answer):
    assert last_expression(text) == answer


@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{",
        "{",
        "}",
        "\\",
        "$",
        "$a ",
        "1",
        "1,",
        "1+",
        "-",
        "\\frac{",
        "\\(",
        "\\[",
        " ",
        "\x00",
        "</think>",
        "1 ",
        "$1$",
        "a" * 9 + " ",
        "(",
        "1 m ",
        "1 and ",
        "x = ",
        "1:",
        "1.",
        "\u221a",
        "\u00b2",
        "5 km/",
        "a1",
        "1. ",
    ],
)
def test_long_texts_are_read_in_linear_time(piece):
    text = piece * (30_000 // len(piece))
    began = time.process_time()
    last_expression(text)
    assert time.process_time() - began < 4
