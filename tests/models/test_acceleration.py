"""A network compiled, with another attention, with quantised weights; and what is said where it cannot be."""

import sys

import pytest
import torch

from unirl_env.errors import ConfigError
from unirl_env.models.shared import acceleration
from unirl_env.models.shared.acceleration import Acceleration
from unirl_env.models.shared.outline import outlining
from unirl_env.models.tiny import TinySD3Denoiser
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.types import Prompt

PROMPTS = [Prompt("a red circle"), Prompt("two blue squares")]


def scored(denoiser, **settings):
    """A velocity with adapters that matter, and the adapters' gradient."""
    actor = Actor(denoiser, lora=LoRAConfig(rank=2), **settings)
    generator = torch.Generator().manual_seed(0)
    for tensor in actor.trainable_state().values():
        tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    latent = torch.randn(2, *denoiser.latent_shape, generator=generator)
    obs = {"latent": latent, "sigma": torch.tensor([0.9, 0.4]), **denoiser.encode(PROMPTS)}
    with torch.no_grad(), actor.merged():
        played = actor.velocity(obs)
    learnt = actor.velocity(obs)
    learnt.square().sum().backward()
    grads = [p.grad for p in actor.network.parameters() if p.requires_grad]
    return played, learnt.detach(), grads


@pytest.mark.slow
def test_a_compiled_network_says_the_same_to_rounding(tiny_dir):
    torch.compiler.reset()
    plain, fast = (scored(TinySD3Denoiser(tiny_dir, compile=on)) for on in (False, True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "it was compiled"
    for ours, theirs in zip(fast[:2], plain[:2], strict=True):
        assert (ours - theirs).abs().max() < 1e-5
    for ours, theirs in zip(fast[2], plain[2], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_where_nothing_can_be_compiled_that_is_said(tiny_dir, monkeypatch, caplog):
    monkeypatch.setattr(acceleration, "why_not_compiled", lambda: "no C++ compiler")
    network = TinySD3Denoiser(tiny_dir, compile=True).network()
    assert "no C++ compiler" in caplog.text and network._compiled_call_impl is None


def test_another_attention(tiny_dir):
    plain, native = (scored(TinySD3Denoiser(tiny_dir, attention=name))[0] for name in (None, "native"))
    assert (plain - native).abs().max() < 1e-5
    for wrong, words in (("sharp", "must be a backend"), (3, "must be the name")):
        with pytest.raises(ConfigError, match=f"`attention` {words}.*{wrong}"):
            TinySD3Denoiser(tiny_dir, attention=wrong).network()


@pytest.mark.parametrize("given", ["int4", {"bits": 4}, {"quant_method": "magic"}])
def test_a_quantization_that_is_none_is_named_before_a_network_is_loaded(tiny_dir, given):
    with pytest.raises(ConfigError, match=r"`quantization` must be.*try \{'quant_method'"):
        TinySD3Denoiser(tiny_dir, quantization=given)


def test_a_backend_that_is_not_installed_is_named(tiny_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    given = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}
    with pytest.raises(ConfigError, match="`quantization`"):
        Acceleration(quantization=given)


def test_adapters_are_trained_on_weights_of_eight_bits(tiny_dir):
    pytest.importorskip("torchao")
    from torchao.core.config import config_to_dict
    from torchao.quantization import Int8WeightOnlyConfig

    eight = {
        "quant_method": "torchao",
        "quant_type": {"default": config_to_dict(Int8WeightOnlyConfig())},
    }
    latent = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for quantization in (None, eight):
        denoiser = TinySD3Denoiser(tiny_dir, quantization=quantization)
        actor = Actor(denoiser, lora=LoRAConfig(rank=2))
        obs = {"latent": latent, "sigma": torch.tensor([0.9, 0.4]), **denoiser.encode(PROMPTS)}
        with actor.acting(), torch.no_grad():
            found.append(actor.velocity(obs))
        actor.velocity(obs).square().sum().backward()
        assert all(p.grad is not None for p in actor.network.parameters() if p.requires_grad)
    assert 0 < (found[0] - found[1]).abs().max() < 0.1 * found[0].abs().max()
    with pytest.raises(ConfigError, match="lora_rank"):
        Actor(denoiser)
    with pytest.raises(ConfigError, match="merge_adapters"):
        Actor(denoiser, lora=LoRAConfig(rank=2), merge_adapters=True)


def test_parts_cannot_be_quantised(monkeypatch):
    monkeypatch.setattr(Acceleration, "_quantizer", lambda self: None)
    with outlining(), pytest.raises(ConfigError, match=r"learner\.parallel"):
        Acceleration(quantization={"quant_method": "bitsandbytes_4bit", "load_in_4bit": True}).loading()
