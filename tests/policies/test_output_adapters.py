"""Adapters on the output layer and the embeddings: scored, trained and exported as peft has them."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3VLForConditionalGeneration

import unirl_env.functional as F
from pretraining.qwen3_build import tiny_tokenizer
from unirl_env.errors import ConfigError
from unirl_env.models.causal_lm import CausalLM
from unirl_env.models.tiny import TinyQwenVL, TinyUnified
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.rollouts.engines import Request
from unirl_env.rollouts.engines.local import LocalEngine
from unirl_env.types import Prompt

TARGETS = [("lm_head",), ("q_proj", "lm_head"), ("embed_tokens",), ("embed_tokens", "lm_head")]
TEXT = torch.arange(3, 15)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def path(request, tmp_path_factory, quiet_models):
    """An untrained Llama with embeddings of its own, or the output layer's."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, **heads, initializer_range=0.1, tie_word_embeddings=request.param)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def moved(actor):
    """The actor with adapters that matter."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in actor.network.named_parameters():
        if "lora_" in name:
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    return actor


def observed(text, axes=1):
    positions = torch.arange(len(text)).expand(axes, -1)
    lengths, source = torch.tensor([len(text)]), torch.arange(len(text) - 1)
    return {"tokens": text, "positions": positions, "lengths": lengths, "source": source}


def own(network, text):
    """Log-probabilities `[L - 1]` by the network's own forward pass, through peft's layers."""
    logits = network(input_ids=text[None]).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, text[1:, None])[:, 0]


def gradients(actor, log_prob):
    actor.network.zero_grad()
    (log_prob * torch.linspace(-1, 1, len(log_prob))).sum().backward()
    return {name: w.grad.clone() for name, w in actor.network.named_parameters() if w.requires_grad}


@pytest.mark.parametrize("targets", TARGETS, ids="+".join)
class TestEveryAdapter:
    @pytest.fixture
    def actor(self, path, targets):
        return moved(Actor(CausalLM(path, chat=False), lora=LoRAConfig(4, 8, targets)))

    def test_is_scored_and_trained_as_peft_has_it(self, actor):
        score = actor.score(observed(TEXT), TEXT[1:]).log_prob
        expected = own(actor.network, TEXT)
        assert (score - expected).abs().max() <= 1e-5
        mine, theirs = gradients(actor, score), gradients(actor, expected)
        for name, grad in theirs.items():
            assert grad.abs().max() > 0 and (mine[name] - grad).abs().max() <= 1e-4 * grad.abs().max(), name

    def test_is_left_out_of_the_reference(self, actor, path):
        plain = AutoModelForCausalLM.from_pretrained(path).eval()
        with actor.reference(), torch.no_grad():
            base = actor.score(observed(TEXT), TEXT[1:]).log_prob
        assert (base - own(plain, TEXT)).abs().max() <= 1e-5
        assert (base - own(actor.network, TEXT)).abs().max() > 0.01, "the adapters must matter"

    @torch.no_grad()
    def test_draws_what_is_scored(self, actor):
        request = Request(tuple(TEXT.tolist()), Prompt("p"), seed=3, max_new_tokens=5)
        (answer,) = LocalEngine(actor, eos_ids=(10**6,)).generate([request])
        whole = torch.cat([TEXT, torch.tensor(answer.tokens)])
        expected = own(actor.network, whole)[len(TEXT) - 1 :]
        assert (torch.tensor(answer.log_probs) - expected).abs().max() <= 1e-5
        row = {"tokens": TEXT[None], "length": torch.tensor([len(TEXT)])}
        row |= {"prompt_length": row["length"], "is_action": torch.zeros(1, len(TEXT), dtype=torch.bool)}
        assert actor.act(row, F.keyed_uniform(torch.tensor([3]), 0)).token.item() == answer.tokens[0]

    @torch.no_grad()
    def test_leaves_what_peft_and_transformers_load(self, actor, path, tmp_path):
        actor.save_adapters(str(tmp_path / "adapters"))
        actor.save_weights(str(tmp_path / "merged"))
        plain = AutoModelForCausalLM.from_pretrained(path)
        for loaded in (
            PeftModel.from_pretrained(plain, str(tmp_path / "adapters")),
            AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged")),
        ):
            assert (own(loaded.eval(), TEXT) - own(actor.network, TEXT)).abs().max() <= 1e-5
        tied = AutoModelForCausalLM.from_pretrained(path).config.tie_word_embeddings
        assert actor.network.config.tie_word_embeddings == tied, "what is trained stays as it is"


def test_a_target_that_names_no_layer_is_refused(path):
    for targets in [("q_proj", "lm_haed"), ("head",), ("all-linear",)]:
        with pytest.raises(ConfigError, match="`lora_targets` must"):
            Actor(CausalLM(path, chat=False), lora=LoRAConfig(4, 8, targets))


def test_a_model_that_sees_pictures(quiet_models):
    actor = moved(Actor(TinyQwenVL(), lora=LoRAConfig(4, 8, ("lm_head",))))
    assert isinstance(actor.network, Qwen3VLForConditionalGeneration)
    score, expected = actor.score(observed(TEXT, 3), TEXT[1:]).log_prob, own(actor.network, TEXT)
    assert (score - expected).abs().max() <= 1e-4
    mine, theirs = gradients(actor, score), gradients(actor, expected)
    assert all(
        (mine[name] - grad).abs().max() <= 1e-3 * grad.abs().max() > 0 for name, grad in theirs.items()
    )


def test_a_model_that_draws(quiet_models):
    actor = moved(Actor(TinyUnified(), lora=LoRAConfig(4, 8, ("lm_head",))))
    score = actor.score(observed(TEXT), TEXT[1:], phase="text").log_prob
    expected = own(actor.network, TEXT)
    assert (score - expected).abs().max() <= 1e-4
    mine = gradients(actor, score)
    assert mine and all(grad.abs().max() > 0 for grad in mine.values())
    frozen = Actor(TinyUnified(), lora=LoRAConfig(4, 8, ("q_proj", "lm_head")), train_phases=("image",))
    trained = [name for name, weight in frozen.network.named_parameters() if weight.requires_grad]
    assert trained and not any("lm_head" in name for name in trained)
