"""A training iteration against the model's bare forward and backward calls of the same shapes, in one run.

The bare run makes exactly the calls of the network (T forwards of B rows, the adapters merged; then per
minibatch forwards and backwards of its B/N x S rows, as many at a time as the agent takes, and an optimizer
step), encodes the prompts that are new, and decodes B latents. The agent adds the environment, the reward,
the records, the loss, the advantages and RLlib around them. The rows of both are counted by a hook.

    python benchmarks/iteration.py [--rounds 9] [--agent flow_dppo] [--cases 2x8 8x12]
    python benchmarks/iteration.py --family unirl/Flux2Klein-T2I-v0   # on that family's tiny checkpoint
"""

from __future__ import annotations

import argparse
import logging

import ray
import torch
from subjects import Embedded, Family, read_once, subject
from timing import RowsSeen, ratio, report, rounds

from unirl_env.agents.by_name import default_config
from unirl_env.agents.kinds import ELEMENTS_AT_ONCE
from unirl_env.envs import PromptSource
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.types import Scores

STEPS, EXPLORED, MINIBATCHES = 8, (0, 1, 2, 3), 2


def brightness(samples, prompts):
    """A reward that no two pictures share, so that no episode may be skipped for having no advantage."""
    return Scores(torch.stack([sample.image.mean() for sample in samples]))


def bare_iteration(what: Embedded | Family, num_prompts: int, group: int):
    """The model's own calls, and nothing else; and the network that makes them."""
    denoiser = what.denoiser()
    actor = Actor(denoiser, lora=LoRAConfig())
    parameters = [p for p in actor.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    source, batch = PromptSource.of("shapes_train"), num_prompts * group
    some = torch.randn(batch, len(EXPLORED), *denoiser.latent_shape)
    at_once = max(1, ELEMENTS_AT_ONCE // some[0].numel())
    position = 0

    def iterate():
        nonlocal position
        encoded = denoiser.encode(source.take(position, num_prompts))
        position += num_prompts
        context = {name: each.repeat_interleave(group, 0) for name, each in encoded.items()}
        latent = torch.randn(batch, *denoiser.latent_shape)
        with torch.no_grad(), actor.merged():
            for k in range(STEPS):
                denoiser.velocity(actor.network, latent, torch.full((batch,), 1 - k / STEPS), context)
            denoiser.decode(latent)
        for minibatch in torch.arange(batch).chunk(MINIBATCHES):
            optimizer.zero_grad()
            for index in minibatch.split(at_once):
                rows = some[index].flatten(0, 1)
                part = {
                    name: each[index].repeat_interleave(len(EXPLORED), 0) for name, each in context.items()
                }
                velocity = denoiser.velocity(actor.network, rows, torch.full((len(rows),), 0.5), part)
                velocity.square().mean().backward()
            optimizer.step()

    return iterate, actor.network


def compared(
    what: Embedded | Family, agent: str, num_prompts: int, group: int, repeats: int
) -> dict[str, object]:
    """One row of the table."""
    world = {**what.options, "prompts": "shapes_train", "scorer": brightness, "num_steps": STEPS}
    config = (
        default_config(agent, "--agent")
        .environment(what.id, env_config=world)
        .training(
            num_prompts=num_prompts,
            group_size=group,
            num_minibatches=MINIBATCHES,
            lr=1e-6,
            steps={"kind": "fraction", "fraction": (0.0, 0.5)},
            keep_samples=False,
        )
    )
    algorithm = config.build_algo()
    assert algorithm.config.trained_steps(0) == EXPLORED
    bare, network = bare_iteration(what, num_prompts, group)
    seen = RowsSeen()
    seen.watch(network)
    seen.watch(algorithm.get_module().actor.network)
    algorithm.train()  # the first one checks itself, which takes a forward more
    calls = {"bare": bare, "agent": algorithm.train}
    rows = {name: seen.of(call) for name, call in calls.items()}
    rows["agent"] -= read_once(what.denoiser(), num_prompts)
    assert len(set(rows.values())) == 1, f"Not the same work: {rows}"
    times = rounds(calls, repeats, warmup=1)
    parts = {name: algorithm.iteration_metrics[f"seconds/{name}"] for name in ("rollout", "update", "sync")}
    algorithm.stop()
    return {
        "what": what.id,
        "agent": agent,
        "episodes": num_prompts * group,
        "rows": rows["agent"],
        "agent_ms": 1e3 * sorted(times["agent"])[repeats // 2],
        "agent/bare": ratio(times["agent"], times["bare"]),
        "of the last": parts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", help="id of a family's environment; none: the embedded model")
    parser.add_argument("--depth", type=int, default=1, help="times the blocks of the family's network")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--agent", default="flow_dppo", help="a name, or the path of a configuration")
    parser.add_argument("--cases", nargs="+", default=["2x8", "8x12"], help="prompts x group")
    args = parser.parse_args()
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    what = subject(args.family, args.depth)
    for case in args.cases:
        report("iteration", compared(what, args.agent, *map(int, case.split("x")), args.rounds))


if __name__ == "__main__":
    main()
