"""A unified model as a whole: what it claims to be, what it leaves behind, what it refuses."""

import copy

import pytest
import torch
from unified_cases import PROMPTS, latents, scattered

from unirl_env.errors import ConfigError, ContractError
from unirl_env.models import UNIFIED_MODELS, Denoiser, LanguageModel
from unirl_env.models.tiny import TinyUnified, tiny_path
from unirl_env.models.unified_flow.model import UnifiedFlow


@pytest.fixture(scope="module")
def model(tiny_unified_dir):
    return TinyUnified(tiny_unified_dir)


@pytest.fixture(scope="module")
def network(model):
    return scattered(model.network())


class TestModel:
    def test_its_views_are_what_environments_ask_for(self, model, network):
        assert UNIFIED_MODELS.get("tiny_unified") is TinyUnified and UNIFIED_MODELS.get("unified_flow")
        assert isinstance(model.text, LanguageModel) and isinstance(model.image, Denoiser)
        assert set(model.opens) < set(model.text.eos_ids) and len(model.text.eos_ids) == 2
        assert model.opening(None) == list(model.opens) and model.opening(model.opens[0]) == []
        with pytest.raises(ContractError, match="ended_by"):
            model.opening(model.text.eos_ids[1] if model.text.eos_ids[1] not in model.opens else 0)
        assert list(model.private(network, "text")) == []
        own = {id(p) for p in model.private(network, "image")}
        assert own == {id(p) for n, p in network.named_parameters() if "patch_out" in n or "modulation" in n}

    def test_private_weights_are_read_by_their_phase_alone(self, model, network):
        own = copy.deepcopy(network)
        encoded = model.text.encode(PROMPTS[1])
        hidden = model.text.hidden(
            own, encoded.tokens[None], torch.arange(len(encoded.tokens))[None, None],
            lengths=torch.tensor([len(encoded.tokens)]), inputs=encoded.inputs,
        )  # fmt: skip
        (hidden @ model.text.head(own).T).square().sum().backward()
        assert all(p.grad is None for p in model.private(own, "image"))
        private = {id(p) for p in model.private(own, "image")}
        assert all((p.grad is None) == (id(p) in private) for p in own.parameters())

    def test_what_is_saved_is_loaded(self, model, network, tmp_path):
        model.save_weights(network, str(tmp_path))
        again = UnifiedFlow(str(tmp_path), max_prompt_tokens=48)
        state = again.network().state_dict()
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
        latent, _ = latents(1)
        assert torch.equal(again.image.decode(latent)[0].image, model.image.decode(latent)[0].image)
        assert torch.equal(again.text.encode(PROMPTS[1]).tokens, model.text.encode(PROMPTS[1]).tokens)

    def test_adapters_load_in_peft(self, model, network, tmp_path):
        from peft import LoraConfig, PeftModel, inject_adapter_in_model

        own, latent = copy.deepcopy(network), latents(4)
        inject_adapter_in_model(
            LoraConfig(r=2, target_modules=list(model.lora_targets), init_lora_weights=False), own
        )
        context = model.image.encode(PROMPTS)
        expected = model.image.velocity(own, *latent, model.image.read(own, context))
        before = model.image.velocity(network, *latent, model.image.read(network, context))
        model.save_adapters(own, str(tmp_path / "adapters"))
        model.save_weights(own, str(tmp_path / "merged"))
        wrapped = PeftModel.from_pretrained(copy.deepcopy(network), str(tmp_path / "adapters"))
        merged = TinyUnified(tmp_path / "merged").network()
        for other in (wrapped.base_model.model, merged):
            found = model.image.velocity(other, *latent, model.image.read(other, context))
            assert torch.allclose(found, expected, atol=1e-4) and not torch.allclose(found, before, atol=1e-2)
        attached = {n for n, m in own.named_modules() if hasattr(m, "lora_A")}
        assert {"picture.patch_in", "picture.patch_out", "model.layers.0.self_attn.q_proj"} <= attached

    def test_other_models_and_settings_are_refused(self, tiny_unified_dir):
        with pytest.raises(ConfigError, match="'qwen3'"):
            UnifiedFlow(str(tiny_path("qwen3")))
        with pytest.raises(ConfigError, match="`max_images`"):
            TinyUnified(tiny_unified_dir, max_images=2)
        with pytest.raises(ConfigError, match="`height`"):
            TinyUnified(tiny_unified_dir, height=40)
