"""Chats, ends and replies of causal language models, what they leave on the disk, and how they fail."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pretraining.qwen3_build import build_tiny_qwen3
from unirl_env.errors import ConfigError, ModelNotFound, PromptError
from unirl_env.models import LANGUAGE_MODELS
from unirl_env.models.causal_lm import CausalLM
from unirl_env.types import Prompt


@pytest.fixture(scope="module")
def directory(tmp_path_factory, quiet_models):
    return str(build_tiny_qwen3(tmp_path_factory.mktemp("models") / "qwen3", seed=3))


@pytest.fixture(scope="module")
def model(directory):
    return CausalLM(directory)


def read(model, tokens):
    """Tokens as text, special ones shown."""
    return AutoTokenizer.from_pretrained(model.pretrained).decode(tokens)


def edited_copy(directory, folder, file, **changes):
    """A copy of the checkpoint with some settings of one of its JSON files changed."""
    shutil.copytree(directory, folder)
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(folder)


def logits_of(network, tokens):
    with torch.no_grad():
        return network(input_ids=tokens).logits


class TestChats:
    def test_a_text_is_one_user_turn(self, model):
        encoded = model.encode(Prompt("1+1=?"))
        assert encoded.tokens.dtype == torch.int64 and encoded.tokens.ndim == 1 and encoded.inputs == {}
        said = "<|im_start|>user\n1+1=?<|im_end|>\n<|im_start|>assistant\n"
        assert read(model, encoded.tokens) == said
        expected = AutoTokenizer.from_pretrained(model.pretrained).apply_chat_template(
            [{"role": "user", "content": "1+1=?"}], add_generation_prompt=True
        )
        assert encoded.tokens.tolist() == list(expected["input_ids"])

    def test_turns_are_taken_as_they_are(self, model):
        parts = [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]
        turns = (
            {"role": "system", "content": "Sys."},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "d"},
            {"role": "tool", "content": "e"},
        )
        said = read(model, model.encode(Prompt("name", messages=turns)).tokens)
        assert said == (
            "<|im_start|>system\nSys.<|im_end|>\n<|im_start|>user\nbc<|im_end|>\n"
            "<|im_start|>assistant\nd<|im_end|>\n<|im_start|>user\n<tool_response>\ne\n</tool_response><|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        assert turns[1]["content"] is parts, "a prompt is nobody's to change"

    def test_system_prompts(self, directory):
        model = CausalLM(directory, system="Be short.")
        assert read(model, model.encode(Prompt("x")).tokens).startswith(
            "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nx"
        )
        own = Prompt("x", messages=({"role": "system", "content": "No."}, {"role": "user", "content": "x"}))
        assert "Be short." not in read(model, model.encode(own).tokens)

    def test_thinking_is_switched_by_the_template(self, directory):
        for thinking, end in [(False, "assistant\n<think>\n\n</think>\n\n"), (True, "assistant\n")]:
            model = CausalLM(directory, thinking=thinking)
            assert read(model, model.encode(Prompt("x")).tokens).endswith(end)
            assert read(model, model.reply("x")).endswith(end)

    def test_plain_text(self, directory):
        model = CausalLM(directory, chat=False)
        assert read(model, model.encode(Prompt("Once")).tokens) == "Once"
        assert read(model, model.reply(" more")) == " more"
        with pytest.raises(PromptError, match="`chat=True`"):
            model.encode(Prompt("x", messages=({"role": "user", "content": "x"},)))

    @pytest.mark.parametrize("prompt", [
        Prompt("x", images=("a.png",)),
        Prompt("x", messages=({"role": "user", "content": [{"type": "image"}]},)),
    ])  # fmt: skip
    def test_pictures_are_refused(self, model, prompt):
        with pytest.raises(PromptError, match="`unirl/QwenVL-VQA-v0`"):
            model.encode(prompt)

    @pytest.mark.parametrize("text", ["85", "two words", "(the answer so far)", " a\n"])
    def test_a_reply_joins_two_answers_as_the_template_does(self, model, text):
        first = Prompt("x", messages=({"role": "user", "content": "x"},))
        answer = model.tokenizer("say<|im_end|>").input_ids
        turns = (*first.messages, {"role": "assistant", "content": "say"}, {"role": "tool", "content": text})
        whole = model.encode(Prompt("x", messages=turns)).tokens.tolist()
        assert model.encode(first).tokens.tolist() + answer + model.reply(text) == whole

    def test_a_template_without_tools_hears_a_user(self, directory, tmp_path):
        shutil.copytree(directory, tmp_path / "m")
        template = (tmp_path / "m/chat_template.jinja").read_text()
        for refusal in ("{{ raise_exception('no tools') }}", ""):
            head, _, tail = template.partition("{%- else %}")
            strict = head.partition("{%- if loop.first")[0] + refusal + "{%- else %}" + tail
            (tmp_path / "m/chat_template.jinja").write_text(strict)
            model = CausalLM(tmp_path / "m")
            said = "\n<|im_start|>user\n85<|im_end|>\n<|im_start|>assistant\n"
            assert read(model, model.reply("85")) == said

    def test_decoding_leaves_marks_in_and_special_tokens_out(self, model):
        tokens = model.tokenizer("<think>a  b</think><tool>1+1</tool> é<|im_end|><|endoftext|>").input_ids
        assert model.decode(tokens) == "<think>a  b</think><tool>1+1</tool> é"
        assert model.decode(torch.tensor(tokens)) == model.decode(tokens)


class TestSettings:
    def test_ends_are_those_of_generation_settings_and_tokenizer(self, directory, tmp_path):
        model = CausalLM(directory)
        end, pad = model.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
        assert model.eos_ids == (end, pad) and model.pad_id == pad
        one = edited_copy(directory, tmp_path / "one", "generation_config.json", eos_token_id=pad)
        assert CausalLM(one).eos_ids == (pad, end)
        shutil.copytree(directory, tmp_path / "none")
        (tmp_path / "none/generation_config.json").unlink()
        assert CausalLM(tmp_path / "none").eos_ids == (end,)

    def test_sizes(self, model):
        network = model.network()
        assert model.vocab_size == model.head(network).shape[0] == 268 and model.max_context == 1024
        assert model.head(network).data_ptr() == network.model.embed_tokens.weight.data_ptr(), "tied"
        assert (model.position_axes, model.input_spaces) == (1, {})
        assert not network.training and {p.dtype for p in network.parameters()} == {torch.float32}

    def test_every_network_is_a_fresh_one(self, model):
        one, other = model.network(), model.network()
        assert one.model.norm.weight.data_ptr() != other.model.norm.weight.data_ptr()

    def test_a_family_by_name(self):
        assert LANGUAGE_MODELS.get("causal_lm") is CausalLM

    def test_chats_need_a_template(self, directory, tmp_path):
        shutil.copytree(directory, tmp_path / "bare")
        (tmp_path / "bare/chat_template.jinja").unlink()
        with pytest.raises(ConfigError, match=r"`chat` must be False .* try `chat=False`"):
            CausalLM(tmp_path / "bare")
        assert CausalLM(tmp_path / "bare", chat=False).encode(Prompt("x")).tokens.shape == (1,)
        with pytest.raises(ConfigError, match="`thinking` must be None"):
            CausalLM(tmp_path / "bare", chat=False, thinking=False)

    @pytest.mark.parametrize("cap", ["final_logit_softcapping", "output_logit_soft_cap"])
    def test_soft_caps_on_logits_are_refused(self, directory, tmp_path, cap):
        with pytest.raises(ConfigError, match=rf"`{cap}` 30\.0"):
            CausalLM(edited_copy(directory, tmp_path / "bent", "config.json", **{cap: 30.0}))

    def test_a_scale_that_the_network_knows_nothing_of_is_refused(self, directory, tmp_path):
        """Qwen3 has no such setting; what it might do there is found out, not believed."""
        bent = CausalLM(edited_copy(directory, tmp_path / "bent", "config.json", logit_scale=0.5))
        with pytest.raises(ConfigError, match=r"Qwen3ForCausalLM .* nats a token"):
            bent.network()

    @pytest.mark.parametrize("option", [{"dtype": "float31"}, {"dtype": "int64"}])
    def test_settings_out_of_range_are_named(self, directory, option):
        with pytest.raises(ConfigError, match=f"`{next(iter(option))}`"):
            CausalLM(directory, **option)


class TestExports:
    @pytest.fixture
    def adapted(self, model):
        """A network with adapters that matter, as the policy attaches them."""
        from peft import LoraConfig, inject_adapter_in_model

        network = model.network().requires_grad_(False)
        inject_adapter_in_model(
            LoraConfig(r=4, lora_alpha=8, target_modules=list(model.lora_targets)), network
        )
        generator = torch.Generator().manual_seed(0)
        for name, weight in network.named_parameters():
            if "lora_" in name:
                weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
        return network

    def test_every_target_of_every_layer_is_adapted(self, model, adapted):
        names = {name.rpartition(".lora_A")[0] for name, _ in adapted.named_parameters() if "lora_A" in name}
        assert len(names) == 3 * len(model.lora_targets) == 21

    def test_peft_loads_the_adapters(self, model, adapted, tmp_path):
        from peft import PeftConfig, PeftModel

        tokens = model.encode(Prompt("12+34=?")).tokens[None]
        model.save_adapters(adapted, str(tmp_path))
        config = PeftConfig.from_pretrained(str(tmp_path))
        assert config.base_model_name_or_path == model.pretrained and config.task_type == "CAUSAL_LM"
        plain = AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path)
        base = logits_of(plain, tokens)
        loaded = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
        expected = logits_of(adapted, tokens)
        assert (expected - base).abs().max() > 0.1, "the adapters must matter"
        assert (logits_of(loaded, tokens) - expected).abs().max() <= 1e-5
        assert adapted.peft_config["default"].inference_mode is False, "what is trained stays as it is"

    def test_transformers_loads_merged_weights(self, model, adapted, tmp_path):
        tokens = model.encode(Prompt("12+34=?")).tokens[None]
        before = {name: weight.clone() for name, weight in adapted.state_dict().items()}
        model.save_weights(adapted, str(tmp_path))
        assert all(torch.equal(weight, before[name]) for name, weight in adapted.state_dict().items())
        loaded = AutoModelForCausalLM.from_pretrained(str(tmp_path))
        assert (logits_of(loaded, tokens) - logits_of(adapted, tokens)).abs().max() <= 1e-4
        again = CausalLM(tmp_path)
        assert torch.equal(again.encode(Prompt("12+34=?")).tokens, tokens[0])
        assert again.eos_ids == model.eos_ids
        assert not any("lora" in name for name in loaded.state_dict())

    def test_weights_without_adapters(self, model, tmp_path):
        network = model.network()
        with torch.no_grad():
            network.model.norm.weight.mul_(2)
        model.save_weights(network, str(tmp_path))
        loaded = CausalLM(tmp_path).network().state_dict()
        assert all(torch.equal(weight, loaded[name]) for name, weight in network.state_dict().items())
        with pytest.raises(ConfigError, match="no adapters"):
            model.save_adapters(network, str(tmp_path))


class TestMissingModels:
    REMEDY = r"Try a local directory.*`unirl/TinyQwen3-Math-v0`, which needs no download"

    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch):
        """The hub answers at once that it is not there, instead of after five tries."""
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    @pytest.mark.parametrize("name", ["nobody/no-such-model-at-all", "no-such-folder/model/"])
    def test_the_error_names_id_cause_and_alternative(self, name):
        with pytest.raises(ModelNotFound, match=rf"got '{name}': .+{self.REMEDY}") as caught:
            CausalLM(name)
        assert isinstance(caught.value, OSError) and caught.value.__cause__ is not None

    def test_missing_and_corrupt_files(self, directory, tmp_path):
        with pytest.raises(ModelNotFound, match=self.REMEDY):
            CausalLM(tmp_path)
        shutil.copytree(directory, tmp_path / "torn")
        weights = tmp_path / "torn/model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(ModelNotFound, match=self.REMEDY):
            CausalLM(tmp_path / "torn").network()
        weights.unlink()
        with pytest.raises(ModelNotFound, match=self.REMEDY):
            CausalLM(tmp_path / "torn").network()
        (tmp_path / "torn/config.json").write_text("{")
        with pytest.raises(ModelNotFound, match=self.REMEDY):
            CausalLM(tmp_path / "torn")

    def test_a_model_of_another_kind(self, tmp_path):
        from transformers import T5Config

        T5Config().save_pretrained(tmp_path)
        with pytest.raises(ModelNotFound, match=f"T5Config is an encoder and a decoder.*{self.REMEDY}"):
            CausalLM(tmp_path)
