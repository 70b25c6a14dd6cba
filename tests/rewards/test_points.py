"""Rewards of points near a place, by hand."""

import math

import pytest
import torch

from unirl_env.errors import ConfigError, ContractError
from unirl_env.rewards import NearScorer, build_scorer
from unirl_env.types import Prompt, Sample

POINTS = [Sample(latent=torch.tensor([1.0, 2.0])), Sample(latent=torch.tensor([-1.0, 0.5]))]
PROMPTS = [Prompt("a point")] * 2


@pytest.mark.parametrize(
    ("options", "distances"),
    [({}, [5.0, 1.25]), ({"place": [1.0, 0.5], "width": 0.5}, [2.25 / 0.25, 4.0 / 0.25])],
)
def test_it_is_paid_near_the_place(options, distances):
    scores = build_scorer({"name": "near", **options})(POINTS, PROMPTS)
    assert scores.value.tolist() == pytest.approx([math.exp(-d / 2) for d in distances])
    assert scores.valid.all()


def test_a_point_that_is_not_finite_is_an_invalid_score():
    broken = Sample(latent=torch.tensor([float("nan"), 0.0]))
    assert NearScorer()([broken, POINTS[0]], PROMPTS).valid.tolist() == [False, True]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ContractError, match="`near` scores latents"):
        NearScorer()([Sample(text="no point")], PROMPTS[:1])
    with pytest.raises(ContractError, match="each of 2 dimensions"):
        NearScorer([1.0])(POINTS, PROMPTS)
    with pytest.raises(ConfigError, match="`width` must be positive"):
        NearScorer(width=0)
