"""The directory that BAGEL is published as: its files, its settings and its weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError
from unirl_env.models.shared.loading import Source
from unirl_env.models.shared.outline import is_outlining, to_be_filled

KIND = "BAGEL"
ALTERNATIVE = "unirl/TinyUnified-T2I-v0"
WEIGHTS, AUTOENCODER = "ema.safetensors", "ae.safetensors"
TEXT_CONFIG, VISION_CONFIG = "llm_config.json", "vit_config.json"
SPECIAL = {
    "begin": "<|im_start|>",
    "end": "<|im_end|>",
    "picture_begin": "<|vision_start|>",
    "picture_end": "<|vision_end|>",
    "picture": "<|image_pad|>",
}
COMPUTED = {"latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed"}
"""Tables of sines and cosines: a checkpoint may leave them out."""


@dataclass(frozen=True)
class VisionSizes:
    """Sizes of the vision tower.

    Attributes:
        width: Of the hidden states.
        intermediate: Of the feed-forward layers.
        layers: How many are used; the published settings count one more, whose output nobody reads.
        heads: Of attention.
        patch: Pixels along the side of a patch.
        side: Patches along the side of the largest picture.
        eps: Of the layer norms.
    """

    width: int
    intermediate: int
    layers: int
    heads: int
    patch: int
    side: int
    eps: float


class Published:
    """Files of a hub repository or directory, each found when it is first asked for.

    Args:
        pretrained: A hub id or a directory.
        revision: Branch, tag or commit of the hub repository.
    """

    def __init__(self, pretrained: str, revision: str | None = None):
        self.pretrained, self.revision = str(pretrained), revision
        self.source = Source(self.pretrained, KIND, ALTERNATIVE, {"revision": revision})

    @cached_property
    def text_config(self) -> Any:
        """Transformers' `Qwen2Config` of the decoder; each of its layers exists twice.

        Raises:
            ModelNotFound: If the settings are another model's.
        """
        from transformers import Qwen2Config

        said = self.source.json(TEXT_CONFIG)
        if said.get("model_type") != "qwen2" or said.get("hidden_act", "silu") != "silu":
            raise self.source.not_found(f"its {TEXT_CONFIG} is of {said.get('model_type')!r}, not of 'qwen2'")
        # What the published loader sets, whatever the file says.
        said |= {"tie_word_embeddings": False, "use_sliding_window": False, "rope_scaling": None}
        return Qwen2Config(**said)

    @cached_property
    def vision(self) -> VisionSizes:
        """Sizes of the vision tower.

        Raises:
            ModelNotFound: If a size is missing.
        """
        said = self.source.json(VISION_CONFIG)
        try:
            return VisionSizes(
                width=said["hidden_size"],
                intermediate=said["intermediate_size"],
                layers=said["num_hidden_layers"] - 1,
                heads=said["num_attention_heads"],
                patch=said["patch_size"],
                side=said["image_size"] // said["patch_size"],
                eps=said.get("layer_norm_eps", 1e-6),
            )
        except KeyError as error:
            raise self.source.not_found(f"its {VISION_CONFIG} has no {error}") from error

    @cached_property
    def tokenizer(self) -> Any:
        """Transformers' tokenizer."""
        from transformers import AutoTokenizer

        return self.source.load(AutoTokenizer.from_pretrained)

    @cached_property
    def special(self) -> dict[str, int]:
        """The ids of the tokens that begin and end texts and pictures.

        Raises:
            ConfigError: If the tokenizer lacks one.
        """
        known = self.tokenizer.get_vocab()
        missing = [mark for mark in SPECIAL.values() if mark not in known]
        if missing:
            raise ConfigError(
                f"`pretrained` must have a tokenizer with {', '.join(SPECIAL.values())}, got one without "
                f"{', '.join(missing)} in {self.pretrained!r}; try the published tokenizer files."
            )
        return {name: known[mark] for name, mark in SPECIAL.items()}

    def fill(self, network: nn.Module, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Give a network on the meta device the published weights, or within `outlining` the way to them.

        Raises:
            ModelNotFound: If a weight is missing, unknown or of another shape.
        """
        from safetensors import SafetensorError, safe_open

        path, state, outline = self.source.path(WEIGHTS), {}, is_outlining()
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                for name in file.keys():
                    if outline:
                        shape = file.get_slice(name).get_shape()
                        state[name] = torch.empty(shape, dtype=dtype, device="meta")
                    else:
                        state[name] = file.get_tensor(name).to(dtype)
        except (OSError, SafetensorError) as error:
            raise self.source.not_found(f"its {WEIGHTS} cannot be read: {error}") from error
        files = {name: (path, name) for name in state}
        for name in COMPUTED - state.keys():
            state[name] = network.table(name).to(device, dtype)
        filled = self._filled(network, state, WEIGHTS)
        return to_be_filled(filled, files) if outline else filled

    def autoencoder(self, build: Callable[[Mapping[str, Tensor]], tuple[nn.Module, Any]]) -> nn.Module:
        """What `build` makes of the autoencoder's weights: a module, and its weights by its own names.

        Raises:
            ModelNotFound: If they cannot be read, or do not fit.
        """
        from safetensors.torch import load_file

        path = self.source.path(AUTOENCODER)
        weights = Source(str(path), f"{KIND}'s autoencoder", ALTERNATIVE).load(load_file)
        try:
            module, renamed = build(weights)
        except (KeyError, ValueError) as error:  # its sizes are read off names that are not there
            raise self.source.not_found(f"its {AUTOENCODER} is not FLUX's autoencoder: {error}") from error
        return self._filled(module, renamed, AUTOENCODER)

    def write(self, state: Mapping[str, Tensor], directory: str) -> None:
        """Write weights and all else that belongs to them as the published directory has it."""
        from safetensors.torch import save_file

        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        # Tensors that share memory or are views cannot be written as they are.
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
        for name in (TEXT_CONFIG, VISION_CONFIG, AUTOENCODER):
            shutil.copyfile(self.source.path(name), folder / name)
        self.tokenizer.save_pretrained(directory)

    def _filled(self, network: nn.Module, state: Mapping[str, Tensor], file: str) -> nn.Module:
        try:
            network.load_state_dict(state, strict=True, assign=True)
        except RuntimeError as error:
            said = " ".join(str(error).split())[:400]
            raise self.source.not_found(f"its {file} does not fit its settings: {said}") from error
        return network.eval()
