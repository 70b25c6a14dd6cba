"""Folders of models that cannot be used, and chats that a template refuses: one error of ours."""

import json
import shutil

import gymnasium as gym
import pytest
import torch
from safetensors.torch import load_file, save_file

from unirl_env.errors import ModelNotFound, PromptError, UnirlError
from unirl_env.models.causal_lm import CausalLM
from unirl_env.models.sd3 import SD3Denoiser
from unirl_env.models.tiny import tiny_path
from unirl_env.types import Prompt


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def qwen(tmp_path):
    return shutil.copytree(tiny_path("qwen3"), tmp_path / "qwen")


@pytest.fixture
def sd3(tmp_path):
    return shutil.copytree(tiny_path("sd3"), tmp_path / "sd3")


@pytest.mark.parametrize(
    "template, words",
    [
        ("{{ raise_exception('only two turns') }}", "only two turns"),
        ("{% for m in messages %}{{ m.content }}", "endfor"),
        ("{{ 1 / 0 }}", "zero"),
        ("{{ nobody(messages) }}", "nobody"),
    ],
)
def test_a_template_that_refuses_a_chat_is_named_with_its_words(template, words, qwen):
    (qwen / "chat_template.jinja").write_text(template)
    with pytest.raises(UnirlError) as caught:
        CausalLM(str(qwen)).encode(Prompt("2 + 3 ="))
    assert words in str(caught.value) and str(qwen) in str(caught.value)


def test_a_good_template_beside_them_reads_the_chat(qwen):
    assert len(CausalLM(str(qwen)).encode(Prompt("2 + 3 =")).tokens) > 0


def test_a_template_that_refuses_one_prompt_names_that_prompt(qwen):
    template = (qwen / "chat_template.jinja").read_text()
    refusal = "{% if 'forbidden' in messages[-1].content %}{{ raise_exception('no') }}{% endif %}"
    (qwen / "chat_template.jinja").write_text(refusal + template)
    model = CausalLM(str(qwen))
    model.encode(Prompt("allowed"))
    with pytest.raises(PromptError, match="forbidden"):
        model.encode(Prompt("forbidden words"))


def test_pickled_weights_are_refused_with_how_to_convert_them(qwen):
    weights = qwen / "model.safetensors"
    weights.unlink()
    torch.save({"x": torch.zeros(1)}, qwen / "pytorch_model.bin")
    with pytest.raises(ModelNotFound, match="safetensors"):
        CausalLM(str(qwen)).network()
    with pytest.raises(ModelNotFound, match=r"safetensors.*pytorch_model\.bin.*save_pretrained"):
        gym.make("unirl/Qwen3-Math-v0", pretrained=str(qwen), prompts=["2 + 3 ="])


def test_pickled_weights_of_a_pipeline_are_refused(sd3):
    for path in sd3.rglob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(ModelNotFound, match=r"safetensors.*\.bin"):
        gym.make("unirl/SD3-T2I-v0", pretrained=str(sd3), prompts=["a red circle"])
    with pytest.raises(ModelNotFound, match="safetensors"):
        SD3Denoiser(str(sd3)).network()


def without(file, name):
    """Take a tensor out of a file of weights."""
    tensors = load_file(file)
    tensors.pop(name)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_language_model_that_lacks_weights_is_not_filled_in_at_random(qwen):
    without(qwen / "model.safetensors", "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ModelNotFound, match=r"lack 1 tensors.*layers\.1\.mlp\.up_proj"):
        CausalLM(str(qwen)).network()


def test_a_tensor_of_another_shape(qwen):
    file = qwen / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelNotFound, match=r"model\.norm\.weight|shape|mismatch"):
        CausalLM(str(qwen)).network()


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_3"])
def test_a_pipeline_that_lacks_weights_is_not_filled_in_at_random(part, sd3):
    file = next((sd3 / part).glob("*.safetensors"))
    name = max(name for name in load_file(file) if name.endswith(".weight"))
    without(file, name)
    denoiser = SD3Denoiser(str(sd3))
    with pytest.raises(ModelNotFound, match=r"lack [12] tensors"):
        denoiser.network() if part == "transformer" else denoiser.encode([Prompt("a red circle")])


@pytest.mark.parametrize(
    "config",
    [
        "",
        "{",
        "[]",
        "{}",
        json.dumps({"model_type": "t5"}),
        json.dumps({"model_type": "nothing_known"}),
        json.dumps({"architectures": ["BertModel"], "model_type": "bert"}),
    ],
)
def test_another_architecture_or_a_damaged_configuration(config, qwen):
    (qwen / "config.json").write_text(config)
    with pytest.raises(UnirlError) as caught:
        CausalLM(str(qwen)).network()
    assert str(qwen) in str(caught.value)


def test_a_damaged_weights_file(qwen):
    weights = qwen / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelNotFound, match="qwen"):
        CausalLM(str(qwen)).network()
