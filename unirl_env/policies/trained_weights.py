"""The trained weights of a policy, and copies that can take their place: an average, those that sampled."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from unirl_env.errors import CheckpointError, ContractError
from unirl_env.policies.parts import own_part, part_like

AVERAGE = "ema"
"""The copy that belongs to a policy's state."""


class TrainedWeights(nn.Module):
    """What has a `network`, of whose weights some are trained.

    Attributes:
        network: The module.
        copies: By name, other values of the trained weights, in float32: `"ema"`, and whatever `keep` kept.
    """

    network: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.copies: dict[str, dict[str, Tensor]] = {}

    @abstractmethod
    def reference(self) -> AbstractContextManager[None]:
        """Within it, the network is the untrained one."""

    def under(self, name: str) -> AbstractContextManager[None]:
        """Within it, the actor has other weights; they can be played and scored with, and not trained.

        Args:
            name: `"trained"` changes nothing; `"reference"` is the untrained model; or one of `copies`.

        Raises:
            ContractError: If there is no such copy, or adapters are merged.
        """
        if name == "trained":
            return nullcontext()
        return self.reference() if name == "reference" else self._swapped(name)

    @contextmanager
    def _swapped(self, name: str) -> Iterator[None]:
        if name not in self.copies:
            raise ContractError(
                f"`name` must be one of {', '.join(('trained', 'reference', *self.copies))}, got {name!r}."
            )
        trained = {key: p for key, p in self.network.named_parameters() if p.requires_grad}
        if trained.keys() != self.copies[name].keys():
            raise ContractError("Other weights must be asked for outside of `merged` and of each other.")
        divided = {key: own_part(p) for key, p in trained.items() if isinstance(p, DTensor)}
        kept = {key: part.clone() for key, part in divided.items()}
        own = {key: p.data for key, p in trained.items() if key not in divided}
        try:
            # Tensors are exchanged and not written to: graphs of the trained weights stay what they were. Of
            # divided ones graphs hold what was gathered, and what a process holds is written to.
            for key, part in divided.items():
                part.copy_(own_part(self.copies[name][key]))
            for key in own:
                trained[key].data = self.copies[name][key].to(trained[key].dtype)
            yield
        finally:
            for key, data in own.items():
                trained[key].data = data
            for key, part in divided.items():
                part.copy_(kept[key])

    @torch.no_grad()
    def keep(self, name: str) -> None:
        """Keep the weights that are in force as the copy `name`, in the place of an earlier one."""
        self.copies[name] = {key: p.to(torch.float32, copy=True) for key, p in self.trainable_state().items()}

    @torch.no_grad()
    def average(self, name: str, decay: float, weights: Mapping[str, Tensor]) -> None:
        """Let the copy `name` become `decay` of itself and the rest of `weights`, by name."""
        for key, kept in self.copies[name].items():
            own_part(kept).lerp_(own_part(weights[key]).to(kept.dtype), 1.0 - decay)

    def trainable_state(self) -> dict[str, Tensor]:
        """The trained weights by name; references, not copies."""
        return {name: p.detach() for name, p in self.network.named_parameters() if p.requires_grad}

    def state(self) -> dict[str, Tensor]:
        """All that training has changed, by name: the trained weights, and their average; references."""
        return self.trainable_state() | self._average_state()

    def _average_state(self) -> dict[str, Tensor]:
        return {f"{AVERAGE}:{name}": kept for name, kept in self.copies.get(AVERAGE, {}).items()}

    @torch.no_grad()
    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Load trained weights, and their average; those that `state` does not name stay as they are.

        Raises:
            CheckpointError: If a name is unknown or a shape differs.
        """
        own = self.trainable_state()
        own |= self._average_state()
        for name, value in state.items():
            if name not in own or own[name].shape != value.shape:
                expected = list(own[name].shape) if name in own else "no such weight"
                raise CheckpointError(
                    f"Weight `{name}` must fit this policy ({expected}), got shape {list(value.shape)}; "
                    "check `lora_rank`, `lora_targets` and the model."
                )
        # Nothing is written before all of it fits.
        for name, value in state.items():
            own_part(own[name]).copy_(part_like(value, own[name]))

    def _apply(self, function: Any, recurse: bool = True) -> Self:  # copies follow `.to(...)`
        self.copies = {n: {key: function(t) for key, t in c.items()} for n, c in self.copies.items()}
        base: Any = super()
        applied: Self = base._apply(function, recurse)
        return applied
