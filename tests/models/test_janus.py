"""Janus's chats, the way from text to picture, and what it refuses."""

import shutil

import pytest
import torch
from janus_cases import MAX_CONTEXT, begun, rename, write_tiny_janus

from unirl_env.errors import ConfigError, ContractError, ModelNotFound, PromptError
from unirl_env.models import UNIFIED_MODELS
from unirl_env.models.janus.model import Janus
from unirl_env.types import Prompt

CAT = Prompt("a red cat")


@pytest.fixture(scope="module")
def directory(tmp_path_factory, quiet_models):
    return write_tiny_janus(tmp_path_factory.mktemp("models") / "janus")


@pytest.fixture(scope="module")
def model(directory):
    return Janus(directory)


def spoken(model, tokens):
    return model.text.reader.tokenizer.decode(tokens)


class TestChats:
    def test_are_those_of_the_published_processor(self, model):
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(model.pretrained)
        turns = [{"role": "user", "content": [{"type": "text", "text": CAT.text}]}]
        text = processor.apply_chat_template(turns, add_generation_prompt=True)
        assert torch.equal(model.text.encode(CAT).tokens, processor(text=[text])["input_ids"][0])
        drawn = processor(text=[text], generation_mode="image")["input_ids"][0]
        assert torch.equal(begun(model, CAT), drawn)
        assert spoken(model, drawn) == "<begin><|User|>: a red cat\n\n<|Assistant|>:<begin_of_image>"

    @pytest.mark.parametrize(
        "mark", ["<image_placeholder>", "<begin_of_image>", "<end>", "<|User|>", "<begin>"]
    )
    def test_marks_that_are_typed_are_text(self, model, mark):
        number = model.text.reader.tokenizer.convert_tokens_to_ids(mark)
        typed, usual = (model.text.encode(Prompt(text)).tokens for text in (f"a {mark} cat", "a cat"))
        assert (typed == number).sum() == (usual == number).sum()
        assert f"a {mark} cat" in spoken(model, typed)
        assert model.text.reply(mark).count(number) == model.text.reply("x").count(number)

    def test_of_several_turns(self, model):
        parts = [{"type": "text", "text": "a red "}, {"type": "text", "text": "cat"}]
        turns = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"})
        said = model.text.encode(Prompt("x", messages=(*turns, {"role": "user", "content": parts}))).tokens
        expected = "<begin><|User|>: hi\n\n<|Assistant|>: yes<end><|User|>: a red cat\n\n<|Assistant|>:"
        assert spoken(model, said) == expected

    def test_a_system_prompt_stands_before_the_chat(self, directory):
        said = Janus(directory, system="Plan the picture.")
        text = spoken(said, said.text.encode(CAT).tokens)
        assert text == "<begin>Plan the picture.\n\n<|User|>: a red cat\n\n<|Assistant|>:"

    def test_replies_continue_the_chat(self, model):
        turns = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"})
        whole = model.text.encode(Prompt("x", messages=(*turns, {"role": "user", "content": "more"}))).tokens
        begun = model.text.encode(Prompt("hi")).tokens.tolist()
        answer = [*model.text.reader.tokenizer(" yes", add_special_tokens=False).input_ids, 257]
        assert begun + answer + model.text.reply("more") == whole.tolist()

    def test_words_only_are_decoded(self, model):
        tokens = [*model.text.encode(CAT).tokens.tolist(), *model.text.eos_ids]
        assert model.text.decode(tokens) == ": a red cat\n\n:"


class TestTheWayToThePicture:
    def test_names(self, model):
        assert UNIFIED_MODELS.get("janus") is Janus
        assert model.max_images == 0 and model.context_keys == ("tokens", "length")
        assert model.text.first_id == 0 and model.image.first_id == model.text.vocab_size
        assert model.image.vocab_size == 64 and model.image.num_tokens == 16 and model.image.eos_ids == ()
        assert model.text.max_context == model.image.max_context == MAX_CONTEXT

    def test_a_text_ends_with_begin_of_image_or_by_itself(self, model):
        ends = [spoken(model, [token]) for token in model.text.eos_ids]
        assert ends == ["<end>", "<begin_of_image>"]
        begin = model.text.eos_ids[1]
        assert model.opens == (begin,)
        assert model.opening(begin) == [] and model.opening(None) == [begin]
        with pytest.raises(ContractError, match="`eos_opens=True`"):
            model.opening(model.text.eos_ids[0])

    def test_any_end_may_open(self, directory):
        model = Janus(directory, eos_opens=True)
        end, begin = model.text.eos_ids
        assert set(model.opens) == {end, begin}
        assert model.opening(end) == model.opening(None) == [begin] and model.opening(begin) == []

    @pytest.mark.parametrize("tied", [False, True])
    def test_private_weights_are_those_that_the_other_phase_does_not_read(self, tmp_path, tied):
        model = Janus(write_tiny_janus(tmp_path / "janus", tied=tied))
        network = model.network()
        tokens = begun(model, CAT)
        words, pieces = tokens[None], torch.cat([tokens, model.image.first_id + torch.arange(4)])[None]
        for phase, view, row in (("text", model.text, words), ("image", model.image, pieces)):
            network.zero_grad()
            places, lengths = torch.arange(row.shape[1])[None, None], torch.tensor([row.shape[1]])
            hidden = view.hidden(network, row, places, lengths=lengths)
            (hidden @ view.head(network).T).square().sum().backward()
            other = {"text": "image", "image": "text"}[phase]
            read = {id(weight) for weight in network.parameters() if weight.grad is not None}
            assert all(id(weight) in read for weight in model.private(network, phase))
            assert all(id(weight) not in read for weight in model.private(network, other))
            private = {id(weight) for weight in model.private(network, other)}
            assert read | private == {id(weight) for weight in network.parameters()}
        assert len(model.private(network, "text")) == (not tied)


class TestRefusals:
    @pytest.mark.parametrize(
        "prompt",
        [
            Prompt("?", images=(torch.rand(3, 8, 8),)),
            Prompt("?", messages=({"role": "user", "content": [{"type": "image"}]},)),
        ],
    )
    def test_prompts_with_pictures(self, model, prompt):
        with pytest.raises(PromptError, match="draws from text alone"):
            model.text.encode(prompt)

    def test_a_prompt_that_leaves_no_room_for_a_picture(self, model):
        around = len(model.text.encode(Prompt("")).tokens)
        room = MAX_CONTEXT - 16 - 1
        assert len(begun(model, Prompt("x" * (room - around)))) == room + 1
        with pytest.raises(PromptError, match=f"at most {room} tokens, so that a picture of 16"):
            model.text.encode(Prompt("x" * (room - around + 1)))

    def test_other_directories(self, tmp_path, directory):
        with pytest.raises(ModelNotFound, match=r"Janus-Pro-1B.*TinyUnified"):
            Janus(str(tmp_path / "nothing"))
        shutil.copytree(directory, tmp_path / "other")
        rename(tmp_path / "other", model_type="llama")
        with pytest.raises(ConfigError, match=r"'janus'.*'llama'"):
            Janus(str(tmp_path / "other"))
        rename(tmp_path / "other", model_type="multi_modality")
        with pytest.raises(ModelNotFound, match=r"transformers' own form.*multi_modality"):
            Janus(str(tmp_path / "other"))

    def test_parts_that_do_not_fit(self, tmp_path, directory):
        shutil.copytree(directory, tmp_path / "odd")
        config = Janus(directory).text.config.to_dict()
        rename(tmp_path / "odd", vq_config={**config["vq_config"], "projection_dim": 48})
        with pytest.raises(ConfigError, match=r"words \(32\), got `projection_dim` 48"):
            Janus(str(tmp_path / "odd"))
