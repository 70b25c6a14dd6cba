"""The picture of a unified model: reading the text once is a whole forward pass."""

import copy

import pytest
import torch
from unified_cases import PROMPTS, latents, scattered

from unirl_env.errors import ContractError
from unirl_env.models.tiny import TinyUnified
from unirl_env.models.unified_flow.network import patches_of
from unirl_env.types import Prompt


@pytest.fixture(scope="module")
def model(tiny_unified_dir):
    return TinyUnified(tiny_unified_dir)


@pytest.fixture(scope="module")
def network(model):
    return scattered(model.network())


def whole_pass(network, tokens, latent, sigma, patches=None, grid=None):
    """Text `[L]` and picture as one sequence without a cache, under a mask that is written out."""
    size, config = len(tokens), network.config
    text = network.embed(tokens[None], torch.arange(size)[None], patches, grid)
    time = network.picture.time(sigma[None])
    block = network.picture.embed(patches_of(latent[None], config.patch_size), (4, 4), time)
    length = size + block.shape[1]
    sees = torch.ones(length, length, dtype=torch.bool).tril()
    sees[size:, size:] = True
    hidden = network.model(
        inputs_embeds=torch.cat([text, block], 1),
        position_ids=torch.arange(length)[None],
        attention_mask={"full_attention": sees[None, None]},
        use_cache=False,
    ).last_hidden_state[:, size:]
    said = network.picture.velocity(hidden, time)[0].view(4, 4, 4, 2, 2)  # row, column, channel, y, x
    return torch.cat([torch.cat(list(row), 2) for row in said], 1)


def whole_passes(model, network, latent, sigma):
    rows = []
    for prompt, x, s in zip(PROMPTS, latent, sigma, strict=True):
        encoded = model.text.encode(prompt)
        tokens = torch.cat([encoded.tokens, torch.tensor(model.opening(None))])
        rows.append(
            whole_pass(
                network,
                tokens,
                x,
                s,
                encoded.inputs.get("pixel_values"),
                encoded.inputs.get("image_grid_thw"),
            )
        )
    return torch.stack(rows)


class TestPicture:
    def test_what_is_read_once_is_what_a_whole_pass_sees(self, model, network):
        """Texts of four lengths in one batch, two of them with a picture."""
        latent, sigma = latents(4)
        prefix = model.image.read(network, model.image.encode(PROMPTS))
        assert len(set(prefix.length.tolist())) == 4 and prefix.width == max(prefix.length)
        with torch.no_grad():
            found = model.image.velocity(network, latent, sigma, prefix)
            expected = whole_passes(model, network, latent, sigma)
        assert found.abs().mean() > 0.1 and (found - expected).abs().max() < 2e-5 * found.abs().max()

    def test_gradients_pass_through_what_was_read(self, model, network):
        latent, sigma = latents(4)
        weight = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        one, other = copy.deepcopy(network), copy.deepcopy(network)
        prefix = model.image.read(one, model.image.encode(PROMPTS))
        (model.image.velocity(one, latent, sigma, prefix) * weight).sum().backward()
        (whole_passes(model, other, latent, sigma) * weight).sum().backward()
        seen = 0
        for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None:
                assert torch.allclose(p.grad, q.grad, rtol=1e-3, atol=2e-5 * q.grad.abs().max()), name
                seen += 1
        assert seen > 40 and one.model.embed_tokens.weight.grad.abs().sum() > 0

    def test_recomputed_gradients_are_the_same(self, model, network):
        latent, sigma = latents(4)
        context = model.image.encode(PROMPTS)
        grads = []
        for again in (False, True):
            own = copy.deepcopy(network)
            if again:
                own.gradient_checkpointing_enable()
                for layer in own.model.layers:
                    layer.training = True
            prefix = model.image.read(own, context)
            model.image.velocity(own, latent, sigma, prefix).square().sum().backward()
            grads.append([p.grad for p in own.parameters()])
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*grads, strict=True))

    def test_padding_is_not_read(self, model, network):
        context = model.image.encode(PROMPTS)
        latent, sigma = latents(4)
        velocities = []
        for filling in (0, 7):
            tokens = context["tokens"].clone()
            for row, length in enumerate(context["length"]):
                tokens[row, length:] = filling
            prefix = model.image.read(network, context | {"tokens": tokens})
            velocities.append(model.image.velocity(network, latent, sigma, prefix))
        assert torch.equal(*velocities)

    def test_a_text_does_not_go_without_its_picture(self, model, network):
        context = model.image.encode(PROMPTS)
        for bare in (
            {name: context[name] for name in ("tokens", "length")},
            context | {"image_grid_thw": torch.zeros_like(context["image_grid_thw"])},
        ):
            with pytest.raises(ContractError, match="2 such texts and 0 pictures"):
                model.image.read(network, bare)

    def test_rows_are_picked_and_repeated(self, model, network):
        row = torch.tensor([2, 0, 0])
        prefix = model.image.read(network, model.image.encode(PROMPTS)).pick(row)
        latent, sigma = latents(3)
        found = model.image.velocity(network, latent, sigma, prefix)
        alone = model.image.read(network, model.image.encode([PROMPTS[2]]))
        expected = model.image.velocity(network, latent[:1], sigma[:1], alone)
        assert torch.allclose(found[:1], expected, atol=1e-4) and len(prefix) == 3

    def test_a_wider_picture_has_more_patches(self, tiny_unified_dir):
        wide = TinyUnified(tiny_unified_dir, height=16, width=32)
        network = scattered(wide.network())
        assert wide.image.latent_shape == (4, 4, 8) and wide.grid == (1, 2, 4)
        prefix = wide.image.read(network, wide.image.encode(PROMPTS[:2]))
        latent, sigma = latents(2, shape=(4, 4, 8))
        assert wide.image.velocity(network, latent, sigma, prefix).shape == latent.shape
        assert wide.image.decode(latent)[0].image.shape == (3, 16, 32)

    def test_negatives_are_words_alone(self, model):
        prompts = [Prompt("a", negative="b"), PROMPTS[1]]
        found = model.image.encode(prompts, negative=True)
        plain = model.image.encode([Prompt("b"), Prompt("", id="?")])
        assert all(torch.equal(found[name], plain[name]) for name in plain)
        assert set(found) == {*model.context_keys} and not found["image_grid_thw"].any()

    def test_the_schedule_begins_with_noise(self, model):
        sigmas = model.image.sigmas(8)
        assert sigmas[0] == 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
