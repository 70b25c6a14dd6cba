"""The denoising MDP: the action is the next latent, and the reward waits for the finished picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from torch import Tensor

import unirl_env.functional as F
from unirl_env.envs.base import GenerativeVectorEnv
from unirl_env.envs.contexts import Contexts
from unirl_env.envs.roster import Roster
from unirl_env.errors import ConfigError, ContractError, ShapeError
from unirl_env.models.base import Denoiser
from unirl_env.types import Sample

__all__ = ["DenoiseVectorEnv"]

LATENT_BOUND = 16.0
"""Off-the-shelf agents refuse an unbounded action space; unit-scale latents stay far inside."""
INITIAL = -1
"""The step that keys the initial noise."""


class DenoiseVectorEnv(GenerativeVectorEnv):
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
        if num_steps < 1:
            raise ConfigError(f"`num_steps` must be at least 1, got {num_steps}.")
        self.denoiser = denoiser
        self.num_steps = int(num_steps)
        self.contexts = Contexts(
            denoiser, with_negative=with_negative, size=context_cache, device=self.device
        )
        self.sigmas = denoiser.sigmas(self.num_steps).float().cpu()
        """The noise schedule `[T+1]`, from 1 to 0."""
        self._sigmas = self.sigmas.to(self.device)
        self._defaults["stochastic_steps"] = self._checked_steps(
            range(self.num_steps - 1) if stochastic_steps is None else stochastic_steps
        )
        self._step = np.zeros(num_envs, dtype=np.int64)
        self._stochastic = np.zeros((num_envs, self.num_steps + 1), dtype=bool)
        self._latent: Tensor | None = None
        self._previous: Tensor | None = None
        self._context: dict[str, Tensor] = {}
        self._make_spaces()

    @property
    def stochastic_steps(self) -> tuple[int, ...]:
        """The steps of the present episodes that explore."""
        return self._held("stochastic_steps")

    def render(self) -> tuple[np.ndarray, ...] | None:
        """What each episode is heading for, as uint8 pictures `[H, W, 3]`.

        It is the decoded x_0 that the last transition points at, which for a deterministic step is the
        model's own prediction; before the first step, the decoded noise.
        """
        if self.render_mode is None or self._latent is None:
            return None
        pointed_at = self._latent
        if self._previous is not None:
            now = self._sigmas[self._step]
            before = self._sigmas[np.maximum(self._step - 1, 0)]
            share = torch.where(before > now, now / (before - now).clamp_min(1e-6), 0.0)
            share = share.view(-1, *[1] * (self._latent.ndim - 1))
            pointed_at = self._latent.float() + share * (self._latent - self._previous).float()
        pictures = self.denoiser.pictures(pointed_at)
        return tuple((picture * 255).round().byte().permute(1, 2, 0).cpu().numpy() for picture in pictures)

    # The mode's part of the contract.

    def _checked_held(self, held: Mapping[str, Any]) -> dict[str, Any]:
        steps = self._checked_steps(held["stochastic_steps"])
        return {**super()._checked_held(held), "stochastic_steps": steps}

    def _begin(self, rows: np.ndarray, roster: Roster, options: Mapping[str, Any]) -> None:
        shape = self.denoiser.latent_shape
        noise = F.keyed_noise(roster.start_seed[rows], INITIAL, shape, device=self.device)
        context = self.contexts.of([roster.prompts[row] for row in rows])
        self._step[rows] = 0
        self._stochastic[rows] = False
        self._stochastic[np.ix_(rows, options["stochastic_steps"])] = True
        if len(rows) == self.num_envs:
            self._latent, self._previous, self._context = noise, None, context
        else:
            at = torch.from_numpy(rows).to(self.device)
            self._latent = self._latent.index_copy(0, at, noise.to(self._latent.dtype))
            self._context = {k: self._context[k].index_copy(0, at, context[k]) for k in context}

    def _advance(self, actions: Any, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # A tensor is taken as it is; an array is copied, because off-the-shelf agents reuse theirs.
        action = actions.detach() if isinstance(actions, Tensor) else torch.from_numpy(np.array(actions))
        if action.shape != self._latent.shape:
            raise ShapeError(
                f"`actions` must be the next latents {list(self._latent.shape)}, got {list(action.shape)}."
            )
        if not action.is_floating_point():
            raise ShapeError(f"`actions` must be floating point, got {action.dtype}.")
        # float64 is numpy's habit; half precision is a policy's choice of what it stores.
        action = action.to(self.device, torch.float32 if action.dtype == torch.float64 else action.dtype)
        if not active.all():
            keep = torch.from_numpy(active).to(self.device).view(-1, *[1] * (action.ndim - 1))
            action = torch.where(keep, action, self._latent.to(action.dtype))
        self._previous, self._latent = self._latent, action
        self._step = self._step + active
        return self._step >= self.num_steps, np.zeros(self.num_envs, dtype=bool)

    def _observe(self) -> dict[str, Any]:
        step = np.minimum(self._step, self.num_steps)
        sigma_next = np.minimum(step + 1, self.num_steps)
        stochastic = self._stochastic[np.arange(self.num_envs), step]
        if self.array_backend == "torch":
            at = torch.from_numpy(np.stack([step, sigma_next])).to(self.device)
            noise_levels = self._sigmas[at]
            return {
                "latent": self._latent,
                "sigma": noise_levels[0],
                "sigma_next": noise_levels[1],
                "step": at[0],
                "stochastic": torch.from_numpy(stochastic).to(self.device),
                **self._context,
            }
        sigmas = self.sigmas.numpy()
        return {
            "latent": _copied(self._latent),
            "sigma": sigmas[step],
            "sigma_next": sigmas[sigma_next],
            "step": step.copy(),
            "stochastic": stochastic.astype(np.int8),
            **{name: _copied(tensor) for name, tensor in self._context.items()},
        }

    def _finish(self, rows: np.ndarray) -> list[Sample]:
        latent = self._latent if len(rows) == self.num_envs else self._latent[torch.from_numpy(rows)]
        # A sum is finite where all its terms are, and reads the latents once.
        finite = torch.isfinite(latent.flatten(1).sum(1, dtype=torch.float32)).cpu().numpy()
        if not finite.all():
            raise ContractError(
                f"`actions` must be finite, got NaN or infinity in episodes {rows[~finite].tolist()}; "
                "the policy has diverged: try a smaller learning rate, or float32."
            )
        return self.denoiser.decode(latent)

    def _model_state(self) -> dict[str, Any]:
        return {
            "latent": self._latent,
            "previous": self._previous,
            "context": dict(self._context),
            "step": self._step.copy(),
            "stochastic": self._stochastic.copy(),
        }

    def _select_model_state(self, state: dict[str, Any], rows: np.ndarray) -> None:
        steps, shape = state["stochastic"].shape[1] - 1, tuple(state["latent"].shape[1:])
        if (steps, shape) != (self.num_steps, self.denoiser.latent_shape):
            raise ContractError(
                f"`snapshot` must hold {self.num_steps} steps of latents {list(self.denoiser.latent_shape)}, "
                f"got {steps} steps of {list(shape)}; restore it in an environment like its own."
            )
        same = np.array_equal(rows, np.arange(self.num_envs))
        at = torch.from_numpy(rows).to(self.device)
        self._step, self._stochastic = state["step"][rows], state["stochastic"][rows]
        self._latent = state["latent"] if same else state["latent"][at]
        previous = state["previous"]
        self._previous = previous if same or previous is None else previous[at]
        self._context = {k: v if same else v[at] for k, v in state["context"].items()}

    def _checked_steps(self, steps: Sequence[int]) -> tuple[int, ...]:
        checked = tuple(sorted({int(step) for step in steps}))
        if checked and not 0 <= checked[0] <= checked[-1] < self.num_steps:
            raise ConfigError(f"`stochastic_steps` must lie in [0, {self.num_steps}), got {list(checked)}.")
        return checked

    def _make_spaces(self) -> None:
        shape = self.denoiser.latent_shape
        context = self.contexts.of([self.prompts[0]])
        self.single_action_space = spaces.Box(-LATENT_BOUND, LATENT_BOUND, shape, np.float32)
        self.single_observation_space = spaces.Dict(
            {
                "latent": spaces.Box(-np.inf, np.inf, shape, np.float32),
                "sigma": spaces.Box(0.0, 1.0, (), np.float32),
                "sigma_next": spaces.Box(0.0, 1.0, (), np.float32),
                "step": spaces.Box(0, self.num_steps, (), np.int64),
                "stochastic": spaces.Box(0, 1, (), np.int8),
                **{k: spaces.Box(-np.inf, np.inf, v.shape[1:], np.float32) for k, v in context.items()},
            }
        )
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)


def _copied(tensor: Tensor) -> np.ndarray:
    """An array of the caller's own; numpy knows no half precision."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True).numpy()
