"""A trained network, what it would say, and how it scores: what every engine is compared with."""

import torch

from unirl_env.models.tiny.qwen3 import TinyQwen3
from unirl_env.policies.token_actor import TokenActor
from unirl_env.policies.trained import LoRAConfig
from unirl_env.rollouts.engines import Request
from unirl_env.types import Prompt

MAX_LENGTH = 512
LENGTHS = (5, 40, 150, 300)
"""Two prompts are longer than a block of vLLM's prefix cache on a CPU, 128 tokens."""


def make_actor(rank=None, **settings):
    """The embedded Qwen3 in float32, with adapters of `rank` or all weights trained."""
    model = TinyQwen3()
    return TokenActor(model, lora=None if rank is None else LoRAConfig(rank=rank), **settings)


def train(actor, seed, size=0.05):
    """Changes weights as training would, only faster."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in actor.trainable_state().values():
            weight += size * torch.randn(weight.shape, generator=generator)
    return actor


def requests(count=4, max_new_tokens=24):
    """Random prompts of several lengths."""
    generator = torch.Generator().manual_seed(17)
    made = []
    for row in range(count):
        tokens = torch.randint(32, 127, (LENGTHS[row % len(LENGTHS)],), generator=generator)
        prompt = Prompt(f"prompt {row}")
        made.append(Request(tuple(tokens.tolist()), prompt, seed=row, max_new_tokens=max_new_tokens))
    return made


@torch.no_grad()
def greedy(actor, asked):
    """What transformers' own greedy decoding says, one prompt at a time."""
    said = []
    for request in asked:
        context = torch.tensor([request.tokens])
        tokens = actor.network.generate(
            input_ids=context,
            attention_mask=torch.ones_like(context),
            do_sample=False,
            max_new_tokens=request.max_new_tokens,
            eos_token_id=list(actor.language_model.eos_ids),
            pad_token_id=actor.language_model.pad_id,
        )
        said.append(tuple(tokens[0, context.shape[1] :].tolist()))
    return said


@torch.no_grad()
def scores(actor, request, tokens):
    """The log-probability of each of `tokens` under the policy's own scoring."""
    row = torch.tensor([*request.tokens, *tokens[:-1]])
    first = len(request.tokens) - 1
    obs = {
        "tokens": row,
        "lengths": torch.tensor([len(row)]),
        "positions": torch.arange(len(row))[None],
        "source": torch.arange(first, first + len(tokens)),
    }
    return actor.score(obs, torch.tensor(tokens)).log_prob


def gap(actor, asked, answers):
    """The largest difference between an engine's log-probabilities and our own."""
    return max(
        float((scores(actor, request, answer.tokens) - torch.tensor(answer.log_probs)).abs().max())
        for request, answer in zip(asked, answers, strict=True)
    )
