import pytest
import torch

from unirl_env.errors import ContractError
from unirl_env.rewards import LinearScorer, build_scorer
from unirl_env.types import Prompt, Sample

POINTS = [Sample(latent=torch.tensor([1.0, 2.0])), Sample(latent=torch.tensor([-1.0, 0.5]))]
PROMPTS = [Prompt("a point")] * 2


@pytest.mark.parametrize(
    ("weights", "expected"), [(1.0, [3.0, -0.5]), ([2.0, -1.0], [0.0, -2.5]), ((0.0, 1.0), [2.0, 0.5])]
)
def test_the_score_is_the_inner_product(weights, expected):
    scores = build_scorer({"name": "linear", "weights": weights})(POINTS, PROMPTS)
    assert scores.value.tolist() == expected
    assert scores.valid.all()


def test_a_point_that_is_not_finite_is_an_invalid_score():
    broken = Sample(latent=torch.tensor([float("nan"), 0.0]))
    assert LinearScorer()([broken, POINTS[0]], PROMPTS).valid.tolist() == [False, True]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ContractError, match="`linear` scores latents"):
        LinearScorer()([Sample(text="no point")], PROMPTS[:1])
    with pytest.raises(ContractError, match="each of 2 dimensions"):
        LinearScorer([1.0])(POINTS, PROMPTS)
