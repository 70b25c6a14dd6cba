"""HunyuanImage 3.0 as a model that writes and then draws."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import nn

from unirl_env.arguments.values import whole
from unirl_env.errors import ConfigError
from unirl_env.models.hunyuan_image3.checkpoint import Checkpoint
from unirl_env.models.hunyuan_image3.network import PICTURE_PARTS
from unirl_env.models.hunyuan_image3.sizes import bucket
from unirl_env.models.hunyuan_image3.template import TASKS, Template
from unirl_env.models.hunyuan_image3.views import TARGETS, ImageView, TextView
from unirl_env.models.options import as_dtype
from unirl_env.models.unified import SharedBackbone, UnifiedModel

__all__ = ["HunyuanImage3"]

PROMPT_NAME = re.compile(r"en(_[a-z]+)+")
"""What names a published system prompt rather than being one."""


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
