"""Shape and dtype checks that open every function of the core.

A wrong broadcast is the costliest bug of this kind of code, because it trains: so each public function states
what it takes in its first lines, and the error says what to do.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from unirl_env.errors import ConfigError, ShapeError


def require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    if value not in choices:
        raise ConfigError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def require_floating(name: str, tensor: Tensor) -> None:
    """Raise ShapeError unless `tensor` is a tensor of real floating numbers."""
    if not isinstance(tensor, Tensor):
        raise ShapeError(
            f"`{name}` must be a torch tensor, got {type(tensor).__name__}; try torch.as_tensor({name})."
        )
    if not tensor.is_floating_point():
        raise ShapeError(f"`{name}` must be floating, got {tensor.dtype}; try {name}.float().")


def require_shape(name: str, tensor: Tensor, shape: Sequence[int], like: str) -> None:
    """Raise ShapeError unless `tensor` has exactly `shape`, the shape of the argument `like`."""
    if tuple(tensor.shape) != tuple(shape):
        raise ShapeError(
            f"`{name}` must have the shape of `{like}` {list(shape)}, got {list(tensor.shape)}; "
            f"try {name}.reshape_as({like}) if only the layout differs."
        )


def require_lead(name: str, tensor: Tensor, full: Tensor, like: str) -> None:
    """Raise ShapeError unless `tensor` holds one number per row of `full`: its first dimensions, not all."""
    rank = tensor.ndim
    if not 1 <= rank < full.ndim or tensor.shape != full.shape[:rank]:
        raise ShapeError(
            f"`{name}` must have the leading shape of `{like}` {list(full.shape)}, such as [B] or [B, S], "
            f"got {list(tensor.shape)}; try one number per row, without the element dimensions."
        )
