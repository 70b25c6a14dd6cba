"""Decoder-only chat models of transformers: Qwen3 first, and any other that `AutoModelForCausalLM` loads."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Unpack

from torch import Tensor, nn

from unirl_env.models.backbone import ForwardOptions
from unirl_env.models.shared.alone import reads_alone
from unirl_env.models.shared.causal_network import CausalNetwork
from unirl_env.models.shared.chat import ChatWords
from unirl_env.models.shared.exports import write_adapters, write_weights
from unirl_env.models.shared.loading import complete
from unirl_env.models.shared.output_layer import output_weight
from unirl_env.models.words import LanguageModel

__all__ = ["CausalLM"]


class CausalLM(ChatWords, LanguageModel):
    """A tokenizer with its chat template, and a transformer that scores packed and generates with a cache.

    Its arguments are those of `ChatWords`.
    """

    lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def network(self) -> nn.Module:
        """Transformers' own model, freshly loaded, and held against transformers' own forward pass.

        Raises:
            ConfigError: If it is not scored or sampled as transformers itself would.
        """
        from transformers import AutoModelForCausalLM

        loader = partial(self.source.load, complete(AutoModelForCausalLM.from_pretrained), dtype=self.dtype)
        return self._networks.load(self, loader)

    def padded(self, network: nn.Module) -> bool:
        """Unless its texts stand alone."""
        return not reads_alone(network)

    def hidden(
        self, network: nn.Module, tokens: Tensor, positions: Tensor, **how: Unpack[ForwardOptions]
    ) -> Tensor:
        """The transformer's last hidden states `[1, L, D]` packed, `[B, t, D]` with a cache.

        Raises:
            ContractError: If a text is longer than its rotary frequencies stay the same.
        """
        return self._networks.hidden(network, tokens, positions, how)

    def head(self, network: nn.Module) -> Tensor:
        """The output layer's weight `[V, D]`, with columns for what it adds (`models.output_layer`)."""
        return output_weight(network.get_output_embeddings())

    def save_adapters(self, network: nn.Module, directory: str) -> None:
        """`adapter_config.json` and `adapter_model.safetensors`, for peft, transformers and vLLM."""
        write_adapters(network, directory, base=self.pretrained, revision=self.revision)

    def save_weights(self, network: nn.Module, directory: str) -> None:
        """A directory that `AutoModelForCausalLM` and `AutoTokenizer` load, adapters merged in."""
        write_weights(network, directory)
        self.tokenizer.save_pretrained(directory)

    @cached_property
    def _networks(self) -> CausalNetwork:
        return CausalNetwork(self.config.get_text_config())
