"""Rollouts against the model's own pipeline and against its bare calls: the same calls, turn by turn.

For each batch size, guidance, with and without adapters: the same model, steps, batch and prompts (whose
encodings all three have already), and the same number of rows through the network, counted by a hook.
`pipeline / ours` above 1: environment and policy are faster than the pipeline's `__call__`, which has the
very adapters of the policy loaded. `ours / bare`: what they cost over the network's calls, an Euler step
after each, and the decoder. Both are medians over rounds, with the smallest and the largest.

    python benchmarks/rollout.py [--rounds 9] [--steps 8] [--batches 8 16 32 96] [--guidance 1 4.5]
    python benchmarks/rollout.py --family unirl/Flux2Klein-T2I-v0   # on that family's tiny checkpoint
    python benchmarks/rollout.py --family unirl/Flux2Klein-T2I-v0 --depth 6   # with 6 times as many blocks
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import pairwise, product

import torch
from subjects import Embedded, Family, read_once, remember_texts, subject, with_adapters
from timing import RowsSeen, ratio, report, rounds

from unirl_env.envs import PromptSource
from unirl_env.policies.actor import Actor
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.memory import keep_freed_memory
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Scores
from unirl_env.worlds import make_vector_env

GROUP = 4


def no_score(samples, prompts):
    """A reward that costs nothing: the pipeline has none."""
    return Scores(torch.zeros(len(samples)))


def compared(
    what: Embedded | Family, steps: int, batch: int, guidance: float, adapters: bool, repeats: int
) -> dict[str, object]:
    """One row of the table."""
    denoiser = what.denoiser()
    actor = with_adapters(denoiser) if adapters else Actor(denoiser)
    for head in actor.heads.values():
        head.guidance = guidance
    pipeline = what.pipeline()
    remember_texts(pipeline)
    if adapters:
        with tempfile.TemporaryDirectory() as folder:
            actor.save_adapters(folder)
            pipeline.load_lora_weights(folder)
    prompts = PromptSource.of("shapes_train").take(0, batch // GROUP)
    everyone = [prompt for prompt in prompts for _ in range(GROUP)]
    texts, blanks = denoiser.encode(everyone), denoiser.encode(everyone, negative=True)
    seen = RowsSeen()
    for network in (actor.network, getattr(pipeline, denoiser.trained)):
        seen.watch(network)

    def make_env(num_envs, num_steps=None):
        return make_vector_env(
            num_envs,
            denoiser=denoiser,
            prompts="shapes_train",
            scorer=no_score,
            num_steps=num_steps or steps,
            with_negative=guidance != 1,
            array_backend="torch",
            autoreset_mode="disabled",
        )

    rollout = Rollout(make_env, actor)
    seeds = iter(range(10**6))

    def ours():
        rollout.collect(RolloutRequest(prompts, seed=next(seeds), group_size=GROUP, stochastic_steps=[]))

    def by_pipeline():
        pipeline(
            **what.call(everyone, guidance),
            height=denoiser.height,
            width=denoiser.width,
            num_inference_steps=steps,
            output_type="pt",
        )

    sigmas = denoiser.sigmas(steps).tolist()

    @torch.no_grad()
    def bare():
        """The calls alone; with adapters, of a network that they are part of."""
        latent, context = torch.randn(batch, *denoiser.latent_shape), texts
        if guidance != 1:
            context = {name: torch.cat([blanks[name], texts[name]]) for name in texts}
        for now, after in pairwise(sigmas):
            rows = latent if guidance == 1 else torch.cat([latent, latent])
            level = torch.full((len(rows),), now)
            velocity = denoiser.velocity(actor.network, rows, level, context)
            if guidance != 1:
                velocity = denoiser.guided(*velocity.chunk(2), guidance, level[:batch])
            latent = latent + (after - now) * velocity
        denoiser._draw(denoiser.frozen.vae, latent)

    def bare_merged():
        with actor.merged():
            bare()

    calls = {"pipeline": by_pipeline, "ours": ours, "bare": bare_merged}
    rows = {name: seen.of(call) for name, call in calls.items()}
    rows["ours"] -= read_once(denoiser, len(prompts) * (1 if guidance == 1 else 2))
    assert len(set(rows.values())) == 1, f"Not the same work: {rows}"
    times = rounds(calls, repeats)
    return {
        "what": what.id,
        "batch": batch,
        "guidance": guidance,
        "adapters": adapters,
        "steps": steps,
        "rows": rows["ours"],
        "ours_ms": 1e3 * sorted(times["ours"])[repeats // 2],
        "pipeline/ours": ratio(times["pipeline"], times["ours"]),
        "pipeline/bare": ratio(times["pipeline"], times["bare"]),
        "ours/bare": ratio(times["ours"], times["bare"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", help="id of a family's environment; none: the embedded model")
    parser.add_argument("--depth", type=int, default=1, help="times the blocks of the family's network")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32, 96])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 4.5])
    parser.add_argument("--adapters", type=int, nargs="+", default=[0, 1], help="0 without, 1 with")
    args = parser.parse_args()
    keep_freed_memory()  # as every process of a run does; both sides have it
    what = subject(args.family, args.depth)
    for adapters, guidance, batch in product(args.adapters, args.guidance, args.batches):
        report("rollout", compared(what, args.steps, batch, guidance, bool(adapters), args.rounds))


if __name__ == "__main__":
    main()
