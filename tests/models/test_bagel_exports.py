"""What training leaves behind of BAGEL: adapters that peft loads, and whole weights in the published form."""

from pathlib import Path

import pytest
import torch
from bagel_cases import PROMPTS, build, drawn, opened, packed_row
from safetensors.torch import load_file

from unirl_env.errors import ConfigError
from unirl_env.policies.actor import Actor, LoRAConfig

ANSWERS = [[5, 9, 12], [40], [7, 8, 9, 10]]
PER_LAYER = 7


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return opened(build(tmp_path_factory.mktemp("models") / "bagel"))


@pytest.fixture(scope="module")
def actor(model):
    """One network with adapters that matter, as both phases train them."""
    actor = Actor(model, lora=LoRAConfig(rank=4, alpha=8))
    generator = torch.Generator().manual_seed(0)
    for weight in actor.trainable_state().values():
        weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return actor


@torch.no_grad()
def outputs(model, network):
    """Hidden states of texts, and velocities."""
    hidden = model.text.hidden(network, **packed_row(model.text, PROMPTS, ANSWERS))
    return hidden, drawn(model, network, PROMPTS)[2]


class TestTargets:
    def test_every_layer_of_both_kinds_and_nothing_else(self, model, actor):
        names = {
            name.rpartition(".lora_A")[0] for name, _ in actor.network.named_parameters() if "lora_A" in name
        }
        assert names == set(model.lora_targets) and len(names) == 2 * 2 * PER_LAYER
        assert not any(name.startswith("vit_model") for name in names)
        assert set(model.text.lora_targets) | set(model.image.lora_targets) == names

    @pytest.mark.parametrize("phase, other", [("text", "image"), ("image", "text")])
    def test_one_phase_freezes_what_only_the_other_reads(self, model, phase, other):
        actor = Actor(model, lora=LoRAConfig(rank=2), train_phases=(phase,))
        trained = {name for name, p in actor.network.named_parameters() if p.requires_grad}
        draws = {name for name in trained if "_moe_gen" in name}
        assert bool(draws) is (phase == "image") and trained - draws
        whole = Actor(model, train_phases=(phase,)).network
        frozen = {name for name, p in whole.named_parameters() if not p.requires_grad}
        assert ("language_model.lm_head.weight" in frozen) is (phase == "image")
        assert ("vae2llm.weight" in frozen) is (phase == "text")

    def test_tables_of_places_are_never_trained(self, model):
        actor = Actor(model)
        frozen = {name for name, p in actor.network.named_parameters() if not p.requires_grad}
        assert frozen == {"latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed"}


class TestExports:
    def test_peft_loads_the_adapters(self, model, actor, tmp_path):
        from peft import PeftConfig, PeftModel

        expected, base = outputs(model, actor.network), outputs(model, model.network())
        assert all((a - b).abs().max() > 0.1 for a, b in zip(expected, base, strict=True)), "they must matter"
        actor.save_adapters(str(tmp_path))
        config = PeftConfig.from_pretrained(str(tmp_path))
        assert config.base_model_name_or_path == model.pretrained and config.task_type is None
        loaded = PeftModel.from_pretrained(model.network(), str(tmp_path)).eval().base_model.model
        for found, wanted in zip(outputs(model, loaded), expected, strict=True):
            assert (found - wanted).abs().max() <= 1e-5
        assert actor.network.peft_config["default"].inference_mode is False, "what is trained stays as it is"

    def test_whole_weights_are_a_published_directory(self, model, actor, tmp_path):
        before = {name: weight.clone() for name, weight in actor.network.state_dict().items()}
        actor.save_weights(str(tmp_path))
        assert all(torch.equal(weight, before[name]) for name, weight in actor.network.state_dict().items())
        published, written = (
            load_file(Path(folder, "ema.safetensors")) for folder in (model.pretrained, tmp_path)
        )
        assert {n: w.shape for n, w in written.items()} == {n: w.shape for n, w in published.items()}
        changed = {name for name in written if not torch.equal(written[name], published[name])}
        assert changed == {f"{name}.weight" for name in model.lora_targets}
        again = opened(str(tmp_path))
        for found, wanted in zip(outputs(again, again.network()), outputs(model, actor.network), strict=True):
            assert (found - wanted).abs().max() <= 1e-4
        latent = torch.randn(1, *model.image.latent_shape, generator=torch.Generator().manual_seed(0))
        assert torch.equal(again.image.decode(latent)[0].image, model.image.decode(latent)[0].image)
        assert torch.equal(again.text.encode(PROMPTS[1]).tokens, model.text.encode(PROMPTS[1]).tokens)

    def test_weights_without_adapters(self, model, tmp_path):
        network = model.network()
        with torch.no_grad():
            network.vae2llm.bias.add_(1)
        model.image.save_weights(network, str(tmp_path))
        loaded = opened(str(tmp_path)).network().state_dict()
        assert all(torch.equal(weight, loaded[name]) for name, weight in network.state_dict().items())
        with pytest.raises(ConfigError, match="no adapters"):
            model.save_adapters(network, str(tmp_path))
