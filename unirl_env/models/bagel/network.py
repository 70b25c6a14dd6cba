"""BAGEL's network: the decoder, and what stands between its tokens and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from unirl_env.models.bagel.decoder import Decoder
from unirl_env.models.bagel.flux import LATENT_WIDTH, grid_places, joined, parted
from unirl_env.models.bagel.published import VisionSizes
from unirl_env.models.bagel.seeing import Drawn, Reading, Recorded, Seeing
from unirl_env.models.bagel.siglip import VisionTower
from unirl_env.models.shared.vision import distinct_pictures, picture_places

LATENT_SIDE, VISION_SIDE = 64, 70
"""Patches along the side of the largest picture, as it is drawn and as it is seen."""
FREQUENCIES = 256


class LanguageModel(nn.Module):
    """Decoder and output layer."""

    def __init__(self, config: Any):
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class NoiseLevel(nn.Module):
    """A vector for each noise level."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sigma: Tensor) -> Tensor:
        """`[N, D]` of `sigma` `[N]`."""
        half = FREQUENCIES // 2
        place = torch.arange(half, device=sigma.device, dtype=torch.float32) / half
        angle = sigma.float()[:, None] * torch.exp(-math.log(10000) * place)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], -1).to(self.mlp[0].weight.dtype))


class Connector(nn.Module):
    """From the vision tower's width to the decoder's."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, out), nn.Linear(out, out)

    def forward(self, states: Tensor) -> Tensor:
        """`[L, D]`."""
        return self.fc2(nnf.gelu(self.fc1(states), approximate="tanh"))


class Places(nn.Module):
    """A fixed vector for each place of a square grid."""

    def __init__(self, side: int, width: int):
        super().__init__()
        self.side = side
        self.pos_embed = nn.Parameter(torch.empty(side**2, width), requires_grad=False)

    def table(self) -> Tensor:
        """Sines and cosines `[side * side, width]`: the first half of a column, the second of a row."""
        width = self.pos_embed.shape[1]
        place = torch.arange(width // 4, dtype=torch.float64) / (width / 4)
        angle = torch.arange(self.side, dtype=torch.float64)[:, None] * 10000.0**-place
        line = torch.cat([angle.sin(), angle.cos()], -1)
        column = line.expand(self.side, -1, -1)
        row = line[:, None].expand(-1, self.side, -1)
        return torch.cat([column, row], -1).flatten(0, 1).float()

    def forward(self, places: Tensor) -> Tensor:
        """`[L, D]` of `places` `[L]` int64."""
        return self.pos_embed[places]


class BagelNetwork(nn.Module):
    """All that the published weights fill, by their names.

    Args:
        config: The `Qwen2Config` of the decoder.
        vision: Sizes of the vision tower.
    """

    def __init__(self, config: Any, vision: VisionSizes):
        super().__init__()
        self.config, width = config, config.hidden_size
        self.language_model = LanguageModel(config)
        self.time_embedder = NoiseLevel(width)
        self.vae2llm = nn.Linear(LATENT_WIDTH, width)
        self.llm2vae = nn.Linear(width, LATENT_WIDTH)
        self.latent_pos_embed = Places(LATENT_SIDE, width)
        self.vit_model = VisionTower(vision)
        self.connector = Connector(vision.width, width)
        self.vit_pos_embed = Places(VISION_SIDE, width)
        self.vision_side = vision.side
        self.patch_width = 3 * vision.patch**2

    def table(self, name: str) -> Tensor:
        """The weight `name` of a table of places, computed."""
        return self.get_submodule(name.rpartition(".")[0]).table()

    def requires_grad_(self, requires_grad: bool = True) -> BagelNetwork:
        """As any module's; but tables of places stay as they are."""
        super().requires_grad_(requires_grad)
        for places in (self.latent_pos_embed, self.vit_pos_embed):
            places.pos_embed.requires_grad_(False)
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the decoder's layers in the backward pass."""
        self.language_model.model.gradient_checkpointing = True

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of tokens."""
        return self.language_model.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """The layer that makes logits."""
        return self.language_model.lm_head

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        seeing: Seeing,
        inputs: Mapping[str, Tensor] | None,
        mark: int,
    ) -> Tensor:
        """The last hidden states `[B, L, D]` of tokens among which pictures may stand.

        Args:
            tokens: `[B, L]` int64.
            positions: `[B, L]` int64.
            seeing: How they attend.
            inputs: `pixel_values` and `image_grid_thw` of their pictures, end to end; None: no pictures.
            mark: The token that stands in the place of a picture's.
        """
        states, drawn = self.get_input_embeddings()(tokens), None
        if inputs and len(inputs.get("image_grid_thw", ())):
            seen, is_drawn = self._pictures(inputs["pixel_values"], inputs["image_grid_thw"])
            where = picture_places(tokens == mark, positions[None], len(seen))
            states = states.masked_scatter(where[..., None], seen.to(states))
            drawn = torch.zeros_like(where).masked_scatter(where, is_drawn)
        return self.language_model.model(states, positions, seeing, drawn)

    def read(
        self,
        tokens: Tensor,
        positions: Tensor,
        length: Tensor,
        inputs: Mapping[str, Tensor] | None,
        mark: int,
    ) -> Reading:
        """Keys and values of texts `[P, L]` padded on the right; `length` `[P]` of the tokens are real."""
        pictures = inputs is not None and len(inputs["image_grid_thw"]) > 0
        seeing = Recorded(positions if pictures else None)
        self.hidden(tokens, positions, seeing, inputs, mark)
        last = positions.gather(1, (length - 1).clamp_min(0)[:, None])[:, 0]
        return seeing.reading(length, torch.where(length > 0, last + 1, 0))

    def velocity(self, latent: Tensor, sigma: Tensor, texts: Reading, ends: tuple[int, int]) -> Tensor:
        """The flow `d x / d sigma` `[N, C, H, W]` of latents behind their texts.

        Args:
            latent: `[N, C, H, W]`.
            sigma: `[N]`.
            texts: N of them.
            ends: The tokens before and after a picture.
        """
        patches, grid = parted(latent)
        count = patches.shape[1]
        places = grid_places(*grid, LATENT_SIDE, latent.device)
        states = self.vae2llm(patches.to(self.vae2llm.weight.dtype))
        states = states + self.time_embedder(sigma)[:, None] + self.latent_pos_embed(places)
        tokens = torch.tensor(ends, device=latent.device)
        begin, end = self.get_input_embeddings()(tokens).expand(len(latent), -1, -1).split(1, 1)
        drawn = torch.ones(len(latent), count + 2, dtype=torch.bool, device=latent.device)
        drawn[:, 0] = drawn[:, -1] = False
        positions = texts.position[:, None].expand_as(drawn)
        hidden = self.language_model.model(
            torch.cat([begin, states, end], 1), positions, Drawn(texts, count + 2), drawn
        )
        return joined(self.llm2vae(hidden[:, 1:-1]), grid)

    def _pictures(self, pixel_values: Tensor, grids: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `[M, D]` of pictures, and which of them `[M]` are drawn: latents and patches in turn."""
        dtype, device = self.vae2llm.weight.dtype, pixel_values.device
        shapes = [tuple(grid[1:]) for grid in grids.tolist()]
        pictures = pixel_values.to(dtype).split([rows * columns for rows, columns in shapes])
        seen, kinds = [], []
        first, which = distinct_pictures(pictures, [(i % 2, *shape) for i, shape in enumerate(shapes)])
        clean = self.time_embedder(torch.zeros(1, device=device))
        for i in first:
            rows, columns = shapes[i]
            if i % 2 == 0:
                places = grid_places(rows, columns, LATENT_SIDE, device)
                latent = self.vae2llm(pictures[i][:, :LATENT_WIDTH])
                seen.append(latent + clean + self.latent_pos_embed(places))
            else:
                places = grid_places(rows, columns, self.vision_side, device)
                features = self.connector(self.vit_model(pictures[i][:, : self.patch_width], places))
                places = grid_places(rows, columns, VISION_SIDE, device)
                seen.append(features + self.vit_pos_embed(places))
        for i, shape in enumerate(shapes):
            kinds.append(torch.full((shape[0] * shape[1],), i % 2 == 0, device=device))
        return torch.cat([seen[i] for i in which]), torch.cat(kinds)
