"""A language model learns to call a calculator: several turns in one episode, GRPO in plain torch, no Ray.

The environment answers a `<tool>...</tool>` with the result, as tokens that are context and not action, and
the model goes on from there. Asked "calc 68+27", the embedded Qwen3 calls the tool about half of the time and
is lost without it.

    python examples/07_calculator_tool.py      # about a minute
"""

import gymnasium as gym
import torch

import unirl_env.functional as F
from unirl_env.policies import Actor
from unirl_env.policies.packing import pack_continuations
from unirl_env.rollouts import Rollout, RolloutRequest


def make_env(num_envs):
    return gym.make_vec(
        "unirl_env:unirl/TinyQwen3-Math-v0",
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        array_backend="torch",
        autoreset_mode="disabled",
        prompts="sums_tool_train",
        tool="calculator",
        max_new_tokens=32,
        scorer="exact",
    )


def show(phase, language_model, count):
    """What the policy said is trained on; what the calculator said, in brackets, is not."""
    for action, mask in list(zip(phase.action, phase.mask, strict=True))[:count]:
        said = action[action >= 0]
        turns, start = [], 0
        for stop in range(1, len(said) + 1):
            if stop == len(said) or mask[stop] != mask[start]:
                text = " ".join(language_model.decode(said[start:stop].tolist()).split())
                turns.append(text if mask[start] else f"[{text}]")
                start = stop
        print("   ", " ".join(turn for turn in turns if turn))


def main(iterations=25, num_prompts=16, group_size=8, lr=3e-4, clip=0.2, seed=0):
    world = make_env(1).unwrapped
    actor = Actor(world.language_model)
    rollout = Rollout(make_env, actor)
    optimizer = torch.optim.AdamW(actor.parameters(), lr=lr, weight_decay=0.0)
    curve = []
    for iteration in range(iterations):
        batch = rollout.collect(
            RolloutRequest(
                world.prompts.take(iteration * num_prompts, num_prompts, seed=seed),
                group_size=group_size,
                seed=F.derive_seed(seed, iteration),
            )
        )
        phase, advantages = batch.phases["text"], F.group_advantages(batch.rewards, batch.group)
        packed = pack_continuations(phase, torch.arange(len(batch)))
        new = actor.score(packed.observation, packed.action)
        old = phase.log_prob[packed.episode, packed.step]
        loss, _ = F.grpo_loss(new.log_prob, old, advantages[packed.episode], clip_low=clip)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(actor.parameters(), 1.0)
        optimizer.step()
        curve.append(float(batch.rewards.nanmean()))
        if iteration % 6 == 0 or iteration == iterations - 1:
            called = (~phase.mask & (phase.action >= 0)).any(1).float().mean()
            print(f"iteration {iteration:3}  right {curve[-1]:.2f}  called the calculator {called:.2f}")
            show(phase, world.language_model, 2)
    rollout.close()
    return curve


if __name__ == "__main__":
    main()
