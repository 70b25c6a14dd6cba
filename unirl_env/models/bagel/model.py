"""BAGEL as a unified model: thoughts as tokens, and rectified flow behind a text that is read once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Unpack

import torch
from torch import Tensor, nn

import unirl_env.functional as F
from unirl_env.arguments.values import whole
from unirl_env.errors import ConfigError, ContractError, PromptError
from unirl_env.models.backbone import ForwardOptions
from unirl_env.models.bagel.flux import CHANNELS, Autoencoder
from unirl_env.models.bagel.network import LATENT_SIDE, BagelNetwork
from unirl_env.models.bagel.pictures import PromptPictures, grid_positions
from unirl_env.models.bagel.published import Published
from unirl_env.models.bagel.seeing import Cached, Packed, Reading
from unirl_env.models.denoiser import Denoiser
from unirl_env.models.shared.exports import merged_state, write_adapters
from unirl_env.models.shared.fixed_batches import in_fixed_batches
from unirl_env.models.shared.loading import as_dtype
from unirl_env.models.shared.output_layer import output_states, output_weight
from unirl_env.models.shared.spelling import Spelling
from unirl_env.models.unified import SharedBackbone, UnifiedModel
from unirl_env.models.words import Encoded, LanguageModel, padded_inputs, padded_prompts
from unirl_env.types import Prompt, Sample

THINK = (
    "You should first think about the planning process in the mind and then generate the image. \n"
    "The planning process is enclosed within <think> </think> tags, i.e. <think> planning process here "
    "</think> image here"
)
"""What the published model is told so that it plans a picture in words."""

SHIFT = 3.0
PICTURES = ("pixel_values", "image_grid_thw")
"""Of the text view's inputs, those that the image view reads; positions follow from the grids."""
PIXELS = 16
"""Along the side of a token."""
TEXT_TOKENS = 512


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
        self, network: nn.Module, tokens: Tensor, positions: Tensor, **how: Unpack[ForwardOptions]
    ) -> Tensor:
        """The last hidden states `[1, L, D]` packed, `[B, t, D]` with a cache."""
        inputs, lengths = how.get("inputs"), how.get("lengths")
        plain = not inputs or not len(inputs.get("image_grid_thw", ()))
        if lengths is not None:
            seeing = Packed(lengths, None if plain else positions[0], tokens.device)
        else:
            seeing = Cached(how.get("cache"), positions[0], how.get("mask"), plain=plain)
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
        context = padded_prompts(prompts, rows, self.max_prompt_tokens, self._text.pad_id)
        spaces = {name: space for name, space in self._text.input_spaces.items() if name in PICTURES}
        context |= padded_inputs(encoded, spaces)
        return {name: tensor.to(self._text.device) for name, tensor in context.items()}

    def decode(self, latents: Tensor, context: Mapping[str, Tensor] | None = None) -> list[Sample]:
        """Pictures `[3, H, W]` float32 in [0, 1]."""
        return self._autoencoder.samples(latents)

    def read(self, network: nn.Module, context: Mapping[str, Tensor]) -> Reading:
        """Keys and values of P texts, in one pass, trimmed to the longest.

        With `rows_per_forward` each text is read alone, so that no other shows in its last bits.
        """
        if self.rows_per_forward is None:
            return self._read(network, context)
        count = len(context["length"])
        alone = [self._read(network, {k: v[i : i + 1] for k, v in context.items()}) for i in range(count)]
        return Reading.stacked(alone)

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


class Bagel(SharedBackbone, UnifiedModel):
    """BAGEL-7B-MoT and whatever is published in the same form (`ema.safetensors`, `ae.safetensors`).

    With `thinking` the model plans in words, `<|im_start|><think>...</think><|im_end|>`, and the picture
    follows the end of that text. Without it the picture follows the prompt at once, as published: play such
    episodes with `max_new_tokens=0`. The tokens that begin and end a picture belong to the picture itself:
    they see it and are seen by it, so that nothing stands between text and picture.

    With `max_images` a prompt may bring pictures to change. Each is taken in twice, as the autoencoder's
    latent and by the vision tower, scaled to the size that is drawn.

    Args:
        pretrained: A hub id or a directory.
        height: Pixels, a multiple of 16 up to 1024.
        width: Pixels, likewise.
        dtype: Of weights and activations.
        device: Where network and autoencoder are loaded.
        revision: Branch, tag or commit of the hub repository.
        thinking: Plan in words before drawing.
        system: Stands before every prompt; None is the published words with `thinking`, else nothing.
        max_images: The most pictures of a prompt.
        max_prompt_tokens: Width of the image view's encoded prompts; None is 512 and the pictures' tokens.
        rows_per_forward: Evaluate the network on exactly that many pictures at a time. With 1, an episode
            comes out bitwise the same alone, in any batch, and in the learner; one picture of the published
            sizes fills a device.

    Raises:
        ModelNotFound: If the model cannot be loaded; names the id, the cause and the embedded alternative.
        ConfigError: If a setting is out of range.

    Reference:
        Deng et al., Emerging Properties in Unified Multimodal Pretraining (arXiv 2505.14683).
    """

    def __init__(
        self,
        pretrained: str,
        *,
        height: int = 1024,
        width: int = 1024,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        revision: str | None = None,
        thinking: bool = False,
        system: str | None = None,
        max_images: int = 0,
        max_prompt_tokens: int | None = None,
        rows_per_forward: int | None = 1,
    ):
        for name, size in (("height", height), ("width", width)):
            size = whole(name, size)
            if size % PIXELS or not 0 < size <= LATENT_SIDE * PIXELS:
                near = min(max(round(size / PIXELS), 1), LATENT_SIDE) * PIXELS
                raise ConfigError(
                    f"`{name}` must be a positive multiple of {PIXELS} up to {LATENT_SIDE * PIXELS}, got "
                    f"{size}; try {near}."
                )
        if rows_per_forward is not None:
            whole("rows_per_forward", rows_per_forward, 1, hint="try 1")
        whole("max_images", max_images, 0, hint="try 1")
        if max_prompt_tokens is not None:
            whole("max_prompt_tokens", max_prompt_tokens, 1, hint="try 512")
        dtype, device = as_dtype("dtype", dtype), torch.device(device)
        published = Published(pretrained, revision)
        autoencoder = Autoencoder(published, dtype=dtype, device=device)
        pictures, tokens = None, TEXT_TOKENS
        if max_images:
            pictures = PromptPictures(autoencoder, published.vision, height=height, width=width)
            tokens += max_images * sum(count + 2 for count in pictures.tokens)
        self.pretrained, self.max_images = published.pretrained, max_images
        self.text = self.whole = BagelText(
            published,
            pictures,
            dtype=dtype,
            device=device,
            system=system,
            thinking=thinking,
            max_images=max_images,
        )
        self.image = BagelImage(
            self.text,
            autoencoder,
            height=height,
            width=width,
            max_prompt_tokens=max_prompt_tokens or tokens,
            rows_per_forward=rows_per_forward,
        )
        self.opens = self.text.eos_ids
        self.context_keys = ("tokens", "length", *(PICTURES if max_images else ()))
        self.lora_targets = (*self.text.lora_targets, *self.image.lora_targets)

    def opening(self, ended_by: int | None) -> list[int]:
        """Nothing; but where a thought was begun and none is written, its end.

        Raises:
            ContractError: If no picture follows `ended_by`.
        """
        if ended_by is None:
            return list(self.opens) if self.text.thinking else []
        if ended_by not in self.opens:
            raise ContractError(
                f"`ended_by` must be one of {self.opens}, after which a picture follows, got {ended_by}; try "
                "to end the text with `<|im_end|>`."
            )
        return []

    def private(self, network: nn.Module, phase: str) -> Iterable[nn.Parameter]:
        """Text: the output layer and its norm. Picture: what draws, as far as no prompt brings pictures."""
        decoder = network.language_model.model
        if phase == "text":
            return (network.language_model.lm_head.weight, decoder.norm.weight)
        own = [*network.llm2vae.parameters(), decoder.norm_moe_gen.weight]
        if not self.max_images:
            own += [*network.vae2llm.parameters(), *network.time_embedder.parameters()]
            own += [weight for name, weight in decoder.layers.named_parameters() if "_moe_gen" in name]
        return tuple(own)
