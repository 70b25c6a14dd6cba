"""Qwen's vision-language models: Qwen2-VL, Qwen2.5-VL and Qwen3-VL, as transformers loads them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError, PromptError
from unirl_env.media.pixels import load_picture
from unirl_env.models.backbone import ForwardOptions
from unirl_env.models.shared import packed
from unirl_env.models.shared.chat import ChatWords
from unirl_env.models.shared.faithful import hold
from unirl_env.models.shared.loading import complete
from unirl_env.models.shared.outline import on_device
from unirl_env.models.shared.output_layer import output_states
from unirl_env.models.shared.templates import rendered
from unirl_env.models.shared.vision import picture_features, picture_places, widened
from unirl_env.models.words import Encoded, LanguageModel
from unirl_env.types import Prompt

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
ADAPTED = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


class QwenVL(ChatWords, LanguageModel):
    """A picture processor, a chat template, and a transformer that reads pictures among the words.

    The processor resizes a picture, keeping its aspect, until it has between `min_pixels` and `max_pixels`.
    Observations have room for `max_images` pictures of `max_pixels` each: published checkpoints allow very
    many, so set the limit to what the pictures need. Adapters go to the language layers; the vision tower is
    trained only together with all weights.

    Args:
        pretrained: A hub id or a directory.
        max_images: The most pictures of one prompt.
        min_pixels: Of a picture after resizing; None is the checkpoint's own.
        max_pixels: Of a picture after resizing; None is the checkpoint's own.
        **words: The other arguments of `ChatWords`; with `chat=False` prompts hold no pictures.

    Raises:
        ModelNotFound: If the model cannot be loaded; names the id, the cause and the embedded alternative.
        ConfigError: If the model is of another family, or a setting is out of range.
    """

    KIND = "a vision-language model of Qwen"
    ALTERNATIVE = "unirl/TinyQwenVL-VQA-v0"
    position_axes = 3

    def __init__(
        self,
        pretrained: str,
        *,
        max_images: int = 1,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        **words: Any,
    ):
        super().__init__(pretrained, **words)
        config = self.config
        layers = range(config.get_text_config().num_hidden_layers)
        # The vision tower has layers of the same names; full names leave it out.
        self.lora_targets = tuple(f"language_model.layers.{i}.{name}" for i in layers for name in ADAPTED)
        self.max_images = max_images
        self._set_limits(min_pixels, max_pixels)

    @property
    def input_spaces(self) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Patches and grids of `max_images` pictures, and the positions of the longest prompt."""
        vision = self.reader.image_processor
        patches = self.max_pixels // vision.patch_size**2
        values = 3 * vision.temporal_patch_size * vision.patch_size**2
        return {
            "pixel_values": ((self.max_images * patches, values), "float32"),
            "image_grid_thw": ((self.max_images, 3), "int64"),
            "positions": ((3, self.max_context), "int64"),
        }

    def encode(self, prompt: Prompt) -> Encoded:
        """The chat with its pictures, each token of a picture in its place.

        `inputs` holds `positions` `[3, L]` always, and `pixel_values` `[n_patches, D]` and `image_grid_thw`
        `[n_images, 3]` where there are pictures.

        Raises:
            PromptError: If chat and pictures do not fit together, or a picture cannot be read.
        """
        turns = self._seen_turns(prompt)
        if not prompt.images or not self.chat:  # which plain text with pictures is refused by
            tokens = super().encode(prompt).tokens
            self._check_marks(prompt, int((tokens == self.config.image_token_id).sum()))
            return Encoded(tokens, {"positions": torch.arange(len(tokens)).repeat(3, 1)})
        spelling, processor = self.spelling, self.reader
        options = {} if self.thinking is None else {"enable_thinking": self.thinking}
        options |= {"tokenize": False, "add_generation_prompt": True}
        apply = partial(processor.apply_chat_template, spelling.quoted_turns(turns), **options)
        ids = torch.tensor(spelling.ids(rendered(apply, prompt.id, self.pretrained)))
        self.check_open(ids.tolist(), prompt)
        marks = ids == self.config.image_token_id
        self._check_marks(prompt, int(marks.sum()))
        # Bytes are what processors expect of a picture.
        pictures = [(load_picture(source) * 255).round().to(torch.uint8) for source in prompt.images]
        try:
            read = processor.image_processor(images=pictures, return_tensors="pt")
        except ValueError as error:
            raise PromptError(
                f"The pictures of prompt {prompt.id[:60]!r} must be what the model's processor takes, got: "
                f"{error}."
            ) from error
        grid = read["image_grid_thw"]
        tokens = widened(ids, marks, grid.prod(1) // processor.image_processor.merge_size**2)
        kinds = (tokens == self.config.image_token_id).int()
        positions, _ = self._outline.get_rope_index(tokens[None], kinds[None], image_grid_thw=grid)
        inputs = {"pixel_values": read["pixel_values"].float(), "image_grid_thw": grid}
        return Encoded(tokens, {**inputs, "positions": positions[:, 0]})

    def network(self) -> nn.Module:
        """Transformers' own model, freshly loaded; the vision tower keeps the ordinary attention."""
        from transformers import AutoModelForImageTextToText

        network = self.source.load(
            complete(AutoModelForImageTextToText.from_pretrained),
            dtype=self.dtype,
            attn_implementation={"text_config": packed.register(), "vision_config": "sdpa"},
        )
        return hold(self, on_device(network, self.device).eval())

    def hidden(
        self, network: nn.Module, tokens: Tensor, positions: Tensor, **how: Unpack[ForwardOptions]
    ) -> Tensor:
        """The transformer's last hidden states `[1, L, D]` packed, `[B, t, D]` with a cache."""
        base = network.base_model
        inputs = how.get("inputs")
        embedded, options = network.get_input_embeddings()(tokens), {}
        if inputs and len(inputs.get("image_grid_thw", ())):
            seen = picture_features(base, inputs["pixel_values"], inputs["image_grid_thw"])
            where = picture_places(tokens == self.config.image_token_id, positions, len(seen.merged))
            embedded = embedded.masked_scatter(where[..., None], seen.merged.to(embedded))
            if seen.deeper:
                options = {"visual_pos_masks": where, "deepstack_visual_embeds": list(seen.deeper)}
        options |= packed.reading_keywords(how, tokens.device)
        read = base.language_model(inputs_embeds=embedded, position_ids=positions, **options)
        return output_states(network.get_output_embeddings(), read.last_hidden_state)

    @cached_property
    def config(self) -> Any:
        """Transformers' configuration of the whole model.

        Raises:
            ConfigError: If the model is of another family.
        """
        config = super().config
        if config.model_type not in FAMILIES:
            raise ConfigError(
                f"`pretrained` must be a model of one of {FAMILIES}, got {config.model_type!r} in "
                f"{self.pretrained!r}; try a Qwen2.5-VL model, or `causal_lm` for one without pictures."
            )
        return config

    @cached_property
    def reader(self) -> Any:
        """Transformers' tokenizer, chat template and picture processor."""
        from transformers import AutoProcessor

        return self.source.load(AutoProcessor.from_pretrained)

    @cached_property
    def _outline(self) -> Any:
        """The model without weights: its class knows the positions of a picture's tokens."""
        from transformers import AutoModel

        with torch.device("meta"):
            return AutoModel.from_config(self.config)

    def _set_limits(self, min_pixels: int | None, max_pixels: int | None) -> None:
        vision = self.reader.image_processor
        size = vision.size
        self.min_pixels = size["shortest_edge"] if min_pixels is None else min_pixels
        self.max_pixels = size["longest_edge"] if max_pixels is None else max_pixels
        token = (vision.patch_size * vision.merge_size) ** 2
        # A picture of one token could not be told from a token that the policy says.
        if not token < self.min_pixels <= self.max_pixels:
            raise ConfigError(
                f"`min_pixels` must be more than one token of {token} pixels and at most `max_pixels`, got "
                f"{self.min_pixels} and {self.max_pixels}; try `min_pixels={4 * token}`."
            )
        if self.max_images < 1:
            raise ConfigError(f"`max_images` must be at least 1, got {self.max_images}.")
        vision.size = {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}

    def _seen_turns(self, prompt: Prompt) -> list[dict[str, Any]]:
        """The chat of a prompt as the template reads it, checked against the pictures."""
        if len(prompt.images) > self.max_images:
            raise PromptError(
                f"Prompts must have at most {self.max_images} pictures, got {len(prompt.images)} in "
                f"{prompt.id[:60]!r}; try a larger `max_images`."
            )
        words = [{"type": "text", "text": prompt.text}]
        own = {"role": "user", "content": [{"type": "image"} for _ in prompt.images] + words}
        turns = [dict(turn) for turn in prompt.messages] or [own]
        parts = [
            part
            for turn in turns
            if isinstance(turn.get("content"), list | tuple)
            for part in turn["content"]
        ]
        kinds = [part.get("type") for part in parts]
        if strange := set(kinds) - {"text", "image"}:
            raise PromptError(
                f"A part of a chat turn must be a text or an image, got {sorted(map(str, strange))} in "
                f"{prompt.id[:60]!r}."
            )
        self._check_marks(prompt, kinds.count("image"))
        if self.system is not None and turns[0].get("role") != "system":
            turns.insert(0, {"role": "system", "content": self.system})
        return turns

    def _check_marks(self, prompt: Prompt, marks: int) -> None:
        """Refuse a chat that has places for other than its pictures."""
        if marks != len(prompt.images):
            raise PromptError(
                f"A chat must have one image part for each of its pictures, got {marks} for "
                f"{len(prompt.images)} pictures in {prompt.id[:60]!r}; try "
                '{"type": "image"} in `messages`, or no `messages` at all.'
            )
