"""Two networks of one checkpoint that are trained together, of which each answers for its noise levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from unirl_env.models.shared.exports import in_order, settle_header


class TwoNetworks(nn.Module):
    """Both; weights are called by the checkpoint's folders, `transformer.*` and `transformer_2.*`.

    Args:
        transformer: That of high noise.
        transformer_2: That of low noise.
    """

    def __init__(self, transformer: nn.Module, transformer_2: nn.Module):
        super().__init__()
        self.transformer, self.transformer_2 = transformer, transformer_2
        self.hf_quantizer = getattr(transformer, "hf_quantizer", None)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether both compute activations once more in the backward pass."""
        return all(bool(getattr(each, "gradient_checkpointing", False)) for each in self.children())

    def enable_gradient_checkpointing(self) -> None:
        """Let both do so."""
        each: Any
        for each in self.children():
            each.enable_gradient_checkpointing()

    def save_adapters(self, directory: str, pipeline: Any, file: str) -> None:
        """Write each one's adapters into a folder of its name; one without adapters has none.

        Args:
            directory: Where the folders are made.
            pipeline: The class of diffusers whose `load_lora_weights` is to read them, the second network's
                with `load_into_transformer_2=True`.
            file: What it calls them.
        """
        from peft import get_peft_model_state_dict

        layers = get_peft_model_state_dict(self)
        config = self.peft_config["default"].to_dict()  # type: ignore[union-attr,operator,index]  # by peft
        for part, _ in self.named_children():
            prefix = f"{part}."
            own = {
                name.removeprefix(prefix): each for name, each in layers.items() if name.startswith(prefix)
            }
            told = {name.removeprefix(prefix) for name in config["target_modules"]}
            if own:
                pipeline.save_lora_weights(
                    Path(directory) / part,
                    transformer_lora_layers=own,
                    transformer_lora_adapter_metadata=in_order({**config, "target_modules": told}),
                )
                settle_header(Path(directory) / part / file)

    def save_pretrained(self, directory: str) -> None:
        """Write each into a folder of its name, as its class's `from_pretrained` reads it."""
        each: Any
        for part, each in self.named_children():
            each.save_pretrained(Path(directory) / part)
