"""Scores come back as they were given, and replies that answer something else are refused."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unirl_env.errors import WireError
from unirl_env.rewards.wire.messages import scores_as_json, scores_from_json
from unirl_env.types import Scores

float32s = st.floats(width=32)


def trip(scores):
    return scores_from_json(json.loads(json.dumps(scores_as_json(scores), allow_nan=False)), len(scores))


def bits(tensor):
    return tensor.view(torch.int32).tolist()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(float32s, float32s, st.booleans()), min_size=1, max_size=5))
def test_scores_arrive_bitwise(rows):
    value, part, valid = (torch.tensor(column) for column in zip(*rows, strict=True))
    part = torch.where(part.isfinite(), part, torch.nan)
    scores = Scores(value, {"p": part}, valid)
    arrived = trip(scores)
    assert bits(arrived.value) == bits(scores.value)
    assert arrived.valid.tolist() == scores.valid.tolist()
    assert arrived.parts["p"].isnan().tolist() == part.isnan().tolist()
    assert bits(arrived.parts["p"].nan_to_num(7.0)) == bits(part.nan_to_num(7.0))


def test_names_and_the_order_of_parts_are_kept():
    scores = Scores(torch.ones(1), {name: torch.ones(1) for name in ("z", "a/b", "größe")})
    assert list(trip(scores).parts) == ["z", "a/b", "größe"]


def test_an_invalid_score_is_nan_whatever_stands_there():
    reply = {"value": [0.0, 0.5], "parts": {}, "valid": [False, True]}
    scores = scores_from_json(reply, 2)
    assert math.isnan(scores.value[0]) and scores.valid.tolist() == [False, True]


GOOD = {"value": [1.0, 2.0], "parts": {"p": [1, None]}, "valid": [True, True]}


@pytest.mark.parametrize(
    "change, words",
    [
        (None, "must be a mapping"),
        ({"value": [1.0]}, "`value` must be 2 numbers"),
        ({"value": [1.0, 2.0, 3.0]}, "`value` must be 2 numbers"),
        ({"value": "12"}, "`value` must be 2 numbers"),
        ({"value": [1.0, "2"]}, "`value` must be numbers or null"),
        ({"value": [1.0, True]}, "`value` must be numbers or null"),
        ({"value": [1.0, None]}, "A valid score must be a finite number"),
        ({"value": [1.0, 1e300]}, "A valid score must be a finite number"),
        ({"value": [1.0, 10**400]}, "numbers of float32"),
        ({"value": [1.0, math.nan]}, "A valid score must be a finite number"),
        ({"parts": {"p": [1.0]}}, "`p` must be 2 numbers"),
        ({"parts": [1.0]}, "must be a mapping"),
        ({"valid": [True]}, "`valid` must be 2 truth values"),
        ({"valid": [1, 1]}, "`valid` must be 2 truth values"),
        ({"valid": None}, "`valid` must be 2 truth values"),
    ],
)
def test_what_is_no_answer_is_refused(change, words):
    assert scores_from_json(GOOD, 2).valid.all()
    with pytest.raises(WireError, match=words):
        scores_from_json(None if change is None else {**GOOD, **change}, 2)
