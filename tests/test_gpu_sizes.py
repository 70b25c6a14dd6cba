"""The models of random weights that the GPU benchmarks build follow the adapters that they stand for."""

import sys
from pathlib import Path

import pytest
import torch

from unirl_env.types import Prompt

GPU = Path(__file__).parent.parent / "benchmarks" / "gpu"


@pytest.fixture
def sizes(monkeypatch):
    monkeypatch.syspath_prepend(str(GPU))
    import sizes

    yield sizes
    sys.modules.pop("sizes")


def test_pictures_of_a_random_sd3(sizes):
    denoiser = sizes.RandomSD3("tiny", height=64, width=64, dtype="float32")
    sigmas = denoiser.sigmas(4)
    context = denoiser.encode([Prompt("a"), Prompt("b")])
    assert sigmas[0] == 1 and sigmas[-1] == 0
    assert not torch.equal(context["prompt_embeds"][0], context["prompt_embeds"][1])
    samples = denoiser.decode(torch.randn(2, *denoiser.latent_shape))
    assert [sample.image.shape for sample in samples] == [(3, 64, 64)] * 2
    weights = sum(each.numel() for each in denoiser.network().parameters())
    assert 0 < weights < 1e6


def test_a_random_qwen3(sizes):
    model = sizes.RandomQwen3("tiny", dtype="float32")
    assert model.network().get_input_embeddings().num_embeddings == model.vocab_size
