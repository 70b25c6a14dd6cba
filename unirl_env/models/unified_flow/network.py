"""One decoder that reads words and denoises a picture; imported only where transformers is at work.

Words are a causal text, as in any Qwen3. A picture is a block of patches of a latent behind the text: its
patches see the whole text and each other. What they say at the last layer is the latent's velocity.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    initialization,
)
from transformers.masking_utils import sdpa_mask

from unirl_env.errors import ContractError
from unirl_env.models.shared.packed import packed_attention
from unirl_env.models.shared.prefix import Prefix

ATTENTION = "unirl_unified"
FREQUENCIES = 64


class UnifiedFlowConfig(Qwen3Config):
    """Qwen3's settings, and those of the pictures.

    Attributes:
        latent_channels: C of a latent `[C, H, W]`.
        latent_size: H and W that the model is trained for.
        patch_size: Side of the square of a latent that is one token.
        max_grid: The most patches along a side.
        shift: Of the noise schedule, as in `functional.flow_sigmas`.
        begin_image_token_id: Ends the text, and the picture begins.
        source_start_token_id: Stands before a picture that a prompt brings.
        source_token_id: Stands for each patch of it.
        source_end_token_id: Stands behind it.
    """

    model_type = "unirl_unified_flow"

    latent_channels: int = 4
    latent_size: int = 8
    patch_size: int = 2
    max_grid: int = 4
    shift: float = 3.0
    begin_image_token_id: int | None = None
    source_start_token_id: int | None = None
    source_token_id: int | None = None
    source_end_token_id: int | None = None

    @property
    def patch_values(self) -> int:
        """Numbers in a patch."""
        return self.latent_channels * self.patch_size**2


class _Recorded:
    """Takes down the keys and values of a forward pass over texts."""

    def __init__(self, layers: int):
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    memory: Prefix | _Recorded | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """`packed_attention` for texts; patches behind a `Prefix` see all of that and all of each other."""
    if isinstance(memory, Prefix):
        key, value = memory.extended(module.layer_idx, key, value)
        # One mask serves all queries, so that the heads that share a key read it together, uncopied.
        together = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3)
        out = nnf.scaled_dot_product_attention(together, key, value, attn_mask=attention_mask, scale=scaling)
        return out.unflatten(2, (-1, query.shape[2])).flatten(1, 2).transpose(1, 2), None
    if memory is not None:
        memory.keys[module.layer_idx], memory.values[module.layer_idx] = key, value
    return packed_attention(module, query, key, value, attention_mask, scaling=scaling, **options)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class _In(nn.Linear):
    """Begins at full size."""


class _Out(nn.Linear):
    """Begins at nothing, as in diffusion transformers."""


class _Picture(nn.Module):
    """The layers that only pictures pass: patches to hidden states, and hidden states to velocities."""

    def __init__(self, config: UnifiedFlowConfig):
        super().__init__()
        width = config.hidden_size
        self.patch_in = _In(config.patch_values, width)
        self.row, self.column = nn.Embedding(config.max_grid, width), nn.Embedding(config.max_grid, width)
        self.time_in, self.time_out = _In(2 * FREQUENCIES, width), _In(width, width)
        self.modulation = _Out(width, 2 * width)
        self.patch_out = _Out(width, config.patch_values)

    def time(self, sigma: Tensor) -> Tensor:
        """`[N, D]` of sigma `[N]`."""
        scale = torch.arange(FREQUENCIES, device=sigma.device) * (-math.log(10_000) / FREQUENCIES)
        angle = sigma.float()[:, None] * 1000 * scale.exp()
        waves = torch.cat([angle.cos(), angle.sin()], 1).to(self.time_in.weight.dtype)
        return self.time_out(nnf.silu(self.time_in(waves)))

    def embed(self, patches: Tensor, grid: tuple[int, int], time: Tensor) -> Tensor:
        """Patches `[N, h * w, values]` of latents at `time` `[N, D]` as hidden states `[N, h * w, D]`."""
        rows, columns = (torch.arange(n, device=patches.device) for n in grid)
        place = (self.row(rows)[:, None] + self.column(columns)).flatten(0, 1)
        return self.patch_in(patches.to(self.patch_in.weight.dtype)) + place + time[:, None]

    def velocity(self, hidden: Tensor, time: Tensor) -> Tensor:
        """Velocity `[N, h * w, values]` of last hidden states."""
        scale, shift = self.modulation(nnf.silu(time))[:, None].chunk(2, -1)
        return self.patch_out(hidden * (1 + scale) + shift)


class UnifiedFlowNetwork(Qwen3ForCausalLM):
    """Qwen3 with a way in and a way out for patches of latents.

    It is a causal language model like any other for who only writes (`generate`, adapters of peft); pictures
    go by `read_text` and `velocity`.
    """

    config_class = UnifiedFlowConfig

    def __init__(self, config: UnifiedFlowConfig):
        super().__init__(config)
        self.picture = _Picture(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, _In):
            initialization.xavier_uniform_(module.weight)
        elif isinstance(module, _Out):
            initialization.zeros_(module.weight)
        # What has its values already keeps them.
        super()._init_weights(module)

    def embed(
        self, tokens: Tensor, positions: Tensor, patches: Tensor | None = None, grid: Tensor | None = None
    ) -> Tensor:
        """Hidden states `[B, L, D]` at the beginning of texts, with the prompts' pictures in their places.

        Args:
            tokens: `[B, L]` int64.
            positions: `[B, L]` int64, counted from the beginning of each text.
            patches: `[M, values]`, the pictures' patches one after another.
            grid: `[n, 3]` int64, frames (1), rows and columns of patches of each picture.

        Raises:
            ContractError: If texts and pictures do not belong together.
        """
        hidden = self.model.embed_tokens(tokens)
        if grid is None or not len(grid):
            return hidden
        (frames, height, width), count = grid[0].tolist(), len(grid)
        if frames != 1 or bool((grid != grid[0]).any()):
            raise ContractError(f"Pictures of prompts must be of one size, got {grid.tolist()}.")
        where = self._source_places(tokens, positions, height * width)
        if int(where.sum()) != len(patches) or len(patches) != count * height * width:
            raise ContractError(
                f"The pictures must be those of the tokens, got {len(patches)} patches for "
                f"{int(where.sum())} places."
            )
        clean = self.picture.time(torch.zeros(1, device=tokens.device)).expand(count, -1)
        seen = self.picture.embed(patches.unflatten(0, (count, -1)), (height, width), clean)
        return hidden.masked_scatter(where[..., None], seen.to(hidden))

    def _source_places(self, tokens: Tensor, positions: Tensor, count: int) -> Tensor:
        """Where pictures stand, `[B, L]` bool: at the beginning of a text, where no policy speaks."""
        begin = torch.arange(tokens.shape[1], device=tokens.device) - positions
        opened = tokens.gather(1, begin) == self.config.source_start_token_id
        marked = tokens == self.config.source_token_id
        return opened & marked & (positions >= 1) & (positions <= count)

    def read_text(
        self, tokens: Tensor, length: Tensor, patches: Tensor | None = None, grid: Tensor | None = None
    ) -> tuple[Tensor, Prefix]:
        """One causal pass over texts: their last hidden states `[P, L, D]`, and what a picture sees of them.

        Args:
            tokens: `[P, L]` int64, padded on the right, where no real token looks.
            length: `[P]` int64.
            patches: As for `embed`.
            grid: As for `embed`.

        Raises:
            ContractError: If texts and pictures do not belong together.
        """
        brought = int((tokens[:, 0] == self.config.source_start_token_id).sum())
        if brought != (0 if grid is None else len(grid)):
            raise ContractError(
                f"Texts that begin with a picture must come with it, got {brought} such texts and "
                f"{0 if grid is None else len(grid)} pictures; try `with_inputs=True`."
            )
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        recorded = _Recorded(self.config.num_hidden_layers)
        hidden = self.model(
            inputs_embeds=self.embed(tokens, positions, patches, grid),
            position_ids=positions,
            attention_mask={"full_attention": None},  # none is needed: attention is causal by itself
            use_cache=False,
            memory=recorded,
        ).last_hidden_state
        return hidden, Prefix(tuple(recorded.keys), tuple(recorded.values), length)

    def velocity(self, latent: Tensor, sigma: Tensor, prefix: Prefix) -> Tensor:
        """The velocity `[N, C, H, W]` of latents behind N texts.

        Args:
            latent: `[N, C, H, W]`.
            sigma: `[N]` in [0, 1].
            prefix: N texts.
        """
        size = self.config.patch_size
        height, width = latent.shape[2] // size, latent.shape[3] // size
        time = self.picture.time(sigma)
        block = self.picture.embed(patches_of(latent, size), (height, width), time)
        own = torch.arange(height * width, device=latent.device)
        seen = torch.arange(prefix.width, device=latent.device) < prefix.length[:, None]
        seen = torch.cat([seen, seen.new_ones(len(latent), len(own))], 1)
        hidden = self.model(
            inputs_embeds=block,
            position_ids=prefix.length[:, None] + own,
            attention_mask={"full_attention": seen[:, None, None]},
            use_cache=False,
            memory=prefix,
        ).last_hidden_state
        said = self.picture.velocity(hidden, time)
        squares = said.view(len(latent), height, width, -1, size, size)
        return squares.permute(0, 3, 1, 4, 2, 5).reshape(latent.shape)


def patches_of(latent: Tensor, size: int) -> Tensor:
    """Latents `[N, C, H, W]` as squares of side `size`, row by row: `[N, h * w, C * size**2]`."""
    count, channels, height, width = latent.shape
    squares = latent.reshape(count, channels, height // size, size, width // size, size)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * size**2)


AutoConfig.register(UnifiedFlowConfig.model_type, UnifiedFlowConfig, exist_ok=True)
AutoModelForCausalLM.register(UnifiedFlowConfig, UnifiedFlowNetwork, exist_ok=True)
