"""BAGEL as a denoiser: rectified flow behind a text that is read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

import unirl_env.functional as F
from unirl_env.errors import PromptError
from unirl_env.models.bagel.autoencoder import Autoencoder
from unirl_env.models.bagel.patches import CHANNELS
from unirl_env.models.bagel.pictures import grid_positions
from unirl_env.models.bagel.seeing import Reading
from unirl_env.models.bagel.text import BagelText, layer_names
from unirl_env.models.denoiser import Denoiser
from unirl_env.models.shared.fixed_batches import in_fixed_batches
from unirl_env.models.unified import SharedBackbone
from unirl_env.types import Prompt, Sample

__all__ = ["PICTURES", "BagelImage"]

SHIFT = 3.0
PICTURES = ("pixel_values", "image_grid_thw")
"""Of the text view's inputs, those that the image view reads; positions follow from the grids."""


class BagelImage(SharedBackbone, Denoiser):
    """Latents `[16, H / 8, W / 8]` of FLUX's autoencoder.

    Args:
        text: The view of the language model.
        autoencoder: Paints the latents.
        height: Pixels.
        width: Pixels.
        max_prompt_tokens: W, how wide encoded prompts are.
        rows_per_forward: Evaluate the network on exactly that many rows at a time; None takes all at once.
    """

    def __init__(
        self,
        text: BagelText,
        autoencoder: Autoencoder,
        *,
        height: int,
        width: int,
        max_prompt_tokens: int,
        rows_per_forward: int | None,
    ):
        self._text = self.whole = text
        self._autoencoder = autoencoder
        self.latent_shape = (CHANNELS, height // 8, width // 8)
        self.max_prompt_tokens, self.rows_per_forward = max_prompt_tokens, rows_per_forward
        self.lora_targets = layer_names(text.layers, "_moe_gen")

    def sigmas(self, num_steps: int) -> Tensor:
        """The published grid `[T+1]`: uniform, shifted by 3."""
        return F.flow_sigmas(num_steps, shift=SHIFT)

    def encode(self, prompts: Sequence[Prompt], *, negative: bool = False) -> dict[str, Tensor]:
        """`tokens` `[P, W]` int64, padded on the right, `length` `[P]` int64, and the inputs of pictures.

        Negative: what is left without the text of the prompt. That may be nothing, of length 0.

        Raises:
            PromptError: If a prompt is too long.
        """
        read = self._text.unconditional if negative else self._text.encode
        encoded = [read(prompt) for prompt in prompts]
        close = [self._text.special["end"]] if self._text.thinking and not negative else []
        rows = [[*each.tokens.tolist(), *close] for each in encoded]
        width = self.max_prompt_tokens
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > width:
                raise PromptError(
                    f"A prompt must have at most {width} tokens, got {len(row)} for prompt "
                    f"{prompt.id[:60]!r}; try a shorter prompt or a larger `max_prompt_tokens`."
                )
        context = {
            "tokens": torch.full((len(rows), width), self._text.pad_id),
            "length": torch.tensor([len(row) for row in rows]),
        }
        for row, tokens in zip(rows, context["tokens"], strict=True):
            tokens[: len(row)] = torch.tensor(row, dtype=torch.int64)
        spaces = self._text.input_spaces
        for name, (shape, dtype) in ((name, spaces[name]) for name in PICTURES if name in spaces):
            context[name] = torch.zeros(len(rows), *shape, dtype=getattr(torch, dtype))
            for each, out in zip(encoded, context[name], strict=True):
                value = each.inputs.get(name, torch.zeros(0, *shape[1:]))
                out[tuple(map(slice, value.shape))] = value.to(out)
        return {name: tensor.to(self._text.device) for name, tensor in context.items()}

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Sample]:
        """Pictures `[3, H, W]` float32 in [0, 1]."""
        # Clones, because a view would carry the whole batch along wherever it is sent.
        return [Sample(image=picture.clone()) for picture in self._autoencoder.decode(latents)]

    def read(self, network: nn.Module, context: Mapping[str, Tensor]) -> Reading:
        """Keys and values of P texts, in one pass, trimmed to the longest.

        With `rows_per_forward` each text is read alone, so that no other shows in its last bits.
        """
        if self.rows_per_forward is None:
            return self._read(network, context)
        count = len(context["length"])
        alone = [self._read(network, {k: v[i : i + 1] for k, v in context.items()}) for i in range(count)]
        return Reading.stacked(alone)

    def pick(self, context: Reading, row: Tensor) -> Reading:
        """The texts at `row` `[N]`."""
        return context.pick(row)

    def velocity(self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Reading) -> Tensor:
        """The prediction `[N, 16, H / 8, W / 8]`: noise minus data, in the network's dtype."""
        ends = self._text.special["picture_begin"], self._text.special["picture_end"]

        def forward(row: Tensor, latent: Tensor, sigma: Tensor) -> Tensor:
            return network.velocity(latent, sigma, context.pick(row).trimmed(), ends)

        rows = torch.arange(len(latent), device=latent.device)
        return in_fixed_batches(forward, rows, latent, sigma, rows=self.rows_per_forward)

    def _read(self, network: nn.Module, context: Mapping[str, Tensor]) -> Reading:
        length = context["length"]
        tokens = context["tokens"][:, : max(1, int(length.max()))]
        grids = context.get("image_grid_thw")
        if grids is None:
            grids, inputs = length.new_zeros(len(length), 0, 3), None
        else:
            patches = grids.prod(-1)
            pixels = context["pixel_values"]
            real = torch.arange(pixels.shape[1], device=pixels.device) < patches.sum(1, keepdim=True)
            inputs = {"pixel_values": pixels[real], "image_grid_thw": grids[patches > 0]}
        positions = grid_positions(tokens.shape[1], grids, self._text.before)
        return network.read(tokens, positions, length, inputs, self._text.special["picture"])
