"""What may be a score: real numbers, one per sample, and nothing that would become one without a word."""

import numpy as np
import pytest
import torch

from unirl_env.errors import ContractError
from unirl_env.types import Scores

TWO = [0.5, -1.0]


@pytest.mark.parametrize(
    "value",
    [
        TWO,
        tuple(TWO),
        np.array(TWO),
        np.array(TWO, np.float16),
        torch.tensor(TWO, dtype=torch.float64),
        torch.tensor(TWO, dtype=torch.bfloat16),
        torch.tensor(TWO, requires_grad=True) * 1,
        [torch.tensor(0.5), np.float32(-1)],
    ],
)
def test_real_numbers_of_every_kind(value):
    scores = Scores(value, parts={"a": value})
    for given in (scores.value, scores.parts["a"]):
        assert given.dtype == torch.float32 and given.tolist() == TWO and not given.requires_grad
    assert scores.valid.tolist() == [True, True]


def test_whole_numbers_and_truth_values_count():
    assert Scores([1, 0]).value.tolist() == Scores([True, False]).value.tolist() == [1, 0]
    assert Scores(torch.tensor([3, 250], dtype=torch.uint8)).value.tolist() == [3, 250]


def test_the_caller_keeps_what_was_given():
    given = np.array(TWO, np.float32)
    scores = Scores(given, valid=np.array([True, False]))
    assert scores.value.tolist()[0] == 0.5 and torch.isnan(scores.value[1]) and given.tolist() == TWO
    given[0] = 9
    assert scores.value[0] == 0.5


@pytest.mark.parametrize("huge", [1e300, -np.inf, np.nan])
def test_what_is_not_finite_in_float32_is_invalid(huge):
    assert Scores(np.array([huge, 1.0])).valid.tolist() == [False, True]


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([1 + 0j, 2]),
        np.array([1j, 2]),
        [1 + 0j, 2.0],
        np.ma.masked_array(TWO, mask=[False, True]),
        np.array([1.0, None], object),
        [1.0, None],
        ["1", "2"],
        np.array(["1", "2"]),
        "12",
        {1.0, 2.0},
        {"a": 1.0},
        (number for number in TWO),
        [[1.0], [1.0, 2.0]],
        np.array([1, 2], "datetime64[s]"),
        torch.ones(2).to_sparse(),
        torch.ones(2, device="meta"),
        None,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_are_no_real_numbers(value):
    with pytest.raises(ContractError, match=r"`Scores.value` must be real numbers, got"):
        Scores(value)
    with pytest.raises(ContractError, match=r"`Scores.parts\['a'\]` must be real numbers, got"):
        Scores(TWO, parts={"a": value})


@pytest.mark.parametrize(
    "value", [1.0, torch.tensor(1.0), [[1.0], [2.0]], torch.ones(2, 1), torch.ones(1, 2)]
)
def test_another_shape(value):
    with pytest.raises(ContractError, match=r"`Scores.value` must be one number per sample \[B\]"):
        Scores(value)
    with pytest.raises(ContractError, match=r"`Scores.parts\['a'\]` must have shape \[2\]"):
        Scores(TWO, parts={"a": value})


@pytest.mark.parametrize(
    "valid",
    [
        True,
        [True],
        [True] * 3,
        [[True, True]],
        torch.ones(2, 1, dtype=torch.bool),
        [1, 0],
        torch.tensor([1.0, float("nan")]),
        torch.tensor([1, 0], dtype=torch.uint8),
        np.ma.masked_array([True, True], mask=[False, True]),
        ["yes", "no"],
    ],
    ids=lambda value: type(value).__name__,
)
def test_valid_is_one_truth_value_per_sample(valid):
    with pytest.raises(ContractError, match=r"`Scores.valid` must be bool \[2\]"):
        Scores(TWO, valid=valid)


@pytest.mark.parametrize("parts", [None, [("a", TWO)], {1: TWO}])
def test_parts_have_names(parts):
    with pytest.raises(ContractError, match=r"`Scores.parts` must be a mapping from names"):
        Scores(TWO, parts=parts)
