"""A language model learns to ask for pictures: it rewrites, a frozen generator draws, the picture is judged.

The user says "draw a scarlet box in the upper left corner"; the embedded generator knows only captions such
as "a red square at the top left". What the language model writes is drawn, and the picture is judged by what
the user asked for. DRPO in plain torch, no Ray.

    python examples/08_prompt_enhancement.py      # about a minute
"""

import torch

import unirl_env.functional as F
from unirl_env.policies import Actor
from unirl_env.policies.packing import pack_continuations
from unirl_env.rollouts import Rollout, RolloutRequest
from unirl_env.worlds import world_of


def main(iterations=25, num_prompts=8, group_size=8, lr=5e-4, epsilon=0.5, seed=0):
    # Language model, generator, prompts and reward are made once, for batches of any size.
    played = {"array_backend": "torch", "autoreset_mode": "disabled"}
    world = world_of("unirl/TinyPromptEnhancer-T2I-v0", played)
    actor = Actor(world.model)
    rollout = Rollout(world.env, actor)
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
        loss, _ = F.drpo_loss(new.log_prob, old, advantages[packed.episode], epsilon=epsilon)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(actor.parameters(), 1.0)
        optimizer.step()
        curve.append(float(batch.rewards.nanmean()))
        if iteration % 6 == 0 or iteration == iterations - 1:
            print(f"iteration {iteration:3}  reward {curve[-1]:.2f}")
            for i in (0, group_size):
                asked, made = batch.prompts[i].text, batch.samples[i].text
                print(f"    {asked} -> {made}  {float(batch.rewards[i]):.2f}")
    rollout.close()
    return curve


if __name__ == "__main__":
    main()
