"""A trained network, what it would say, and how it scores: what every engine is compared with."""

import torch

from unirl_env.episode import Phase
from unirl_env.models.tiny import TinyQwen3
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.policies.packing import pack_continuations
from unirl_env.rollouts.engines import Request
from unirl_env.types import Prompt

MAX_LENGTH = 512
LENGTHS = (5, 40, 150, 300)
"""Two prompts are longer than a block of vLLM's prefix cache on a CPU, 128 tokens."""


def make_actor(rank=None, model=None, **settings):
    """The embedded Qwen3 in float32, or another model, with adapters of `rank` or all weights trained."""
    model = model or TinyQwen3()
    with torch.random.fork_rng(devices=[]):
        # Fresh adapters draw from the global generator.
        torch.manual_seed(0)
        return Actor(model, lora=None if rank is None else LoRAConfig(rank=rank), **settings)


def train(actor, seed, size=0.05):
    """Changes weights as training would, only faster."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in actor.trainable_state().values():
            weight += size * torch.randn(weight.shape, generator=generator)
    return actor


def requests(count=4, max_new_tokens=24, longest=300):
    """Random prompts of several lengths."""
    generator = torch.Generator().manual_seed(17)
    made = []
    for row in range(count):
        length = min(longest, LENGTHS[row % len(LENGTHS)])
        tokens = torch.randint(32, 127, (length,), generator=generator)
        prompt = Prompt(f"prompt {row}")
        made.append(Request(tuple(tokens.tolist()), prompt, seed=row, max_new_tokens=max_new_tokens))
    return made


def picture_requests(model, max_new_tokens=12):
    """Prompts with one picture, two, and none."""
    generator = torch.Generator().manual_seed(3)
    sizes = ([(32, 32)], [(32, 16), (24, 32)], [(64, 40)], [])
    made = []
    for row, shapes in enumerate(sizes):
        images = tuple(torch.rand(3, height, width, generator=generator) for height, width in shapes)
        prompt = Prompt(f"what is this {row} ?", images=images)
        read = model.encode(prompt)
        tokens = tuple(read.tokens.tolist())
        made.append(Request(tokens, prompt, read.inputs, seed=row, max_new_tokens=max_new_tokens))
    return made


@torch.no_grad()
def greedy(actor, asked):
    """What transformers' own greedy decoding says, one prompt at a time."""
    said = []
    for request in asked:
        context = torch.tensor([request.tokens])
        pictures = {name: value for name, value in request.inputs.items() if name != "positions"}
        if pictures:
            pictures["mm_token_type_ids"] = (context == actor.network.config.image_token_id).int()
        tokens = actor.network.generate(
            input_ids=context,
            attention_mask=torch.ones_like(context),
            do_sample=False,
            max_new_tokens=request.max_new_tokens,
            eos_token_id=list(actor.model.eos_ids),
            pad_token_id=actor.model.pad_id,
            **pictures,
        )
        said.append(tuple(tokens[0, context.shape[1] :].tolist()))
    return said


@torch.no_grad()
def scores(actor, request, tokens):
    """The log-probability of each of `tokens` under the policy's own scoring."""
    action = torch.tensor([tokens])
    phase = Phase(
        observation={},
        action=action,
        log_prob=torch.zeros(action.shape),
        mask=torch.ones(action.shape, dtype=torch.bool),
        context={
            "prompt": torch.tensor([request.tokens]),
            "prompt_length": torch.tensor([len(request.tokens)]),
            **{name: tensor[None] for name, tensor in request.inputs.items()},
        },
        context_row=torch.tensor([0]),
        ragged=True,
    )
    packed = pack_continuations(phase, torch.tensor([0]))
    return actor.score(packed.observation, packed.action).log_prob


def gap(actor, asked, answers):
    """The largest difference between an engine's log-probabilities and our own."""
    return max(
        float((scores(actor, request, answer.tokens) - torch.tensor(answer.log_probs)).abs().max())
        for request, answer in zip(asked, answers, strict=True)
    )
