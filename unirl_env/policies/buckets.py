"""Weights on their way from those who train to those who play, a bucket at a time and never all of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from unirl_env.policies.parts import own_part

BUCKET_BYTES = 256 << 20
"""What weights of a bucket take together at most; a larger weight has one for itself."""
ALIGNED = 16
"""Weights begin at multiples of so many bytes, so that any data type can be read in place."""


class Place(NamedTuple):
    """Where a weight lies in a bucket.

    Attributes:
        name: The weight's.
        dtype: Its data type.
        shape: Its shape, whole.
        begin: The first of its bytes.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int


@dataclass(frozen=True)
class Bucket:
    """Some whole weights in one piece of memory, which Ray's store passes on without a copy.

    Attributes:
        places: Of each weight.
        memory: `[bytes]` uint8.
    """

    places: tuple[Place, ...]
    memory: np.ndarray

    def tensors(self) -> dict[str, Tensor]:
        """The weights by name, in the bucket's own memory: to be read only."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what comes from the store cannot be written to
            memory = torch.from_numpy(self.memory)
        return {place.name: _laid(memory, place.begin, place.dtype, place.shape) for place in self.places}


def in_buckets(tensors: Mapping[str, Tensor], limit: int = BUCKET_BYTES) -> list[list[str]]:
    """The names of weights by buckets, in their order; the same wherever names and shapes are.

    Args:
        tensors: By name; of divided ones the whole counts.
        limit: Bytes of a bucket.

    Returns:
        At least one bucket, be it empty.
    """
    buckets: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        size = _bytes(tensor.shape, tensor.dtype)
        if buckets[-1] and filled + size > limit:
            buckets.append([])
            filled = 0
        buckets[-1].append(name)
        filled += size
    return buckets


@torch.no_grad()
def filled(tensors: Mapping[str, Tensor]) -> Bucket | None:
    """A bucket with copies of these weights, whole.

    Where some are divided, all processes that hold parts must call this with the same names, and send what
    they hold to the process of rank 0 in one exchange. It holds the bucket twice meanwhile.

    Returns:
        None in the processes of other ranks, where weights are divided.
    """
    places, size = [], 0
    for name, tensor in tensors.items():
        places.append(Place(name, tensor.dtype, tuple(tensor.shape), size))
        size += _bytes(tensor.shape, tensor.dtype)
    divided = any(isinstance(tensor, DTensor) for tensor in tensors.values())
    first = not divided or dist.get_rank() == 0
    bucket = Bucket(tuple(places), np.empty(size if first else 0, np.uint8))
    whole = bucket.tensors() if first else {}
    for kind, group in _alike(tensors).items():
        if kind is not None:
            _send(cast("dict[str, DTensor]", group), kind, whole)
            continue
        for name, tensor in group.items():
            value = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
            if first:
                whole[name].copy_(value)
    return bucket if first else None


class _Kind(NamedTuple):
    """How weights are divided: along one axis of a mesh, and each in the same dimension."""

    mesh: DeviceMesh
    axis: int
    dim: int


def _alike(tensors: Mapping[str, Tensor]) -> dict[_Kind | None, dict[str, Tensor]]:
    """The weights by what travels in one exchange; None are whole, or divided along several axes."""
    groups: dict[_Kind | None, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind = None
        if isinstance(tensor, DTensor):
            parts = [(axis, p) for axis, p in enumerate(tensor.placements) if not p.is_replicate()]
            if len(parts) == 1 and type(parts[0][1]) is Shard:  # and not in strides
                kind = _Kind(tensor.device_mesh, parts[0][0], parts[0][1].dim)
        groups.setdefault(kind, {})[name] = tensor
    return groups


def _send(divided: Mapping[str, DTensor], kind: _Kind, whole: Mapping[str, Tensor]) -> None:
    """Send what this process holds to that of rank 0, which lays it into `whole`."""
    group, dim = kind.mesh.get_group(kind.axis), kind.dim
    ranks = dist.get_process_group_ranks(group)
    if ranks[0] != 0:  # another copy of the same weights
        return
    # All send as much: the largest part of each weight.
    sizes = [_bytes(_part(t.shape, dim, len(ranks), 0)[1], t.dtype) for t in divided.values()]
    own = torch.zeros(sum(sizes), dtype=torch.uint8, device=own_part(next(iter(divided.values()))).device)
    for begin, tensor in zip(_begins(sizes), divided.values(), strict=True):
        part = own_part(tensor)
        _laid(own, begin, part.dtype, part.shape).copy_(part)
    received = [torch.empty_like(own) for _ in ranks] if dist.get_rank() == 0 else None
    dist.gather(own, received, dst=0, group=group)
    for number, memory in enumerate(received or ()):
        for begin, (name, tensor) in zip(_begins(sizes), divided.items(), strict=True):
            start, shape = _part(tensor.shape, dim, len(ranks), number)
            part = _laid(memory, begin, tensor.dtype, shape)
            whole[name].narrow(dim, start, shape[dim]).copy_(part)


def _part(shape: Sequence[int], dim: int, count: int, number: int) -> tuple[int, tuple[int, ...]]:
    """Where in dimension `dim` the part of so many begins, as torch divides, and its shape."""
    most = -(-shape[dim] // count)
    start = min(number * most, shape[dim])
    own = min(most, shape[dim] - start)
    return start, (*shape[:dim], own, *shape[dim + 1 :])


def _begins(sizes: Sequence[int]) -> Iterator[int]:
    begin = 0
    for size in sizes:
        yield begin
        begin += size


def _bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """What a tensor takes, up to where the next one may begin."""
    return -(-prod(shape) * dtype.itemsize // ALIGNED) * ALIGNED


def _laid(memory: Tensor, begin: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """The tensor that lies in `memory`."""
    if not prod(shape):
        return torch.empty(tuple(shape), dtype=dtype, device=memory.device)
    return memory[begin : begin + prod(shape) * dtype.itemsize].view(dtype).view(tuple(shape))
