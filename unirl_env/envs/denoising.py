"""Denoising: the action is the next latent of a picture or a clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

import unirl_env.functional as F
from unirl_env.arguments.indices import as_indices
from unirl_env.arguments.names import ENVIRONMENTS
from unirl_env.arguments.values import truth, whole
from unirl_env.envs.activity import Activity
from unirl_env.envs.encodings import AtRows, Contexts, context_spaces
from unirl_env.envs.groups import Groups
from unirl_env.envs.vector_env import GenerativeVectorEnv
from unirl_env.errors import ConfigError, ContractError, ShapeError
from unirl_env.functional.noise import INITIAL
from unirl_env.media.pixels import in_8_bits
from unirl_env.models.denoiser import NEGATIVE, Denoiser, in_context
from unirl_env.types import Prompt, Sample

LATENT_BOUND = 16.0
"""Off-the-shelf agents refuse an unbounded action space; unit-scale latents stay far inside."""
CLIP_MODES = ["rgb_array", "rgb_array_list"]
"""How clips are rendered."""
ContextOf = Callable[[Sequence[Prompt]], dict[str, Tensor]]


class NextLatents(NamedTuple):
    """Next latents, and whose.

    Attributes:
        latent: `[B, ...]`.
        active: `[B]` bool; the others stay where they are.
    """

    latent: Tensor
    active: np.ndarray


class Denoising(Activity):
    """B latents of a denoiser, step by step.

    Args:
        denoiser: Whose latents.
        num_envs: B.
        num_steps: T, of the whole schedule.
        levels: Which of its `T + 1` levels episodes visit; None visits all.
        context: From prompts to what is observed beside their latents, each tensor `[B, ...]`.
        example: A prompt, from whose context the spaces are read.
        device: Where the latents live.
        array_backend: `"numpy"` or `"torch"`.
    """

    latent: Tensor  # `[B, ...]`, from the first `begin` on

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        num_envs: int,
        num_steps: int,
        levels: Sequence[int] | None = None,
        context: ContextOf,
        example: Prompt,
        device: torch.device,
        array_backend: str,
    ):
        self.denoiser, self.num_envs = denoiser, num_envs
        self.context_of, self.device, self.array_backend = context, device, array_backend
        self.sigmas = denoiser.sigmas(num_steps).float().cpu()
        """The noise levels that an episode visits, as a rule from 1 to 0."""
        if levels is not None:
            self.sigmas = self.sigmas[checked_levels(levels, num_steps)]
        self.num_steps = num_steps = len(self.sigmas) - 1
        self._sigmas = self.sigmas.to(device)
        self._pairs = torch.stack([self._sigmas, torch.cat([self._sigmas[1:], self._sigmas[-1:]])])
        """Each noise level and the one after it, `[2, T+1]`."""
        self.previous: Tensor | None = None
        self.context: dict[str, Tensor] = {}
        self._step, self._rows = np.zeros(num_envs, dtype=np.int64), np.arange(num_envs)
        self._stochastic = np.zeros((num_envs, num_steps + 1), dtype=bool)
        self.action_space = spaces.Box(-LATENT_BOUND, LATENT_BOUND, denoiser.latent_shape, np.float32)
        self.observation_spaces = {
            "latent": spaces.Box(-np.inf, np.inf, denoiser.latent_shape, np.float32),
            "sigma": spaces.Box(0.0, 1.0, (), np.float32),
            "sigma_next": spaces.Box(0.0, 1.0, (), np.float32),
            "step": spaces.Box(0, num_steps, (), np.int64),
            "stochastic": spaces.Box(0, 1, (), np.int8),
            **context_spaces(context([example])),
        }

    def checked_steps(self, steps: Iterable[int] | None) -> tuple[int, ...]:
        """The steps that explore, in order; by default all but the last.

        Raises:
            ConfigError: If they are no whole numbers, or one is out of range.
        """
        if steps is None:
            return tuple(range(self.num_steps - 1))
        steps = sorted(steps) if isinstance(steps, set | frozenset) else steps
        places = as_indices("stochastic_steps", steps, self.num_steps, empty=True, error=ConfigError)
        return tuple(sorted(set(places.tolist())))

    def pictures(self) -> tuple[np.ndarray, ...]:
        """What each episode is heading for, as uint8 pictures `[H, W, 3]` or clips `[F, H, W, 3]`.

        It is the decoded latent at the last noise level that the last transition points at, which for a
        deterministic step is the model's own prediction; before the first step, the decoded noise.
        """
        pointed_at = self.latent
        if self.previous is not None:
            now = self._sigmas[self._step]
            before = self._sigmas[np.maximum(self._step - 1, 0)]
            left = now - self._sigmas[-1]
            share = torch.where(before > now, left / (before - now).clamp_min(1e-6), 0.0)
            share = share.view(-1, *[1] * (self.latent.ndim - 1))
            pointed_at = self.latent.float() + share * (self.latent - self.previous).float()
        shown = [in_8_bits(each) for each in in_context(self.denoiser.pictures, pointed_at, self._encoded())]
        return tuple(each.movedim(-3, -1).contiguous().numpy() for each in shown)

    def prepared(
        self, rows: np.ndarray, groups: Groups, options: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor], Sequence[int]]:
        """The initial latents, the context, and the steps that explore."""
        noise = F.keyed_noise(
            groups.start_seed[rows], INITIAL, self.denoiser.latent_shape, device=self.device
        )
        context = self.context_of([groups.prompts[row] for row in rows])
        return self.denoiser.start(noise, float(self.sigmas[0])), context, options["stochastic_steps"]

    def begin(self, rows: np.ndarray, prepared: tuple[Tensor, dict[str, Tensor], Sequence[int]]) -> None:
        """Start from the initial latents."""
        start, context, stochastic_steps = prepared
        self._step[rows] = 0
        self._stochastic[rows] = False
        self._stochastic[np.ix_(rows, np.array(stochastic_steps, dtype=np.int64))] = True
        if len(rows) == self.num_envs:
            self.latent, self.previous, self.context = start, None, context
        else:
            at = torch.from_numpy(rows).to(self.device)
            self.latent = self.latent.index_copy(0, at, start.to(self.latent.dtype))
            self.receive(rows, context)

    def receive(self, rows: np.ndarray, context: Mapping[str, Tensor]) -> None:
        """From now on the episodes at `rows` show this context, each tensor `[n, ...]`."""
        if len(rows) == self.num_envs:
            self.context = {**self.context, **context}
            return
        at = torch.from_numpy(rows).to(self.device)
        changed = {name: self.context[name].index_copy(0, at, value) for name, value in context.items()}
        self.context = {**self.context, **changed}

    def checked(self, actions: Any, active: np.ndarray, groups: Groups) -> NextLatents:
        """The next latents.

        Raises:
            ShapeError: If the actions have another shape or are no floating point numbers.
            ContractError: If a latent of an active episode is not finite.
        """
        action = _as_tensor(actions)
        if action.shape != self.latent.shape:
            raise ShapeError(
                f"`actions` must be the next latents {list(self.latent.shape)}, got {list(action.shape)}."
            )
        if not action.is_floating_point():
            raise ShapeError(f"`actions` must be floating point, got {action.dtype}.")
        # float64 is numpy's habit; half precision is a policy's choice of what it stores.
        action = action.to(self.device, torch.float32 if action.dtype == torch.float64 else action.dtype)
        _require_finite(action, active)
        return NextLatents(action, active)

    def advance(self, checked: NextLatents) -> None:
        """Go on to the next latents."""
        action, active = checked
        if np.count_nonzero(active) < len(active):
            keep = torch.from_numpy(active).to(self.device).view(-1, *[1] * (action.ndim - 1))
            # The others keep every bit, even where these come in half precision.
            wide = torch.promote_types(action.dtype, self.latent.dtype)
            action = torch.where(keep, action.to(wide), self.latent.to(wide))
        self.previous, self.latent = self.latent, action
        self._step = self._step + active

    def ended(self) -> tuple[np.ndarray, np.ndarray]:
        """Terminated after the last step; never truncated."""
        return self._step >= self.num_steps, np.zeros(self.num_envs, dtype=bool)

    def observe(self) -> dict[str, Any]:
        """The latent, its place in the schedule, and the context."""
        step = np.minimum(self._step, self.num_steps)
        stochastic = self._stochastic[self._rows, step]
        if self.array_backend == "torch":
            at = torch.from_numpy(step).to(self.device)
            sigma, sigma_next = self._pairs[:, at].unbind()
            return {
                "latent": self.latent,
                "sigma": sigma,
                "sigma_next": sigma_next,
                "step": at,
                "stochastic": torch.from_numpy(stochastic).to(self.device),
                **self.context,
            }
        sigmas = self.sigmas.numpy()
        return {
            "latent": _copied(self.latent),
            "sigma": sigmas[step],
            "sigma_next": sigmas[np.minimum(step + 1, self.num_steps)],
            "step": step.copy(),
            "stochastic": stochastic.astype(np.int8),
            **{name: _copied(tensor) for name, tensor in self.context.items()},
        }

    def finish(self, rows: np.ndarray) -> list[Sample]:
        """The decoded latents."""
        context = self._encoded()
        if len(rows) == self.num_envs:
            return in_context(self.denoiser.decode, self.latent, context)
        at = torch.from_numpy(rows).to(self.device)
        return in_context(self.denoiser.decode, self.latent[at], AtRows(context, at))

    def _encoded(self) -> dict[str, Tensor]:
        """The context of the prompts themselves, without that of negative ones."""
        return {name: each for name, each in self.context.items() if not name.startswith(NEGATIVE)}

    def state(self) -> dict[str, Any]:
        """Tensors are replaced, never written to."""
        return {
            "latent": self.latent,
            "previous": self.previous,
            "context": dict(self.context),
            "step": self._step.copy(),
            "stochastic": self._stochastic.copy(),
        }

    def facts(self) -> dict[str, Any]:
        """The model, and its noise schedule."""
        return {
            **self.denoiser.identity(),
            "steps": self.num_steps,
            "noise schedule": tuple(self.sigmas.tolist()),
        }

    def select(self, state: Mapping[str, Any], rows: np.ndarray) -> None:
        """Go on from the state's latents."""
        same = np.array_equal(rows, np.arange(self.num_envs))
        at = torch.from_numpy(rows).to(self.device)
        self._step, self._stochastic = state["step"][rows], state["stochastic"][rows]
        self.latent = state["latent"] if same else state["latent"][at]
        previous = state["previous"]
        self.previous = previous if same or previous is None else previous[at]
        self.context = {k: v if same else v[at] for k, v in state["context"].items()}


def checked_levels(levels: Sequence[int], num_steps: int) -> list[int]:
    """Levels of a schedule that an episode can visit, in order.

    Raises:
        ConfigError: If they do not rise from 0 to `num_steps`.
    """
    places = as_indices("levels", levels, num_steps + 1, empty=True, error=ConfigError).tolist()
    rises = all(a < b for a, b in pairwise(places))
    if not (places and places[0] == 0 and places[-1] == num_steps and rises):
        raise ConfigError(
            f"`levels` must rise from 0, pure noise, to `num_steps` = {num_steps}, the finished latent, got "
            f"{list(levels)}; try range({num_steps + 1}), and leave out what an episode is to skip."
        )
    return places


def _as_tensor(actions: Any) -> Tensor:
    """Actions as a tensor; an array is copied, because off-the-shelf agents reuse theirs."""
    if isinstance(actions, Tensor):
        return actions.detach()
    try:
        if isinstance(actions, np.ma.MaskedArray):
            raise TypeError("a masked array")  # numpy would drop its mask
        return torch.from_numpy(np.array(actions))
    except (TypeError, ValueError) as error:
        raise ShapeError(
            f"`actions` must be an array or a tensor of floating point numbers, got {error}; try float32."
        ) from error


def _require_finite(action: Tensor, active: np.ndarray) -> None:
    """Refuse NaN and infinity in the rows of `action` `[B, ...]` that count."""
    # A sum is finite where all its terms are and do not overflow, and is 60 times as fast on a CPU.
    if math.isfinite(float(action.sum(dtype=torch.float32))):
        return
    rows = action.reshape(len(action), -1)
    suspect = active & ~torch.isfinite(rows.sum(1, dtype=torch.float32)).cpu().numpy()
    if suspect.any():
        wrong = [row for row in np.flatnonzero(suspect).tolist() if not bool(rows[row].isfinite().all())]
        if wrong:
            raise ContractError(
                f"`actions` must be finite, got NaN or infinity in episodes {wrong}; the policy has "
                "diverged: try a smaller learning rate, or float32."
            )


def _copied(tensor: Tensor) -> np.ndarray:
    """An array of the caller's own; numpy knows no half precision."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True).numpy()


class DenoiseVectorEnv(GenerativeVectorEnv):
    """T denoising steps of a flow or diffusion model, as a batch of episodes.

    Description:
        An episode begins with noise and a prompt. Each action *is* the next latent, so the transition
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
        Terminates after `num_steps` steps, or the fewer that `levels` leaves; never truncates.

    Arguments:
        denoiser: The model family's adapter, with its frozen half.
        num_steps: T.
        levels: Which of the `T + 1` noise levels an episode visits, from 0 (pure noise) to T (the finished
            latent); None visits all. With fewer of them steps are larger, and steps are counted anew: the
            environment's own `num_steps` is theirs.
        stochastic_steps: The steps that explore; by default all but the last, whose noise nothing would
            remove any more.
        with_negative: Encode negative prompts as well, for classifier-free guidance.
        context_cache: How many encoded texts to keep.

        And those of `GenerativeVectorEnv`. Of a model of clips, `render_mode` may be `"rgb_array_list"`, too.

    Attributes:
        makes: What episodes end in, a field of `Sample`: `"image"` or `"video"`.
        fps: Frames that clips show in a second; None of pictures.

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
        levels: Sequence[int] | None = None,
        stochastic_steps: Sequence[int] | None = None,
        with_negative: bool = False,
        context_cache: int = 1024,
        **shared: Any,
    ):
        self.makes, self.fps = denoiser.makes, denoiser.fps
        if self.makes == "video":
            self.metadata = {**self.metadata, "render_modes": CLIP_MODES, "render_fps": self.fps}
        super().__init__(num_envs=num_envs, **shared)
        for prompt in self.prompts:
            denoiser.check_prompt(prompt)
        self.denoiser = denoiser
        self.contexts = Contexts(
            denoiser,
            with_negative=truth("with_negative", with_negative),
            size=whole("context_cache", context_cache, 0),
            device=self.device,
        )
        self._denoising = Denoising(
            denoiser,
            **self._shared,
            num_steps=whole("num_steps", num_steps, 1, hint="try 10"),
            levels=levels,
            context=self.contexts.of,
            example=self.prompts[0],
        )
        self.num_steps = self._denoising.num_steps
        self.sigmas = self._denoising.sigmas
        """The noise levels that an episode visits: the model's schedule, unless `levels` says less."""
        self._defaults["stochastic_steps"] = self._denoising.checked_steps(stochastic_steps)
        self._play(self._denoising)

    @property
    def stochastic_steps(self) -> tuple[int, ...]:
        """The steps of the present episodes that explore."""
        return self._held("stochastic_steps")

    def example_act(self, obs: dict[str, Any]) -> Any:
        """Pull the latents towards zero."""
        return obs["latent"] * 0.9

    def render(self) -> tuple[np.ndarray, ...] | tuple[list[np.ndarray], ...] | None:
        """What each episode is heading for, as uint8 pictures `[H, W, 3]`; see `Denoising.pictures`.

        Of a clip, the frame in its middle with `"rgb_array"`, and all of them with `"rgb_array_list"`.
        """
        if self.render_mode is None or not self.started:
            return None
        shown = self._denoising.pictures()
        if self.makes == "image":
            return shown
        if self.render_mode == "rgb_array_list":
            return tuple(list(clip) for clip in shown)
        return tuple(clip[len(clip) // 2] for clip in shown)

    def _checked_held(self, held: Mapping[str, Any]) -> dict[str, Any]:
        steps = self._denoising.checked_steps(held["stochastic_steps"])
        return {**super()._checked_held(held), "stochastic_steps": steps}
