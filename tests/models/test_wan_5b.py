"""What Wan 2.2 TI2V-5B from text alone has, on a tiny checkpoint."""

import pytest
from models.wan_cases import WAN_5B

from unirl_env.errors import ConfigError


@pytest.fixture(scope="module")
def folder(checkpoint):
    return checkpoint(WAN_5B)


def test_sides_are_multiples_of_32(folder):
    with pytest.raises(ConfigError, match="`height` must be a positive multiple of 32, got 48; try 32 or 64"):
        WAN_5B.denoiser(folder, height=48)
