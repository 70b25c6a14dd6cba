"""What arguments and settings must be, told apart where Python would not."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from unirl_env.arguments.values import check_fields, like_default, number, truth, whole
from unirl_env.errors import ConfigError
from unirl_env.settings import RunConfig


@pytest.mark.parametrize(
    "value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8)]
)
def test_whole_numbers_of_every_type_become_pythons_own(value):
    assert whole("count", value, 1, 3) == 3 and type(whole("count", value)) is int


@pytest.mark.parametrize(
    "value",
    [
        *(True, np.True_, torch.tensor(True)),
        *(3.0, np.float32(3), torch.tensor(3.0), math.nan, 3 + 0j),
        *("3", b"3", None, [3], np.array([3]), torch.tensor([3])),
    ],
)
def test_what_is_no_whole_number(value):
    with pytest.raises(ConfigError, match="`count` must be a whole number, got"):
        whole("count", value)


def test_bounds_are_named():
    with pytest.raises(ConfigError, match="`count` must be at least 1, got 0; try 8"):
        whole("count", 0, 1, hint="try 8")
    with pytest.raises(ConfigError, match="`count` must be at most 2, got 3"):
        whole("count", 3, 1, 2)


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), np.int8(1)])
def test_numbers(value):
    assert number("eta", value) == float(value) and type(number("eta", value)) is float


@pytest.mark.parametrize("value", [True, np.True_, "0.5", None, math.nan, math.inf, 1j, 10**400, [0.5]])
def test_what_is_no_number(value):
    with pytest.raises(ConfigError, match="`eta` must be a finite number, got"):
        number("eta", value)


@pytest.mark.parametrize("value", [True, False, np.True_, np.False_])
def test_truth_values(value):
    assert truth("flag", value) is bool(value)


@pytest.mark.parametrize("value", ["no", "False", "", 0, 1, 1.0, None, [], torch.tensor(True)])
def test_what_is_no_truth_value(value):
    with pytest.raises(ConfigError, match="`flag` must be True or False, got"):
        truth("flag", value)


@dataclass
class Inner:
    low: float = 0.0


@dataclass
class Outer:
    count: int = 1
    rate: float = 0.5
    flag: bool = False
    name: str | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    names: list[str] | None = None
    weights: dict[str, float] = field(default_factory=dict)
    free: Any = None
    inner: Inner = field(default_factory=Inner)


def test_fields_have_the_types_of_their_annotations():
    right = {"count": np.int64(2), "rate": 1, "pair": [0, 0.5], "names": ["a"], "weights": {"a": 1}}
    check_fields(Outer(**right, free=object()))
    wrong = {
        "count": [1.0, True, "1", None],
        "rate": [True, "1", math.nan, math.inf, None],
        "flag": ["no", 1, None],
        "name": [1, b"a"],
        "pair": [(0.0,), (0.0, "1"), "ab", 1.0],
        "names": ["a", [1], ("a", None)],
        "weights": [{"a": "1"}, {1: 1.0}, [("a", 1.0)]],
        "inner": [None, {"low": 1.0}, Inner],
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ConfigError, match=f"`run.{name}` must be "):
                check_fields(dataclasses.replace(Outer(), **{name: value}), "run.")
    with pytest.raises(ConfigError, match=r"`inner\.low` must be a finite number, got 'x'"):
        check_fields(Outer(inner=Inner("x")))


@pytest.mark.parametrize(
    ("default", "right", "wrong"),
    [
        (False, [True], ["no", 1, None]),
        (2, [3, np.int32(3)], [2.5, True, "2", None]),
        (0.5, [1, None, math.inf, np.float32(0.1)], [math.nan, "1", True]),
        ("a", ["b"], [1, None]),
        ({}, [{"a": 1}], [None, [1]]),
        (None, [1, "a", None, [1]], []),
    ],
)
def test_settings_are_of_the_kind_of_their_defaults(default, right, wrong):
    for value in right:
        like_default("setting", value, default)
    for value in wrong:
        with pytest.raises(ConfigError, match="`setting` must be"):
            like_default("setting", value, default)


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        (None, "iterations", 2.5),
        ("model", "num_steps", 7.5),
        ("rollout", "same_noise", "no"),
        ("agent", "lr", math.nan),
        ("agent", "self_check", "true"),
        ("policy", "eta", True),
        ("logging", "progress", 0),
        ("steps", "fraction", (0.0, "0.5")),
    ],
)
def test_a_runs_settings_are_checked_by_type(group, name, value):
    cfg = RunConfig()
    cfg.check()
    setattr(getattr(cfg, group) if group else cfg, name, value)
    with pytest.raises(ConfigError, match=f"`{group + '.' if group else ''}{name}` must be "):
        cfg.check()
