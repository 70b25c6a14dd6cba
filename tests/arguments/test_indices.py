"""Places and masks of every kind, and that neither is taken for the other."""

import numpy as np
import pytest
import torch

from unirl_env.arguments.indices import as_array, as_indices, as_mask, places_or_mask
from unirl_env.errors import ConfigError, ShapeError

PLACES = [1, 0, 3]
INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
KINDS = [
    PLACES,
    tuple(PLACES),
    [np.uint8(1), np.int64(0), torch.tensor(3, dtype=torch.uint8)],
    np.array(PLACES, dtype=object),
    *(np.array(PLACES, dtype=name) for name in INTEGERS),
    *(torch.tensor(PLACES, dtype=getattr(torch, name)) for name in INTEGERS),
    np.array(PLACES, dtype=">i2"),
    torch.tensor([1, 9, 0, 9, 3, 9])[::2],
]


def kind_of(value):
    return f"{type(value).__name__} {getattr(value, 'dtype', '')}"


@pytest.mark.parametrize("value", KINDS, ids=kind_of)
def test_every_integer_type_is_the_same_place(value):
    rows = as_indices("rows", value, 4, count=3)
    assert rows.dtype == np.int64 and rows.tolist() == PLACES
    chosen = places_or_mask("rows", value, 4)
    assert chosen.dtype == torch.int64 and torch.arange(10, 14)[chosen].tolist() == [11, 10, 13]


def test_a_range_and_none_at_all():
    assert as_indices("rows", range(1, 4), 4).tolist() == [1, 2, 3]
    assert as_indices("rows", [], 4, empty=True).shape == (0,)
    with pytest.raises(ConfigError, match=r"`rows` must be whole numbers in \[0, 4\), got \[\]"):
        as_indices("rows", [], 4, error=ConfigError)


@pytest.mark.parametrize(
    "value",
    [
        [True, False, True],
        [1, True, 0],
        np.array([True, False, True]),
        torch.tensor([True, False, True]),
        [np.True_, np.False_, np.True_],
        [torch.tensor(True), 0, 1],
        [0.0, 1.0, 2.0],
        np.zeros(3),
        torch.zeros(3),
        torch.zeros(3, dtype=torch.bfloat16),
        [1j, 0, 1],
        ["0", "1", "2"],
        "012",
        b"\x00\x01\x02",
        {0, 1, 2},
        {0: 1, 1: 2, 2: 3},
        (row for row in range(3)),
        [None, 0, 1],
        [[0], [1], [2]],
        np.zeros((3, 1), int),
        np.zeros((1, 3), np.uint8),
        torch.zeros(3, 1, dtype=torch.long),
        np.ma.masked_array([0, 1, 2], mask=[0, 1, 0]),
        torch.tensor([0, 1, 2]).to_sparse(),
        torch.zeros(3, dtype=torch.long, device="meta"),
        np.array(["0", "1", "2"]),
        np.array([0, 1, 2], "timedelta64[s]"),
        [0, 1],
        [0, 1, 2, 3],
        1,
        None,
    ],
    ids=lambda value: type(value).__name__,
)
def test_nothing_else_is(value):
    with pytest.raises(ShapeError, match=r"`rows` must be 3 whole numbers in \[0, 4\), got"):
        as_indices("rows", value, 4, count=3)


@pytest.mark.parametrize(
    "value", [[-1, 0], [0, 4], np.array([0, 2**63], np.uint64), [0, 2**80], [-(2**70), 0]]
)
def test_places_beyond_the_end_are_refused(value):
    with pytest.raises(ShapeError, match=r"`rows` must lie in \[0, 4\)"):
        as_indices("rows", value, 4)


@pytest.mark.parametrize(
    "value",
    [[True, False], (np.True_, False), np.array([True, False]), torch.tensor([True, False])],
    ids=kind_of,
)
def test_masks(value):
    assert as_mask("mask", value, 2).tolist() == [True, False]


@pytest.mark.parametrize(
    "value",
    [
        [1, 0],
        np.array([1, 0], np.uint8),
        torch.tensor([1, 0], dtype=torch.uint8),
        [True],
        [[True, False]],
        torch.ones(2, 1, dtype=torch.bool),
        np.ma.masked_array([True, False], mask=[0, 1]),
        [True, None],
        True,
        "tf",
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_mask(value):
    with pytest.raises(ShapeError, match=r"`mask` must be bool \[2\]"):
        as_mask("mask", value, 2)


def test_places_or_a_mask():
    assert places_or_mask("rows", torch.tensor([False, True, True]), 3).tolist() == [1, 2]
    assert places_or_mask("rows", torch.tensor([False, True, True]).byte(), 3).tolist() == [0, 1, 1]
    assert places_or_mask("rows", np.zeros(3, bool), 3).tolist() == []
    with pytest.raises(ShapeError, match=r"bool \[3\]"):
        places_or_mask("rows", torch.tensor([True, False]), 3)


def test_arrays_of_the_dtypes_that_numpy_lacks():
    assert as_array(torch.tensor([0.5], dtype=torch.bfloat16)).tolist() == [0.5]
    assert as_array(torch.tensor([1 + 1j]).conj()).tolist() == [1 - 1j]
    assert as_array([1, 2]) is None
