"""Compositions: values, names, and what an invalid part does."""

import math

import pytest
import torch

from unirl_env.errors import ConfigError, ContractError
from unirl_env.rewards import Gate, Minimum, Product, WeightedSum
from unirl_env.types import Prompt, Sample, Scores

SAMPLES = [Sample(text=str(i)) for i in range(3)]
PROMPTS = [Prompt(f"p{i}") for i in range(3)]
NAN = math.nan


def gives(*value, **parts):
    def scorer(samples, prompts):
        return Scores(
            value=torch.tensor(value), parts={name: torch.tensor(part) for name, part in parts.items()}
        )

    return scorer


def broken(samples, prompts):
    raise RuntimeError("down")


A = gives(1.0, 2.0, 3.0)
B = gives(0.5, 0.25, -1.0, inner=[7.0, 8.0, 9.0])


def test_the_weighted_sum_and_its_named_parts():
    scores = WeightedSum({"a": (A, 2.0), "b": (B, -4)})(SAMPLES, PROMPTS)
    assert scores.value.tolist() == [0.0, 3.0, 10.0]
    assert set(scores.parts) == {"a", "b", "b/inner"}
    assert scores.parts["b/inner"].tolist() == [7.0, 8.0, 9.0]


def test_compositions_nest_and_so_do_the_names():
    inner = WeightedSum({"b": (B, 1.0)})
    scores = WeightedSum({"a": (A, 1.0), "both": (inner, 1.0)})(SAMPLES, PROMPTS)
    assert scores.value.tolist() == [1.5, 2.25, 2.0]
    assert set(scores.parts) == {"a", "both", "both/b", "both/b/inner"}


def test_a_list_is_named_after_its_scorers():
    clip = type(
        "Clip", (), {"name": "clip", "__call__": lambda self, samples, prompts: A(samples, prompts)}
    )()
    scores = WeightedSum([(clip, 1.0), (B, 1.0)])(SAMPLES, PROMPTS)
    assert set(scores.parts) == {"clip", "scorer", "scorer/inner"}
    with pytest.raises(ConfigError, match=r"must have different names, got \['scorer', 'scorer'\]"):
        WeightedSum([(A, 1.0), (B, 1.0)])


def test_product_and_minimum():
    assert Product({"a": A, "b": B})(SAMPLES, PROMPTS).value.tolist() == [0.5, 0.5, -3.0]
    scores = Minimum([gives(1.0, 0.0, 2.0)])(SAMPLES, PROMPTS)
    assert scores.value.tolist() == [1.0, 0.0, 2.0]
    scores = Minimum({"a": A, "b": B})(SAMPLES, PROMPTS)
    assert scores.value.tolist() == [0.5, 0.25, -1.0]
    assert set(scores.parts) == {"a", "b", "b/inner"}


def test_the_gate_opens_at_its_threshold():
    scores = Gate(gives(0.4, 0.5, 0.6), A, threshold=0.5, closed_value=-1.0)(SAMPLES, PROMPTS)
    assert scores.value.tolist() == [-1.0, 2.0, 3.0]
    assert scores.parts["open"].tolist() == [0.0, 1.0, 1.0]
    assert scores.parts["scorer"].tolist() == [1.0, 2.0, 3.0]
    assert torch.allclose(scores.parts["gate"], torch.tensor([0.4, 0.5, 0.6]))


@pytest.mark.parametrize(
    "compose",
    [
        lambda bad: WeightedSum({"a": (A, 1.0), "bad": (bad, 1.0)}),
        lambda bad: Product({"a": A, "bad": bad}),
        lambda bad: Minimum({"a": A, "bad": bad}),
        lambda bad: Gate(A, bad, threshold=2.5),
        lambda bad: Gate(bad, A, threshold=0.0),
    ],
)
def test_invalid_in_one_part_is_invalid_in_the_whole(compose):
    scores = compose(gives(1.0, NAN, 1.0))(SAMPLES, PROMPTS)
    assert scores.valid.tolist() == [True, False, True]
    assert not compose(broken)(SAMPLES, PROMPTS).valid.any()


def test_a_part_that_fails_leaves_the_others_to_be_read(caplog):
    scores = WeightedSum({"a": (A, 1.0), "bad": (broken, 1.0)})(SAMPLES, PROMPTS)
    assert scores.parts["a"].tolist() == [1.0, 2.0, 3.0] and scores.parts["bad"].isnan().all()
    assert "`broken` failed on 3 samples" in caplog.text


def test_a_part_of_weight_zero_is_only_watched():
    scores = WeightedSum({"a": (A, 1.0), "bad": (gives(5.0, NAN, 5.0), 0.0)})(SAMPLES, PROMPTS)
    assert scores.value.tolist() == [1.0, 2.0, 3.0] and scores.valid.all()
    assert scores.parts["bad"][0] == 5.0


def test_a_part_that_breaks_the_contract_raises():
    with pytest.raises(ContractError, match="got 2 for 3 samples"):
        Product({"a": gives(1.0, 2.0)})(SAMPLES, PROMPTS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightedSum({}), "at least one part"),
        (lambda: Product([]), "at least one part"),
        (lambda: WeightedSum({"a": A}), r"must be \(scorer, weight\)"),
        (lambda: WeightedSum({"a": (A, NAN)}), "weight must be a finite number, got nan"),
        (lambda: WeightedSum({"a": (A, "1")}), "weight must be a finite number, got '1'"),
        (lambda: WeightedSum({"a": (A, 0.0)}), "a weight other than 0"),
        (lambda: WeightedSum({"a/b": (A, 1.0)}), "without '/', got 'a/b'"),
        (lambda: Minimum({"a": 3}), "Part `a` must be callable"),
        (lambda: Minimum({"a": Gate}), r"Part `a` must be an object, got the class Gate; try Gate\(\)"),
        (lambda: Gate(A, B, threshold=NAN), "`threshold` must be a finite number"),
        (
            lambda: Gate(A, B, threshold=0, closed_value=None),
            "`closed_value` must be a finite number, got None",
        ),
        (lambda: Gate(A, "x", threshold=0), "Part `scorer` must be callable"),
    ],
)
def test_what_cannot_be_composed_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
