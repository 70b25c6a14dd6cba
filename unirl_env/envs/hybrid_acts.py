"""An example of a policy for episodes that write and draw."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from unirl_env.envs.laws import as_array

__all__ = ["hybrid_act"]


def hybrid_act(space: spaces.Dict, opens: Sequence[int], obs: dict[str, Any]) -> dict[str, Any]:
    """Each episode acts by what it has said itself; every third token opens a picture, where any can.

    Args:
        space: Of one episode's actions.
        opens: The tokens that open a picture.
        obs: What B episodes see.
    """
    said, lengths = as_array(obs["tokens"]), as_array(obs["length"])
    painted = as_array(obs["image_length"]) if "image_length" in obs else np.zeros_like(lengths)
    keys = [
        zlib.crc32(tokens[:length].tobytes(), int(count))
        for tokens, length, count in zip(said, lengths, painted, strict=True)
    ]
    actions: dict[str, Any] = {}
    for name in space:
        if name == "latent":
            actions[name] = obs["latent"] * 0.9
            continue
        chosen = [int(space[name].start) + key % int(space[name].n) for key in keys]
        if name == "token" and opens:
            chosen = [
                token if key % 3 else opens[key % len(opens)] for token, key in zip(chosen, keys, strict=True)
            ]
        values = np.array(chosen, dtype=np.int64)
        live = isinstance(obs["length"], torch.Tensor)
        actions[name] = torch.from_numpy(values).to(obs["length"].device) if live else values
    return actions
