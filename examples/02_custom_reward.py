"""A reward of your own: a function or an object, alone or mixed with others, in Python or in a recipe.

A reward is any callable `(samples, prompts) -> Scores`. Left out: a reward behind a service, and rewards that
need a GPU.

    python examples/02_custom_reward.py
    python -m unirl_env.train reward.train=my_module:red         # the same in a recipe, by dotted path
"""

from pathlib import Path

import gymnasium as gym
import torch

from unirl_env.models import DENOISERS
from unirl_env.types import Scores

HERE = Path(
    __file__
).stem  # the dotted path of something in your package would be "my_package.rewards:Colour"


def red(samples, prompts):
    """How much redder than green and blue a picture is."""
    return Scores(torch.stack([s.image[0].mean() - s.image[1:].mean() for s in samples]))


class Colour:
    """An object can have options, name what it adds up, and call a sample unjudgeable by a NaN."""

    def __init__(self, channel="red", strength=1.0):
        self.channel, self.strength = ("red", "green", "blue").index(channel), strength

    def __call__(self, samples, prompts):
        """Score pictures `[3, H, W]`."""
        pictures = torch.stack([s.image for s in samples])
        bright = pictures.mean((1, 2, 3))
        pure = pictures[:, self.channel].mean((1, 2)) - bright
        value = torch.where(bright > 0.1, self.strength * pure, torch.nan)
        return Scores(value, parts={"pure": pure, "bright": bright})


SCORERS = {
    "a function": red,
    "an object": Colour("blue"),
    "a dotted path with options": {"name": f"{HERE}:Colour", "channel": "green", "strength": 2.0},
    "a mixture": {
        "name": "weighted_sum",
        "parts": {"shapes": 1.0, "red": {"name": f"{HERE}:red", "weight": 0.5}},
    },
}


def main(num_envs=4, num_steps=6):
    denoiser = DENOISERS.get("tiny_sd3")()
    network, found = denoiser.network(), {}
    for title, scorer in SCORERS.items():
        env = gym.make_vec(
            "unirl_env:unirl/TinySD3-T2I-v0",
            num_envs=num_envs,
            vectorization_mode="vector_entry_point",
            scorer=scorer,
            num_steps=num_steps,
            denoiser=denoiser,  # loaded once; left out, each environment loads its own
            array_backend="torch",
            autoreset_mode="disabled",
        )
        obs, _ = env.reset(seed=0)
        for _ in range(num_steps):
            with torch.no_grad():
                velocity = denoiser.velocity(network, obs["latent"], obs["sigma"], obs)
            step = (obs["sigma_next"] - obs["sigma"])[:, None, None, None]
            obs, reward, _, _, info = env.step(obs["latent"] + step * velocity)
        found[title] = env.scores
        print(f"{title:28}", [f"{p}: {r:.3f}" for p, r in zip(info["prompt"], reward, strict=True)])
        for name, part in env.scores.parts.items():
            print(f"{'':28} {name}: {[round(x, 3) for x in part.tolist()]}")
        env.close()
    return found


if __name__ == "__main__":
    main()
