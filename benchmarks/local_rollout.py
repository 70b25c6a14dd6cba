"""Generation against transformers' own: same model, prompts, lengths and sampling, in one run.

Prints the ratio of `generate(do_sample=True)` to `LocalEngine.generate`: above 1, the engine is faster, and
it gives log-probabilities besides. Both sample from the untruncated distribution at temperature 1. `fixed`
ignores the end of a text, so that both write `--tokens` tokens in every row; `natural` lets texts end, with
the end-of-text token made likely enough that they do so at about a third of that length.

    python benchmarks/local_rollout.py [--repeats 5] [--prompts 32] [--group 16] [--tokens 64]
"""

from __future__ import annotations

import argparse
import copy
import tempfile

import torch
from timing import interleaved, report

import unirl_env.functional as F
from pretraining.qwen3_build import build_tiny_qwen3
from unirl_env.models.causal_lm import CausalLM
from unirl_env.policies.actor import Actor
from unirl_env.rollouts.engines import Request
from unirl_env.rollouts.engines.local import LocalEngine
from unirl_env.types import Prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("repeats", 5), ("prompts", 32), ("group", 16), ("tokens", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as directory:
        # Random weights end no text by themselves, and the lengths below are set, not learned.
        model = CausalLM(str(build_tiny_qwen3(directory)))
        actor = Actor(model)
    network = actor.network
    network.generation_config.update(eos_token_id=None, top_k=0, top_p=1.0)
    # What the peer would use, were it not for our packed scoring.
    peer = copy.deepcopy(network)
    peer.set_attn_implementation("sdpa")

    prompts = [
        Prompt(f"What is {11 * i} plus {7 * i}?" + " Think first." * (i % 4)) for i in range(args.prompts)
    ]
    contexts = [model.encode(prompt).tokens for prompt in prompts]
    width = max(len(context) for context in contexts)
    tokens = torch.full((len(contexts), width), model.pad_id)
    mask = torch.zeros_like(tokens)
    for row, context in enumerate(contexts):
        tokens[row, width - len(context) :] = context
        mask[row, width - len(context) :] = 1
    tokens, mask = (each.repeat_interleave(args.group, 0) for each in (tokens, mask))
    seeds = iter(range(10**6))
    ends = likely_ends(actor, tokens[:: args.group], mask[:: args.group], rate=3 / args.tokens)

    def requests() -> list[Request]:
        seed = next(seeds)
        return [
            Request(
                tokens=tuple(context.tolist()),
                prompt=prompt,
                seed=F.episode_seed(seed, prompt.id, sample),
                max_new_tokens=args.tokens,
            )
            for prompt, context in zip(prompts, contexts, strict=True)
            for sample in range(args.group)
        ]

    written = {}
    for name, eos_ids in (("fixed", ()), ("natural", ends)):
        engine = LocalEngine(actor, eos_ids=eos_ids)

        def ours(engine=engine):
            answers = engine.generate(requests())
            written["ours"] = sum(len(answer.tokens) for answer in answers)

        def theirs(eos_ids=eos_ids):
            made = peer.generate(
                tokens,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                max_new_tokens=args.tokens,
                eos_token_id=list(eos_ids) or None,
                pad_token_id=model.pad_id,
            )
            answer = made[:, width:]
            ended = torch.isin(answer, torch.tensor(list(eos_ids), dtype=torch.int64)).int()
            written["theirs"] = int((ended.cumsum(1) - ended == 0).sum())

        times = interleaved({"generate": theirs, "engine": ours}, args.repeats)
        report(
            f"local_rollout/{name}",
            {
                "rows": len(tokens),
                "prompt_tokens": width,
                "max_new_tokens": args.tokens,
                "tokens": written["ours"],
                "peer_tokens": written["theirs"],
                "generate_ms": 1e3 * times["generate"],
                "engine_ms": 1e3 * times["engine"],
                "tokens/s": written["ours"] / times["engine"],
                "generate/engine": times["generate"] / times["engine"],
            },
        )


@torch.no_grad()
def likely_ends(actor: Actor, tokens: torch.Tensor, mask: torch.Tensor, *, rate: float) -> tuple[int, ...]:
    """Tokens that together have about the probability `rate` after the prompts: they stand in for the end."""
    logits = actor.network(tokens, attention_mask=mask).logits[:, -1]
    order = logits.softmax(-1).mean(0).sort()
    count = int((order.values.cumsum(0) <= rate).sum())
    return tuple(order.indices[: max(1, count)].tolist())


if __name__ == "__main__":
    main()
