"""Pictures in the prompts of BAGEL: taken in twice, seen whole, and changed."""

import pytest
import torch
from bagel_cases import PROMPTS, SMALL, build, drawn, opened, packed_row, picture
from transformers import DynamicCache

from unirl_env.envs.encodings import encode_prompts, input_limits
from unirl_env.errors import ContractError, PromptError
from unirl_env.models.bagel.pictures import grid_positions
from unirl_env.models.words import padded_inputs
from unirl_env.policies.packing import pack_prefixes
from unirl_env.types import Prompt

EDITS = [
    Prompt("make it red", "one", images=(picture(0),)),
    Prompt("a red circle", "none"),
    Prompt("swap them", "two", images=(picture(1), picture(0))),
]
ANSWERS = [[5, 9, 12], [40], [7, 8, 9, 10]]
LATENT, SEEN = 2 * 3, 16 * 24


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return build(tmp_path_factory.mktemp("models") / "bagel")


@pytest.fixture(scope="module")
def model(directory):
    return opened(directory, max_images=2)


@pytest.fixture(scope="module")
def network(model):
    return model.network()


class TestEncoding:
    def test_a_picture_is_a_latent_and_what_is_seen(self, model):
        encoded = model.text.encode(EDITS[0])
        said = model.text._published.tokenizer.decode(encoded.tokens)
        marks = "".join(f"<|vision_start|>{'<|image_pad|>' * n}<|vision_end|>" for n in (LATENT, SEEN))
        assert said == f"{marks}<|im_start|>make it red<|im_end|>"
        assert encoded.inputs["image_grid_thw"].tolist() == [[1, 2, 3], [1, 16, 24]]
        pixels = encoded.inputs["pixel_values"]
        assert pixels.shape == (LATENT + SEEN, 588) and pixels.dtype == torch.float32
        assert (pixels[:LATENT, 64:] == 0).all() and pixels[:LATENT, :64].std() > 0.01
        assert -1 <= pixels[LATENT:].min() < -0.5 < 0.5 < pixels[LATENT:].max() <= 1

    def test_the_tokens_of_a_picture_share_a_position(self, model, directory):
        thinker = opened(directory, max_images=2, thinking=True)
        for each in (model, thinker):
            encoded = each.text.encode(EDITS[2])
            (positions,) = encoded.inputs["positions"]
            before = each.text.before
            blocks = [LATENT + 2, SEEN + 2] * 2
            words = len(encoded.tokens) - before - sum(blocks)
            expected = [*range(before), *(before + i for i, n in enumerate(blocks) for _ in range(n))]
            assert positions.tolist() == [*expected, *range(before + 4, before + 4 + words)]

    def test_positions_of_prompts_with_fewer_pictures(self):
        grids = torch.tensor([[[1, 1, 2], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]]])
        assert grid_positions(10, grids, 1).tolist() == [[0, 1, 1, 1, 1, 2, 2, 2, 3, 4], [*range(10)]]

    def test_fits_its_spaces(self, model):
        limits = input_limits(model.text, 1024)
        encodings = encode_prompts(model.text, EDITS, 1024, limits)
        padded = padded_inputs(encodings, limits)
        assert padded["pixel_values"].shape == (3, 2 * (LATENT + SEEN), 588)
        assert padded["image_grid_thw"].shape == (3, 4, 3) and padded["positions"].shape == (3, 1, 1024)

    def test_a_picture_is_scaled_to_what_is_drawn(self, model):
        large = torch.nn.functional.interpolate(picture(0)[None], scale_factor=4)[0]
        one, other = (model.text.encode(Prompt("x", images=(p,))).inputs for p in (picture(0), large))
        assert one["pixel_values"].shape == other["pixel_values"].shape
        assert (one["pixel_values"] - other["pixel_values"]).abs().mean() < 0.2

    @pytest.mark.parametrize(
        "prompt, words",
        [
            (Prompt("x", images=(picture(0),) * 3), "at most 2 pictures, got 3"),
            (
                Prompt("x", images=(picture(0, 48, 48),)),
                "aspect ratio of what is drawn, 48 x 32, got 48 x 48",
            ),
            (Prompt("x", images=("no/such/file.png",)), "no/such/file.png"),
        ],
    )
    def test_what_cannot_be_read_is_named(self, model, prompt, words):
        with pytest.raises(PromptError, match=words):
            model.text.encode(prompt)

    def test_pictures_are_refused_where_none_are_expected(self, directory):
        model = opened(directory)
        for encode in (model.text.encode, lambda prompt: model.image.encode([prompt])):
            with pytest.raises(PromptError, match=r"at most 0 pictures, got 1 .*`max_images`"):
                encode(EDITS[0])


class TestThoughts:
    def test_packed_is_each_alone(self, model, network):
        packed = packed_row(model.text, EDITS, ANSWERS)
        with torch.no_grad():
            found = model.text.hidden(network, **packed)[0].split(packed["lengths"].tolist())
            for prompt, answer, each in zip(EDITS, ANSWERS, found, strict=True):
                alone = model.text.hidden(network, **packed_row(model.text, [prompt], [answer]))[0]
                assert (alone - each).abs().max() <= 2e-5

    def test_packing_finds_the_pictures(self, model, network):
        """As the policy is shown prompts of an environment, padded."""
        limits = input_limits(model.text, 1024)
        encodings = encode_prompts(model.text, EDITS, 1024, limits)
        tokens = torch.zeros(3, 1024, dtype=torch.int64)
        for row, each in zip(tokens, encodings, strict=True):
            row[: len(each.tokens)] = each.tokens
        length = torch.tensor([len(each.tokens) for each in encodings])
        obs = {
            "tokens": tokens,
            "length": length,
            "prompt_length": length,
            "is_action": torch.zeros_like(tokens),
        }
        row = pack_prefixes({**obs, **padded_inputs(encodings, limits)})
        expected = packed_row(model.text, EDITS, [[]] * 3)
        assert torch.equal(row["tokens"], expected["tokens"][0])
        assert torch.equal(row["positions"], expected["positions"][:, 0])
        assert torch.equal(row["pixel_values"], expected["inputs"]["pixel_values"])
        assert torch.equal(row["image_grid_thw"], expected["inputs"]["image_grid_thw"])

    def test_a_cache_and_left_padding_change_nothing(self, model, network):
        rows = [packed_row(model.text, [prompt], [[]]) for prompt in EDITS]
        longest = max(row["tokens"].shape[1] for row in rows)
        tokens = torch.full((3, longest), model.text.pad_id)
        positions, mask = torch.zeros(1, 3, longest, dtype=torch.int64), torch.zeros(3, longest).bool()
        for i, row in enumerate(rows):
            begin = longest - row["tokens"].shape[1]
            tokens[i, begin:], positions[:, i, begin:] = row["tokens"][0], row["positions"][:, 0]
            mask[i, begin:] = True
        cache, inputs = DynamicCache(config=network.config), packed_row(model.text, EDITS, [[]] * 3)["inputs"]
        said = [[5, model.text.special["picture"]], [6, 7], [8, model.text.special["picture"]]]
        with torch.no_grad():
            first = model.text.hidden(network, tokens, positions, inputs=inputs, mask=mask, cache=cache)[
                :, -1:
            ]
            mask = torch.cat([mask, mask.new_ones(3, 2)], 1)
            after = positions.amax(2, keepdim=True) + 1 + torch.arange(2)
            rest = model.text.hidden(network, torch.tensor(said), after, mask=mask, cache=cache)
            packed = packed_row(model.text, EDITS, said)
            whole = model.text.hidden(network, **packed)[0].split(packed["lengths"].tolist())
        for got, expected in zip(torch.cat([first, rest], 1), whole, strict=True):
            assert (got - expected[-3:]).abs().max() <= 2e-5, "a mark that is said is no picture"

    def test_each_way_of_seeing_matters(self, model, network):
        packed = packed_row(model.text, EDITS[:1], ANSWERS[:1])
        with torch.no_grad():
            hidden = model.text.hidden(network, **packed)[0, -1]
            for rows in (slice(0, LATENT), slice(LATENT, None)):
                pixels = packed["inputs"]["pixel_values"].clone()
                pixels[rows] *= -1
                inputs = {**packed["inputs"], "pixel_values": pixels}
                assert (
                    model.text.hidden(network, **{**packed, "inputs": inputs})[0, -1] - hidden
                ).abs().max() > 1e-3

    def test_pictures_of_other_tokens_are_refused(self, model, network):
        packed = packed_row(model.text, EDITS[:1], ANSWERS[:1])
        packed["inputs"] = {name: torch.cat([value, value]) for name, value in packed["inputs"].items()}
        with pytest.raises(ContractError, match="of pictures for"):
            model.text.hidden(network, **packed)

    def test_a_picture_goes_through_the_tower_once(self, model, network, monkeypatch):
        seen, tower = [], network.vit_model.forward
        monkeypatch.setattr(network.vit_model, "forward", lambda *a: seen.append(len(a[0])) or tower(*a))
        with torch.no_grad():
            model.text.hidden(network, **packed_row(model.text, EDITS, ANSWERS))
        assert seen == [SEEN, SEEN], "two of three are the same"


class TestDrawing:
    @pytest.mark.parametrize("rows", [None, 1])
    def test_each_is_as_alone(self, directory, network, rows):
        model = opened(directory, max_images=2, rows_per_forward=rows)
        with torch.no_grad():
            latent, sigma, together = drawn(model, network, EDITS)
            for i, prompt in enumerate(EDITS):
                reading = model.image.read(network, model.image.encode([prompt]))
                alone = model.image.velocity(network, latent[i : i + 1], sigma[i : i + 1], reading)[0]
                assert (alone - together[i]).abs().max() <= 1e-5
                assert rows is None or torch.equal(alone, together[i])

    def test_the_picture_stands_behind_its_prompt(self, model, network):
        reading = model.image.read(network, model.image.encode(EDITS))
        words = [len(model.text.encode(Prompt(prompt.text)).tokens) for prompt in EDITS]
        assert reading.position.tolist() == [2 + words[0], words[1], 4 + words[2]]
        picked = reading.pick(torch.tensor([2, 0]))
        assert picked.position.tolist() == [4 + words[2], 2 + words[0]] and len(picked) == 2

    def test_without_pictures_it_is_the_model_that_takes_none(self, directory, model, network):
        plain = opened(directory)
        with torch.no_grad():
            expected, found = (drawn(each, network, PROMPTS)[2] for each in (plain, model))
        assert (expected - found).abs().max() <= 1e-5

    def test_the_unconditional_context_keeps_the_pictures(self, model, network):
        context = model.image.encode(EDITS, negative=True)
        assert context["length"].tolist() == [LATENT + SEEN + 4, 0, 2 * (LATENT + SEEN + 4)]
        with torch.no_grad():
            velocity = drawn(model, network, EDITS, negative=True)[2]
            blank = drawn(opened(model.pretrained), network, PROMPTS, negative=True)[2]
        assert (velocity[0] - blank[0]).abs().max() > 1e-3 and (velocity[1] - blank[1]).abs().max() <= 1e-5

    def test_what_draws_is_read_by_prompts_with_pictures(self, model, network):
        own = {
            name
            for name, p in network.named_parameters()
            if any(p is q for q in model.private(network, "image"))
        }
        assert own == {"llm2vae.weight", "llm2vae.bias", "language_model.model.norm_moe_gen.weight"}

    def test_the_context_fits_a_prompt_with_all_its_pictures(self, model):
        context = model.image.encode(EDITS)
        assert set(context) == set(model.context_keys)
        assert context["tokens"].shape == (3, 512 + 2 * (LATENT + SEEN + 4))
        assert model.image.latent_shape == (16, SMALL["height"] // 8, SMALL["width"] // 8)
