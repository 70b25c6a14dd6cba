"""Learners that read the same episodes hold what they have against each other."""

from __future__ import annotations

from collections.abc import Mapping
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor

from unirl_env.errors import ContractError


def require_same(
    group: dist.ProcessGroup, device: torch.device, tensors: Mapping[str, Tensor], what: str, sharing: str
) -> None:
    """Refuse to go on where learners hold different tensors.

    Args:
        group: Of these learners, all of which call this.
        device: Where they exchange tensors.
        tensors: By name.
        what: They are, for the error.
        sharing: The setting by which these learners read the same episodes.

    Raises:
        ContractError: If they differ in a bit.
    """
    told = 0
    for name, tensor in sorted(tensors.items()):
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        told = crc32(name.encode() + content, told)
    found = torch.tensor([told, -told], device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=group)
    if int(found[0]) != -int(found[1]):
        raise ContractError(
            f"Learners that read the same episodes (`{sharing}` {group.size()}) must have the same {what}, "
            f"got others: a kernel or the environment is not deterministic; try {sharing}=1."
        )
