"""A unified model writes a plan and then draws it: a hybrid episode by hand, token by token and step by step.

The observation's `phase` says whose turn it is: 0 while an episode writes, 1 while it draws. The network is
one, with a head for each phase: one over the next token, one over the next latent of what was planned.

    python examples/09_write_and_draw.py      # seconds; writes runs/plans.png
"""

from pathlib import Path

import gymnasium as gym
import torch
from PIL import Image

import unirl_env.functional as F
from unirl_env.policies import Actor

WRITES, DRAWS = 0, 1


def main(env_id="unirl_env:unirl/TinyUnified-T2I-v0", num_envs=4, num_steps=8, seed=0, folder="runs"):
    env = gym.make_vec(
        env_id,
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        array_backend="torch",
        autoreset_mode="disabled",
        num_steps=num_steps,
    )
    model = env.unwrapped.unified_model
    actor = Actor(model)
    obs, info = env.reset(seed=seed)
    seeds = info["episode_seed"].tolist()
    done = torch.zeros(num_envs, dtype=torch.bool)
    step = 0
    while (writes := (obs["phase"] == WRITES) & ~done).any():
        # One keyed number in [0, 1) per token; an episode whose picture has begun stands still meanwhile.
        chosen = actor.act(obs, F.keyed_uniform(seeds, step), phase="text").token
        obs, reward, ended, cut, info = env.step({"token": torch.where(writes, chosen, -1)})
        done, step = done | ended | cut, step + 1
    print(f"{step} steps of writing")

    context = {name: obs[name] for name in model.context_keys}
    with torch.no_grad():
        plans = actor.read(context, phase="image")  # once, for all steps of the picture
        while not done.all():
            k = int(obs["step"][~done][0])
            noise = F.keyed_noise(seeds, k, obs["latent"].shape[1:])
            drawn = actor.act(obs, noise, phase="image", reading=plans)
            print(f"step {k} of drawing: sigma {obs['sigma'][0]:.2f} -> {obs['sigma_next'][0]:.2f}")
            obs, reward, ended, cut, info = env.step({"latent": drawn.latent})
            done = done | ended | cut

    sample = info["sample"]
    for prompt, text, value in zip(info["prompt"], sample["text"], reward.tolist(), strict=True):
        print(f"{prompt} -> {text}: {value:.2f}")
    pictures = torch.cat(list(sample["image"]), dim=2)
    Path(folder).mkdir(parents=True, exist_ok=True)
    pixels = (pictures * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).resize((128 * num_envs, 128), Image.Resampling.NEAREST).save(
        Path(folder) / "plans.png"
    )
    env.close()
    return reward


if __name__ == "__main__":
    main()
