"""A Markov decision process in functional form, as an environment."""

from __future__ import annotations

from typing import Any

import numpy as np

from unirl_env.arguments.names import ENVIRONMENTS
from unirl_env.arguments.values import whole
from unirl_env.envs.acting import Acting
from unirl_env.envs.activity import ActivityVectorEnv
from unirl_env.errors import ConfigError
from unirl_env.models.process import MDP

__all__ = ["MDPVectorEnv"]


class MDPVectorEnv(ActivityVectorEnv):
    """Episodes of an `MDP`, as a batch.

    Description:
        Prompts are the tasks: an episode begins where `MDP.initial` puts it for its prompt. Whatever is
        random on the way is keyed by (seed, prompt, sample, step), by other keys than a policy's actions.

    Action Space:
        The MDP's: `Discrete`, or a `Box` to whose bounds actions are clipped.

    Observation Space:
        The MDP's; a `Discrete` entry is a whole number.

    Rewards:
        0 at every step. `RewardWrapper` pays the score of the finished episode's `Sample` at the last one.
        What an MDP earns on its way it adds up in its state and leaves in the sample, for a scorer to read.

    Episode End:
        Terminates and truncates as the MDP says; truncates after `max_steps`.

    Arguments:
        mdp: The process.
        max_steps: The most steps of an episode; None takes the MDP's own.

        And those of `GenerativeVectorEnv`.

    Version History:
        v0: The first one.
    """

    laws = ("mdp",)
    arguments = ENVIRONMENTS["mdp"]

    def __init__(self, mdp: MDP, *, num_envs: int = 1, max_steps: int | None = None, **shared: Any):
        if shared.get("render_mode") is not None and type(mdp).pictures is MDP.pictures:
            raise ConfigError(
                f"`render_mode` must be None where nothing can be shown, got {shared['render_mode']!r}; try "
                f"a method `pictures` of {type(mdp).__name__}."
            )
        super().__init__(num_envs=num_envs, **shared)
        self.mdp = mdp
        most = mdp.max_steps if max_steps is None else max_steps
        self.max_steps = whole("max_steps", most, 1, hint="try 100")
        if type(mdp).pictures is MDP.pictures:
            self.metadata = {**self.metadata, "render_modes": []}
        self._acting = Acting(
            mdp,
            num_envs=self.num_envs,
            max_steps=self.max_steps,
            device=self.device,
            array_backend=self.array_backend,
        )
        self._play(self._acting)

    def render(self) -> tuple[np.ndarray, ...] | None:
        """What each episode looks like, as uint8 pictures `[H, W, 3]`, where the MDP shows any."""
        return None if self.render_mode is None or not self.started else self._acting.pictures()
