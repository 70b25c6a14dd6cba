"""Certificates: what passes, and how it is read."""

import json
import math

import pytest

from unirl_env.agents.contract.certificate import DECLARED, FAILED, IDLE, PASSED, Certificate, Check


def check(verdict, **more):
    return Check("gradient", "latents", verdict, **{"figure": 0.125, "words": f"It {verdict}.", **more})


@pytest.mark.parametrize(
    "verdicts, passed",
    [
        ([PASSED, DECLARED, IDLE], True),
        ([PASSED, FAILED], False),
        ([], False),
    ],
)
def test_it_passes_unless_something_failed(verdicts, passed):
    certificate = Certificate("mine", tuple(map(check, verdicts)))
    assert certificate.passed is passed
    assert len(certificate.failures) == verdicts.count(FAILED)
    assert len(certificate["gradient"]) == len(verdicts) and certificate["pull"] == ()


def test_it_prints_as_a_table():
    text = str(Certificate("mine", (check(PASSED), check(FAILED, figure=math.nan)), 12.3))
    assert "mine: refused: 1 of 2 checks failed (12 s)" in text
    assert "0.125" in text and "It failed." in text and "\x1b" not in text
    assert "passed" in str(Certificate("mine", (check(PASSED),))).splitlines()[0]


def test_rows_are_json():
    rows = Certificate("mine", (check(PASSED, interval=(0.0, 0.2)), check(FAILED, figure=math.nan))).rows()
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert rows[0]["interval"] == [0.0, 0.2] and rows[1]["figure"] is None
