"""What fails on one of two learners, an agent's loss and a model; processes of Ray can import it."""

import gymnasium as gym
from toy import POINTS, PointDenoiser

from unirl_env.agents import GRPOConfig, Loss


def failing(rows, new, context):
    """Fails where the fourth group's episodes are, which one learner of two has."""
    if bool((rows.group == 3).any()):
        raise MemoryError("a learner of two")
    return rows.mean(-rows.advantages * new.log_prob), {}


class FailingConfig(GRPOConfig):
    losses = {"latents": Loss(failing)}


class FailingDenoiser(PointDenoiser):
    """Cannot read the last of the four points, which one learner of two plays."""

    def encode(self, prompts, *, negative=False):
        if any(prompt.text == "0,-1" for prompt in prompts):
            raise MemoryError("a player of two")
        return super().encode(prompts, negative=negative)


gym.register(
    "failing/Points-v0",
    vector_entry_point="toy:make_points",
    kwargs={"denoiser": f"{__name__}:FailingDenoiser", "num_steps": 6, "prompts": POINTS},
)
