"""Painting: the action is the next token of a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces

from unirl_env.envs.activity import Activity
from unirl_env.envs.groups import Groups
from unirl_env.envs.token_rows import TokenRows, checked_tokens
from unirl_env.models.unified import PictureTokens
from unirl_env.types import Sample


class Painted(NamedTuple):
    """What is painted at one step.

    Attributes:
        rows: `[n]`, whose pictures grow.
        token: `[n]`, by what.
    """

    rows: np.ndarray
    token: np.ndarray


class Painting(Activity):
    """B pictures of a fixed number of tokens, token by token.

    Args:
        pictures: Whose tokens.
        num_envs: B.
        waits: Whether an episode may stand still by the token WAIT.
        device: Where observed tensors live.
        array_backend: `"numpy"` or `"torch"`.
    """

    def __init__(
        self,
        pictures: PictureTokens,
        *,
        num_envs: int,
        waits: bool,
        device: torch.device,
        array_backend: str,
    ):
        self.model, self.num_envs, self.waits = pictures, num_envs, waits
        self.device, self.array_backend = device, array_backend
        self.mirror = device if array_backend == "torch" and device.type != "cpu" else None
        self.painted = TokenRows.empty(num_envs, pictures.num_tokens, pictures.pad_id)
        first, size = pictures.first_id, pictures.vocab_size
        low, high = min(first, pictures.pad_id), max(first + size - 1, pictures.pad_id)
        self.action_space = spaces.Discrete(size, start=first)
        self.observation_spaces = {
            "image_tokens": spaces.Box(low, high, (pictures.num_tokens,), np.int64),
            "image_length": spaces.Box(0, pictures.num_tokens, (), np.int64),
        }

    def pictures(self) -> tuple[np.ndarray, ...]:
        """The pictures so far, as uint8 `[H, W, 3]`; what is not yet painted shows the first token."""
        tokens = self.painted.tokens.copy()
        tokens[np.arange(tokens.shape[1]) >= self.painted.length[:, None]] = self.model.first_id
        images: list[Any] = [sample.image for sample in self.model.pictures(torch.from_numpy(tokens))]
        return tuple((image * 255).round().byte().permute(1, 2, 0).cpu().numpy() for image in images)

    def prepared(self, rows: np.ndarray, groups: Groups, options: Mapping[str, Any]) -> None:
        """Nothing: every picture begins empty."""

    def begin(self, rows: np.ndarray, prepared: None) -> None:
        """Start with nothing painted, in buffers of their own."""
        nothing = np.zeros(0, dtype=np.int64)
        self._hold(self.painted.started(rows, [nothing] * len(rows)))

    def checked(self, actions: Any, active: np.ndarray, groups: Groups) -> Painted:
        """What is painted.

        Raises:
            ShapeError: If the actions are not B integers.
            ContractError: If an action is no token of a picture.
        """
        first, size = self.model.first_id, self.model.vocab_size
        return Painted(*checked_tokens(actions, active, size, first_id=first, waits=self.waits))

    def advance(self, checked: Painted) -> None:
        """Paint it."""
        self.painted = self.painted.with_actions(*checked)

    def ended(self) -> tuple[np.ndarray, np.ndarray]:
        """Terminated after the last token; never truncated."""
        return self.painted.length >= self.model.num_tokens, np.zeros(self.num_envs, dtype=bool)

    def observe(self) -> dict[str, Any]:
        """The tokens and how many there are; as a tensor, the live buffer."""
        if self.array_backend == "torch":
            length = torch.from_numpy(self.painted.length).to(self.device)
            return {"image_tokens": self.painted.buffers()[0], "image_length": length}
        return {"image_tokens": self.painted.tokens.copy(), "image_length": self.painted.length.copy()}

    def finish(self, rows: np.ndarray) -> list[Sample]:
        """The pictures of the tokens."""
        return self.model.pictures(torch.from_numpy(self.painted.tokens[rows]))

    def state(self) -> dict[str, Any]:
        """The tokens share their buffers; see `TokenRows`."""
        return {"painted": self.painted}

    def facts(self) -> dict[str, Any]:
        """The model."""
        return dict(self.model.identity())

    def select(self, state: Mapping[str, Any], rows: np.ndarray) -> None:
        """Go on in clean buffers."""
        self._hold(state["painted"].taken(rows))

    def _hold(self, painted: TokenRows) -> None:
        self.painted = painted if self.mirror is None else painted.on(self.mirror)
