"""Two backbones as one model: each view takes its own network, and both are exported where they load."""

import pytest
import torch
from safetensors.torch import load_file

from unirl_env.errors import ConfigError, ContractError
from unirl_env.models.composed import Composed
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.types import Prompt

TEXT = "a red circle at the top left"


@pytest.fixture(scope="module")
def composed():
    return Composed(writer={"language_model": "tiny_qwen3"}, painter={"denoiser": "tiny_sd3"})


@pytest.fixture
def actor(composed):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Actor(composed, lora=LoRAConfig(rank=4))


def test_the_finished_text_is_what_the_denoiser_reads(composed):
    written = composed.context(Prompt("draw something", id="1", negative="grey"), TEXT)
    alone = composed.image.encode([Prompt(TEXT)])
    assert set(written) == set(composed.context_keys) == set(alone)
    for name, tensor in alone.items():
        assert torch.equal(written[name], tensor)
    itself = composed.context(Prompt(TEXT), None)
    assert all(torch.equal(itself[name], tensor) for name, tensor in alone.items())


def test_views_answer_like_the_models_alone(composed):
    from unirl_env.policies.actor import Actor

    both = Actor(composed)
    encoded = composed.text.encode(Prompt("3+4="))
    obs = {
        "tokens": encoded.tokens,
        "lengths": torch.tensor([len(encoded.tokens)]),
        "positions": torch.arange(len(encoded.tokens))[None],
        "source": torch.tensor([len(encoded.tokens) - 1]),
    }
    alone = Actor(composed.text)
    assert torch.equal(
        both.score(obs, torch.tensor([5]), phase="text").log_prob,
        alone.score(obs, torch.tensor([5])).log_prob,
    )
    latent = torch.randn(2, *composed.image.latent_shape, generator=torch.Generator().manual_seed(0))
    obs = {"latent": latent, "sigma": torch.tensor([0.9, 0.9]), "sigma_next": torch.tensor([0.7, 0.7])}
    obs |= composed.image.encode([Prompt(TEXT), Prompt("two blue squares")])
    painter = Actor(composed.image)
    assert torch.equal(both.velocity(obs, phase="image"), painter.velocity(obs))


@pytest.mark.parametrize("phase", ["text", "image"])
def test_a_frozen_phase_has_no_weights_to_train(composed, phase):
    with torch.random.fork_rng():
        actor = Actor(composed, lora=LoRAConfig(rank=2), train_phases=(phase,))
    names = actor.trainable_state()
    assert names and all(name.startswith(f"{phase}.") for name in names)


def test_the_reference_is_the_untrained_model_in_both_views(composed, actor):
    with torch.no_grad():
        for tensor in actor.trainable_state().values():
            tensor.add_(0.1)
    latent = torch.zeros(1, *composed.image.latent_shape)
    obs = {"latent": latent, "sigma": torch.tensor([0.9]), "sigma_next": torch.tensor([0.7])}
    obs |= composed.image.encode([Prompt(TEXT)])
    untrained = Actor(composed).velocity(obs, phase="image")
    with actor.reference():
        assert torch.equal(actor.velocity(obs, phase="image"), untrained)
    assert not torch.equal(actor.velocity(obs, phase="image"), untrained)


def test_adapters_of_both_are_written_where_their_libraries_load_them(composed, actor, tmp_path):
    actor.save_adapters(str(tmp_path))
    text = load_file(tmp_path / "text" / "adapter_model.safetensors")
    image = load_file(tmp_path / "image" / "pytorch_lora_weights.safetensors")
    assert all(name.startswith("base_model.model.model.layers") for name in text)
    assert all(name.startswith("transformer.") for name in image)
    assert len(text) + len(image) == len(actor.trainable_state())


def test_a_context_must_leave_the_names_of_observations_alone(composed):
    from unirl_env.models.composed import Composed

    class Confused(type(composed.image)):
        def encode(self, prompts, *, negative=False):
            return {**super().encode(prompts, negative=negative), "prompt_length": torch.ones(len(prompts))}

    painter = Confused(composed.image.pretrained)
    with pytest.raises(ContractError, match=r"Confused must have no entry.*prompt_length"):
        assert Composed(writer=composed.text, painter=painter).context_keys


def test_weights_of_both_load_in_their_libraries(composed, tmp_path):
    from diffusers import SD3Transformer2DModel
    from transformers import AutoModelForCausalLM

    Actor(composed).save_weights(str(tmp_path))
    AutoModelForCausalLM.from_pretrained(tmp_path / "text")
    SD3Transformer2DModel.from_pretrained(tmp_path / "image")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"writer": "tiny_qwen3"}, "`writer` must be a mapping with `language_model`"),
        ({"painter": {"language_model": "tiny_qwen3"}}, "`painter` must be a mapping with `denoiser`"),
        ({"painter": {"denoiser": "tiny_sd3", "colour": 3}}, "The options of `painter` do not fit"),
    ],
)
def test_a_wrong_description_is_refused(wrong, words):
    right = {"writer": {"language_model": "tiny_qwen3"}, "painter": {"denoiser": "tiny_sd3"}}
    with pytest.raises(ConfigError, match=words):
        Composed(**{**right, **wrong})


def test_a_phase_that_is_none_is_refused(composed):
    with pytest.raises(ConfigError, match="train_phases"):
        Actor(composed, train_phases=("sound",))
