"""The token policy in plain torch: it scores what a plain forward pass says, tempered and truncated."""

import pytest
import torch

import unirl_env.functional as F
from unirl_env.episode import Phase
from unirl_env.errors import ConfigError
from unirl_env.models.tiny import TinyQwen3
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.policies.packing import pack_continuations
from unirl_env.types import Prompt

SUMS = ["12+34=", "99+1=", "7+8="]


@pytest.fixture(scope="module")
def model():
    return TinyQwen3()


@pytest.fixture(scope="module")
def actor(model):
    torch.manual_seed(0)
    made = Actor(model, lora=LoRAConfig(rank=4))
    with torch.no_grad():
        for tensor in made.trainable_state().values():
            tensor.add_(0.05 * torch.randn(tensor.shape))
    return made


@pytest.fixture(scope="module")
def phase(model):
    """Three sums, two texts each, of unequal lengths."""
    encoded = [model.encode(Prompt(text)).tokens for text in SUMS]
    prompt = torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True)
    generator = torch.Generator().manual_seed(1)
    length = torch.tensor([1, 2, 3, 4, 5, 6])
    action = torch.randint(model.vocab_size, (6, 6), generator=generator)
    written = torch.arange(6) < length[:, None]
    return Phase(
        observation={},
        action=torch.where(written, action, -1),
        log_prob=torch.zeros(6, 6),
        mask=written,
        context={"prompt": prompt, "prompt_length": torch.tensor([len(tokens) for tokens in encoded])},
        context_row=torch.tensor([0, 0, 1, 1, 2, 2]),
        ragged=True,
    )


def plain(actor, phase, temperature=1.0):
    """Log-probs of every trained token by transformers' own forward pass, a text at a time."""
    found = []
    for row, action in zip(phase.context_row, phase.action, strict=True):
        prompt = phase.context["prompt"][row, : phase.context["prompt_length"][row]]
        written = action[action >= 0]
        logits = actor.network(torch.cat([prompt, written])[None]).logits[0, len(prompt) - 1 : -1].float()
        found.append((logits / temperature).log_softmax(-1).gather(1, written[:, None])[:, 0])
    return torch.cat(found)


def scored(actor, phase, index=range(6), branching=True):
    packed = pack_continuations(phase, torch.tensor(list(index)), branching=branching)
    return actor.score(packed.observation, packed.action), packed


@pytest.mark.parametrize("branching", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_scores_are_those_of_a_plain_forward_pass(model, actor, phase, temperature, branching):
    made = Actor(model, lora=LoRAConfig(rank=4), temperature=temperature)
    made.load_trainable_state(actor.trainable_state())
    step, _ = scored(made, phase, branching=branching)
    torch.testing.assert_close(step.log_prob, plain(actor, phase, temperature), rtol=0, atol=2e-6)


def test_a_text_scores_alike_in_any_company(actor, phase):
    whole, packed = scored(actor, phase)
    for episode in (5, 0, 3):
        alone, _ = scored(actor, phase, [episode])
        assert (alone.log_prob - whole.log_prob[packed.episode == episode]).abs().max() <= 2e-6


@pytest.mark.parametrize("branching", [True, False])
def test_gradients_are_those_of_a_plain_forward_pass(actor, phase, branching):
    def gradient(log_prob):
        actor.zero_grad()
        (log_prob * torch.linspace(-1, 1, len(log_prob))).sum().backward()
        return torch.cat([p.grad.flatten() for p in actor.network.parameters() if p.requires_grad])

    mine, theirs = (
        gradient(scored(actor, phase, branching=branching)[0].log_prob),
        gradient(plain(actor, phase)),
    )
    assert theirs.norm() > 1e-3
    assert (mine - theirs).norm() <= 2e-5 * theirs.norm()


def test_recomputing_activations_changes_nothing(model, actor, phase):
    frugal = Actor(model, lora=LoRAConfig(rank=4), gradient_checkpointing=True)
    frugal.load_trainable_state(actor.trainable_state())
    gradients = []
    for made in (actor, frugal):
        made.zero_grad()
        scored(made, phase)[0].log_prob.sum().backward()
        gradients.append([p.grad for p in made.network.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    assert not any(layer.training for layer in frugal.network.modules()), "a cache must work afterwards"


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5, "top_p": 0.8}])
def test_what_was_sampled_scores_the_same(model, actor, sampling):
    made = Actor(model, lora=LoRAConfig(rank=4), **sampling)
    made.load_trainable_state(actor.trainable_state())
    encoded = [model.encode(Prompt(text)).tokens for text in SUMS]
    obs = {
        "tokens": torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True),
        "length": torch.tensor([len(tokens) for tokens in encoded]),
        "prompt_length": torch.tensor([len(tokens) for tokens in encoded]),
    }
    drawn = made.act(obs, F.keyed_uniform([1, 2, 3], 0))
    phase = Phase(
        observation={},
        action=drawn.token[:, None],
        log_prob=drawn.log_prob[:, None],
        mask=torch.ones(3, 1, dtype=torch.bool),
        context={"prompt": obs["tokens"], "prompt_length": obs["length"]},
        context_row=torch.arange(3),
        ragged=True,
    )
    step, _ = scored(made, phase, range(3))
    assert (step.log_prob - drawn.log_prob).abs().max() <= 1e-6
    assert (drawn.log_prob < 0).any()
    greedy = made.act(obs)
    assert torch.equal(greedy.token, made.act(obs).token) and (greedy.log_prob == 0).all()


def test_the_untrained_model_is_one_context_away(actor, phase):
    with torch.no_grad():
        trained = scored(actor, phase)[0].log_prob
        with actor.reference():
            base = scored(actor, phase)[0].log_prob
        again = scored(actor, phase)[0].log_prob
    assert (trained - base).abs().max() > 1e-3 and torch.equal(trained, again)


def test_adapters_load_in_peft(model, actor, phase, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    actor.save_adapters(str(tmp_path))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model.pretrained), str(tmp_path))
    tokens = phase.context["prompt"][:1, : phase.context["prompt_length"][0]]
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, actor.network(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "setting", [{"temperature": 0.0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}]
)
def test_what_cannot_be_trained_on_is_refused(model, setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        Actor(model, **setting)
