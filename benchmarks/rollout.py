"""Rollouts against the model's own pipeline: same model, prompts, steps, batch and guidance, in one run.

Prints the ratio of `StableDiffusion3Pipeline.__call__` to `Rollout.collect`: above 1, the environment
and the policy are faster. The environment encodes each distinct prompt once and keeps it, as in training.

    python benchmarks/rollout.py [--repeats 7] [--steps 8] [--prompts 8] [--group 12]
"""

from __future__ import annotations

import argparse

import torch
from timing import interleaved, report

from unirl_env.envs import PromptSource
from unirl_env.models.tiny import TinySD3Denoiser
from unirl_env.policies.actor import Actor
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Scores
from unirl_env.worlds import make_vector_env


def no_score(samples, prompts):
    """A reward that costs nothing: the pipeline has none."""
    return Scores(torch.zeros(len(samples)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("repeats", 7), ("steps", 8), ("prompts", 8), ("group", 12)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()

    from diffusers import StableDiffusion3Pipeline

    from unirl_env.models.tiny import tiny_path

    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_path("sd3"))
    pipeline.set_progress_bar_config(disable=True)
    prompts = PromptSource.of("shapes_train").take(0, args.prompts)
    texts = [prompt.text for prompt in prompts for _ in range(args.group)]
    denoiser = TinySD3Denoiser()

    def make_env(num_envs, num_steps=None):
        return make_vector_env(
            num_envs,
            denoiser=denoiser,
            prompts="shapes_train",
            scorer=no_score,
            num_steps=num_steps or args.steps,
            array_backend="torch",
            autoreset_mode="disabled",
        )

    rollout = Rollout(make_env, Actor(denoiser))
    seeds = iter(range(10**6))

    def by_pipeline():
        pipeline(
            texts,
            num_inference_steps=args.steps,
            guidance_scale=1.0,
            output_type="pt",
            max_sequence_length=10,
        )

    def deterministic():
        rollout.collect(RolloutRequest(prompts, seed=next(seeds), group_size=args.group, stochastic_steps=[]))

    def exploring():
        half = range(args.steps // 2)
        rollout.collect(
            RolloutRequest(
                prompts, seed=next(seeds), group_size=args.group, stochastic_steps=half, keep_mean=True
            )
        )

    times = interleaved({"pipeline": by_pipeline, "ode": deterministic, "sde": exploring}, args.repeats)
    report(
        "rollout",
        {
            "episodes": len(texts),
            "steps": args.steps,
            "pipeline_ms": 1e3 * times["pipeline"],
            "ode_ms": 1e3 * times["ode"],
            "sde_ms": 1e3 * times["sde"],
            "pipeline/ode": times["pipeline"] / times["ode"],
            "pipeline/sde": times["pipeline"] / times["sde"],
        },
    )


if __name__ == "__main__":
    main()
