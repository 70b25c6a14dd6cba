"""The two views of a decoder that writes and then draws (`models.unified_flow`): words and picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import unirl_env.functional as F
from unirl_env.errors import PromptError
from unirl_env.media.pixels import load_picture
from unirl_env.models.denoiser import Denoiser
from unirl_env.models.shared import packed
from unirl_env.models.shared.output_layer import output_states
from unirl_env.models.shared.prefix import Prefix
from unirl_env.models.words import Encoded, LanguageModel
from unirl_env.types import Prompt, Sample

if TYPE_CHECKING:
    from unirl_env.models.unified_flow.model import UnifiedFlow

__all__ = ["UnifiedPicture", "UnifiedText"]


class UnifiedText(LanguageModel):
    """The words: a chat, before it the picture that a prompt may bring, each patch of its latent a token.

    Args:
        model: What this is a view of.
    """

    position_axes = 1

    def __init__(self, model: UnifiedFlow):
        self._model, words = model, model.words
        self.pretrained, self.revision = words.pretrained, words.revision
        self.dtype, self.device = words.dtype, words.device
        self.vocab_size, self.max_context = words.vocab_size, words.max_context
        self.eos_ids, self.pad_id = words.eos_ids, words.pad_id
        self.lora_targets = model.lora_targets

    @property
    def input_spaces(self) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Patches and grid of the picture, where the model takes one."""
        most, (_, height, width) = self._model.max_images, self._model.grid
        if not most:
            return {}
        patches = (most * height * width, self._model.config.patch_values)
        return {"pixel_values": (patches, "float32"), "image_grid_thw": ((most, 3), "int64")}

    def encode(self, prompt: Prompt) -> Encoded:
        """The chat by the model's template, behind the picture of the prompt.

        `inputs` holds `pixel_values` `[n_patches, D]`, the latent's patches, and `image_grid_thw` `[1, 3]`
        where there is one. A picture of another size is resized.

        Raises:
            PromptError: If the prompt brings more pictures than the model takes, or its words cannot be read.
        """
        model, config = self._model, self._model.config
        if len(prompt.images) > model.max_images:
            raise PromptError(
                f"Prompts must have at most {model.max_images} pictures, got {len(prompt.images)} in "
                f"{prompt.id[:60]!r}; try a model with a larger `max_images`."
            )
        tokens = model.words.encode(self._only_words(prompt)).tokens
        if bool((tokens == config.source_token_id).any() | (tokens == config.source_start_token_id).any()):
            raise PromptError(
                f"The words of a prompt must not hold the tokens of the model's own pictures, got some in "
                f"{prompt.id[:60]!r}; bring pictures by `images`."
            )
        if not prompt.images:
            return Encoded(tokens)
        patches = model.source_patches(load_picture(prompt.images[0]))
        marks = [config.source_start_token_id, *[config.source_token_id] * len(patches)]
        before = torch.tensor([*marks, config.source_end_token_id])
        grid = torch.tensor([model.grid])
        return Encoded(torch.cat([before, tokens]), {"pixel_values": patches, "image_grid_thw": grid})

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`; see `LanguageModel.decode`."""
        return self._model.words.decode(tokens)

    def reply(self, text: str) -> list[int]:
        """The template's turn of the user, up to the beginning of the next answer."""
        return self._model.words.reply(text)

    def network(self) -> nn.Module:
        """The whole network, freshly loaded."""
        return self._model.network()

    def hidden(
        self,
        network: nn.Module,
        tokens: Tensor,
        positions: Tensor,
        *,
        inputs: Mapping[str, Tensor] | None = None,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """The decoder's last hidden states `[1, L, D]` packed, `[B, t, D]` with a cache."""
        inputs = inputs or {}
        embedded = network.embed(
            tokens, positions[0], inputs.get("pixel_values"), inputs.get("image_grid_thw")
        )
        if lengths is not None:
            options = {"use_cache": False, **packed.packed_keywords(lengths, tokens.device)}
        else:
            options = {"use_cache": cache is not None, "past_key_values": cache, "attention_mask": mask}
        read = network.base_model(inputs_embeds=embedded, position_ids=positions[0], **options)
        return output_states(network.get_output_embeddings(), read.last_hidden_state)

    def head(self, network: nn.Module) -> Tensor:
        """The output layer's weight `[V, D]`, with columns for what it adds (`models.output_layer`)."""
        return self._model.words.head(network)

    def save_adapters(self, network: nn.Module, directory: str) -> None:
        """See `UnifiedFlow.save_adapters`."""
        self._model.save_adapters(network, directory)

    def save_weights(self, network: nn.Module, directory: str) -> None:
        """See `UnifiedFlow.save_weights`."""
        self._model.save_weights(network, directory)

    def _only_words(self, prompt: Prompt) -> Prompt:
        """The prompt without its picture, checked against the places that its chat has for one."""
        turns, marks = [], 0
        for turn in prompt.messages:
            content = turn.get("content")
            if not isinstance(content, str) and content is not None:
                marks += sum(part.get("type") == "image" for part in content)
                content = [part for part in content if part.get("type") != "image"]
            turns.append({**turn, "content": content})
        if marks not in (0, len(prompt.images)):
            raise PromptError(
                f"A chat must have an image part for each of its pictures or none, got {marks} for "
                f"{len(prompt.images)} pictures in {prompt.id[:60]!r}; try none: a picture always stands "
                "before the chat."
            )
        return dataclasses.replace(prompt, messages=tuple(turns), images=())


class UnifiedPicture(Denoiser):
    """The picture: a latent behind a text, of which every denoising step reads the keys and values.

    Args:
        model: What this is a view of.
        latent_shape: `(C, H, W)`.
        max_prompt_tokens: W of what `encode` returns.
    """

    def __init__(self, model: UnifiedFlow, latent_shape: tuple[int, int, int], max_prompt_tokens: int):
        self._model, self.latent_shape, self.max_prompt_tokens = model, latent_shape, max_prompt_tokens
        self.lora_targets = model.lora_targets

    def sigmas(self, num_steps: int) -> Tensor:
        """The noise schedule `[T+1]`, shifted as the model's configuration says."""
        return F.flow_sigmas(num_steps, shift=self._model.config.shift)

    def encode(self, prompts: Sequence[Prompt], *, negative: bool = False) -> dict[str, Tensor]:
        """Prompts with the opening of the picture right behind them.

        A negative is its words alone; it has no picture.

        Returns:
            `tokens` `[P, W]` int64, padded on the right, and `length` `[P]`; where the model takes pictures
            also `pixel_values` `[P, n_patches, D]` and `image_grid_thw` `[P, 1, 3]`, zeros without one.

        Raises:
            PromptError: If a prompt has more than W tokens or cannot be read.
        """
        text, opening = self._model.text, torch.tensor(self._model.opening(None), dtype=torch.int64)
        count, width = len(prompts), self.max_prompt_tokens
        tokens = torch.full((count, width), text.pad_id)
        length = torch.zeros(count, dtype=torch.int64)
        inputs = {
            name: torch.zeros(count, *shape, dtype=getattr(torch, dtype))
            for name, (shape, dtype) in text.input_spaces.items()
        }
        for row, prompt in enumerate(prompts):
            encoded = text.encode(Prompt(prompt.negative, id=prompt.id) if negative else prompt)
            whole = torch.cat([encoded.tokens, opening])
            if len(whole) > width:
                raise PromptError(
                    f"A prompt and the opening of its picture must have at most {width} tokens, got "
                    f"{len(whole)} for prompt {prompt.id[:60]!r}; try a shorter prompt or a larger "
                    "`max_prompt_tokens` of the model."
                )
            tokens[row, : len(whole)], length[row] = whole, len(whole)
            for name, value in encoded.inputs.items():
                inputs[name][row, : len(value)] = value
        return {"tokens": tokens, "length": length, **inputs}

    def decode(self, latents: Tensor) -> list[Sample]:
        """Pictures `[3, H, W]` float32 in [0, 1]."""
        return self._model.autoencoder.samples(latents)

    def network(self) -> nn.Module:
        """The whole network, freshly loaded."""
        return self._model.network()

    def read(self, network: nn.Module, context: Mapping[str, Tensor]) -> Prefix:
        """One causal pass over the texts `[P, W]`, as far as the longest reaches."""
        length = context["length"]
        tokens = context["tokens"][:, : int(length.max())]
        patches, grid = context.get("pixel_values"), context.get("image_grid_thw")
        if grid is not None:
            # Rows without a picture, and all that is padding, drop out.
            count = grid.prod(-1)
            real = torch.arange(patches.shape[1], device=patches.device) < count.sum(1)[:, None]
            patches, grid = patches[real], grid[count > 0]
        return network.read_text(tokens, length, patches, grid)[1]

    def pick(self, context: Prefix, row: Tensor) -> Prefix:
        """The texts at `row` `[N]`."""
        return context.pick(row)

    def velocity(self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Prefix) -> Tensor:
        """The network's prediction `[N, C, H, W]`, in its own dtype."""
        return network.velocity(latent, sigma, context)

    def save_adapters(self, network: nn.Module, directory: str) -> None:
        """See `UnifiedFlow.save_adapters`."""
        self._model.save_adapters(network, directory)

    def save_weights(self, network: nn.Module, directory: str) -> None:
        """See `UnifiedFlow.save_weights`."""
        self._model.save_weights(network, directory)
