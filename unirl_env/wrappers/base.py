"""What all wrappers of this library share."""

from __future__ import annotations

from gymnasium.vector import AutoresetMode, VectorWrapper

__all__ = ["Wrapper"]


class Wrapper(VectorWrapper):
    """Gymnasium's own, with the attribute that other libraries look for on a vector environment."""

    @property
    def autoreset_mode(self) -> AutoresetMode:
        """`metadata["autoreset_mode"]`."""
        return self.metadata["autoreset_mode"]
