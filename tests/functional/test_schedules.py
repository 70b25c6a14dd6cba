import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import unirl_env.functional as F
from unirl_env.errors import ConfigError


def test_ten_steps_at_shift_three():
    expected = [1, 0.9643, 0.9231, 0.875, 0.8182, 0.75, 0.6667, 0.5625, 0.4286, 0.25, 0]
    sigmas = F.flow_sigmas(10, shift=3.0)
    assert sigmas.dtype == torch.float32
    torch.testing.assert_close(sigmas, torch.tensor(expected), atol=5e-5, rtol=0)


def test_shift_one_is_the_uniform_grid():
    torch.testing.assert_close(F.flow_sigmas(4, shift=1.0), torch.tensor([1, 0.75, 0.5, 0.25, 0]))


def test_default_shift_is_three():
    assert torch.equal(F.flow_sigmas(7), F.flow_sigmas(7, 3.0))


@given(st.integers(1, 200), st.floats(0.1, 12.0))
def test_falls_strictly_from_one_to_zero(num_steps, shift):
    sigmas = F.flow_sigmas(num_steps, shift)
    assert sigmas.shape == (num_steps + 1,)
    assert sigmas[0] == 1.0 and sigmas[-1] == 0.0
    assert bool((sigmas[1:] < sigmas[:-1]).all())


def test_same_grid_as_diffusers_with_static_and_dynamic_shift():
    schedulers = pytest.importorskip("diffusers.schedulers.scheduling_flow_match_euler_discrete")
    base = np.linspace(1.0, 0.1, 10)
    static = schedulers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    static.set_timesteps(sigmas=base)
    torch.testing.assert_close(static.sigmas, F.flow_sigmas(10, 3.0), atol=1e-6, rtol=0)

    dynamic = schedulers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mu = 0.5 + (1.15 - 0.5) * (1024 - 256) / (4096 - 256)
    dynamic.set_timesteps(sigmas=base, mu=mu)
    torch.testing.assert_close(dynamic.sigmas, F.dynamic_shift_sigmas(10, 1024), atol=1e-6, rtol=0)


def test_dynamic_shift_at_its_anchors():
    assert torch.equal(F.dynamic_shift_sigmas(8, 256), F.flow_sigmas(8, math.exp(0.5)))
    assert torch.equal(F.dynamic_shift_sigmas(8, 4096), F.flow_sigmas(8, math.exp(1.15)))
    # 512 x 512 pictures: mu = 0.63
    torch.testing.assert_close(F.dynamic_shift_sigmas(8, 1024), F.flow_sigmas(8, math.exp(0.63)))


@pytest.mark.parametrize("num_steps", [0, -1, 2.5, True])
def test_refuses_a_step_count_that_is_none(num_steps):
    with pytest.raises(ConfigError, match="num_steps"):
        F.flow_sigmas(num_steps)


@pytest.mark.parametrize("shift", [0.0, -3.0, math.nan, math.inf])
def test_refuses_a_shift_that_is_not_positive(shift):
    with pytest.raises(ConfigError, match="shift"):
        F.flow_sigmas(10, shift)


def test_refuses_bad_anchors():
    with pytest.raises(ConfigError, match="num_tokens"):
        F.dynamic_shift_sigmas(10, 0)
    with pytest.raises(ConfigError, match="max_tokens"):
        F.dynamic_shift_sigmas(10, 1024, base_tokens=4096, max_tokens=4096)
