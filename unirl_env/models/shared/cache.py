"""The states of generated tokens, kept with room to grow; imported only where transformers is at work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

LEAST_ROOM = 32
"""Tokens that fit in before a layer moves for the first time."""


class RoomyLayer(DynamicLayer):
    """A growing cache layer that moves its states when they have doubled, and not at every token.

    `DynamicLayer` copies all keys and values for each new one: over an answer that is as much memory traffic
    again as attention itself. Here `keys` and `values` are the filled part of larger tensors.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple:
        """Append states `[B, H, t, D]` and return all of them."""
        if not self.is_initialized or self.keys.numel() == 0:
            # The prompt: no room is made before it is known how many episodes continue it.
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            self._room = self.keys, self.values
            return self.keys, self.values
        start = self.keys.shape[-2]
        stop = start + key_states.shape[-2]
        if self._room[0].shape[-2] < stop or self._room[0].shape[0] != key_states.shape[0]:
            room = stop + max(LEAST_ROOM, stop)
            self._room = _moved(self.keys, room), _moved(self.values, room)
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:stop] = states
        self.keys, self.values = (room[:, :, :stop] for room in self._room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows at `indices` `[b]`, which may repeat some."""
        super().batch_select_indices(indices)
        self._room = self.keys, self.values


def roomy_cache(config: Any) -> DynamicCache:
    """An empty cache for a network of this configuration; layers of other kinds stay what they are."""
    cache = DynamicCache(config=config)
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[i] = RoomyLayer()
    return cache


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Keep the states of the rows `[b]`, which may repeat some, of attention and of recurrent layers."""
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            if layer.device is not None:  # it holds something
                layer.reorder_cache(rows)
        else:
            layer.batch_select_indices(rows)


def _moved(states: Tensor, room: int) -> Tensor:
    """`states` `[B, H, t, D]` at the beginning of a tensor `[B, H, room, D]`."""
    batch, heads, length, width = states.shape
    out = torch.empty(batch, heads, room, width, dtype=states.dtype, device=states.device)
    out[:, :, :length] = states
    return out
