"""Float32 masters of the weights that a network trains in half precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError

__all__ = ["Masters"]


class Masters:
    """What the optimizer moves, where the network computes with a cast of it.

    A step of 1e-6 on a weight of 0.05 is less than half of the way to the next bfloat16: rounding after every
    step would take it back. The masters keep what steps add up to, and the network holds `master.to(dtype)`,
    rounded to nearest. Moments and gradients are as wide as the masters. A gradient is added to the master's
    in float32 as soon as a backward pass has finished it, and its own memory is given back at once.

    The network's weights are what counts: whoever loads other ones into it, by whatever way, has changed the
    policy, and `follow` lets the masters begin there. Weights in float32 are their own masters; where all
    are, nothing here costs anything.

    Args:
        parameters: The policy's weights by name, trained and frozen ones, each once.

    Raises:
        ConfigError: If some are float16. Losses are divided by the number of rows, so gradients are small,
            and what is below 6e-8 is 0 there: with 500 000 tokens the gradient of adapters points elsewhere
            (cosine 0.77 on the embedded Qwen3; bfloat16: 0.999).

    Reference:
        Micikevicius et al., "Mixed Precision Training", section 3.1 (https://arxiv.org/abs/1710.03740).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        narrow = next((name for name, weight in parameters.items() if weight.dtype == torch.float16), None)
        if narrow is not None:
            raise ConfigError(
                f"`dtype` of a network that is trained must be float32 or bfloat16, got float16 (weight "
                f"`{narrow}`): its gradients would vanish without a word; try bfloat16."
            )
        self.weights: list[nn.Parameter] = []
        """What the optimizer trains, in the order of `parameters`."""
        self._pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for name, weight in parameters.items():
            if not weight.requires_grad:
                continue
            if weight.dtype.itemsize < torch.float32.itemsize:
                master = nn.Parameter(weight.detach().float())
                weight.register_post_accumulate_grad_hook(_giver(master))
                self._pairs[name] = weight, master
                self.weights.append(master)
            else:
                self.weights.append(weight)

    @torch.no_grad()
    def cast(self) -> None:
        """Give the network what the masters have become; in place, for all who hold its weights."""
        for weight, master in self._pairs.values():
            weight.copy_(master)

    @torch.no_grad()
    def follow(self) -> None:
        """Begin anew from every weight of the network that is no longer the cast of its master."""
        for weight, master in self._pairs.values():
            if not torch.equal(weight, master.to(weight.dtype)):
                master.copy_(weight)

    def state(self) -> dict[str, Tensor]:
        """Copies of the masters on the CPU, by name; nothing of weights that are their own."""
        self.follow()
        return {name: master.detach().to("cpu", copy=True) for name, (_, master) in self._pairs.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over masters by name, and leave out other names; the network's weights come by another way."""
        for name, (_, master) in self._pairs.items():
            if name in state:
                master.copy_(state[name])


def _giver(master: nn.Parameter) -> Callable[[Tensor], None]:
    """A hook that adds a finished gradient to the master's and gives back its memory."""

    def give(weight: Tensor) -> None:
        if master.grad is None:
            master.grad = weight.grad.to(master.dtype)
        else:
            master.grad.add_(weight.grad)
        weight.grad = None

    return give
