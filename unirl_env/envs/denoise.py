"""The denoising MDP: the action is the next latent, and the reward waits for the finished picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unirl_env.arguments.names import ENVIRONMENTS
from unirl_env.arguments.values import truth, whole
from unirl_env.envs.activity import ActivityVectorEnv
from unirl_env.envs.contexts import Contexts
from unirl_env.envs.denoising import Denoising
from unirl_env.models.denoiser import Denoiser

__all__ = ["DenoiseVectorEnv"]


class DenoiseVectorEnv(ActivityVectorEnv):
    """T denoising steps of a flow or diffusion model, as a batch of episodes.

    Description:
        An episode begins with pure noise and a prompt. Each action *is* the next latent, so the transition
        is deterministic: exploration belongs to the policy, which turns the velocity of its network into a
        Gaussian over the next latent (`unirl_env.functional.sde_step`). The environment holds what is
        frozen: text encoders, decoder, noise schedule, prompts.

    Action Space:
        `Box(-16, 16, latent_shape)`: the next latent x_{k+1}.

    Observation Space:
        | key | shape | meaning |
        |---|---|---|
        | `latent` | `latent_shape` | x_k |
        | `sigma` | `()` | noise level of x_k in [0, 1]; 1 is pure noise |
        | `sigma_next` | `()` | noise level that the action is to have |
        | `step` | `()` | k |
        | `stochastic` | `()` | whether this step explores (and is trained) |
        | context | the model's | the encoded prompt, e.g. `prompt_embeds`, and `negative_...` if asked for |

    Rewards:
        0 at every step. `RewardWrapper` pays the score of the decoded sample at the last one.

    Episode End:
        Terminates after `num_steps` steps; never truncates.

    Arguments:
        denoiser: The model family's adapter, with its frozen half.
        num_steps: T.
        stochastic_steps: The steps that explore; by default all but the last, whose noise nothing would
            remove any more.
        with_negative: Encode negative prompts as well, for classifier-free guidance.
        context_cache: How many encoded texts to keep.

        And those of `GenerativeVectorEnv`.

    Version History:
        v0: The first one.
    """

    laws = ("latents",)
    arguments = ENVIRONMENTS["denoiser"]

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        num_envs: int = 1,
        num_steps: int = 10,
        stochastic_steps: Sequence[int] | None = None,
        with_negative: bool = False,
        context_cache: int = 1024,
        **shared: Any,
    ):
        super().__init__(num_envs=num_envs, **shared)
        self.denoiser = denoiser
        self.num_steps = whole("num_steps", num_steps, 1, hint="try 10")
        self.contexts = Contexts(
            denoiser,
            with_negative=truth("with_negative", with_negative),
            size=whole("context_cache", context_cache, 0),
            device=self.device,
        )
        self._denoising = Denoising(
            denoiser,
            num_envs=self.num_envs,
            num_steps=self.num_steps,
            context=self.contexts.of,
            example=self.prompts[0],
            device=self.device,
            array_backend=self.array_backend,
        )
        self.sigmas = self._denoising.sigmas
        """The noise schedule `[T+1]`, from 1 to 0."""
        self._defaults["stochastic_steps"] = self._denoising.checked_steps(stochastic_steps)
        self._play(self._denoising)

    @property
    def stochastic_steps(self) -> tuple[int, ...]:
        """The steps of the present episodes that explore."""
        return self._held("stochastic_steps")

    def example_act(self, obs: dict[str, Any]) -> Any:
        """Pull the latents towards zero."""
        return obs["latent"] * 0.9

    def render(self) -> tuple[np.ndarray, ...] | None:
        """What each episode is heading for, as uint8 pictures `[H, W, 3]`; see `Denoising.pictures`."""
        return None if self.render_mode is None or not self.started else self._denoising.pictures()

    def _checked_held(self, held: Mapping[str, Any]) -> dict[str, Any]:
        steps = self._denoising.checked_steps(held["stochastic_steps"])
        return {**super()._checked_held(held), "stochastic_steps": steps}
