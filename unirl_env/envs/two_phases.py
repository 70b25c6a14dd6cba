"""First writing, then drawing: the two phases of a hybrid episode as one activity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from unirl_env.envs.activity import Activity
from unirl_env.envs.denoising import Denoising
from unirl_env.envs.hybrid_contexts import HybridContexts
from unirl_env.envs.painting import Painting
from unirl_env.envs.roster import Roster
from unirl_env.envs.writing import Said, Writing
from unirl_env.errors import ShapeError
from unirl_env.models.unified import UnifiedModel
from unirl_env.types import Sample

__all__ = ["IMAGE", "TEXT", "TwoPhases"]

TEXT, IMAGE = 0, 1
"""The values of `phase`."""


class Beginning(NamedTuple):
    """What the phases of new episodes begin with, and the context of pictures that begin at once."""

    writing: Any
    drawing: Any
    context: dict[str, Tensor]


class Acts(NamedTuple):
    """What is done in each phase (None: nothing), whose pictures begin, and what these are drawn from."""

    said: Said | None
    drawn: Any
    opened: np.ndarray
    by: list[int]
    context: dict[str, Tensor]


class TwoPhases(Activity):
    """B episodes that write a text and then draw; each enters its second phase when its own text opens it.

    Args:
        model: Says which tokens open a picture, and what follows them.
        writing: The first phase.
        drawing: The second phase; None where it is empty, and an opening token ends the episode.
        contexts: What pictures are drawn from beside the tokens.
        drawn: What actions call the part of the second phase.
        num_envs: B.
        partly: Whether actions may leave out a part, so that all episodes of its phase stand still.
        device: Where observed tensors live.
        array_backend: `"numpy"` or `"torch"`.
    """

    def __init__(
        self,
        model: UnifiedModel,
        writing: Writing,
        drawing: Denoising | Painting | None,
        contexts: HybridContexts | None,
        *,
        drawn: str,
        num_envs: int,
        partly: bool,
        device: torch.device,
        array_backend: str,
    ):
        self.model, self.writing, self.drawing, self.contexts = model, writing, drawing, contexts
        self.drawn, self.partly, self.device, self.array_backend = drawn, partly, device, array_backend
        self.phase = np.full(num_envs, TEXT, dtype=np.int64)
        self._opens = np.zeros(len(writing.ends), dtype=bool)
        self._openings: dict[int | None, list[int]] = {}
        parts: dict[str, spaces.Space] = {"token": writing.action_space} if writing.max_new_tokens else {}
        if drawing is not None:
            self._opens[list(model.opens)] = True
            self._openings = {token: list(model.opening(token)) for token in (None, *model.opens)}
            parts[drawn] = drawing.action_space
        self.action_space = spaces.Dict(parts)
        self.observation_spaces = {
            "phase": spaces.Box(TEXT, IMAGE, (), np.int64),
            **writing.observation_spaces,
            **(drawing.observation_spaces if drawing is not None else {}),
        }

    @property
    def at_once(self) -> bool:
        """Whether pictures follow their prompts at once."""
        return not self.writing.max_new_tokens

    def prepared(self, rows: np.ndarray, roster: Roster, options: Mapping[str, Any]) -> Beginning:
        """What both phases begin with."""
        writing = self.writing.prepared(rows, roster, options)
        drawing = None if self.drawing is None else self.drawing.prepared(rows, roster, options)
        context: dict[str, Tensor] = {}
        if self.at_once and self.contexts is not None:
            context = self.contexts.read([roster.prompts[row] for row in rows], [None] * len(rows))
        return Beginning(writing, drawing, context)

    def begin(self, rows: np.ndarray, prepared: Beginning) -> None:
        """Start with the text, or with the picture where there is none."""
        self.writing.begin(rows, prepared.writing)
        self.phase = self.phase.copy()
        self.phase[rows] = TEXT
        if self.drawing is not None:
            self.drawing.begin(rows, prepared.drawing)
        if self.at_once:
            self._open(rows, [None] * len(rows), prepared.context)

    def checked(self, actions: Any, active: np.ndarray, roster: Roster) -> Acts:
        """What is done in each phase.

        Raises:
            ShapeError: If the actions are not a mapping of the phases' parts.
        """
        parts, writes = self._parts(actions), self.phase == TEXT
        said, drawn, opened, by = None, None, np.zeros(0, dtype=np.int64), []
        if "token" in parts and not self.at_once:
            said = self.writing.checked(parts["token"], active & writes, roster)
            opens = self._opens[said.token]
            opened, by = said.rows[opens], said.token[opens].tolist()
        if self.drawn in parts and self.drawing is not None:
            draws = active & ~writes
            drawn = self.drawing.checked(parts[self.drawn], draws, roster)
            drawn = drawn if draws.any() else None
        context: dict[str, Tensor] = {}
        if by and self.contexts is not None:
            texts = [self.writing.turn(row, last) for row, last in zip(opened, by, strict=True)]
            context = self.contexts.read([roster.prompts[row] for row in opened], texts)
        return Acts(said, drawn, opened, by, context)

    def advance(self, checked: Acts) -> None:
        """Go on in each phase; what a text has opened is drawn from the next step on."""
        if checked.said is not None and len(checked.said.rows):
            self.writing.advance(checked.said)
        if checked.drawn is not None:
            self.drawing.advance(checked.drawn)
        if checked.by:
            self._open(checked.opened, checked.by, checked.context)

    def ended(self) -> tuple[np.ndarray, np.ndarray]:
        """Terminated by the end of a picture or of a text without one; truncated as `Writing` is."""
        terminated, truncated = self.writing.ended()
        if self.drawing is not None:
            terminated |= self.drawing.ended()[0]
        return terminated, truncated

    def observe(self) -> dict[str, Any]:
        """The phase, and what both activities show."""
        phase = self.phase.copy()
        return {
            "phase": torch.from_numpy(phase).to(self.device) if self.array_backend == "torch" else phase,
            **self.writing.observe(),
            **(self.drawing.observe() if self.drawing is not None else {}),
        }

    def finish(self, rows: np.ndarray) -> list[Sample]:
        """Pictures with their texts; texts alone where no picture began; without texts, pictures alone."""
        drew = self.phase[rows] == IMAGE
        pictures = iter(self.drawing.finish(rows[drew]) if drew.any() else ())
        if self.at_once:
            return list(pictures)
        texts = self.writing.finish(rows)
        return [
            replace(next(pictures), text=text.text, tokens=text.tokens, before=text.before)
            if with_picture
            else text
            for text, with_picture in zip(texts, drew, strict=True)
        ]

    def state(self) -> dict[str, Any]:
        """The phase of each episode, and both activities' states."""
        drawing = None if self.drawing is None else self.drawing.state()
        return {"phase": self.phase, "text": self.writing.state(), "image": drawing}

    def facts(self) -> dict[str, Any]:
        """The model as a whole, and what matters to each phase."""
        drawing = {} if self.drawing is None else self.drawing.facts()
        return {**self.writing.facts(), **drawing, **self.model.identity()}

    def select(self, state: Mapping[str, Any], rows: np.ndarray) -> None:
        """Go on in each episode's own phase."""
        self.phase = state["phase"][rows]
        self.writing.select(state["text"], rows)
        if self.drawing is not None:
            self.drawing.select(state["image"], rows)

    def _open(self, rows: np.ndarray, by: list[int | None], context: Mapping[str, Tensor]) -> None:
        """The pictures of `rows` begin; their texts ended with the tokens `by`."""
        for row, token in zip(rows.tolist(), by, strict=True):
            self.writing.follow(row, self._openings[token])
        self.phase = self.phase.copy()
        self.phase[rows] = IMAGE
        if context:
            self.drawing.receive(rows, context)

    def _parts(self, actions: Any) -> dict[str, Any]:
        """The parts of the actions that are given."""
        known = ("token", self.drawn)
        needed = [name for name in known if name in self.action_space.spaces]
        if not isinstance(actions, Mapping):
            raise ShapeError(f"`actions` must be a mapping with {needed}, got {type(actions).__name__}.")
        unknown = sorted(set(actions) - set(known))
        if unknown:
            raise ShapeError(f"`actions` must be a mapping with {needed}, got unknown parts {unknown}.")
        parts = {name: part for name, part in actions.items() if part is not None}
        missing = [name for name in needed if name not in parts]
        if missing and not (self.partly and len(missing) < len(needed)):
            raise ShapeError(
                f"`actions` must be a mapping with {needed}, got none of {missing}; a part may be left out "
                "in autoreset mode DISABLED, if another one is there."
            )
        return parts
