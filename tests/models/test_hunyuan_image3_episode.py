"""One episode by hand, a step on both of its phases, and the files that training leaves."""

import json
from functools import partial
from itertools import pairwise

import pytest
import torch
from hunyuan_cases import write_tiny_checkpoint

from unirl_env.models.hunyuan_image3 import HunyuanImage3
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.types import Prompt

PROMPT = Prompt("a cat")
STEPS = 3


@pytest.fixture(scope="module")
def directory(tmp_path_factory, quiet_models):
    changes = {"sequence_template": "instruct", "bot_task": "recaption"}
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "chat", generation_changes=changes)


@pytest.fixture(scope="module")
def model(directory):
    return HunyuanImage3(directory)


def score(model, network, tokens):
    """Log-probabilities `[L - 1]` of a text behind its first token."""
    places = torch.arange(len(tokens))[None, None]
    hidden = model.text.hidden(network, tokens[None], places, lengths=torch.tensor([len(tokens)]))
    logits = hidden[0, :-1] @ model.text.head(network).T
    return logits.log_softmax(-1).gather(-1, tokens[1:, None])[:, 0]


@torch.no_grad()
def play(model, network):
    """A text that ends, its picture's context, the latents of all steps, and the sample."""
    from transformers import DynamicCache

    tokens, cache = model.text.encode(PROMPT).tokens, DynamicCache()
    said, place, generator = tokens[None], 0, torch.Generator().manual_seed(0)
    while int(tokens[-1]) not in model.opens:
        places = torch.arange(place, place + said.shape[1])[None, None]
        hidden = model.text.hidden(network, said, places, cache=cache)[:, -1]
        logits = hidden @ model.text.head(network).T
        logits[:, list(model.opens)] += 3  # a random model ends as soon as this
        place += said.shape[1]
        said = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        tokens = torch.cat([tokens, said[0]])
        assert len(tokens) < 500
    begun = torch.cat([tokens, torch.tensor(model.opening(int(tokens[-1])))])
    context = {"tokens": begun[None], "length": torch.tensor([len(begun)])}
    prefix = model.image.read(network, context)
    latents = [torch.randn(1, *model.image.latent_shape, generator=generator)]
    sigmas = model.image.sigmas(STEPS)
    for sigma, following in pairwise(sigmas):
        velocity = model.image.velocity(network, latents[-1], sigma[None], prefix)
        latents.append(latents[-1] + (following - sigma) * velocity)
    (sample,) = model.image.decode(latents[-1])
    return tokens, context, torch.cat(latents), sample


def losses(model, network, episode):
    """A loss for each phase, of the network as it is now."""
    tokens, context, latents, _ = episode
    prefix = model.image.read(network, context).pick(torch.zeros(STEPS, dtype=torch.int64))
    velocity = model.image.velocity(network, latents[:-1], model.image.sigmas(STEPS)[:-1], prefix)
    return -score(model, network, tokens).mean(), velocity.square().mean()


def trained(model, *, lora=None, checkpointing=False):
    """What every policy makes of `model.network()`."""
    return Actor(model, lora=lora, gradient_checkpointing=checkpointing)


@pytest.fixture(scope="module")
def adapted(model):
    """An actor whose adapters matter."""
    actor = trained(model, lora=LoRAConfig(rank=4, alpha=8))
    generator = torch.Generator().manual_seed(0)
    for name, weight in actor.network.named_parameters():
        if "lora_" in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    return actor


def test_an_episode_and_a_step_on_both_phases(model):
    actor = trained(model)
    episode = play(model, actor.network)
    picture = episode[-1].image
    assert picture.shape == (3, 32, 32) and 0 <= picture.min() < picture.max() <= 1
    before = [loss.item() for loss in losses(model, actor.network, episode)]
    optimizer = torch.optim.SGD(actor.network.parameters(), lr=1e-3)
    sum(losses(model, actor.network, episode)).backward()
    for phase, other in (("text", "image"), ("image", "text")):
        private = list(model.private(actor.network, phase))
        assert private and all(weight.grad is not None for weight in private)
        assert not set(private) & set(model.private(actor.network, other))
    optimizer.step()
    after = [loss.item() for loss in losses(model, actor.network, episode)]
    assert sum(after) < sum(before) and after != before


def test_each_phase_reaches_its_own_weights_only(model):
    actor = trained(model)
    episode = play(model, actor.network)
    for number, phase, other in ((0, "text", "image"), (1, "image", "text")):
        actor.network.zero_grad()
        losses(model, actor.network, episode)[number].backward()
        assert all(weight.grad is not None for weight in model.private(actor.network, phase))
        assert all(weight.grad is None for weight in model.private(actor.network, other))
        # The picture's loss reaches the words' layers through the keys that were kept.
        assert actor.network.model.wte.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("phase", ["text", "image"])
def test_recomputing_changes_nothing(model, phase):
    gradients = []
    for checkpointing in (False, True):
        actor = trained(model, lora=LoRAConfig(rank=2, alpha=4), checkpointing=checkpointing)
        assert len(actor._layers) == 2 * checkpointing
        for number, weight in enumerate(actor.trainable_state().values()):
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) / 10)
        episode = play(model, actor.network)
        with actor._recomputing(actor.head(phase)):
            assert all(layer.training for layer in actor._layers)
            sum(losses(model, actor.network, episode)).backward()
        gradients.append([p.grad for p in actor.network.parameters() if p.requires_grad])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


class TestExports:
    def test_every_target_of_every_layer_is_adapted(self, model, adapted):
        names = {name.rpartition(".lora_A")[0] for name in adapted.trainable_state() if "lora_A" in name}
        assert len(names) == 2 * len(model.lora_targets) == 8
        assert not any(".experts." in name for name in names)

    def test_peft_loads_the_adapters(self, model, adapted, tmp_path):
        from peft import PeftModel

        tokens = model.text.encode(PROMPT).tokens[None]
        adapted.save_adapters(str(tmp_path))
        with torch.no_grad():
            expected = adapted.network(tokens).logits
            loaded = PeftModel.from_pretrained(model.network(), str(tmp_path))
            torch.testing.assert_close(loaded(input_ids=tokens).logits, expected)
            assert (model.network()(tokens).logits - expected).abs().max() > 0.01

    def test_whole_weights_are_the_published_layout_again(self, model, directory, adapted, tmp_path):
        from safetensors import safe_open

        adapted.save_weights(str(tmp_path))
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
        source = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
        assert set(index) == set(source)
        assert not (tmp_path / "model.safetensors").exists()
        for name, file in index.items():
            with safe_open(tmp_path / file, "pt") as new, safe_open(directory / source[name], "pt") as old:
                changed = not torch.equal(new.get_tensor(name), old.get_tensor(name))
            assert changed == name.endswith(tuple(f"{target}.weight" for target in model.lora_targets)), name
        for file in ("config.json", "generation_config.json"):
            assert json.loads((tmp_path / file).read_text()) == json.loads((directory / file).read_text())
        again = HunyuanImage3(tmp_path)
        tokens = again.text.encode(PROMPT).tokens[None]
        with torch.no_grad():
            torch.testing.assert_close(again.network()(tokens).logits, adapted.network(tokens).logits)
        latent = torch.randn(1, *model.image.latent_shape)
        assert torch.equal(again.image.decode(latent)[0].image, model.image.decode(latent)[0].image)

    def test_large_weights_are_written_in_shards(self, model, adapted, tmp_path, monkeypatch):
        sharding = partial(adapted.network.save_pretrained, max_shard_size="400KB")
        monkeypatch.setattr(adapted.network, "save_pretrained", sharding)
        adapted.save_weights(str(tmp_path))
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
        assert len(set(index.values())) > 3
        assert {tmp_path / file for file in index.values()} == set(tmp_path.glob("*.safetensors"))
        tokens = model.text.encode(PROMPT).tokens[None]
        with torch.no_grad():
            expected = adapted.network(tokens).logits
            torch.testing.assert_close(HunyuanImage3(tmp_path).network()(tokens).logits, expected)
