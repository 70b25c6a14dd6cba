"""What the public implementation says: names and shapes at full size, and answers of a tiny checkpoint."""

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from compare_hunyuan_image3 import own_answers
from hunyuan_cases import vision_tower

from unirl_env.models.hunyuan_image3.autoencoder import Autoencoder
from unirl_env.models.hunyuan_image3.network import FROZEN, build
from unirl_env.models.hunyuan_image3.settings import Settings

HERE = Path(__file__).parent
PUBLISHED = json.loads((HERE / "hunyuan_image3_names.json").read_text())
"""config.json and, of the public network that it makes, names and shapes; `{32}` is each number below 32."""


@pytest.fixture(scope="module")
def weights():
    """Every published name to its shape."""
    named = {}
    for pattern, shape in PUBLISHED["weights"].items():
        counts = [range(int(count)) for count in re.findall(r"\{(\d+)\}", pattern)]
        for numbers in itertools.product(*counts):
            filled = re.sub(r"\{\d+\}", "{}", pattern).format(*numbers)
            named[filled] = tuple(shape)
    return named


def test_every_published_weight_is_known_by_name_and_shape(weights):
    with torch.device("meta"):
        own = dict(build(PUBLISHED["config"]).state_dict())
        vae = Autoencoder(PUBLISHED["config"]["vae"]).state_dict()
        tower = vision_tower(PUBLISHED["config"])
    assert not any(name.startswith(FROZEN) for name in own)
    own |= {f"vae.{name}": tensor for name, tensor in vae.items()}
    # The vision tower is read past: it is neither loaded nor run, and written again as it was.
    assert all(name.startswith(FROZEN) for name in tower)
    own |= tower
    assert {name: tuple(tensor.shape) for name, tensor in own.items()} == weights


def test_the_sizes_are_those_of_the_80_billion_model(weights):
    counts = dict.fromkeys(("experts", "network", "frozen"), 0)
    for name, shape in weights.items():
        part = "experts" if ".experts." in name else "frozen" if name.startswith(FROZEN) else "network"
        counts[part] += torch.Size(shape).numel()
    assert counts == {"experts": 77_309_411_328, "network": 3_989_721_120, "frozen": 1_710_067_011}
    settings = Settings.read(PUBLISHED["config"], {})
    active = counts["experts"] * settings.chosen[0] // settings.experts[0] + counts["network"]
    assert 13e9 < active < 14e9


def test_answers_are_those_of_the_public_implementation(tmp_path, quiet_models):
    """Logits, predictions behind texts and behind nothing, tokens of the chat, pictures and their moments."""
    from safetensors.torch import load_file

    expected = load_file(HERE / "hunyuan_image3_golden.safetensors")
    own = own_answers(tmp_path / "model", expected["latent"])
    assert set(own) == set(expected) and len(expected) == 18
    for name, answer in expected.items():
        torch.testing.assert_close(
            own[name], answer, atol=2e-5, rtol=0, msg=lambda said, n=name: f"{n}: {said}"
        )
