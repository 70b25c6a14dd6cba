"""HunyuanImage 3's chat, marks, sizes and settings, and how a wrong checkpoint fails."""

import json
import shutil

import pytest
import torch
from hunyuan_cases import keep_weights, write_tiny_checkpoint

from unirl_env.errors import ConfigError, ModelNotFound, PromptError
from unirl_env.models import UNIFIED_MODELS
from unirl_env.models.hunyuan_image3 import HunyuanImage3
from unirl_env.models.hunyuan_image3.network import FROZEN
from unirl_env.models.hunyuan_image3.settings import bucket, buckets
from unirl_env.types import Prompt


@pytest.fixture(scope="module")
def directory(tmp_path_factory, quiet_models):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture(scope="module")
def chats(tmp_path_factory, quiet_models):
    """A checkpoint that knows chats, as the Instruct model does."""
    changes = {"sequence_template": "instruct", "bot_task": "think_recaption"}
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "chat", generation_changes=changes)


def read(model, tokens):
    """Tokens as text, special ones shown."""
    return model._template.tokenizer.decode(tokens)


def edited_copy(directory, folder, file, **changes):
    shutil.copytree(directory, folder)
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(folder)


class TestWords:
    def test_a_pretrained_model_continues_plain_text(self, directory):
        model = HunyuanImage3(directory)
        assert read(model, model.text.encode(Prompt("a cat")).tokens) == "<|startoftext|>a cat"
        assert read(model, model.text.reply(" more")) == " more"

    def test_a_chat_begins_the_thought_that_its_task_asks_for(self, chats):
        said = "<|startoftext|>User: a cat\n\nAssistant: "
        for task, begun in [(None, "<think>"), ("recaption", "<recaption>"), ("auto", ""), ("image", "")]:
            model = HunyuanImage3(chats, task=task)
            assert read(model, model.text.encode(Prompt("a cat")).tokens) == said + begun
            assert read(model, model.text.reply("no")) == f"\n\nUser: no\n\nAssistant: {begun}"

    def test_turns_are_taken_as_they_are(self, chats):
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        turns = (
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "d"},
        )
        model = HunyuanImage3(chats, task="auto", system="Sys.")
        said = "<|startoftext|>Sys.\n\nUser: ab\n\nAssistant: c\n\nUser: d\n\nAssistant: "
        assert read(model, model.text.encode(Prompt("x", messages=turns)).tokens) == said

    def test_a_system_prompt_by_name_is_read_and_its_file_not_run(self, chats):
        model = HunyuanImage3(chats, task="auto", system="en_vanilla")
        assert read(model, model.text.encode(Prompt("x")).tokens).startswith(
            "<|startoftext|>\nDraw it.\n\n\nUser"
        )
        with pytest.raises(ConfigError, match=r"en_strange.*t2i_system_prompt_en_vanilla"):
            HunyuanImage3(chats, system="en_strange")

    @pytest.mark.parametrize("mark", ["<boi>", "<img>", "<|endoftext|>", "</answer>", "<think>"])
    def test_marks_that_are_typed_are_text(self, chats, mark):
        model = HunyuanImage3(chats, task="auto")
        number = model._template.tokenizer.convert_tokens_to_ids(mark)
        typed = model.text.encode(Prompt(f"a {mark} cat")).tokens.tolist()
        assert number not in typed and number not in model.text.reply(mark)
        assert f"a {mark} cat" in read(model, typed)

    def test_marks_of_thoughts_are_shown_and_others_are_not(self, chats):
        model = HunyuanImage3(chats)
        said = "<think>a</think><recaption>b é</recaption><answer><boi><|endoftext|>"
        tokens = model._template.tokenizer.encode(said, add_special_tokens=False)
        assert model.text.decode(tokens) == "<think>a</think><recaption>b é</recaption>"

    @pytest.mark.parametrize("prompt", [
        Prompt("x", images=("a.png",)),
        Prompt("x", messages=({"role": "user", "content": [{"type": "image"}]},)),
        Prompt("x", messages=({"role": "tool", "content": "x"},)),
        Prompt("x", messages=({"role": "assistant", "content": "x"},)),
    ])  # fmt: skip
    def test_what_it_cannot_read_is_refused(self, chats, prompt):
        with pytest.raises(PromptError):
            HunyuanImage3(chats).text.encode(prompt)


class TestOpenings:
    def test_ends_and_openings_of_a_thought(self, chats):
        model = HunyuanImage3(chats, height=40, width=24)
        assert read(model, model.text.eos_ids) == "</recaption></answer><|endoftext|>"
        assert set(model.opens) < set(model.text.eos_ids)
        (end,) = model.opens
        marks = f"<answer><boi><img_size_32><img_ratio_{buckets(32).index((40, 24))}>"
        assert read(model, [end]) == "</recaption>" and read(model, model.opening(end)) == marks
        assert read(model, model.opening(None)) == "</think>" + marks

    def test_a_picture_that_the_model_opens_itself(self, directory):
        model = HunyuanImage3(directory, task="auto")
        assert read(model, model.text.eos_ids) == "<boi><|endoftext|>"
        (begin,) = model.opens
        assert read(model, model.opening(begin)) == "<img_size_32><img_ratio_16>"
        assert read(model, model.opening(None)) == "<boi><img_size_32><img_ratio_16>"

    @pytest.mark.parametrize("task", ["auto", "image"])
    def test_an_empty_text_leads_to_the_context_of_the_picture_alone(self, directory, chats, task):
        for folder in (directory, chats):
            model = HunyuanImage3(folder, task=task)
            context = model.image.encode([Prompt("a cat")])
            begun = model.text.encode(Prompt("a cat")).tokens.tolist() + model.opening(None)
            assert context["tokens"][0, : context["length"][0]].tolist() == begun
            assert context["tokens"].shape == (1, 512 + len(model.opening(None)))
            assert (context["tokens"][0, context["length"][0] :] == model.text.pad_id).all()

    def test_without_guidance_words_mean_nothing(self, chats):
        model = HunyuanImage3(chats, system="Sys.")
        prompts = [Prompt("cat"), Prompt("cat", "2", negative="a dog")]
        context = model.image.encode(prompts, negative=True)
        end = "\n\nAssistant: <answer><boi><img_size_32><img_ratio_16>"
        for row, length, middle in zip(
            context["tokens"], context["length"], ("<cfg>" * 3, "a dog"), strict=True
        ):
            assert read(model, row[:length]) == f"<|startoftext|>Sys.\n\nUser: {middle}{end}"

    def test_a_prompt_without_room_is_named(self, directory):
        model = HunyuanImage3(directory, max_prompt_tokens=6)
        assert model.image.encode([Prompt("a cat")])["length"].tolist() == [6 + 3]
        words = r"at most 6 tokens, got 7 for prompt 'a cats'.*`max_prompt_tokens`"
        with pytest.raises(PromptError, match=words):
            model.image.encode([Prompt("a cats")])


class TestSizes:
    def test_the_published_buckets(self):
        sizes = buckets(1024)
        assert len(sizes) == 33 and sizes[0] == (512, 2048) and sizes[32] == (2048, 512)
        assert sizes[16] == (1024, 1024) and sizes[15] == (960, 1088) and sizes[12] == (768, 1280)
        assert all(height % 64 == width % 64 == 0 for height, width in sizes)

    def test_another_size_names_the_nearest(self, directory):
        with pytest.raises(ConfigError, match=r"got 1000 x 1000; the nearest are 1024 x 1024, "):
            bucket(1000, 1000, base=1024, unit=(16, 16))
        with pytest.raises(ConfigError, match="the nearest are 32 x 32"):
            HunyuanImage3(directory, height=30, width=34)

    def test_latents_and_pictures_have_the_size(self, directory):
        model = HunyuanImage3(directory, height=40, width=24)
        assert model.image.latent_shape == (8, 5, 3)
        (sample,) = model.image.decode(torch.zeros(1, 8, 5, 3))
        assert sample.image.shape == (3, 40, 24) and 0 <= sample.image.min() < sample.image.max() <= 1


class TestSettings:
    def test_a_family_by_name(self):
        assert UNIFIED_MODELS.get("hunyuan_image3") is HunyuanImage3

    def test_the_noise_schedule_is_the_checkpoints(self, directory, tmp_path):
        torch.testing.assert_close(HunyuanImage3(directory).image.sigmas(2), torch.tensor([1, 0.75, 0]))
        other = edited_copy(directory, tmp_path / "m", "generation_config.json", flow_shift=1.0)
        torch.testing.assert_close(HunyuanImage3(other).image.sigmas(2), torch.tensor([1, 0.5, 0]))
        torch.testing.assert_close(HunyuanImage3(other, shift=3).image.sigmas(2), torch.tensor([1, 0.75, 0]))

    def test_the_router_stays_exact(self, directory):
        network = HunyuanImage3(directory, dtype="bfloat16").network()
        exact = {name for name, p in network.named_parameters() if p.dtype == torch.float32}
        assert exact == {f"model.layers.{layer}.mlp.gate.wg.weight" for layer in (0, 1)}
        assert not network.training

    @pytest.mark.parametrize("option", [
        {"dtype": "float31"}, {"task": "sing"}, {"max_prompt_tokens": 0}, {"rows_per_forward": 0},
    ])  # fmt: skip
    def test_settings_out_of_range_are_named(self, directory, option):
        with pytest.raises(ConfigError, match=f"`{next(iter(option))}`"):
            HunyuanImage3(directory, **option)

    @pytest.mark.parametrize("file, changes, words", [
        ("config.json", {"model_type": "llama"}, "`model_type` one of"),
        ("config.json", {"cfg_distilled": True}, "`cfg_distilled` of config.json must be False"),
        ("config.json", {"use_meanflow": True}, "`use_meanflow`"),
        ("config.json", {"norm_type": "fused"}, "`norm_type`"),
        ("config.json", {"rope_scaling": {"type": "linear"}}, "`rope_scaling`"),
        ("config.json", {"hidden_size": None}, "`hidden_size` of config.json must be a number"),
        ("generation_config.json", {"sequence_template": "verse"}, "`sequence_template`"),
    ])  # fmt: skip
    def test_other_checkpoints_are_refused(self, directory, tmp_path, file, changes, words):
        with pytest.raises(ConfigError, match=words):
            HunyuanImage3(edited_copy(directory, tmp_path / "m", file, **changes))

    def test_a_tokenizer_without_the_marks_is_refused(self, directory, tmp_path):
        shutil.copytree(directory, tmp_path / "m")
        path = tmp_path / "m/tokenizer.json"
        path.write_text(path.read_text().replace("<img_ratio_16>", "<img_ratio_x>"))
        with pytest.raises(ConfigError, match="'<img_ratio_16>'"):
            HunyuanImage3(tmp_path / "m")

    def test_what_is_not_there_is_named(self, directory, tmp_path):
        with pytest.raises(ModelNotFound, match="TinyUnified"):
            HunyuanImage3(tmp_path / "nowhere")
        for lost, use in (
            ("vae.decoder.conv_in.bias", lambda model: model.image.decode(torch.zeros(1, 8, 4, 4))),
            ("model.layers.1.mlp.experts.3.down_proj.weight", lambda model: model.network()),
        ):
            folder = keep_weights(directory, tmp_path / lost, lambda name, lost=lost: name != lost)
            with pytest.raises(ModelNotFound, match=rf"1 (of its weights|tensors).* such as '?{lost}"):
                use(HunyuanImage3(folder))

    def test_halves_load_apart(self, directory, tmp_path):
        """An environment needs no network, and a policy no decoder."""
        frozen = keep_weights(directory, tmp_path / "frozen", lambda name: name.startswith("vae.decoder."))
        assert HunyuanImage3(frozen).image.decode(torch.zeros(1, 8, 4, 4))
        trained = keep_weights(directory, tmp_path / "trained", lambda name: not name.startswith(FROZEN))
        assert HunyuanImage3(trained).network()
