"""Chats with pictures and their settings, for each family, against transformers' own processors."""

import json
import shutil

import pytest
import torch
from vl_cases import FAMILIES, PROMPTS, as_file, build, chat, joined, picture, sequences

from unirl_env.errors import ConfigError, ModelNotFound, PromptError
from unirl_env.models import LANGUAGE_MODELS
from unirl_env.models.qwen_vl import QwenVL
from unirl_env.types import Prompt


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory, quiet_models):
    return QwenVL(build(request.param, tmp_path_factory.mktemp("vl") / request.param), max_images=2)


@pytest.fixture(scope="module")
def network(model):
    return model.network()


class TestEncoding:
    @pytest.mark.parametrize("index", range(len(PROMPTS)))
    def test_is_that_of_the_published_processor(self, model, index):
        from transformers import AutoProcessor

        prompt = PROMPTS[index]
        processor = AutoProcessor.from_pretrained(model.pretrained)
        turns = prompt.messages or chat(*[None] * len(prompt.images), prompt.text)
        text = processor.apply_chat_template(list(turns), add_generation_prompt=True)
        files = [as_file(image) for image in prompt.images] or None
        expected = processor(text=[text], images=files, return_tensors="pt")
        encoded = model.encode(prompt)
        assert torch.equal(encoded.tokens, expected["input_ids"][0])
        assert set(encoded.inputs) == (
            {"pixel_values", "image_grid_thw", "positions"} if prompt.images else {"positions"}
        )
        for name in set(encoded.inputs) - {"positions"}:
            assert torch.equal(encoded.inputs[name], expected[name])

    def test_positions_are_the_models_own(self, model, network):
        for prompt in PROMPTS:
            encoded = model.encode(prompt)
            grid = encoded.inputs.get("image_grid_thw")
            kinds = (encoded.tokens == network.config.image_token_id).int()[None]
            expected, _ = network.model.get_rope_index(encoded.tokens[None], kinds, image_grid_thw=grid)
            assert torch.equal(encoded.inputs["positions"], expected[:, 0])
            assert encoded.inputs["positions"].shape == (3, len(encoded.tokens))

    def test_fits_its_spaces(self, model):
        spaces = model.input_spaces
        assert set(spaces) == {"pixel_values", "image_grid_thw", "positions"}
        for size in ((32, 32), (200, 20), (7, 7), (40, 56)):
            inputs = model.encode(Prompt("?", images=(picture(3, *size), picture(4, *size)))).inputs
            assert inputs["pixel_values"].dtype == torch.float32
            for name, value in inputs.items():
                limit, dtype = spaces[name]
                assert value.ndim == len(limit) and all(
                    a <= b for a, b in zip(value.shape, limit, strict=True)
                )
                assert str(value.dtype) == f"torch.{dtype}"
        full = model.encode(Prompt("?", images=(picture(3), picture(4)))).inputs["pixel_values"]
        assert tuple(full.shape) == spaces["pixel_values"][0], "the limit is reached"

    def test_pixel_limits(self, model):
        small = QwenVL(model.pretrained, max_pixels=256)
        assert small.input_spaces["pixel_values"][0][0] * 8 == model.input_spaces["pixel_values"][0][0]
        whole, part = (each.encode(PROMPTS[0]).inputs["image_grid_thw"].prod() for each in (model, small))
        assert part * 4 == whole

    def test_a_system_prompt(self, model):
        said = QwenVL(model.pretrained, system="top left")
        text = said.decode(said.encode(PROMPTS[0]).tokens)
        assert text.startswith("system\ntop left\nuser\n") and "top left" not in said.decode(
            model.encode(PROMPTS[0]).tokens
        )
        assert said.decode(said.encode(PROMPTS[2]).tokens).startswith("system\ntop left\nuser\n")

    @pytest.mark.parametrize(
        "prompt, words",
        [
            (Prompt("?", images=(picture(0),) * 3), "at most 2 pictures, got 3"),
            (Prompt("?", messages=chat(None, "?")), "got 1 for 0 pictures"),
            (Prompt("?", images=(picture(0),), messages=({"role": "user", "content": "?"},)), "got 0 for 1"),
            (Prompt("?", messages=({"role": "user", "content": [{"type": "video"}]},)), "video"),
            (Prompt("?", images=(picture(0, 2, 1000),)), "aspect ratio"),
        ],
    )
    def test_what_cannot_be_read_is_named(self, model, prompt, words):
        with pytest.raises(PromptError, match=words):
            model.encode(prompt)


class TestTypedMarks:
    MARKS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_end|>")

    @pytest.mark.parametrize("mark", MARKS)
    @pytest.mark.parametrize("count", [0, 1, 2])
    def test_are_text(self, model, mark, count):
        """In the question, in a part of a turn, and in what a model said before."""
        images, tokenizer = tuple(picture(i) for i in range(count)), model.reader.tokenizer
        number = tokenizer.convert_tokens_to_ids(mark)
        said = ({"role": "user", "content": mark}, {"role": "assistant", "content": f"a {mark}"})
        pairs = [
            (Prompt(f"is {mark} red?", images=images), Prompt("is red?", images=images)),
            (
                Prompt("x", images=images, messages=(*said, *chat(*[None] * count, mark))),
                Prompt("x", images=images, messages=(
                    *({**turn, "content": "a"} for turn in said), *chat(*[None] * count, "?")
                )),
            ),
        ]  # fmt: skip
        for typed, usual in pairs:
            read, expected = model.encode(typed), model.encode(usual)
            assert (read.tokens == number).sum() == (expected.tokens == number).sum()
            assert set(read.inputs) == set(expected.inputs)
            assert mark in tokenizer.decode(read.tokens) and read.inputs["positions"].shape[1] == len(
                read.tokens
            )
        assert number not in [token for token in model.reply(mark) if token not in model.reply("x")]

    @pytest.mark.parametrize("mark", MARKS[:4])
    def test_are_text_in_plain_prompts_too(self, model, mark):
        plain = QwenVL(model.pretrained, chat=False)
        number = plain.reader.tokenizer.convert_tokens_to_ids(mark)
        tokens = plain.encode(Prompt(f"is {mark} red?")).tokens
        assert number not in tokens.tolist() and plain.decode(tokens) == f"is {mark} red?"

    def test_plain_prompts_bring_no_pictures(self, model):
        plain = QwenVL(model.pretrained, chat=False)
        with pytest.raises(PromptError, match="`chat=True`"):
            plain.encode(Prompt("?", images=(picture(0),)))

    def test_a_tokenizer_that_closes_texts_leaves_chats_open(self, model, tmp_path):
        from tokenizers import processors

        shutil.copytree(model.pretrained, tmp_path / "closing")
        processor = QwenVL(tmp_path / "closing", max_images=2).reader
        processor.tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <|im_end|>", special_tokens=[("<|im_end|>", model.eos_ids[0])]
        )
        processor.save_pretrained(tmp_path / "closing")
        closing = QwenVL(tmp_path / "closing", max_images=2)
        assert closing.reader.tokenizer("a").input_ids[-1] == model.eos_ids[0]
        for prompt in PROMPTS:
            assert torch.equal(closing.encode(prompt).tokens, model.encode(prompt).tokens)


class TestSettings:
    def test_names(self, model, network):
        assert LANGUAGE_MODELS.get("qwen_vl") is QwenVL
        assert model.position_axes == 3 and model.max_context == 256
        assert model.vocab_size == network.get_output_embeddings().weight.shape[0]
        assert model.decode([*model.encode(PROMPTS[0]).tokens.tolist(), *model.eos_ids]).endswith(
            "assistant\n"
        )
        assert "<|im_start|>" in model.reader.tokenizer.decode(model.reply("no"))

    def test_dtype(self, model):
        network = QwenVL(model.pretrained, dtype="bfloat16").network()
        assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
        assert model.hidden(network, **joined(list(sequences(model)))).dtype == torch.bfloat16

    @pytest.mark.parametrize(
        "options, words",
        [
            ({"max_images": 0}, "`max_images`"),
            ({"min_pixels": 10}, "`min_pixels`"),
            ({"min_pixels": 1000, "max_pixels": 500}, "`min_pixels`"),
        ],
    )
    def test_settings_out_of_range(self, model, options, words):
        with pytest.raises(ConfigError, match=words):
            QwenVL(model.pretrained, **options)

    def test_other_families(self, model, tmp_path):
        shutil.copytree(model.pretrained, tmp_path / "other")
        path = tmp_path / "other" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "qwen2"}))
        with pytest.raises(ConfigError, match=r"qwen2_vl.*qwen2_5_vl.*qwen3_vl.*'qwen2'"):
            QwenVL(str(tmp_path / "other"))
        with pytest.raises(ModelNotFound, match="TinyQwenVL"):
            QwenVL(str(tmp_path / "nothing"))
