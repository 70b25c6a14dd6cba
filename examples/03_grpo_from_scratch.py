"""GRPO in forty lines of plain torch: sample groups, compare within them, push up what was better.

No Ray, no configuration, one process. Left out, and found in `agents/`: minibatches and micro-batches,
several rollout processes and learners, checkpoints, the check of the first update.

    python examples/03_grpo_from_scratch.py                                          # seconds
    python examples/03_grpo_from_scratch.py --env-id unirl/TinySD3-T2I-v0 --lora-rank 16 --lr 1e-3 --clip 1e-4
"""

import argparse

import gymnasium as gym
import torch

import unirl_env.functional as F
from unirl_env.envs import PromptSource
from unirl_env.policies import Actor, LoRAConfig
from unirl_env.rollouts import Rollout, RolloutRequest


def main(
    env_id="unirl/GaussianMixture-v0",
    iterations=30,
    num_prompts=1,
    group_size=256,
    lr=0.03,
    clip=0.1,
    reference_kl=0.5,
    eta=1.4142,
    lora_rank=None,
    seed=0,
):
    def make_env(num_envs, num_steps=None):
        options = {} if num_steps is None else {"num_steps": num_steps}
        return gym.make_vec(
            f"unirl_env:{env_id}",
            num_envs=num_envs,
            vectorization_mode="vector_entry_point",
            array_backend="torch",
            autoreset_mode="disabled",
            **options,
        )

    world = make_env(1).unwrapped
    prompts: PromptSource = world.prompts
    torch.manual_seed(seed)  # the adapters' first values; all other noise is keyed
    lora = None if lora_rank is None else LoRAConfig(rank=lora_rank, alpha=2 * lora_rank)
    actor = Actor(world.denoiser, lora=lora, eta=eta, keep_reference=lora is None)
    rollout = Rollout(make_env, actor)
    optimizer = torch.optim.AdamW([p for p in actor.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)

    curve = []
    for iteration in range(iterations):
        batch = rollout.collect(
            RolloutRequest(
                prompts.take(iteration * num_prompts, num_prompts, seed=seed),
                group_size=group_size,
                seed=F.derive_seed(seed, iteration),
            )
        )
        advantages = F.group_advantages(batch.rewards, batch.group)
        steps = batch.phases["image"]
        obs, action = steps.rows(torch.arange(len(batch)))  # episodes x steps as one long batch
        new = actor.score(obs, action)  # the code that sampled, now with gradient
        loss, _ = F.grpo_loss(
            new.log_prob.view_as(steps.log_prob), steps.log_prob, advantages, clip_low=clip, mask=steps.mask
        )
        with torch.no_grad(), actor.reference():
            before = actor.score(obs, action)
        kl = F.reference_kl(new.mean, before.mean, new.std)
        optimizer.zero_grad()
        (loss + reference_kl * kl).backward()
        torch.nn.utils.clip_grad_norm_(actor.parameters(), 1.0)
        optimizer.step()
        curve.append(float(batch.rewards.nanmean()))
        if iteration % 5 == 0 or iteration == iterations - 1:
            nats = kl.item() * action[0].numel() * steps.log_prob.shape[1]
            print(f"iteration {iteration:3}  reward {curve[-1]:6.3f}  KL to the start {nats:.3f} nats")
    return curve


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env-id", default="unirl/GaussianMixture-v0")
    for name, kind in {"iterations": int, "num-prompts": int, "group-size": int, "lora-rank": int}.items():
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS)
    for name in ("lr", "clip", "reference-kl", "eta"):
        parser.add_argument(f"--{name}", type=float, default=argparse.SUPPRESS)
    main(**vars(parser.parse_args()))
