"""Decoder-only chat models of transformers: Qwen3 first, and any other that `AutoModelForCausalLM` loads."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from unirl_env.errors import ContractError, ModelNotFound
from unirl_env.models.backbone import ForwardOptions
from unirl_env.models.shared import packed
from unirl_env.models.shared.alone import read_alone, reads_alone
from unirl_env.models.shared.borders import changing_rotary
from unirl_env.models.shared.chat import ChatWords
from unirl_env.models.shared.faithful import Way, settle
from unirl_env.models.shared.loading import complete
from unirl_env.models.shared.outline import on_device, when_filled
from unirl_env.models.shared.output_layer import logit_scale, output_states
from unirl_env.models.shared.routers import Router, top_k_routers
from unirl_env.models.words import LanguageModel


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

    def routers(self, network: nn.Module) -> tuple[Router, ...]:
        """Those of transformers' mixtures of experts, unless texts stand alone."""
        return () if reads_alone(network) else top_k_routers(network)

    def hidden(
        self, network: nn.Module, tokens: Tensor, positions: Tensor, **how: Unpack[ForwardOptions]
    ) -> Tensor:
        """The transformer's last hidden states `[1, L, D]` packed, `[B, t, D]` with a cache.

        Raises:
            ContractError: If a text is longer than its rotary frequencies stay the same.
        """
        return self._networks.hidden(network, tokens, positions, how)

    @cached_property
    def _networks(self) -> CausalNetwork:
        return CausalNetwork(self.config.get_text_config())


class CausalNetwork:
    """What an adapter knows of networks of one configuration.

    Args:
        config: Of the text model.
    """

    def __init__(self, config: Any):
        self._border, self._scale = changing_rotary(config), logit_scale(config)
        self._way: Way | None = None

    def load(self, model: LanguageModel, loader: Callable[..., nn.Module]) -> nn.Module:
        """A fresh network in evaluation mode, the first one held against transformers' own forward pass.

        Args:
            model: The adapter.
            loader: Loads it with an `attn_implementation`.

        Raises:
            ModelNotFound: If it cannot be loaded.
            ConfigError: If it is not scored or sampled as transformers itself would.
        """
        name = packed.register()
        try:
            network = loader(attn_implementation=name)
        except ModelNotFound as error:
            if error.__cause__ is None or name not in str(error.__cause__):
                raise
            # Some families choose among attentions of their own, and know no other.
            network = loader(attn_implementation="eager")
        network = on_device(network, model.device).eval()
        when_filled(network, lambda filled: self._hold(model, filled))
        return network

    def _hold(self, model: LanguageModel, network: nn.Module) -> None:
        if self._way is None:
            self._way = settle(model, network)
        self._way.take(network)

    def hidden(self, network: nn.Module, tokens: Tensor, positions: Tensor, how: ForwardOptions) -> Tensor:
        """See `LanguageModel.hidden`.

        Raises:
            ContractError: If a text is longer than its rotary frequencies stay the same.
        """
        border, lengths = self._border, how.get("lengths")
        if lengths is not None and (follows := how.get("follows")) is not None:
            lengths = lengths + torch.where(follows >= 0, lengths[follows], 0)
        if border is not None and lengths is not None and int(lengths.max()) > border:
            raise ContractError(
                f"Texts must have at most {border} tokens, behind which {type(network).__name__} changes its "
                f"rotary frequencies for all of them, got {int(lengths.max())}; try shorter prompts or "
                "answers."
            )
        backbone = network.base_model
        if backbone is network:  # some families misname theirs
            backbone = network.model
        if reads_alone(network):
            states = read_alone(backbone, tokens, how)
        else:
            options = packed.reading_keywords(how, tokens.device)
            states = backbone(input_ids=tokens, position_ids=positions[0], **options).last_hidden_state
        return output_states(network.get_output_embeddings(), states, self._scale)
