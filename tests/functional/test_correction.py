"""Importance weights of one policy over another: by hand, their bounds, and what they are for."""

import math

import pytest
import torch

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ShapeError

SAMPLED = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, -0.1, 0.0]])
RATIO = torch.tensor([[1.5, 3.0, 0.4], [0.9, 1.2, 7.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])


def weights(**settings):
    return F.correction_weights(SAMPLED + RATIO.log(), SAMPLED, mask=MASK, **settings)


def test_by_step():
    found, cut = weights()
    torch.testing.assert_close(found, torch.tensor([[1.5, 2.0, 0.4], [0.9, 1.2, 1.0]]))
    assert cut.tolist() == [[False, True, False], [False, False, False]]
    found, cut = weights(how="mask")
    torch.testing.assert_close(found, torch.tensor([[1.5, 0.0, 0.0], [0.9, 1.2, 1.0]]))
    assert cut.tolist() == [[False, True, True], [False, False, False]]
    found, cut = weights(how="mask", bound=4.0)
    torch.testing.assert_close(found, torch.tensor([[1.5, 3.0, 0.4], [0.9, 1.2, 1.0]]))
    assert not cut.any()


def test_by_episode_it_is_the_product_of_its_steps():
    found, cut = weights(level="episode")
    torch.testing.assert_close(found, torch.tensor([[1.8, 1.8, 1.8], [1.08, 1.08, 1.0]]))
    assert not cut.any()
    found, cut = weights(level="episode", bound=1.5)
    torch.testing.assert_close(found, torch.tensor([[1.5, 1.5, 1.5], [1.08, 1.08, 1.0]]))
    assert cut.tolist() == [[True] * 3, [False] * 3]


def test_of_means_over_elements_it_is_the_ratio_of_whole_actions():
    found, _ = F.correction_weights(torch.tensor([[0.1]]), torch.tensor([[0.0]]), elements=6, bound=9.0)
    assert float(found) == pytest.approx(math.exp(0.6))


def test_the_same_policy_has_weights_of_exactly_one():
    for how in ("truncate", "mask"):
        found, cut = F.correction_weights(SAMPLED, SAMPLED, how=how)
        assert (found == 1).all() and not cut.any()


def test_nothing_is_infinite_and_nothing_has_a_gradient():
    new = torch.tensor([[500.0, -500.0]], requires_grad=True)
    found, _ = F.correction_weights(new, torch.zeros(1, 2), bound=1e6)
    assert found.isfinite().all() and not found.requires_grad


def test_with_them_the_samplers_draws_stand_for_the_policys():
    """Means under mu times the weight are means under pi; bounded ones lie between the two."""
    pi, mu = (torch.tensor(p).log() for p in ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]))
    value = torch.tensor([1.0, 2.0, 4.0])
    mine, theirs = float(pi.exp() @ value), float(mu.exp() @ value)
    found = {}
    for bound in (3.0, 1.5):
        weight, _ = F.correction_weights(pi[:, None], mu[:, None], bound=bound)
        found[bound] = float((mu.exp() * weight[:, 0]) @ value)
    assert found[3.0] == pytest.approx(mine) and theirs != pytest.approx(mine)
    assert found[1.5] == pytest.approx(mine - 0.2 * (2.5 - 1.5))


def test_what_does_not_fit_is_refused():
    for settings in ({"how": "clip"}, {"level": "token"}, {"bound": 1.0}):
        with pytest.raises(ConfigError):
            weights(**settings)
    with pytest.raises(ShapeError, match="`log_prob` must be"):
        F.correction_weights(SAMPLED[0], SAMPLED[0])
    with pytest.raises(ShapeError, match="`sampled_log_prob`"):
        F.correction_weights(SAMPLED, SAMPLED[:1])
