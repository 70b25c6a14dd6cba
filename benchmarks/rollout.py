"""Rollouts against the model's own pipeline and against its bare calls: the same calls, turn by turn.

For each batch size, guidance, with and without adapters: the same embedded model, steps, batch and prompts
(whose encodings are given to all three, and kept by the environment), and the same number of rows through the
network, counted by a hook. `pipeline / ours` above 1: environment and policy are faster than
`StableDiffusion3Pipeline.__call__`, which has the very adapters of the policy loaded. `ours / bare`: what
they cost over the network's calls, an Euler step after each, and the decoder. Both are medians over rounds,
with the smallest and the largest.

    python benchmarks/rollout.py [--rounds 9] [--steps 8] [--batches 8 16 32 96] [--guidance 1 4.5]
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import pairwise, product

import torch
from timing import RowsSeen, ratio, report, rounds

from unirl_env.envs import PromptSource
from unirl_env.models.tiny import TinySD3Denoiser, tiny_path
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Scores
from unirl_env.worlds import make_vector_env

GROUP = 4


def no_score(samples, prompts):
    """A reward that costs nothing: the pipeline has none."""
    return Scores(torch.zeros(len(samples)))


def with_adapters(denoiser: TinySD3Denoiser) -> Actor:
    """A policy whose adapters do something: new ones add nothing."""
    actor = Actor(denoiser, lora=LoRAConfig())
    generator = torch.Generator().manual_seed(0)
    for name, parameter in actor.network.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0.0, 0.02, generator=generator)
    return actor


def compared(steps: int, batch: int, guidance: float, adapters: bool, repeats: int) -> dict[str, object]:
    """One row of the table."""
    from diffusers import StableDiffusion3Pipeline

    denoiser = TinySD3Denoiser()
    actor = with_adapters(denoiser) if adapters else Actor(denoiser)
    for head in actor.heads.values():
        head.guidance = guidance
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_path("sd3"))
    pipeline.set_progress_bar_config(disable=True)
    if adapters:
        with tempfile.TemporaryDirectory() as folder:
            actor.save_adapters(folder)
            pipeline.load_lora_weights(folder)
    prompts = PromptSource.of("shapes_train").take(0, batch // GROUP)
    everyone = [prompt for prompt in prompts for _ in range(GROUP)]
    texts, blanks = denoiser.encode(everyone), denoiser.encode(everyone, negative=True)
    seen = RowsSeen()
    for network in (actor.network, pipeline.transformer):
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
            prompt_embeds=texts["prompt_embeds"],
            pooled_prompt_embeds=texts["pooled_prompt_embeds"],
            negative_prompt_embeds=blanks["prompt_embeds"],
            negative_pooled_prompt_embeds=blanks["pooled_prompt_embeds"],
            num_inference_steps=steps,
            guidance_scale=guidance,
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
            velocity = denoiser.velocity(actor.network, rows, torch.full((len(rows),), now), context)
            if guidance != 1:
                without, with_prompt = velocity.chunk(2)
                velocity = without + guidance * (with_prompt - without)
            latent = latent + (after - now) * velocity
        vae = denoiser._frozen.vae
        vae.decode(latent / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)

    def bare_merged():
        with actor.merged():
            bare()

    calls = {"pipeline": by_pipeline, "ours": ours, "bare": bare_merged}
    rows = {name: seen.of(call) for name, call in calls.items()}
    assert len(set(rows.values())) == 1, f"Not the same work: {rows}"
    times = rounds(calls, repeats)
    return {
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
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32, 96])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 4.5])
    parser.add_argument("--adapters", type=int, nargs="+", default=[0, 1], help="0 without, 1 with")
    args = parser.parse_args()
    for adapters, guidance, batch in product(args.adapters, args.guidance, args.batches):
        report("rollout", compared(args.steps, batch, guidance, bool(adapters), args.rounds))


if __name__ == "__main__":
    main()
