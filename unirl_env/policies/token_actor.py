"""The token policy in plain torch: a language model, its adapters, and the distribution it samples from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.arguments.values import number, whole
from unirl_env.errors import ConfigError
from unirl_env.functional import TokenStep
from unirl_env.models.backbone import TokenBackbone
from unirl_env.policies.packing import pack_prefixes
from unirl_env.policies.trained import LoRAConfig, TrainedNetwork

__all__ = ["TokenActor", "check_sampling"]

PICTURES = ("pixel_values", "image_grid_thw")


class TokenActor(TrainedNetwork):
    """Scores tokens under the distribution that they are sampled from.

    Temperature, top-k and top-p belong to the policy: log-probs are those of the tempered and truncated
    distribution, and one function computes them whether a token is drawn or given.

    Args:
        language_model: The adapter of the model family; only its trained half is loaded.
        lora: Train adapters on a frozen network, or all weights if None.
        temperature: What logits are divided by; positive.
        top_p: Sample among the likeliest tokens of this mass; 1 keeps all.
        top_k: Sample among this many likeliest tokens; 0 keeps all.
        keep_reference: Keep a frozen copy of all weights for `reference()`; adapters need none.
        gradient_checkpointing: Recompute activations in the backward pass.
        chunk_bytes: Memory for logits at a time when scoring.

    Raises:
        ConfigError: If a setting is out of range, or the network cannot do what it is asked for.
    """

    def __init__(
        self,
        language_model: TokenBackbone,
        *,
        lora: LoRAConfig | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        keep_reference: bool = False,
        gradient_checkpointing: bool = False,
        chunk_bytes: int = 256 << 20,
    ):
        temperature, top_p = number("temperature", temperature), number("top_p", top_p)
        top_k = whole("top_k", top_k)
        check_sampling(temperature, top_p, top_k)
        super().__init__(
            language_model,
            lora=lora,
            keep_reference=keep_reference,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self.chunk_bytes = chunk_bytes

    @property
    def language_model(self) -> TokenBackbone:
        """The model family's adapter."""
        return self.model

    def score(self, obs: Mapping[str, Tensor], tokens: Tensor) -> TokenStep:
        """Score given tokens `[N]`, with gradient to the trainable weights.

        Args:
            obs: A packed row, as `unirl_env.policies.packing` makes it.
            tokens: The tokens that follow the places `obs["source"]` `[N]` of the row.
        """
        step = F.score_tokens(
            self._hidden(obs),
            self.model.head(self.network),
            tokens - self.model.first_id,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            chunk_bytes=self.chunk_bytes,
        )
        return step._replace(token=tokens)

    @torch.no_grad()
    def act(self, obs: Mapping[str, Tensor], uniform: Tensor | None = None) -> TokenStep:
        """Sample the next token `[B]` of every episode, without a cache.

        It reads the whole prefix for every token, for agents that act step by step; whole answers come from
        an engine (`unirl_env.rollouts.engines`).

        Args:
            obs: An observation of `TokenVectorEnv` as tensors.
            uniform: `[B]` in [0, 1), as `F.keyed_uniform` makes it; None takes the likeliest token.
        """
        hidden = self._hidden(pack_prefixes(obs))
        logits = hidden @ self.model.head(self.network).T
        step = F.token_step(
            logits.float(),
            temperature=0.0 if uniform is None else self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            uniform=uniform,
        )
        return step._replace(token=step.token + self.model.first_id)

    def _hidden(self, obs: Mapping[str, Tensor]) -> Tensor:
        """The last hidden states `[N, D]` at the places that predict."""
        with self._recomputing():
            hidden = self.model.hidden(
                self.network,
                obs["tokens"][None],
                obs["positions"][:, None],
                lengths=obs["lengths"],
                inputs={name: obs[name] for name in PICTURES if name in obs} or None,
            )
        return hidden[0, obs["source"]]


def check_sampling(temperature: float, top_p: float, top_k: int) -> None:
    """Refuse a distribution that cannot be sampled from or trained on.

    Raises:
        ConfigError: Naming the setting.
    """
    if not temperature > 0:
        raise ConfigError(
            f"`temperature` must be positive, got {temperature}: a greedy policy has no log-probability to "
            "train on; try 1.0."
        )
    if not 0 < top_p <= 1:
        raise ConfigError(f"`top_p` must lie in (0, 1], got {top_p}; try 1.0, which keeps all tokens.")
    if top_k < 0:
        raise ConfigError(f"`top_k` must be at least 0, got {top_k}; try 0, which keeps all tokens.")
