"""BAGEL as a language model: prompts and thoughts as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError, PromptError
from unirl_env.models.bagel.network import BagelNetwork
from unirl_env.models.bagel.pictures import PromptPictures, grid_positions
from unirl_env.models.bagel.published import Published
from unirl_env.models.bagel.seeing import Cached, Packed
from unirl_env.models.shared.exports import merged_state, write_adapters
from unirl_env.models.shared.output_layer import output_states, output_weight
from unirl_env.models.shared.spelling import Spelling
from unirl_env.models.words import Encoded, LanguageModel
from unirl_env.types import Prompt

__all__ = ["BagelText", "layer_names"]

THINK = (
    "You should first think about the planning process in the mind and then generate the image. \n"
    "The planning process is enclosed within <think> </think> tags, i.e. <think> planning process here "
    "</think> image here"
)
"""What the published model is told so that it plans a picture in words."""


class BagelText(LanguageModel):
    """Blocks `<|im_start|>...<|im_end|>` one after another; there are no roles.

    A prompt is the system's block, if any, then its pictures, then its text. With `thinking` the beginning of
    the thought follows.

    Args:
        published: The files.
        pictures: Reads pictures; None where prompts bring none.
        dtype: Of weights and activations.
        device: Where the network is loaded.
        system: Stands before the prompt; None is the published words with `thinking`, else nothing.
        thinking: Whether a thought follows the prompt.
        max_images: The most pictures of a prompt.
    """

    def __init__(
        self,
        published: Published,
        pictures: PromptPictures | None,
        *,
        dtype: torch.dtype,
        device: torch.device,
        system: str | None,
        thinking: bool,
        max_images: int,
    ):
        self._published, self._pictures = published, pictures
        self.pretrained, self.revision = published.pretrained, published.revision
        self.dtype, self.device, self.thinking, self.max_images = dtype, device, thinking, max_images
        self.system = THINK if system is None and thinking else system
        config, self.special = published.text_config, published.special
        self.vocab_size, self.max_context = config.vocab_size, config.max_position_embeddings
        if max(self.special.values()) >= self.vocab_size:
            raise ConfigError(
                f"`pretrained` must have a row of embeddings for every token, got {self.vocab_size} rows and "
                f"a token {max(self.special.values())} in {self.pretrained!r}; try its own tokenizer."
            )
        self.eos_ids = (self.special["end"],)
        pad = published.tokenizer.pad_token_id
        self.pad_id = self.special["end"] if pad is None else pad
        self.layers = config.num_hidden_layers
        self.lora_targets = layer_names(self.layers, "")
        self.before = len(self._system_block())

    @property
    def input_spaces(self) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Nothing, or patches and grids of `max_images` pictures and the positions of the longest prompt."""
        if self._pictures is None:
            return {}
        patches = self.max_images * sum(self._pictures.tokens)
        return {
            "pixel_values": ((patches, self._pictures.row), "float32"),
            "image_grid_thw": ((2 * self.max_images, 3), "int64"),
            "positions": ((1, self.max_context), "int64"),
        }

    def encode(self, prompt: Prompt) -> Encoded:
        """The prompt up to its end, or with `thinking` up to the beginning of the thought.

        `inputs` of a model that takes pictures: `positions` `[1, L]` always, `pixel_values` `[n, row]` and
        `image_grid_thw` `[2 * pictures, 3]` where there are pictures, each as latent and as patches.

        Raises:
            PromptError: If the prompt holds what this model cannot read.
        """
        blocks = [block for text in self._texts(prompt) for block in self._block(text)]
        thought = [self.special["begin"]] if self.thinking else []
        return self._encoded(prompt, [*blocks, *thought])

    def unconditional(self, prompt: Prompt) -> Encoded:
        """The prompt without its text: system, pictures, and what to steer away from, if that is said."""
        return self._encoded(prompt, self._block(prompt.negative) if prompt.negative else [])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`; see `LanguageModel.decode`."""
        return self._spelling.text(tokens)

    def reply(self, text: str) -> list[int]:
        """A block of what the world says, and the beginning of the next."""
        return [*self._block(text), self.special["begin"]]

    def network(self) -> nn.Module:
        """The whole network, freshly loaded."""
        with torch.device("meta"):
            network = BagelNetwork(self._published.text_config, self._published.vision)
        return self._published.fill(network, dtype=self.dtype, device=self.device)

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
        """The last hidden states `[1, L, D]` packed, `[B, t, D]` with a cache."""
        plain = not inputs or not len(inputs.get("image_grid_thw", ()))
        if lengths is not None:
            seeing = Packed(lengths, None if plain else positions[0], tokens.device)
        else:
            seeing = Cached(cache, positions[0], mask, plain=plain)
        states = network.hidden(tokens, positions[0], seeing, inputs, self.special["picture"])
        return output_states(network.get_output_embeddings(), states)

    def head(self, network: nn.Module) -> Tensor:
        """The output layer's weight `[V, D]`, with columns for what it adds (`models.output_layer`)."""
        return output_weight(network.get_output_embeddings())

    def save_adapters(self, network: nn.Module, directory: str) -> None:
        """`adapter_config.json` and `adapter_model.safetensors`, for peft."""
        write_adapters(network, directory, base=self.pretrained, revision=self.revision, task=None)

    def save_weights(self, network: nn.Module, directory: str) -> None:
        """A directory like the published one, adapters merged in."""
        self._published.write(merged_state(network), directory)

    def _encoded(self, prompt: Prompt, tokens: Sequence[int]) -> Encoded:
        """System and pictures of a prompt, and `tokens` behind them."""
        if len(prompt.images) > self.max_images:
            raise PromptError(
                f"Prompts must have at most {self.max_images} pictures, got {len(prompt.images)} in "
                f"{prompt.id[:60]!r}; try a larger `max_images`."
            )
        marks: list[int] = []
        if self._pictures is not None:
            begin, mark, end = (self.special[name] for name in ("picture_begin", "picture", "picture_end"))
            for count in self._pictures.tokens * len(prompt.images):
                marks += [begin, *[mark] * count, end]
        whole = torch.tensor([*self._system_block(), *marks, *tokens], dtype=torch.int64)
        if self._pictures is None:
            return Encoded(whole)
        inputs = self._pictures.inputs(prompt)
        grids = inputs.get("image_grid_thw", torch.zeros(0, 3, dtype=torch.int64))
        return Encoded(whole, {"positions": grid_positions(len(whole), grids[None], self.before), **inputs})

    def _system_block(self) -> list[int]:
        return [] if self.system is None else self._block(self.system)

    def _block(self, text: str) -> list[int]:
        spelling = self._spelling
        return [self.special["begin"], *spelling.ids(spelling.quoted(text)), self.special["end"]]

    @cached_property
    def _spelling(self) -> Spelling:
        """Blocks and pictures are framed by the special tokens; typed, those are text."""
        tokenizer = self._published.tokenizer
        names = (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id)
        return Spelling(tokenizer, frames=(*self.special.values(), *names, self.pad_id))

    def _texts(self, prompt: Prompt) -> list[str]:
        """The texts of a prompt, one of each turn."""
        texts = []
        for turn in prompt.messages or ({"content": prompt.text},):
            content = turn.get("content")
            parts = (
                content if isinstance(content, list | tuple) else [{"type": "text", "text": content or ""}]
            )
            if any(part.get("type") != "text" for part in parts):
                raise PromptError(
                    f"Turns of a chat must be text for BAGEL, got another part in {prompt.id[:60]!r}; "
                    "pictures stand before all text, try `images` and no part for them."
                )
            texts.append("".join(part["text"] for part in parts))
        return texts


def layer_names(layers: int, kind: str) -> tuple[str, ...]:
    """The linear layers of the decoder that adapters attach to; `kind` ends the names of what draws.

    The vision tower has layers of the same names; full names leave it out.
    """
    attention = [f"self_attn.{name}_proj{kind}" for name in "qkvo"]
    forward = [f"mlp{kind}.{name}_proj" for name in ("gate", "up", "down")]
    return tuple(
        f"language_model.model.layers.{i}.{name}" for i in range(layers) for name in attention + forward
    )
