"""HunyuanImage 3.0: one backbone, one view that says words, one that denoises a picture behind them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Unpack

import torch
from torch import Tensor, nn

import unirl_env.functional as F
from unirl_env.arguments.values import whole
from unirl_env.errors import ConfigError
from unirl_env.models.backbone import ForwardOptions
from unirl_env.models.denoiser import Denoiser
from unirl_env.models.hunyuan_image3.attention import Cached, Packed
from unirl_env.models.hunyuan_image3.checkpoint import Checkpoint
from unirl_env.models.hunyuan_image3.decoder import Router as Gate
from unirl_env.models.hunyuan_image3.network import PICTURE_PARTS
from unirl_env.models.hunyuan_image3.settings import bucket
from unirl_env.models.hunyuan_image3.template import TASKS, Template
from unirl_env.models.shared.fixed_batches import in_fixed_batches, painted
from unirl_env.models.shared.loading import as_dtype
from unirl_env.models.shared.output_layer import output_states, output_weight
from unirl_env.models.shared.packed import Packing
from unirl_env.models.shared.prefix import Prefix
from unirl_env.models.shared.routers import Router
from unirl_env.models.unified import SharedBackbone, UnifiedModel
from unirl_env.models.words import Encoded, LanguageModel, padded_prompts
from unirl_env.types import Prompt, Sample

TARGETS = ("self_attn.qkv_proj", "self_attn.o_proj", "shared_mlp.gate_and_up_proj", "shared_mlp.down_proj")
"""Layers that every token passes. The experts, 97 % of the weights, stay as they are."""

PROMPT_NAME = re.compile(r"en(_[a-z]+)+")
"""What names a published system prompt rather than being one."""


class TextView(SharedBackbone, LanguageModel):
    """Words: thoughts about a picture, or its description.

    Args:
        checkpoint: The model's files.
        template: Its chat.
    """

    lora_targets = TARGETS

    def __init__(self, checkpoint: Checkpoint, template: Template):
        self.whole = checkpoint
        self._template = template
        self.pretrained, self.revision = checkpoint.pretrained, checkpoint.revision
        self.dtype, self.device = checkpoint.dtype, checkpoint.device
        settings = checkpoint.settings
        self.vocab_size, self.max_context = settings.vocab_size, settings.max_positions
        self.eos_ids, self.pad_id = template.ends, settings.pad_id

    def encode(self, prompt: Prompt) -> Encoded:
        """`tokens` `[L]` of the chat, up to where the text begins."""
        return Encoded(torch.tensor(self._template.prompt(prompt), dtype=torch.int64))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`; of special tokens only the marks of thoughts and captions."""
        return self._template.decode(tokens)

    def reply(self, text: str) -> list[int]:
        """A turn of the user; plain text where the checkpoint knows no chats."""
        return self._template.reply(text)

    def hidden(
        self, network: nn.Module, tokens: Tensor, positions: Tensor, **how: Unpack[ForwardOptions]
    ) -> Tensor:
        """The last hidden states `[1, L, D]` packed, `[B, t, D]` with a cache."""
        lengths = how.get("lengths")
        packed = None if lengths is None else Packed(Packing.of(lengths, tokens.device))
        states = network.text(tokens, positions[0], packed or Cached(how.get("cache"), how.get("mask")))
        return output_states(network.lm_head, states)

    def head(self, network: nn.Module) -> Tensor:
        """The output layer's weight `[V, D]`, with columns for what it adds (`models.output_layer`)."""
        return output_weight(network.lm_head)

    def routers(self, network: nn.Module) -> tuple[Router, ...]:
        """Those of the layers that have experts."""
        gates = [module for module in network.modules() if isinstance(module, Gate)]
        return tuple(Router(gate, partial(_weighed, gate)) for gate in gates)


def _weighed(gate: Gate, output: tuple[Tensor, Tensor, Tensor], chosen: Tensor) -> Tensor:
    return gate.weigh(output[0], chosen)


class ImageView(SharedBackbone, Denoiser):
    """A picture behind a text, whose keys and values are kept for all steps.

    Args:
        checkpoint: The model's files.
        template: Its chat.
        height: Pixels.
        width: Pixels.
        shift: Of the noise schedule.
        max_prompt_tokens: Room for a prompt where it is drawn at once.
        rows_per_forward: Evaluate the network on exactly that many rows at a time.
    """

    lora_targets, recomputes = TARGETS, True

    def __init__(
        self,
        checkpoint: Checkpoint,
        template: Template,
        *,
        height: int,
        width: int,
        shift: float,
        max_prompt_tokens: int,
        rows_per_forward: int | None,
    ):
        self.whole = checkpoint
        self._template = template
        self.shift, self.rows_per_forward = shift, rows_per_forward
        self.max_prompt_tokens = max_prompt_tokens
        self._room = max_prompt_tokens + len(template.opening(None))
        settings = checkpoint.settings
        down, across = settings.pixels
        self.latent_shape = (settings.vae["latent_channels"], height // down, width // across)
        self._size = height, width

    def sigmas(self, num_steps: int) -> Tensor:
        """The shifted uniform schedule `[T+1]` of the checkpoint."""
        return F.flow_sigmas(num_steps, shift=self.shift)

    def encode(self, prompts: Sequence[Prompt], *, negative: bool = False) -> dict[str, Tensor]:
        """`tokens` `[P, W]` up to the picture, padded on the right, and `length` `[P]`.

        Raises:
            PromptError: If a prompt has no room, or holds what this model cannot read.
        """
        rows = [self._template.drawn(prompt, negative=negative) for prompt in prompts]
        pad_id, opening = self.whole.settings.pad_id, self._room - self.max_prompt_tokens
        return padded_prompts(prompts, rows, self._room, pad_id, opening=opening)

    @torch.no_grad()
    def decode(self, latents: Tensor, context: Mapping[str, Tensor] | None = None) -> list[Sample]:
        """Pictures `[3, H, W]` float32 in [0, 1]."""
        decoder, vae = self.whole.decoder, self.whole.settings.vae
        weight = next(decoder.parameters())

        def draw(latents: Tensor) -> Tensor:
            latents = latents.float() / (vae.get("scaling_factor") or 1.0) + (vae.get("shift_factor") or 0.0)
            return decoder(latents.to(weight)[:, :, None])[:, :, -1]

        return painted(draw, latents, *self._size)

    def read(self, network: nn.Module, context: Mapping[str, Tensor]) -> Prefix:
        """Keys and values of the texts up to their pictures, in one causal pass."""
        length = context["length"].flatten()
        width = int(length.max())
        return network.read(context["tokens"][:, :width], length)

    def velocity(self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Prefix) -> Tensor:
        """The prediction `[N, C, H, W]` behind N texts, in the network's dtype."""

        def forward(latent: Tensor, sigma: Tensor, row: Tensor) -> Tensor:
            return network.picture(latent, sigma, context.pick(row))

        rows = torch.arange(len(latent), device=latent.device)
        return in_fixed_batches(forward, latent, sigma, rows, rows=self.rows_per_forward)


class HunyuanImage3(SharedBackbone, UnifiedModel):
    """A decoder of 64 experts per layer that thinks in words and denoises latents behind them.

    Reads a checkpoint in the published layout (tencent/HunyuanImage-3.0 and -Instruct) with code of its own;
    code that comes with the weights is not run. Pictures that a prompt brings are not read (there is no
    editing), the vision tower is neither loaded nor run, and distilled checkpoints are refused.

    Args:
        pretrained: A hub id or a directory.
        height: Pixels; with `width` one of the sizes that the model knows. None is the side of the square.
        width: Pixels; likewise.
        dtype: Of the network; its router stays in float32.
        device: Where network and decoder live.
        revision: Branch, tag or commit of the hub repository.
        system: System prompt, or the name of one in the system_prompt.py that lies beside the weights
            (`"en_think_recaption"`), which is read and not run.
        task: What the text is for. `"think"` begins a thought, `"recaption"` a description; both end with
            `</recaption>`, and a picture follows. `"auto"` begins nothing, and a picture follows when the
            model says `<boi>`; `"image"` likewise, for pictures that follow the prompt at once. None is the
            checkpoint's own.
        max_prompt_tokens: Room for a prompt where `image` is used without a text.
        shift: Of the noise schedule; None is the checkpoint's own.
        rows_per_forward: Evaluate the network on exactly that many rows at a time, so that a picture's last
            bits do not depend on the size of the batch.

    Raises:
        ModelNotFound: If the model cannot be loaded; names the id, the cause and the embedded alternative.
        ConfigError: If the checkpoint is of another kind, the size is not one that the model knows, or a
            setting is out of range.
    """

    context_keys = ("tokens", "length")
    max_images = 0
    lora_targets = TARGETS

    def __init__(
        self,
        pretrained: str,
        *,
        height: int | None = None,
        width: int | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        revision: str | None = None,
        system: str | None = None,
        task: str | None = None,
        max_prompt_tokens: int = 512,
        shift: float | None = None,
        rows_per_forward: int | None = None,
    ):
        if task is not None and task not in TASKS:
            raise ConfigError(f"`task` must be one of {tuple(TASKS)}, got {task!r}.")
        for name, value in (("max_prompt_tokens", max_prompt_tokens), ("rows_per_forward", rows_per_forward)):
            if value is not None:
                whole(name, value, 1)
        self.pretrained = str(pretrained)
        checkpoint = Checkpoint(
            self.pretrained, revision=revision, dtype=as_dtype("dtype", dtype), device=torch.device(device)
        )
        settings = checkpoint.settings
        height, width = height or settings.base_size, width or settings.base_size
        unit = tuple(side * settings.patch for side in settings.pixels)
        if system is not None and PROMPT_NAME.fullmatch(system):
            system = checkpoint.system_prompt(system)
        template = Template(
            checkpoint.tokenizer,
            settings,
            task=task or settings.task,
            system=system,
            ratio=bucket(height, width, base=settings.base_size, unit=unit),
        )
        self.whole, self._template = checkpoint, template
        self.text = TextView(checkpoint, template)
        self.image = ImageView(
            checkpoint,
            template,
            height=height,
            width=width,
            shift=settings.flow_shift if shift is None else shift,
            max_prompt_tokens=max_prompt_tokens,
            rows_per_forward=rows_per_forward,
        )
        self.opens = template.opens

    def opening(self, ended_by: int | None) -> list[int]:
        """Marks of the answer, the picture's beginning, its size and its ratio."""
        return self._template.opening(ended_by)

    def private(self, network: nn.Module, phase: str) -> Iterable[nn.Parameter]:
        """Words: the output layer and the norm before it. Pictures: the convolutions and the times."""
        parts = (network.lm_head, network.model.ln_f)
        if phase == "image":
            parts = tuple(getattr(network, name) for name in PICTURE_PARTS)
        return (parameter for part in parts for parameter in part.parameters())
