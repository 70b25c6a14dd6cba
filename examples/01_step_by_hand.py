"""An episode by hand: reset, denoise step by step, look at what every object holds.

The environment keeps what is frozen (prompts, text encoders, decoder, reward); the network is the policy and
lives out here. Nothing is trained. Left out: groups of workers, weight sync, everything in `rollouts/`.

    python examples/01_step_by_hand.py
"""

import argparse
from pathlib import Path

import gymnasium as gym
import torch

import unirl_env.functional as F


def main(env_id="unirl/TinySD3-T2I-v0", num_steps=8, folder=None, seed=0):
    env = gym.make_vec(
        f"unirl_env:{env_id}",  # the prefix imports the package, which registers the ids
        num_envs=4,
        vectorization_mode="vector_entry_point",
        group_size=2,  # 2 prompts x 2 samples
        num_steps=num_steps,
        array_backend="torch",
        autoreset_mode="disabled",
    )
    obs, info = env.reset(seed=seed)
    print("observation")
    for name, tensor in obs.items():
        print(f"  {name:24}{list(tensor.shape)}")
    print("prompts     ", info["prompt"].tolist())
    print("groups      ", info["group"].tolist())

    denoiser = env.unwrapped.denoiser
    network = denoiser.network()  # the half of the model that a policy trains
    context = {
        k: v for k, v in obs.items() if k not in ("latent", "sigma", "sigma_next", "step", "stochastic")
    }

    halfway = None
    for k in range(num_steps):
        if k == num_steps // 2:
            halfway = env.unwrapped.snapshot()
        with torch.no_grad():
            velocity = denoiser.velocity(network, obs["latent"], obs["sigma"], context)
        # A velocity becomes a Gaussian over the next latent. Noise is a function of (episode, step).
        step = F.sde_step(
            velocity,
            obs["latent"],
            obs["sigma"],
            obs["sigma_next"],
            noise=F.keyed_noise(info["episode_seed"], k, denoiser.latent_shape),
            stochastic=obs["stochastic"],
        )
        print(
            f"step {k}: sigma {obs['sigma'][0]:.2f} -> {obs['sigma_next'][0]:.2f}, std {step.std[0]:.3f}",
            end="",
        )
        print(f", log-probs {[round(x, 2) for x in step.log_prob.tolist()]}")
        obs, reward, terminated, _, info = env.step(step.latent)  # the action is the next latent

    print("terminated  ", terminated.tolist())
    print("rewards     ", [round(r, 3) for r in reward.tolist()])
    sample = info["sample"]  # plain data, with a mask `_image` of the episodes that have an `image`
    print("the samples ", {k: list(v.shape) for k, v in sample.items() if isinstance(v, torch.Tensor)})
    if folder is not None and "image" in sample:
        from torchvision.utils import save_image

        Path(folder).mkdir(parents=True, exist_ok=True)
        save_image(sample["image"], Path(folder) / "samples.png")

    # Back to the middle, and all four go on from where the first one stood: the root of a tree search.
    env.unwrapped.restore(halfway)
    obs, info = env.unwrapped.fork([0, 0, 0, 0])
    print(
        "forked at   ",
        obs["step"].tolist(),
        "with seeds of their own:",
        len(set(info["episode_seed"].tolist())),
    )
    env.close()
    return reward


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env-id", default="unirl/TinySD3-T2I-v0", help="or unirl/GaussianMixture-v0")
    parser.add_argument("--folder", default=None, help="write samples.png here")
    main(**vars(parser.parse_args()))
