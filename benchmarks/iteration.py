"""A training iteration against the model's bare forward and backward calls of the same shapes, in one run.

The bare run makes exactly the calls of the network (T forwards of B rows, then per minibatch one forward and
backward of its B/N x S rows and an optimizer step) and decodes B latents; the agent adds the environment, the
reward, the records, the loss, the advantages and RLlib around them.

    python benchmarks/iteration.py [--repeats 7] [--agent flow_dppo]
"""

from __future__ import annotations

import argparse
import logging

import ray
import torch
from timing import interleaved, report

from unirl_env.agents.by_name import default_config
from unirl_env.envs import PromptSource
from unirl_env.models.tiny import TinySD3Denoiser
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.types import Scores

STEPS, EXPLORED, PROMPTS, GROUP, MINIBATCHES = 8, (0, 1, 2, 3), 8, 12, 2


def brightness(samples, prompts):
    """A reward that no two pictures share, so that no episode may be skipped for having no advantage."""
    return Scores(torch.stack([sample.image.mean() for sample in samples]))


def bare_iteration():
    """The model's own calls, and nothing else."""
    denoiser = TinySD3Denoiser()
    actor = Actor(denoiser, lora=LoRAConfig())
    parameters = [p for p in actor.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)
    prompts = PromptSource.of("shapes_train").take(0, PROMPTS)
    batch = PROMPTS * GROUP
    context = {k: v.repeat_interleave(GROUP, 0) for k, v in denoiser.encode(prompts).items()}
    latent = torch.randn(batch, *denoiser.latent_shape)
    rows = batch // MINIBATCHES * len(EXPLORED)
    part = {k: v[: batch // MINIBATCHES].repeat_interleave(len(EXPLORED), 0) for k, v in context.items()}
    some = torch.randn(rows, *denoiser.latent_shape)

    def iterate():
        with torch.no_grad():
            for k in range(STEPS):
                denoiser.velocity(actor.network, latent, torch.full((batch,), 1 - k / STEPS), context)
            denoiser.decode(latent)
        for _ in range(MINIBATCHES):
            velocity = denoiser.velocity(actor.network, some, torch.full((rows,), 0.5), part)
            optimizer.zero_grad()
            velocity.square().mean().backward()
            optimizer.step()

    return iterate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--agent", default="flow_dppo", help="a name, or the path of a configuration")
    args = parser.parse_args()
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    config = (
        default_config(args.agent, "--agent")
        .environment("unirl/TinySD3-T2I-v0", env_config={"scorer": brightness, "num_steps": STEPS})
        .training(
            num_prompts=PROMPTS,
            group_size=GROUP,
            num_minibatches=MINIBATCHES,
            lr=1e-6,
            steps={"kind": "fraction", "fraction": (0.0, 0.5)},
            keep_samples=False,
        )
    )
    agent = config.build_algo()
    assert agent.config.trained_steps(0) == EXPLORED
    times = interleaved({"bare": bare_iteration(), "agent": agent.train}, args.repeats, warmup=2)
    parts = {
        name: agent.iteration_metrics[name] for name in ("seconds/rollout", "seconds/update", "seconds/sync")
    }
    report(
        f"iteration/{args.agent}",
        {
            "bare_ms": 1e3 * times["bare"],
            "agent_ms": 1e3 * times["agent"],
            "agent/bare": times["agent"] / times["bare"],
            **parts,
        },
    )
    agent.stop()


if __name__ == "__main__":
    main()
