"""Acting: the action is that of a Markov decision process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

import unirl_env.functional as F
from unirl_env.arguments.names import ENVIRONMENTS
from unirl_env.arguments.values import whole
from unirl_env.envs.activity import Activity
from unirl_env.envs.groups import Groups
from unirl_env.envs.vector_env import GenerativeVectorEnv
from unirl_env.errors import ConfigError, ContractError, ShapeError
from unirl_env.functional.noise import INITIAL
from unirl_env.models.process import MDP, Noise
from unirl_env.types import Sample


class Acted(NamedTuple):
    """Where the episodes at `rows` `[n]` go on, and which of them are over or cut off, `[n]`."""

    rows: np.ndarray
    state: dict[str, Tensor]
    over: np.ndarray
    cut: np.ndarray


class Acting(Activity):
    """The states of B episodes of an MDP, action by action. Episodes that are over stay where they are.

    Args:
        mdp: Whose.
        num_envs: B.
        max_steps: Where an episode is truncated.
        device: Where the states live.
        array_backend: `"numpy"` or `"torch"`.

    Raises:
        ConfigError: If a space is none that an episode can have.
    """

    action_space: spaces.Discrete | spaces.Box

    def __init__(self, mdp: MDP, *, num_envs: int, max_steps: int, device: torch.device, array_backend: str):
        self.mdp, self.num_envs, self.max_steps = mdp, num_envs, max_steps
        self.device, self.array_backend = device, array_backend
        self.action_space = _action_space(mdp)
        self.observation_spaces = _observation_spaces(mdp)
        self._state: dict[str, Tensor] = {}
        self._step = np.zeros(num_envs, dtype=np.int64)
        self._over, self._cut = np.zeros((2, num_envs), dtype=bool)
        self._keys: tuple[Groups | None, Tensor] = (None, torch.zeros(0, dtype=torch.int64))

    def prepared(self, rows: np.ndarray, groups: Groups, options: Mapping[str, Any]) -> dict[str, Tensor]:
        """The first states.

        Raises:
            ContractError: If the MDP gives none, or some that are over.
        """
        seeds = torch.tensor([F.derive_seed(int(seed), "initial") for seed in groups.start_seed[rows]])
        noise = Noise(seeds, torch.full((len(rows),), INITIAL), self.device)
        given = self.mdp.initial([groups.prompts[row] for row in rows], noise)
        state = self._checked_state("initial", given, len(rows), self._state or None)
        if (self._flags("terminated", state) | self._flags("truncated", state)).any():
            raise ContractError(
                f"`{type(self.mdp).__name__}.initial` must begin episodes that go on, got some that are over."
            )
        return state

    def begin(self, rows: np.ndarray, prepared: dict[str, Tensor]) -> None:
        """Start from them."""
        self._put(rows, prepared)
        self._step[rows], self._over[rows], self._cut[rows] = 0, False, False

    def checked(self, actions: Any, active: np.ndarray, groups: Groups) -> Acted:
        """The next states of the `active` episodes.

        Raises:
            ShapeError: If the actions have another shape or dtype than their space.
            ContractError: If an action lies outside a discrete space or is not finite, or the MDP breaks its
                contract.
        """
        rows = np.flatnonzero(active)
        action = self._checked_action(actions, rows)
        noise = Noise(self._seeds(groups)[rows], torch.from_numpy(self._step[rows]), self.device)
        before = self._at(self._state, rows)
        given = self.mdp.transition(before, action, noise)
        state = self._checked_state("transition", given, len(rows), self._state)
        over = self._flags("terminated", state)
        cut = (self._flags("truncated", state) | (self._step[rows] + 1 >= self.max_steps)) & ~over
        return Acted(rows, state, over, cut)

    def advance(self, checked: Acted) -> None:
        """Go on to them."""
        self._put(checked.rows, checked.state)
        step, over, cut = self._step.copy(), self._over.copy(), self._cut.copy()
        step[checked.rows] += 1
        over[checked.rows], cut[checked.rows] = checked.over, checked.cut
        self._step, self._over, self._cut = step, over, cut

    def ended(self) -> tuple[np.ndarray, np.ndarray]:
        """As the MDP says; and truncated at `max_steps`."""
        return self._over.copy(), self._cut.copy()

    def observe(self) -> dict[str, Any]:
        """What the MDP lets them see.

        Raises:
            ContractError: If that is not what it promised.
        """
        seen: Any = self.mdp.observation(self._state)
        if not isinstance(seen, Mapping) or set(seen) != set(self.observation_spaces):
            got = sorted(seen) if isinstance(seen, Mapping) else type(seen).__name__
            raise self._wrong("observation", f"{sorted(self.observation_spaces)}", got)
        found = {}
        for name, space in self.observation_spaces.items():
            value, shape = seen[name], (self.num_envs, *(space.shape or ()))
            if not isinstance(value, Tensor) or tuple(value.shape) != shape:
                got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise self._wrong("observation", f"a tensor {list(shape)} as {name!r}", got)
            value = value.detach().to(self.device, _torch_dtype(space))
            found[name] = value if self.array_backend == "torch" else value.cpu().numpy().copy()
        return found

    def finish(self, rows: np.ndarray) -> list[Sample]:
        """What the episodes leave, and whether they were cut off."""
        samples = self.mdp.sample(self._at(self._state, rows))
        listed = isinstance(samples, Sequence) and all(isinstance(sample, Sample) for sample in samples)
        if not listed or len(samples) != len(rows):
            got = len(samples) if listed else f"{type(samples).__name__} of something else"
            raise self._wrong("sample", f"a list of {len(rows)} samples", got)
        pairs = zip(samples, self._cut[rows].tolist(), strict=True)
        return [replace(sample, truncated=True) if cut else sample for sample, cut in pairs]

    def pictures(self) -> tuple[np.ndarray, ...]:
        """What the MDP shows of each episode, as uint8 `[H, W, 3]`."""
        pictures = self.mdp.pictures(self._state)
        return tuple((picture * 255).round().byte().permute(1, 2, 0).cpu().numpy() for picture in pictures)

    def state(self) -> dict[str, Any]:
        """Tensors are replaced, never written to."""
        return {
            "state": dict(self._state),
            "step": self._step.copy(),
            "over": self._over.copy(),
            "cut": self._cut.copy(),
        }

    def facts(self) -> dict[str, Any]:
        """The process, and where its episodes are truncated."""
        return {**self.mdp.identity(), "steps at most": self.max_steps}

    def select(self, state: Mapping[str, Any], rows: np.ndarray) -> None:
        """Go on from the state's episodes."""
        self._state = self._at(state["state"], rows)
        self._step, self._over, self._cut = (state[name][rows] for name in ("step", "over", "cut"))

    def _seeds(self, groups: Groups) -> Tensor:
        """Keys `[B]` of what happens on the way: others than those that draw the policy's actions."""
        if self._keys[0] is not groups:
            seeds = [F.derive_seed(int(seed), "transition") for seed in groups.episode_seed]
            self._keys = groups, torch.tensor(seeds)
        return self._keys[1]

    def _at(self, state: Mapping[str, Tensor], rows: np.ndarray) -> dict[str, Tensor]:
        if np.array_equal(rows, np.arange(self.num_envs)):
            return dict(state)
        at = torch.from_numpy(rows).to(self.device)
        return {name: value[at] for name, value in state.items()}

    def _put(self, rows: np.ndarray, new: Mapping[str, Tensor]) -> None:
        if len(rows) == self.num_envs:
            self._state = dict(new)
            return
        at = torch.from_numpy(rows).to(self.device)
        self._state = {name: value.index_copy(0, at, new[name]) for name, value in self._state.items()}

    def _flags(self, name: str, state: Mapping[str, Tensor]) -> np.ndarray:
        count = len(next(iter(state.values())))
        found = getattr(self.mdp, name)(state)
        if not isinstance(found, Tensor) or found.dtype != torch.bool or tuple(found.shape) != (count,):
            got = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise self._wrong(name, f"bool [{count}]", got)
        return found.cpu().numpy()

    def _checked_state(
        self, name: str, state: Any, count: int, like: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        if not isinstance(state, Mapping) or not state:
            raise self._wrong(name, "a mapping of tensors", type(state).__name__)
        if like is not None and set(state) != set(like):
            raise self._wrong(name, f"{sorted(like)} as every state", sorted(state))
        for key, value in state.items():
            shape = [count, "..."] if like is None else [count, *like[key].shape[1:]]
            fits = isinstance(value, Tensor) and value.ndim and len(value) == count
            if not fits or (like is not None and list(value.shape) != shape):
                got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise self._wrong(name, f"a tensor {shape} as {key!r}".replace("'...'", "..."), got)
        # An MDP may count in another dtype than it began with; a batch has one.
        dtypes = {} if like is None else {key: value.dtype for key, value in like.items()}
        return {k: v.detach().to(self.device, dtypes.get(k, v.dtype)) for k, v in state.items()}

    def _checked_action(self, actions: Any, rows: np.ndarray) -> Tensor:
        """The actions of the episodes at `rows`, within their space."""
        space = self.action_space
        discrete = isinstance(space, spaces.Discrete)
        shape = (self.num_envs, *(space.shape or ()))
        if isinstance(actions, np.ma.MaskedArray):
            raise ShapeError("`actions` must be an array or a tensor without a mask, got a masked array.")
        try:
            action = actions.detach() if isinstance(actions, Tensor) else torch.from_numpy(np.array(actions))
        except (TypeError, ValueError) as error:
            raise ShapeError(f"`actions` must be an array or a tensor {list(shape)}, got {error}.") from error
        whole = not action.is_floating_point() and action.dtype != torch.bool and not action.is_complex()
        if tuple(action.shape) != shape or (not whole if discrete else not action.is_floating_point()):
            kind = "integers" if discrete else "floating point numbers"
            raise ShapeError(
                f"`actions` must be {kind} {list(shape)}, got {action.dtype} {list(action.shape)}."
            )
        action = action.to(self.device, torch.int64 if discrete else torch.float32)
        action = action[torch.from_numpy(rows).to(self.device)]
        if isinstance(space, spaces.Discrete):
            first, end = int(space.start), int(space.start) + int(space.n)
            fits, wanted = (action >= first) & (action < end), f"in [{first}, {end})"
        else:
            fits, wanted = action.isfinite().flatten(1).all(1), "finite"
        if not bool(fits.all()):
            wrong = rows[(~fits).cpu().numpy()].tolist()
            raise ContractError(f"`actions` must be {wanted}, got others in episodes {wrong}.")
        if isinstance(space, spaces.Discrete):
            return action
        low, high = (torch.from_numpy(bound).to(action) for bound in (space.low, space.high))
        return action.clamp(low, high)

    def _wrong(self, name: str, wanted: str, got: Any) -> ContractError:
        return ContractError(f"`{type(self.mdp).__name__}.{name}` must return {wanted}, got {got}.")


def _action_space(mdp: MDP) -> spaces.Discrete | spaces.Box:
    space: Any = getattr(mdp, "action_space", None)
    real = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and bool(space.shape)
    if not isinstance(space, spaces.Discrete) and not real:
        raise ConfigError(
            f"`action_space` of {type(mdp).__name__} must be Discrete, or a Box of floating point numbers of "
            f"rank 1 or more, got {space!r}."
        )
    return space


def _observation_spaces(mdp: MDP) -> dict[str, spaces.Box]:
    """Boxes; a number of n is one of rank 0, whose bounds it keeps."""
    given = getattr(mdp, "observation_spaces", None)
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(
            f"`observation_spaces` of {type(mdp).__name__} must be a mapping of Box or Discrete spaces, got "
            f"{given!r}."
        )
    found: dict[str, spaces.Box] = {}
    for name, space in given.items():
        if isinstance(space, spaces.Discrete):
            low = int(space.start)
            space = spaces.Box(low, low + int(space.n) - 1, (), np.int64)
        if not isinstance(space, spaces.Box):
            raise ConfigError(
                f"`observation_spaces[{name!r}]` of {type(mdp).__name__} must be Box or Discrete, got "
                f"{space}."
            )
        found[name] = space
    return found


def _torch_dtype(space: spaces.Space) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, dtype=space.dtype)).dtype


class MDPVectorEnv(GenerativeVectorEnv):
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
            **self._shared,
            max_steps=self.max_steps,
        )
        self._play(self._acting)

    def render(self) -> tuple[np.ndarray, ...] | None:
        """What each episode looks like, as uint8 pictures `[H, W, 3]`, where the MDP shows any."""
        return None if self.render_mode is None or not self.started else self._acting.pictures()
