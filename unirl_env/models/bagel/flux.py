"""The autoencoder of FLUX, by diffusers' `AutoencoderKL`, and pictures and latents as rows of patches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.models.bagel.published import Published
from unirl_env.models.shared.fixed_batches import painted
from unirl_env.types import Sample

CHANNELS, PATCH = 16, 2
"""Of a latent, and the latents along the side of a token."""
LATENT_WIDTH = CHANNELS * PATCH**2

SCALE, SHIFT = 0.3611, 0.1159
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def parted(planes: Tensor, patch: int = PATCH) -> tuple[Tensor, tuple[int, int]]:
    """Planes `[N, C, H, W]` as patches `[N, L, patch * patch * C]`, and how many rows and columns of them."""
    count, channels, height, width = planes.shape
    grid = height // patch, width // patch
    split = planes.reshape(count, channels, grid[0], patch, grid[1], patch)
    return split.permute(0, 2, 4, 3, 5, 1).reshape(count, grid[0] * grid[1], -1), grid


def joined(patches: Tensor, grid: tuple[int, int], patch: int = PATCH) -> Tensor:
    """The planes `[N, C, H, W]` whose patches are `patches` `[N, L, patch * patch * C]`."""
    split = patches.reshape(len(patches), *grid, patch, patch, -1)
    return split.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, grid[0] * patch, grid[1] * patch)


def grid_places(rows: int, columns: int, side: int, device: torch.device | str) -> Tensor:
    """Places `[rows * columns]` int64 in a table of a square of `side` by `side`."""
    row = torch.arange(rows, device=device)[:, None]
    return (row * side + torch.arange(columns, device=device)).flatten()


class Autoencoder:
    """Pictures to latents and back.

    Args:
        published: Where its weights are.
        dtype: Of weights and activations.
        device: Where it works.
    """

    def __init__(self, published: Published, *, dtype: torch.dtype, device: torch.device):
        self._published, self._dtype, self._device = published, dtype, device

    @torch.no_grad()
    def encode(self, picture: Tensor) -> Tensor:
        """The latent `[C, H / 8, W / 8]` float32 of a picture `[3, H, W]` in [0, 1]: the mean, not a draw."""
        pixels = (picture * 2 - 1)[None].to(self._device, self._dtype)
        return ((self._module.encode(pixels).latent_dist.mean.float() - SHIFT) * SCALE)[0].cpu()

    @torch.no_grad()
    def samples(self, latents: Tensor) -> list[Sample]:
        """Latents `[B, C, H / 8, W / 8]` as samples with an `image` `[3, H, W]` float32 in [0, 1]."""

        def draw(latents: Tensor) -> Tensor:
            latents = latents.to(self._device, self._dtype) / SCALE + SHIFT
            return self._module.decode(latents, return_dict=False)[0]

        return painted(draw, latents, *(8 * side for side in latents.shape[2:]))

    @cached_property
    def _module(self) -> nn.Module:
        def build(weights: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
            return as_diffusers({n: weight.to(self._device, self._dtype) for n, weight in weights.items()})

        return self._published.autoencoder(build).requires_grad_(False)


def as_diffusers(weights: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    """An `AutoencoderKL` on the meta device of the sizes of `weights`, and these by its names."""
    from diffusers import AutoencoderKL

    levels = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.down."))
    blocks = 1 + max(int(name.split(".")[4]) for name in weights if name.startswith("encoder.down.0.block."))
    sizes = [weights[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    with torch.device("meta"):
        module = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(sizes),
            layers_per_block=blocks,
            latent_channels=weights["decoder.conv_in.weight"].shape[1],
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    renamed = {_renamed(name, levels): weight for name, weight in weights.items()}
    for name, weight in renamed.items():
        if "attentions" in name and weight.ndim == 4:  # convolutions of one pixel are linear layers there
            renamed[name] = weight[:, :, 0, 0]
    return module, renamed


def _renamed(name: str, levels: int) -> str:
    """Diffusers' name of a weight."""

    def upwards(match: re.Match[str]) -> str:
        return f"up_blocks.{levels - 1 - int(match[1])}."

    name = re.sub(r"\bup\.(\d+)\.", upwards, name)
    rules: tuple[tuple[str, Any], ...] = (
        (r"\bdown\.(\d+)\.", r"down_blocks.\1."),
        (r"\bblock\.(\d+)\.", r"resnets.\1."),
        (r"\bdownsample\.", "downsamplers.0."),
        (r"\bupsample\.", "upsamplers.0."),
        (r"\bnin_shortcut\b", "conv_shortcut"),
        (r"\bmid\.block_1\b", "mid_block.resnets.0"),
        (r"\bmid\.block_2\b", "mid_block.resnets.1"),
        (r"\bmid\.attn_1\.(\w+)", lambda match: f"mid_block.attentions.0.{ATTENTION[match[1]]}"),
        (r"\bnorm_out\b", "conv_norm_out"),
    )
    for old, new in rules:
        name = re.sub(old, new, name)
    return name
