"""The autoencoder between pictures and latents, by the names of the published weights.

It is made for films: a picture is a film of one latent frame, whose last decoded frame is the picture. Where
channels and sides change together, the shortcut moves pixels into channels and back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as nnf
from torch import Tensor, nn

GROUPS = 32


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


def _conv(inside: int, outside: int, size: int = 3) -> nn.Conv3d:
    return nn.Conv3d(inside, outside, size, padding=size // 2)


def fold(film: Tensor, time: int) -> Tensor:
    """Blocks of `time` x 2 x 2 pixels of `[B, C, T, H, W]` into the channels."""
    batch, channels, frames, height, width = film.shape
    film = film.reshape(batch, channels, frames // time, time, height // 2, 2, width // 2, 2)
    return film.permute(0, 3, 5, 7, 1, 2, 4, 6).reshape(batch, -1, frames // time, height // 2, width // 2)


def unfold(film: Tensor, time: int) -> Tensor:
    """What `fold` put into the channels, back into `time` times the frames and twice the sides."""
    batch, channels, frames, height, width = film.shape
    film = film.reshape(batch, time, 2, 2, channels // (4 * time), frames, height, width)
    return film.permute(0, 4, 5, 1, 6, 2, 7, 3).reshape(batch, -1, frames * time, height * 2, width * 2)


class Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(inside), _conv(inside, outside)
        self.norm2, self.conv2 = _norm(outside), _conv(outside, outside)
        if inside != outside:
            self.nin_shortcut = _conv(inside, outside, 1)

    def forward(self, film: Tensor) -> Tensor:
        """`[B, C, T, H, W]`."""
        hidden = self.conv1(nnf.silu(self.norm1(film)))
        hidden = self.conv2(nnf.silu(self.norm2(hidden)))
        shortcut = getattr(self, "nin_shortcut", None)
        return hidden + (film if shortcut is None else shortcut(film))


class Look(nn.Module):
    """Attention of all pixels to all, with one head."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (_conv(channels, channels, 1) for _ in range(4))

    def forward(self, film: Tensor) -> Tensor:
        """`[B, C, T, H, W]`."""
        normed = self.norm(film)
        states = (part(normed).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        seen = nnf.scaled_dot_product_attention(*states)
        return film + self.proj_out(seen[:, 0].transpose(1, 2).reshape_as(film))


class Middle(nn.Module):
    """What stands where the picture is smallest."""

    def __init__(self, channels: int):
        super().__init__()
        self.block_1, self.attn_1 = Residual(channels, channels), Look(channels)
        self.block_2 = Residual(channels, channels)

    def forward(self, film: Tensor) -> Tensor:
        """`[B, C, T, H, W]`."""
        return self.block_2(self.attn_1(self.block_1(film)))


class Shrink(nn.Module):
    """Half the sides, and with `time` 2 half the frames."""

    def __init__(self, inside: int, outside: int, time: int):
        super().__init__()
        self.time, self.outside = time, outside
        self.conv = _conv(inside, outside // (4 * time))

    def forward(self, film: Tensor) -> Tensor:
        """`[B, C, T, H, W]`."""
        shortcut = fold(film, self.time).unflatten(1, (self.outside, -1)).mean(2)
        return fold(self.conv(film), self.time) + shortcut


class Grow(nn.Module):
    """Twice the sides, and with `time` 2 twice the frames."""

    def __init__(self, inside: int, outside: int, time: int):
        super().__init__()
        self.time, self.repeats = time, 4 * time * outside // inside
        self.conv = _conv(inside, outside * 4 * time)

    def forward(self, film: Tensor) -> Tensor:
        """`[B, C, T, H, W]`."""
        shortcut = unfold(film.repeat_interleave(self.repeats, 1), self.time)
        return unfold(self.conv(film), self.time) + shortcut


class Stage(nn.Module):
    """Blocks of one size; `downsample` or `upsample` behind them changes it."""

    def __init__(self, inside: int, outside: int, blocks: int):
        super().__init__()
        self.block = nn.ModuleList(
            Residual(inside if number == 0 else outside, outside) for number in range(blocks)
        )

    def forward(self, film: Tensor) -> Tensor:
        """`[B, C, T, H, W]`."""
        for block in self.block:
            film = block(film)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                film = getattr(self, name)(film)
        return film


class Encode(nn.Module):
    """Films to the means and logarithmic variances of latents."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        widths, latent = tuple(config["block_out_channels"]), config["latent_channels"]
        space, time = (int(math.log2(config[f"ffactor_{axis}"])) for axis in ("spatial", "temporal"))
        self.moments = 2 * latent
        self.conv_in = _conv(config["in_channels"], widths[0])
        self.down, inside = nn.ModuleList(), widths[0]
        for level, outside in enumerate(widths):
            stage = Stage(inside, outside, config["layers_per_block"])
            inside = outside
            if level < space:
                inside = _after(widths, level, config.get("downsample_match_channel", True))
                stage.downsample = Shrink(outside, inside, 2 if level >= space - time else 1)
            self.down.append(stage)
        self.mid = Middle(inside)
        self.norm_out, self.conv_out = _norm(inside), _conv(inside, self.moments)

    def forward(self, film: Tensor) -> Tensor:
        """`[B, 3, T, H, W]` in [-1, 1] to `[B, 2 * latent_channels, T', H', W']`."""
        hidden = self.conv_in(film)
        for stage in self.down:
            hidden = stage(hidden)
        hidden = self.mid(hidden)
        shortcut = hidden.unflatten(1, (self.moments, -1)).mean(2)
        return self.conv_out(nnf.silu(self.norm_out(hidden))) + shortcut


class Decode(nn.Module):
    """Latents to films."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        widths, latent = tuple(reversed(config["block_out_channels"])), config["latent_channels"]
        space, time = (int(math.log2(config[f"ffactor_{axis}"])) for axis in ("spatial", "temporal"))
        self.repeats = widths[0] // latent
        self.conv_in = _conv(latent, widths[0])
        self.mid, inside = Middle(widths[0]), widths[0]
        self.up = nn.ModuleList()
        for level, outside in enumerate(widths):
            stage = Stage(inside, outside, config["layers_per_block"] + 1)
            inside = outside
            if level < max(space, time):
                inside = _after(widths, level, config.get("upsample_match_channel", True))
                stage.upsample = Grow(outside, inside, 2 if level < time else 1)
            self.up.append(stage)
        self.norm_out, self.conv_out = _norm(inside), _conv(inside, config["out_channels"])

    def forward(self, latent: Tensor) -> Tensor:
        """`[B, C, T', H', W']` to `[B, 3, T, H, W]` in [-1, 1]."""
        hidden = self.conv_in(latent) + latent.repeat_interleave(self.repeats, 1)
        hidden = self.mid(hidden)
        for stage in self.up:
            hidden = stage(hidden)
        return self.conv_out(nnf.silu(self.norm_out(hidden)))


def _after(widths: Sequence[int], level: int, match: bool) -> int:
    """Channels behind a change of size."""
    return widths[level + 1] if match else widths[level]


class Autoencoder(nn.Module):
    """Both halves; an environment that only shows pictures loads the decoder alone."""

    def __init__(self, config: Mapping[str, Any], *, only_decoder: bool = False):
        super().__init__()
        if not only_decoder:
            self.encoder = Encode(config)
        self.decoder = Decode(config)
