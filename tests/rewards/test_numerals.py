"""Numerals, units and exact arithmetic, against Python's own fractions."""

import math
import time
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from unirl_env.rewards.texts.algebra import same_number
from unirl_env.rewards.texts.arithmetic import TooLarge, exact_value
from unirl_env.rewards.texts.measures import measured
from unirl_env.rewards.texts.numerals import is_numeric, plain_numeral, plain_value, readings
from unirl_env.rewards.texts.plain_latex import plain_latex, plain_signs


@pytest.mark.parametrize(
    ("latex", "value"),
    [
        ("1+2-4", -1),
        (r"3\cdot 4/5", Fraction(12, 5)),
        (r"\frac{1}{3}", Fraction(1, 3)),
        ("-2^{2}", -4),
        ("2^{-3}", Fraction(1, 8)),
        ("2^{3^{2}}", 512),
        ("(1+2)(3)", 9),
        (r"2\frac{1}{2}", Fraction(5, 2)),
        ("4 1/2", Fraction(9, 2)),
        (r"-1\frac{1}{4}", Fraction(-5, 4)),
        (r"2\frac{3}{2}", 3),
        ("5!", 120),
        (r"\binom{50}{25}", math.comb(50, 25)),
        (r"\sqrt{49}", 7),
        (r"\sqrt[3]{27}", 3),
        ("4^{1/2}", 2),
        (r"\frac{1}{500!}", Fraction(1, math.factorial(500))),
        ("(-1)^{10^{9}+1}", -1),
        ("0.1+0.2", Fraction(3, 10)),
        (r"\sqrt{2}", None),
        ("x", None),
        ("1/0", None),
        ("", None),
        ("1 2", None),
        ("(1", None),
        ("2+", None),
        ("0^{0}", None),
        ("5x", None),
        ("1,2", None),
        ("(" * 200 + "1" + ")" * 200, None),
        ("-" * 299 + "1", None),
    ],
)
def test_arithmetic_is_exact(latex, value):
    assert exact_value(latex) == value


@pytest.mark.parametrize(
    "latex",
    [
        "9^{9^{9^{9}}}",
        "99999999!",
        r"\binom{1000000000}{500000000}",
        "((9^{9})^{9})^{9^{9}}",
        "10^{10^{10}}/3",
    ],
)
def test_a_tower_costs_nothing(latex):
    began = time.process_time()
    for _ in range(512):
        with pytest.raises(TooLarge):
            exact_value(latex)
    assert time.process_time() - began < 2


def test_a_decimal_stands_for_what_it_rounds_or_cuts_off():
    third, large = Fraction(1, 3), 10**20
    assert same_number(third, Fraction("0.333333"))
    assert same_number(Fraction(2, 3), Fraction("0.666667"))
    assert same_number(Fraction(2, 3), Fraction("0.6666666"))
    assert same_number(-third, Fraction("-0.3333333"))
    assert same_number(Fraction("0.3"), Fraction("0.30000000000000004"))
    for one, other in [
        (third, "0.33333"),
        (third, "0.333334"),
        (third, "-0.333333"),
        (0, "1e-30"),
        (large, str(large + 1)),
        (Fraction("1e-12"), "1e-13"),
        (1, "1.0000001"),
        (Fraction("0.1234567"), "0.1234568"),
    ]:
        assert not same_number(Fraction(one), Fraction(other)), (one, other)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,234", ["1234"]),
        ("3,14", ["3.14", "3, 14"]),
        ("0,125", ["0.125", "0, 125"]),
        ("3{,}14", ["3.14"]),
        ("1{,}234", ["1234"]),
        ("1.234,56", ["1234.56"]),
        ("1,234.56", ["1234.56"]),
        ("1 234 567", ["1234567"]),
        ("1,00,000", ["100000"]),
        ("1.234.567", ["1234567"]),
        ("1'234", ["1234"]),
        ("(1,234)", ["(1, 234)"]),
        ("1e-07", ["0.0000001", "1 e-07"]),
        ("1.5E3", ["1500"]),
        ("1e500", [r"(1\cdot 10^{500})", "1 e500"]),
        ("1.23456789012345678901234567890123E2", ["123.456789012345678901234567890123"]),
    ],
)
def test_numerals_are_read_as_the_world_writes_them(text, found):
    assert readings(text) == found


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1e-7, "0.0000001"),
        (2e16, "20000000000000000"),
        (42.0, "42"),
        (0.5, "0.5"),
        (-3, "-3"),
        (1e300, "1e+300"),
        (10**50 + 1, str(10**50 + 1)),
        (np.float32(0.1), "0.1"),
        (np.int64(7), "7"),
        (Decimal("2.50"), "2.5"),
        (Fraction(1, 3), "1/3"),
        (0.0, "0"),
        (100.0, "100"),
    ],
)
def test_numbers_are_written_in_digits(number, text):
    assert is_numeric(number)
    assert plain_numeral(number) == text
    assert plain_value(text) in (Fraction(str(number)), None)


@pytest.mark.parametrize("value", [True, np.bool_(True), None, math.nan, math.inf, "5", 1j, [5]])
def test_what_is_no_number(value):
    assert not is_numeric(value)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("5 cm", "5", {"cm": 1}),
        ("9 m²", "9", {"m": 2}),
        ("60 km/h", "60", {"km": 1, "h": -1}),
        (r"5\,\mathrm{m\,s^{-1}}", "5", {"m": 1, "s": -1}),
        ("60 mph", "60", {"mi": 1, "h": -1}),
        ("€12", "12", {"€": 1}),
        ("-$5", "-5", {"$": 1}),
        ("12 square feet", "12", {"ft": 2}),
        ("20 ℃", "20", {"°c": 1}),
        ("7 pens", "7", {}),
        ("12th", "12", {}),
        ("2 thirds", "2 thirds", {}),
        ("5x", "5x", {}),
        ("Monday", "Monday", {}),
        ("3 million", r"3\cdot 10^{6}", {}),
        ("x + 5 m", "x + 5 m", {}),
    ],
)
def test_units_are_told_from_values(text, value, unit):
    found = measured(plain_latex(text))
    assert (found.value, dict(found.unit)) == (value, unit)


def test_signs_have_one_spelling():
    assert plain_signs("x\u00b2\u2070 \u2212 \u00bd\u00b7\u221a12") == r"x^{20} - \frac{1}{2}\cdot \sqrt{12}"
    assert plain_signs("\u0661\u0662 \uff13 \U0001d7d2\u200b5") == "12 3 45"
    assert plain_latex(r" \left( \dfrac12 , \mathrm{e}^{2} \right). ") == r"( \frac{1}{2} , e^{2} )"
    assert plain_latex(r"0.1\overline{6}") == r"\frac{15}{90}"
    assert plain_latex(" 1\\,000\u00a0people. ") == "1 000 people"
