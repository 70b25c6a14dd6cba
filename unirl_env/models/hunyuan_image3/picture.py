"""From latents to the tokens of a picture and back, both told the time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from unirl_env.errors import ConfigError

FREQUENCIES = 256
GROUPS = 32
PATCHES = (1, 2, 4, 8)


class TimeEmbedding(nn.Module):
    """Sines and cosines of a time in [0, 1000], and two layers."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        """Times `[N]` float32 as `[N, D]`."""
        half = FREQUENCIES // 2
        steps = torch.arange(half, dtype=torch.float32, device=time.device)
        angle = time[:, None] * torch.exp(-math.log(10000.0) / half * steps)
        waves = torch.cat([angle.cos(), angle.sin()], -1)
        return self.mlp(waves.to(self.mlp[0].weight.dtype))


class Block(nn.Module):
    """Two convolutions with a shortcut; the time scales and shifts between them.

    Args:
        inside: Channels that come in.
        outside: Channels that go out.
        width: Of the embedded time.
        resize: 0.5 halves the picture's sides before the first convolution, 2 doubles them, 1 keeps them.
    """

    def __init__(self, inside: int, outside: int, width: int, *, resize: float = 1):
        super().__init__()
        self.resize = resize
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, inside), nn.SiLU(), nn.Conv2d(inside, outside, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * outside))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, outside), nn.SiLU(), nn.Identity(), nn.Conv2d(outside, outside, 3, padding=1)
        )
        same = inside == outside
        self.skip_connection = nn.Identity() if same else nn.Conv2d(inside, outside, 1)

    def forward(self, picture: Tensor, time: Tensor) -> Tensor:
        """Channels `[N, C, H, W]` at embedded times `[N, D]`."""
        norm, bend, conv = self.in_layers
        hidden = conv(self._resized(bend(norm(picture))))
        scale, shift = self.emb_layers(time)[..., None, None].chunk(2, 1)
        norm, bend, _, conv = self.out_layers
        hidden = conv(bend(norm(hidden) * (1 + scale) + shift))
        return self.skip_connection(self._resized(picture)) + hidden

    def _resized(self, picture: Tensor) -> Tensor:
        if self.resize < 1:
            return nnf.avg_pool2d(picture, 2)
        if self.resize > 1:
            return nnf.interpolate(picture, scale_factor=2, mode="nearest")
        return picture


class ToTokens(nn.Module):
    """Latents to tokens: one convolution, then blocks that halve the sides down to the patches."""

    def __init__(self, latent_channels: int, inner: int, width: int, patch: int):
        super().__init__()
        blocks = _number_of_blocks(patch)
        outside = [inner] * (blocks - 1) + [width]
        resize = 1 if patch == 1 else 0.5
        self.model = nn.ModuleList([nn.Conv2d(latent_channels, inner, 3, padding=1)])
        self.model.extend(Block(inner, channels, width, resize=resize) for channels in outside)

    def forward(self, latent: Tensor, time: Tensor) -> Tensor:
        """Latents `[N, C, H, W]` at embedded times `[N, D]`, as `[N, D, H / patch, W / patch]`."""
        first, *blocks = self.model
        picture = first(latent)
        for block in blocks:
            picture = block(picture, time)
        return picture


class FromTokens(nn.Module):
    """Tokens to latents: blocks that double the sides, then a norm and a convolution."""

    def __init__(self, latent_channels: int, inner: int, width: int, patch: int):
        super().__init__()
        blocks = _number_of_blocks(patch)
        inside = [width] + [inner] * (blocks - 1)
        resize = 1 if patch == 1 else 2
        self.model = nn.ModuleList(Block(channels, inner, width, resize=resize) for channels in inside)
        self.model.append(
            nn.Sequential(
                nn.GroupNorm(GROUPS, inner), nn.SiLU(), nn.Conv2d(inner, latent_channels, 3, padding=1)
            )
        )

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        """Tokens `[N, D, h, w]` at embedded times `[N, D]`, as latents `[N, C, h * patch, w * patch]`."""
        *blocks, last = self.model
        for block in blocks:
            tokens = block(tokens, time)
        return last(tokens)


def _number_of_blocks(patch: int) -> int:
    """How many blocks stand on a side of the decoder.

    Raises:
        ConfigError: If there is no network for such patches.
    """
    if patch not in PATCHES:
        raise ConfigError(f"`patch_size` of config.json must be one of {PATCHES}, got {patch}.")
    return max(1, patch // 2)
