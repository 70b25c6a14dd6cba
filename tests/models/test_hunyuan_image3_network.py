"""The passes of the network agree: cached with packed, kept texts with whole sequences, lots with batches."""

import pytest
import torch
from hunyuan_cases import write_tiny_checkpoint

from unirl_env.models.hunyuan_image3 import HunyuanImage3
from unirl_env.models.hunyuan_image3.attention import picture_positions, word_positions
from unirl_env.models.hunyuan_image3.decoder import Experts
from unirl_env.types import Prompt

PROMPTS = [Prompt("a red cat"), Prompt("two"), Prompt("a very blue dog")]


@pytest.fixture(scope="module")
def model(tmp_path_factory, quiet_models):
    directory = write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", seed=2)
    return HunyuanImage3(directory, height=40, width=24)


@pytest.fixture(scope="module")
def network(model):
    return model.network()


@pytest.fixture
def latents(model):
    shape = (len(PROMPTS), *model.image.latent_shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def log_probs(model, network, hidden, tokens):
    logits = (hidden @ model.text.head(network).T).float()
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


@torch.no_grad()
def generated(model, network, steps=6):
    """Prompts, tokens `[B, steps]` drawn with a cache behind them, and their log-probabilities."""
    from transformers import DynamicCache

    rows = [model.text.encode(prompt).tokens for prompt in PROMPTS]
    width = max(map(len, rows))
    pad = torch.tensor([width - len(row) for row in rows])
    tokens = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=258) for row in rows])
    mask = torch.arange(width) >= pad[:, None]
    cache, said, scores = DynamicCache(), [], []
    positions = (torch.arange(width) - pad[:, None]).clamp(min=0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        hidden = model.text.hidden(network, tokens, positions[None], mask=mask, cache=cache)[:, -1]
        chances = (hidden @ model.text.head(network).T).softmax(-1)
        tokens = torch.multinomial(chances, 1, generator=generator)
        said.append(tokens)
        scores.append(log_probs(model, network, hidden[:, None], tokens))
        mask = torch.cat([mask, torch.ones(len(rows), 1, dtype=torch.bool)], 1)
        positions = positions[:, -1:] + 1
    return rows, torch.cat(said, 1), torch.cat(scores, 1)


def test_words_drawn_with_a_cache_are_scored_alike_when_packed(model, network):
    rows, said, drawn = generated(model, network)
    whole = [torch.cat([row, answer]) for row, answer in zip(rows, said, strict=True)]
    lengths = torch.tensor([len(row) for row in whole])
    packed = torch.cat(whole)[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None, None]
    hidden = model.text.hidden(network, packed, positions, lengths=lengths)
    scores = log_probs(model, network, hidden[:, :-1], packed[:, 1:])[0]
    for end, row in zip(lengths.cumsum(0), drawn, strict=True):
        torch.testing.assert_close(scores[end - 1 - len(row) : end - 1], row, atol=1e-5, rtol=0)


def test_transformers_own_generation_says_the_same(model, network):
    prompt = model.text.encode(PROMPTS[0]).tokens[None]
    said = network.generate(input_ids=prompt, max_new_tokens=5, do_sample=False, eos_token_id=None)
    with torch.no_grad():
        for place in range(prompt.shape[1], said.shape[1]):
            assert network(said[:, :place]).logits[0, -1].argmax() == said[0, place]


def test_a_picture_behind_kept_texts_is_the_picture_of_the_whole_sequence(model, network, latents):
    """Texts of several lengths at once, against each alone with every token and one mask over all."""
    context = model.image.encode(PROMPTS)
    sigma = torch.tensor([0.9, 0.5, 0.1])
    with torch.no_grad():
        kept = model.image.velocity(network, latents, sigma, model.image.read(network, context))
        for row, length in enumerate(context["length"].tolist()):
            text = context["tokens"][row : row + 1, :length]
            latent, time = latents[row : row + 1], 1000 * sigma[row : row + 1]
            tokens = network.patch_embed(latent, network.time_embed(time))
            height, width = tokens.shape[2:]
            block = torch.cat([network.timestep_emb(time)[:, None], tokens.flatten(2).mT], 1)
            places = torch.cat([
                word_positions(torch.arange(length + 1))[None],
                picture_positions(torch.tensor([length + 1]), height, width),
            ], 1)  # fmt: skip
            total = length + 1 + height * width
            seen = torch.ones(total, total, dtype=torch.bool).tril()
            seen[length + 1 :] = True

            def attend(module, layer, query, key, value, seen=seen):
                return torch.nn.functional.scaled_dot_product_attention(
                    query, key, value, attn_mask=seen, enable_gqa=True
                ).transpose(1, 2)

            embedded = torch.cat([network.model.wte(text), block], 1)
            hidden, _, _ = network.model(embedded, places, attend)
            shown = hidden[:, length + 1 :].mT.unflatten(2, (height, width))
            whole = network.final_layer(shown, network.time_embed_2(time))
            torch.testing.assert_close(kept[row], whole[0], atol=1e-5, rtol=0)


def test_every_part_of_the_context_matters(model, network, latents):
    sigma = torch.full((3,), 0.5)
    with torch.no_grad():
        prefix = model.image.read(network, model.image.encode(PROMPTS))
        base = model.image.velocity(network, latents, sigma, prefix)
        others = {
            "text": model.image.velocity(network, latents, sigma, prefix.pick(torch.tensor([1, 2, 0]))),
            "time": model.image.velocity(network, latents, sigma + 0.1, prefix),
            "latent": model.image.velocity(network, latents.flip(-1), sigma, prefix).flip(-1),
        }
        # The last token of a picture sees the first, and the first the last.
        changed = latents.clone()
        changed[:, :, -1, -1] += 1
        others["picture"] = model.image.velocity(network, changed, sigma, prefix)
    for name, other in others.items():
        assert (other - base).abs().amax((1, 2, 3)).min() > 1e-3, name
    assert (others["picture"] - base)[:, :, 0, 0].abs().max() > 1e-3


def test_lots_make_a_picture_independent_of_its_batch(model, network, latents):
    model.image.rows_per_forward = 2
    try:
        with torch.no_grad():
            prefix = model.image.read(network, model.image.encode(PROMPTS))
            sigma = torch.tensor([0.9, 0.5, 0.1])
            together = model.image.velocity(network, latents, sigma, prefix)
            alone = model.image.velocity(network, latents[2:], sigma[2:], prefix.pick(torch.tensor([2])))
        assert torch.equal(together[2:], alone)
    finally:
        model.image.rows_per_forward = None


def test_a_token_is_answered_by_the_experts_of_its_choice(model, network):
    """Against the plain sum over experts, each asked about every token."""
    for layer in network.model.layers:
        experts = layer.mlp
        assert isinstance(experts, Experts)
        hidden = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(3))
        _, weights, chosen = experts.gate(hidden.flatten(0, 1))
        torch.testing.assert_close(weights.sum(-1), torch.ones(14))
        expected = experts.shared_mlp(hidden).flatten(0, 1)
        for token in range(14):
            for weight, number in zip(weights[token], chosen[token], strict=True):
                expected[token] += weight * experts.experts[number](hidden.flatten(0, 1)[token])
        torch.testing.assert_close(experts(hidden).flatten(0, 1), expected, atol=1e-5, rtol=0)


def test_some_layers_may_have_no_experts(tmp_path, quiet_models):
    changes = {"moe_layer_num_skipped": 1, "use_mixed_mlp_moe": False, "norm_topk_prob": False}
    model = HunyuanImage3(write_tiny_checkpoint(tmp_path / "m", config_changes=changes))
    first, second = (layer.mlp for layer in model.network().model.layers)
    assert not isinstance(first, Experts) and second.shared_mlp is None
    _, weights, _ = second.gate(torch.randn(5, 64))
    assert (weights.sum(-1) < 1).all()


@pytest.mark.parametrize("patch", [2, 4])
def test_larger_patches_make_fewer_tokens(tmp_path, quiet_models, patch):
    directory = write_tiny_checkpoint(tmp_path / "m", config_changes={"patch_size": patch})
    model = HunyuanImage3(directory)
    network = model.network()
    assert network.patch_embed(torch.zeros(1, 8, 4, 4), torch.zeros(1, 64)).shape[2:] == (4 // patch,) * 2
    prefix = model.image.read(network, model.image.encode(PROMPTS[:1]))
    velocity = model.image.velocity(network, torch.zeros(1, 8, 4, 4), torch.ones(1), prefix)
    assert velocity.shape == (1, 8, 4, 4)
