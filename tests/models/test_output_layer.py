"""Biases, scales and adapters of the output layer as columns: `states @ weight.T` are its own logits."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

import unirl_env.functional as F
from unirl_env.errors import ConfigError
from unirl_env.models.shared.output_layer import logit_scale, output_states, output_weight, require_no_cap


def layer_of(bias, rank, dtype=torch.float32):
    torch.manual_seed(0)
    holder = nn.ModuleDict({"head": nn.Linear(12, 30, bias=bias).to(dtype)}).requires_grad_(False)
    if rank:
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=3 * rank, target_modules=["head"]), holder)
        for name, weight in holder.named_parameters():
            if "lora_" in name:
                weight.data = torch.randn(weight.shape)
    return holder["head"]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_logits_are_the_layers_own(bias, rank, scale):
    layer, states = layer_of(bias, rank), torch.randn(7, 12)
    weight, columns = output_weight(layer), output_states(layer, states, scale)
    assert (columns @ weight.T - scale * layer(states)).abs().max() <= 1e-5
    if not bias and not rank:
        assert weight is layer.weight and (scale != 1 or columns is states)
    else:
        assert weight.shape[1] % 8 == 0


def test_gradients_reach_the_adapter_through_chunks():
    layer, states = layer_of(True, 3), torch.randn(40, 12, requires_grad=True)
    token = torch.arange(40) % 30
    trained = [states, *(w for name, w in layer.named_parameters() if "lora_" in name)]
    scored = F.score_tokens(output_states(layer, states, 0.5), output_weight(layer), token, chunk_bytes=2000)
    log_prob = (0.5 * layer(states)).log_softmax(-1).gather(1, token[:, None])[:, 0]
    assert (scored.log_prob - log_prob).abs().max() <= 1e-5
    weigh = torch.randn(40)
    mine = torch.autograd.grad((weigh * scored.log_prob).sum(), trained)
    theirs = torch.autograd.grad((weigh * log_prob).sum(), trained)
    for one, other in zip(mine, theirs, strict=True):
        assert other.abs().max() > 0 and (one - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=1)


def test_a_switched_off_adapter_is_none():
    layer, states = layer_of(False, 3), torch.randn(7, 12)
    layer.enable_adapters(False)
    assert output_weight(layer) is layer.weight and output_states(layer, states) is states


def test_half_precision_keeps_its_dtype():
    layer, states = layer_of(True, 3, torch.bfloat16), torch.randn(7, 12).bfloat16()
    logits = output_states(layer, states) @ output_weight(layer).T
    assert logits.dtype == torch.bfloat16
    exact = output_states(layer.float(), states.float()) @ output_weight(layer).T
    assert (logits.float() - exact).abs().max() <= 0.02 * exact.abs().max()


@pytest.mark.parametrize(
    "family, settings, scale",
    [
        ("cohere", {"logit_scale": 0.25}, 0.25),
        ("granite", {"logits_scaling": 8.0}, 0.125),
        ("hyperclovax", {"logits_scaling": 8.0}, 8.0),
        ("falcon_h1", {"lm_head_multiplier": 0.5}, 0.5),
        ("llama", {}, 1.0),
        ("llama", {"logit_scale": None}, 1.0),
    ],
)
def test_scales_by_family(family, settings, scale):
    assert logit_scale(SimpleNamespace(model_type=family, **settings)) == scale


def test_soft_caps_are_refused():
    with pytest.raises(ConfigError, match="`logits_soft_cap` 30"):
        require_no_cap(SimpleNamespace(logits_soft_cap=30), "some/model")
    require_no_cap(SimpleNamespace(final_logit_softcapping=None), "some/model")
