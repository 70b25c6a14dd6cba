"""What an optimizer step moves and by what: gradients in flat buffers, float32 masters of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unirl_env.errors import ConfigError


class FlatGradient:
    """Buffers that hold every gradient; the parameters' `.grad` are views into them.

    Gradients of micro-batches accumulate in place, and learners exchange one tensor per data type. Losses
    are divided by denominators that count all learners, so gradients are summed, never averaged.

    Args:
        parameters: The trained weights, in the same order on every learner.
        distributed: Whether there are other learners to exchange with.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, distributed: bool = False):
        self.parameters = list(parameters)
        self.distributed = distributed
        self._views: list[Tensor] = []
        self._buffers: list[Tensor] = []
        homes: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
        for parameter in self.parameters:
            homes.setdefault((parameter.device, parameter.dtype), []).append(parameter)
        views: dict[int, Tensor] = {}
        for (device, dtype), members in homes.items():
            sizes = [member.numel() for member in members]
            # The last element counts the learners that failed: news of it needs no exchange of its own.
            buffer = torch.zeros(sum(sizes) + 1, device=device, dtype=dtype)
            for member, part in zip(members, buffer[:-1].split(sizes), strict=True):
                views[id(member)] = part.view_as(member)
            self._buffers.append(buffer)
        self._views = [views[id(parameter)] for parameter in self.parameters]

    def zero(self) -> None:
        """Begin an optimizer step."""
        for buffer in self._buffers:
            buffer.zero_()
        for parameter, view in zip(self.parameters, self._views, strict=True):
            parameter.grad = view

    def exchange(self, *, failed: bool = False) -> bool:
        """Sum the gradients over all learners; every learner must call this once per optimizer step.

        Args:
            failed: Whether this learner has no gradient to give. It takes part all the same: a learner that
                stayed away would keep the others waiting for ever.

        Returns:
            Whether any learner failed.
        """
        if not self.distributed:
            return failed
        if failed:
            for buffer in self._buffers:
                buffer.zero_()
        self._buffers[0][-1] = float(failed)
        for buffer in self._buffers:
            dist.all_reduce(buffer, op=dist.ReduceOp.SUM)
        return bool(self._buffers[0][-1] > 0)

    def clip(self, max_norm: float) -> Tensor:
        """Scale the gradients so that their joint L2 norm is at most `max_norm`; returns the norm before."""
        for buffer in self._buffers:
            buffer[-1] = 0.0
        norm: Tensor = torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(buffer, dtype=torch.float32) for buffer in self._buffers])
        )
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for buffer in self._buffers:
            buffer.mul_(scale.to(buffer.dtype))
        return norm


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
        assert weight.grad is not None  # it has just been finished
        if master.grad is None:
            master.grad = weight.grad.to(master.dtype)
        else:
            master.grad.add_(weight.grad)
        weight.grad = None

    return give
