"""BAGEL's network against names, shapes and numbers of the public implementation, and against itself."""

import json
from pathlib import Path

import pytest
import torch
from bagel_cases import PROMPTS, PUBLISHED_TEXT, PUBLISHED_VISION, build, drawn, opened, packed_row
from safetensors.torch import load_file
from transformers import DynamicCache

from unirl_env.models.bagel.flux import as_diffusers, grid_places, joined, parted
from unirl_env.models.bagel.network import LATENT_SIDE, BagelNetwork
from unirl_env.models.bagel.pictures import seen_size
from unirl_env.models.bagel.published import Published
from unirl_env.models.bagel.seeing import Packed
from unirl_env.types import Prompt

HERE = Path(__file__).parent
ANSWERS = [[5, 9, 12], [40], [7, 8, 9, 10]]
THOUGHT = "<think>round</think>"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return build(tmp_path_factory.mktemp("models") / "bagel")


@pytest.fixture(scope="module")
def model(directory):
    return opened(directory)


@pytest.fixture(scope="module")
def network(model):
    return model.network()


class TestPublishedNames:
    """`bagel_names.json` was derived from the public implementation at the published sizes."""

    @pytest.fixture(scope="class")
    def names(self):
        return json.loads((HERE / "bagel_names.json").read_text())

    def test_the_network_has_all_of_them_and_no_other(self, names, tmp_path):
        (tmp_path / "llm_config.json").write_text(json.dumps(PUBLISHED_TEXT))
        (tmp_path / "vit_config.json").write_text(json.dumps(PUBLISHED_VISION))
        published = Published(str(tmp_path))
        with torch.device("meta"):
            network = BagelNetwork(published.text_config, published.vision)
        expected = {
            name.replace(".layers.*.", f".layers.{i}."): shape
            for name, (count, shape) in names["ema"].items()
            for i in range(count)
        }
        assert {name: list(weight.shape) for name, weight in network.state_dict().items()} == expected
        assert len(expected) == 1223

    def test_the_autoencoder_has_all_of_them_and_no_other(self, names):
        weights = {name: torch.empty(shape, device="meta") for name, shape in names["ae"].items()}
        module, renamed = as_diffusers(weights)
        assert {name: weight.shape for name, weight in module.state_dict().items()} == {
            name: weight.shape for name, weight in renamed.items()
        }
        assert len(renamed) == 244 and module.config.block_out_channels == (128, 256, 512, 512)


class TestPublicImplementation:
    """`bagel_golden.safetensors` holds what the public implementation computes with these weights."""

    @pytest.fixture(scope="class")
    def golden(self, directory):
        golden = load_file(HERE / "bagel_golden.safetensors")
        folder = Path(directory)
        weights = {**load_file(folder / "ema.safetensors"), **load_file(folder / "ae.safetensors")}
        sums = torch.stack([weight.double().sum() for _, weight in sorted(weights.items())])[::20].float()
        torch.testing.assert_close(sums, golden["weights"], msg="torch draws other weights than it did")
        return golden

    @pytest.fixture(scope="class")
    def picture(self, golden):
        return golden["image"].permute(2, 0, 1).float() / 255

    def cases(self, directory, picture):
        """Name to adapter, prompt and whether it is the negative one."""
        turns = ({"content": "a red circle"}, {"content": THOUGHT})
        edit = Prompt("a red circle", images=(picture,))
        seeing = opened(directory, max_images=1)
        return {
            "v_text": (opened(directory), Prompt("a red circle"), False),
            "v_none": (opened(directory), Prompt("a red circle"), True),
            "v_thought": (opened(directory), Prompt("two", messages=turns), False),
            "v_edit": (seeing, edit, False),
            "v_edit_none": (opened(directory, max_images=1, system=THOUGHT), edit, True),
        }

    @pytest.mark.parametrize("name", ["v_text", "v_none", "v_thought", "v_edit", "v_edit_none"])
    def test_velocities(self, directory, network, golden, picture, name):
        model, prompt, negative = self.cases(directory, picture)[name]
        reading = model.image.read(network, model.image.encode([prompt], negative=negative))
        latent = joined(golden["x"][None], (2, 3))
        with torch.no_grad():
            found = model.image.velocity(network, latent, torch.tensor([0.7]), reading)
        expected = joined(golden[name][None], (2, 3))
        assert (found - expected).abs().max() <= 1e-5
        others = [golden[other] for other in self.cases(directory, picture) if other != name]
        assert all((joined(other[None], (2, 3)) - expected).abs().max() > 1e-3 for other in others)

    @pytest.mark.parametrize("name, case", [("logits", "v_text"), ("logits_edit", "v_edit")])
    def test_logits_of_a_thought(self, directory, network, golden, picture, name, case):
        model, prompt, _ = self.cases(directory, picture)[case]
        text = model.text
        said = [
            text.special["begin"],
            *text._published.tokenizer(THOUGHT, add_special_tokens=False).input_ids,
        ]
        with torch.no_grad():
            hidden = text.hidden(network, **packed_row(text, [prompt], [said]))[0, -len(said) :]
            logits = hidden @ text.head(network).T
        assert (logits - golden[name]).abs().max() <= 2e-5

    def test_pictures_and_latents(self, model, golden, picture):
        latent = golden["latent"]
        assert torch.equal(joined(golden["x"][None], (2, 3))[0], latent)
        assert (model.image.decode(latent[None])[0].image - golden["decoded"]).abs().max() <= 1e-5
        assert (model.image._autoencoder.encode(picture) - golden["encoded"]).abs().max() <= 1e-5

    def test_noise_levels_and_sizes(self, model, golden):
        assert torch.equal(model.image.sigmas(8), golden["sigmas"])
        for height, width, *seen in golden["seen"].tolist():
            assert seen_size(height, width, model.text._published.vision) == tuple(seen)


class TestText:
    def test_packed_is_each_alone(self, model, network):
        packed = packed_row(model.text, PROMPTS, ANSWERS)
        with torch.no_grad():
            found = model.text.hidden(network, **packed)[0].split(packed["lengths"].tolist())
            for prompt, answer, each in zip(PROMPTS, ANSWERS, found, strict=True):
                alone = model.text.hidden(network, **packed_row(model.text, [prompt], [answer]))[0]
                assert (alone - each).abs().max() <= 1e-5

    def test_a_cache_and_left_padding_change_nothing(self, model, network):
        rows = [model.text.encode(prompt).tokens for prompt in PROMPTS]
        longest = max(map(len, rows))
        tokens = torch.full((len(rows), longest), model.text.pad_id)
        positions, mask = torch.zeros(1, len(rows), longest, dtype=torch.int64), tokens != tokens
        for i, row in enumerate(rows):
            tokens[i, longest - len(row) :], mask[i, longest - len(row) :] = row, True
            positions[0, i, longest - len(row) :] = torch.arange(len(row))
        cache, answers = DynamicCache(config=network.config), [(answer * 4)[:3] for answer in ANSWERS]
        with torch.no_grad():
            found = [model.text.hidden(network, tokens, positions, mask=mask, cache=cache)[:, -1:]]
            for step in ([0], [1, 2]):
                mask = torch.cat([mask, mask.new_ones(len(rows), len(step))], 1)
                positions = positions[:, :, -1:] + 1 + torch.arange(len(step))
                said = torch.tensor([[answer[i] for i in step] for answer in answers])
                found.append(model.text.hidden(network, said, positions, mask=mask, cache=cache))
            packed = packed_row(model.text, PROMPTS, answers)
            expected = model.text.hidden(network, **packed)[0].split(packed["lengths"].tolist())
        for got, whole in zip(torch.cat(found, 1), expected, strict=True):
            assert (got - whole[-4:]).abs().max() <= 1e-5


class TestVelocity:
    def whole(self, model, network, prompt, latent, sigma):
        """The velocity from one pass over text and picture, without anything kept."""
        special, tokens = model.text.special, model.text.encode(prompt).tokens
        patches, grid = parted(latent[None])
        count = patches.shape[1]
        ends = torch.tensor([special["picture_begin"], special["picture_end"]])
        embed = network.get_input_embeddings()
        states = network.vae2llm(patches) + network.time_embedder(sigma[None])[:, None]
        states = states + network.latent_pos_embed(grid_places(*grid, LATENT_SIDE, "cpu"))
        begin, end = embed(ends)[None].split(1, 1)
        states = torch.cat([embed(tokens)[None], begin, states, end], 1)
        positions = torch.cat([torch.arange(len(tokens)), torch.full((count + 2,), len(tokens))])[None]
        is_drawn = torch.zeros(1, states.shape[1], dtype=torch.bool)
        is_drawn[:, len(tokens) + 1 : -1] = True
        seeing = Packed(torch.tensor([states.shape[1]]), positions, states.device)
        hidden = network.language_model.model(states, positions, seeing, is_drawn)
        return joined(network.llm2vae(hidden[is_drawn][None]), grid)[0]

    @pytest.mark.parametrize("rows", [None, 1, 2])
    def test_a_kept_text_changes_nothing(self, directory, network, rows):
        model = opened(directory, rows_per_forward=rows)
        with torch.no_grad():
            latent, sigma, found = drawn(model, network, PROMPTS)
            for i, prompt in enumerate(PROMPTS):
                expected = self.whole(model, network, prompt, latent[i], sigma[i])
                assert (found[i] - expected).abs().max() <= 1e-5

    @pytest.mark.parametrize("rows", [None, 1])
    def test_gradients_are_those_of_the_whole_pass(self, directory, rows):
        model = opened(directory, rows_per_forward=rows)
        gradients = []
        for kept in (True, False):
            network = model.network().requires_grad_(True)
            latent, sigma, velocity = drawn(model, network, PROMPTS)
            if not kept:
                whole = [
                    self.whole(model, network, *each) for each in zip(PROMPTS, latent, sigma, strict=True)
                ]
                velocity = torch.stack(whole)
            velocity.square().mean().backward()
            gradients.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
        kept, whole = gradients
        assert set(kept) == set(whole)
        for name in ("language_model.model.embed_tokens.weight", "vae2llm.weight", "time_embedder.mlp.0.bias",
                     "language_model.model.layers.0.self_attn.k_proj.weight",
                     "language_model.model.layers.1.self_attn.v_proj.bias",
                     "language_model.model.layers.0.mlp_moe_gen.up_proj.weight"):  # fmt: skip
            assert kept[name].abs().max() > 1e-4, f"{name} must matter"
        for name, gradient in kept.items():
            torch.testing.assert_close(gradient, whole[name], rtol=1e-3, atol=1e-5)

    def test_one_row_at_a_time_is_bitwise_independent_of_the_batch(self, model, network):
        with torch.no_grad():
            latent, sigma, together = drawn(model, network, PROMPTS)
            for i, prompt in enumerate(PROMPTS):
                reading = model.image.read(network, model.image.encode([prompt]))
                alone = model.image.velocity(network, latent[i : i + 1], sigma[i : i + 1], reading)
                assert torch.equal(alone[0], together[i])

    def test_recomputed_layers_have_the_same_gradient(self, model):
        gradients = []
        for recompute in (False, True):
            network = model.network().requires_grad_(True)
            if recompute:
                network.enable_gradient_checkpointing()
            drawn(model, network, PROMPTS)[2].square().mean().backward()
            gradients.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
        assert set(gradients[0]) == set(gradients[1])
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name])
