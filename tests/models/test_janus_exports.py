"""What a trained Janus leaves behind, read back by transformers and peft."""

import pytest
import torch
from janus_cases import begun, rename, write_tiny_janus

from unirl_env.errors import ConfigError, ModelNotFound
from unirl_env.models.janus.model import Janus
from unirl_env.models.shared import packed
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.types import Prompt


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def model(request, tmp_path_factory, quiet_models):
    return Janus(write_tiny_janus(tmp_path_factory.mktemp("models") / "janus", tied=request.param))


def logits(model, network):
    """Of both views, over a prompt and some pieces of a picture."""
    words = begun(model, Prompt("a red cat"))
    row = torch.cat([words, model.image.first_id + torch.arange(16)])
    found = []
    for view, tokens in ((model.text, words), (model.image, row)):
        places, lengths = torch.arange(len(tokens))[None, None], torch.tensor([len(tokens)])
        with torch.no_grad():
            hidden = view.hidden(network, tokens[None], places, lengths=lengths)
            found.append((hidden @ view.head(network).T).flatten())
    return torch.cat(found)


def moved(actor):
    """The actor with other trained weights than it began with."""
    with torch.no_grad():
        for i, weight in enumerate(actor.trainable_state().values()):
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)), alpha=0.2)
    return actor


def pretrained(directory):
    from transformers import JanusForConditionalGeneration

    attention = {"text_config": packed.register()}
    return JanusForConditionalGeneration.from_pretrained(directory, attn_implementation=attention).eval()


class TestAdapters:
    def test_are_for_the_language_layers_and_load_in_peft(self, model, tmp_path):
        from peft import PeftModel

        actor = moved(Actor(model.image, lora=LoRAConfig(rank=2, alpha=2)))
        names = list(actor.trainable_state())
        assert len(names) == 2 * len(model.lora_targets) == 2 * 2 * 7
        assert all("language_model.layers" in name for name in names)
        expected = logits(model, actor.network)
        assert (expected - logits(model, model.network())).abs().max() > 0.1
        model.save_adapters(actor.network, str(tmp_path))
        # Onto the published model, whose vision tower has layers of the same names.
        loaded = PeftModel.from_pretrained(pretrained(model.pretrained), str(tmp_path))
        assert not any("lora" in name and "vision" in name for name, _ in loaded.named_parameters())
        found = logits(model, loaded.base_model.model)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_of_a_network_without_any(self, model, tmp_path):
        with pytest.raises(ConfigError, match="no adapters"):
            model.save_adapters(model.network(), str(tmp_path))


class TestWeights:
    @pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2, alpha=2)], ids=["whole", "adapters"])
    def test_are_what_transformers_loads(self, model, tmp_path, lora):
        actor = moved(Actor(model.image, lora=lora))
        expected = logits(model, actor.network)
        assert (expected - logits(model, model.network())).abs().max() > 0.1
        model.save_weights(actor.network, str(tmp_path))
        whole, before = pretrained(tmp_path), pretrained(model.pretrained)
        torch.testing.assert_close(logits(model, whole), expected, rtol=1e-4, atol=1e-4)
        for name in ("vqmodel", "vision_model", "aligner"):
            kept, known = (getattr(each.model, name).state_dict() for each in (whole, before))
            assert all(torch.equal(kept[key], known[key]) for key in known)
        again = Janus(str(tmp_path))
        torch.testing.assert_close(logits(again, again.network()), expected, rtol=1e-4, atol=1e-4)
        tokens = torch.arange(16)[None] + model.image.first_id
        pictures = [each.image.pictures(tokens)[0].image for each in (model, again)]
        assert torch.equal(*pictures)
        encoded = [begun(each, Prompt("a red cat")) for each in (model, again)]
        assert torch.equal(*encoded)


def test_a_checkpoint_without_its_painter_is_named(tmp_path, quiet_models):
    from safetensors.torch import load_file, save_file

    directory = write_tiny_janus(tmp_path / "janus")
    file = tmp_path / "janus" / "model.safetensors"
    weights = {k: v for k, v in load_file(file).items() if "vqmodel.post_quant_conv" not in k}
    save_file(weights, file, metadata={"format": "pt"})
    model = Janus(directory)
    with pytest.raises(ModelNotFound, match=r"lacks 2 weights, post_quant_conv\.bias among them"):
        model.image.pictures(torch.arange(16)[None] + model.image.first_id)


def test_weights_of_another_size_are_named(tmp_path, quiet_models):
    directory = write_tiny_janus(tmp_path / "janus")
    config = Janus(directory).text.config.to_dict()
    rename(directory, text_config={**config["text_config"], "intermediate_size": 48})
    with pytest.raises(Exception, match=r"mismatch|size|shape"):
        Janus(directory).network()
