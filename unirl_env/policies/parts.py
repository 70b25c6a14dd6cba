"""Tensors of which each process holds a part: torch's DTensors, beside tensors that everybody holds whole."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import _StridedShard


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, outside of graphs, sharing its memory: all of it, or its part."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_place(tensor: Tensor) -> tuple[slice, ...]:
    """Which indices of each dimension of a tensor this process holds: all, or those of its part.

    Where several axes of the processes divide one dimension, the first divides it first, except for those
    that torch calls strided: FSDP's, which divides what tensor parallelism has left.
    """
    place = [slice(0, size) for size in tensor.shape]
    if isinstance(tensor, DTensor):
        axes = list(enumerate(tensor.placements))
        for axis, placement in sorted(axes, key=lambda each: isinstance(each[1], _StridedShard)):
            if isinstance(placement, Shard | _StridedShard):
                begin, end = place[placement.dim].start, place[placement.dim].stop
                size = -(-(end - begin) // tensor.device_mesh.size(axis))
                first = min(begin + tensor.device_mesh.get_local_rank(axis) * size, end)
                place[placement.dim] = slice(first, min(first + size, end))
    return tuple(place)


def part_like(value: Tensor, tensor: Tensor) -> Tensor:
    """What this process would hold of `value`, were it divided as `tensor` is.

    Args:
        value: Whole, and the same in every process; or divided as `tensor` is.
        tensor: Of the same shape.
    """
    if not isinstance(tensor, DTensor) or isinstance(value, DTensor):
        return own_part(value)
    return divided_like(value, tensor).to_local()


def divided_like(value: Tensor, tensor: DTensor) -> DTensor:
    """A whole `value`, the same in every process, divided as `tensor` is; nothing travels."""
    part = value.detach()[own_place(tensor)].to(tensor.to_local().device, copy=True).contiguous()
    return DTensor.from_local(
        part,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


@torch.no_grad()
def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of whole tensors on the CPU.

    Of those that are divided, the process of rank 0 gets them and the others nothing, one tensor at a time;
    all of them must call this with the same names.
    """
    found = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            found[name] = tensor.detach().to("cpu", copy=True)
            continue
        whole = tensor.full_tensor()
        if dist.get_rank() == 0:
            found[name] = whole.to("cpu", copy=True)
        del whole
    return found
