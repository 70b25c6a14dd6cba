"""What frozen encoders said, kept so that nothing is asked twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unirl_env.types import Prompt

__all__ = ["Readings", "prompt_key"]


class Readings:
    """What an encoder says of things, each distinct thing asked once and alone.

    Alone, because an encoder's result may differ in the last bits with the size of its batch.

    Args:
        read: From a thing to its tensors, each `[1, ...]`.
        device: Where they are kept.
    """

    def __init__(self, read: Callable[[Any], Mapping[str, Tensor]], *, device: torch.device):
        self.read, self.device = read, device
        self._kept: OrderedDict[Hashable, tuple[Any, dict[str, Tensor]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __getstate__(self) -> dict[str, Any]:
        # A key may hold the id of an object, which is another one elsewhere.
        return {**self.__dict__, "_kept": OrderedDict()}

    def of(self, keys: Sequence[Hashable], things: Sequence[Any]) -> dict[str, Tensor]:
        """The readings of B things, each tensor `[B, ...]` and a copy of its own.

        Args:
            keys: What tells the things apart. A key may hold a thing's `id`, because what is kept lives on.
            things: The things.
        """
        rows: dict[Hashable, dict[str, Tensor]] = {}
        for key, thing in zip(keys, things, strict=True):
            if key not in rows:
                rows[key] = self._one(key, thing)
        place = {key: row for row, key in enumerate(rows)}
        at = torch.tensor([place[key] for key in keys], device=self.device)
        names = next(iter(rows.values()))
        return {name: torch.cat([row[name] for row in rows.values()])[at] for name in names}

    def forget(self, most: int) -> None:
        """Keep the `most` readings that were asked for last."""
        while len(self._kept) > most:
            self._kept.popitem(last=False)

    def _one(self, key: Hashable, thing: Any) -> dict[str, Tensor]:
        if key not in self._kept:
            # Inference tensors could not be saved for a learner's backward pass.
            with torch.inference_mode(False), torch.no_grad():
                self._kept[key] = thing, {k: v.to(self.device) for k, v in self.read(thing).items()}
        self._kept.move_to_end(key)
        return self._kept[key][1]


def prompt_key(prompt: Prompt, text: str) -> Hashable:
    """What tells apart the readings of the `text` of a prompt: the text, unless there is more to read."""
    return (text, id(prompt)) if prompt.images or prompt.messages else text
