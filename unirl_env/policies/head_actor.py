"""The policy of any environment whose actions a head can draw, in plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unirl_env.policies.heads import head_of
from unirl_env.policies.trained import LoRAConfig, TrainedNetwork

__all__ = ["HeadActor"]


class HeadActor(TrainedNetwork):
    """A network over observations, and a head over its output.

    Args:
        model: What has `network()`, a module from observations (a mapping of tensors `[N, ...]`) to what the
            head reads, and `action_space`.
        lora: Train adapters on a frozen network, or all weights if None.
        temperature: Of the head.
        keep_reference: Keep a frozen copy of all weights for `reference()`; adapters need none.
        gradient_checkpointing: Recompute activations in the backward pass, where the network can.

    Raises:
        ConfigError: If a setting is out of range, no head knows the actions, or the network cannot do what it
            is asked for.
    """

    def __init__(
        self,
        model: Any,
        *,
        lora: LoRAConfig | None = None,
        temperature: float = 1.0,
        keep_reference: bool = False,
        gradient_checkpointing: bool = False,
    ):
        head = head_of(model.action_space, temperature=temperature)
        super().__init__(
            model,
            lora=lora,
            keep_reference=keep_reference,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.head = head

    @torch.no_grad()
    def act(self, obs: Mapping[str, Tensor], draws: Tensor | None = None) -> Any:
        """Draw the actions of N episodes with what `head.draws` gave; without, the likeliest ones."""
        return self._step(obs, draws=draws)

    def score(self, obs: Mapping[str, Tensor], action: Tensor) -> Any:
        """Score given actions `[N, ...]`, with gradient to the trainable weights."""
        return self._step(obs, action=action)

    def _step(self, obs: Mapping[str, Tensor], **given: Tensor | None) -> Any:
        """The head's step; in lots of one size where the model asks for them, the last one filled up."""
        rows = getattr(self.model, "rows_per_forward", None)
        count = len(next(iter(obs.values())))
        if rows is None or count == 0:
            return self.head.step(self.network(dict(obs)), **given)
        steps, device = [], next(iter(obs.values())).device
        for start in range(0, count, rows):
            at = torch.arange(start, start + rows, device=device).clamp_max(count - 1)
            output = self.network({name: value[at] for name, value in obs.items()})
            step = self.head.step(output, **{k: None if v is None else v[at] for k, v in given.items()})
            steps.append([part[: count - start] for part in step])
        return type(step)(*(torch.cat(parts) for parts in zip(*steps, strict=True)))
