"""Tensors of which each process holds a part: torch's DTensors, beside tensors that everybody holds whole."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, outside of graphs, sharing its memory: all of it, or its part."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_place(tensor: Tensor) -> tuple[slice, ...]:
    """Which indices of each dimension of a tensor this process holds: all, or those of its part."""
    place = [slice(0, size) for size in tensor.shape]
    if isinstance(tensor, DTensor):
        for axis, placement in enumerate(tensor.placements):
            if isinstance(placement, Shard):
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
    mesh = tensor.device_mesh
    here = value.to(tensor.to_local().device)
    return distribute_tensor(here, mesh, tensor.placements, src_data_rank=None)


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
