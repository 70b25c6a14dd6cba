"""The hybrid policy in plain torch: one network, seen as a language model and as a painter of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unirl_env.envs.token_rows import WAIT
from unirl_env.errors import ConfigError
from unirl_env.functional import SDEStep, TokenStep
from unirl_env.models.denoiser import NEGATIVE
from unirl_env.models.unified import UnifiedModel
from unirl_env.policies.actor import ANNOUNCED, FlowActor
from unirl_env.policies.token_actor import TokenActor
from unirl_env.policies.trained import LoRAConfig, TrainedNetwork

__all__ = ["PHASES", "HybridActor", "HybridStep"]

PHASES = ("text", "image")
"""In the order of an episode; the observation's `phase` is the place here."""


class HybridStep(NamedTuple):
    """What B episodes do next.

    Attributes:
        action: Parts as `HybridVectorEnv` takes them: `token` `[B]`, -1 where an episode draws; `latent`
            `[B, ...]`, the present one where it writes, or `image_token` `[B]`, -1 there.
        log_prob: `[B]` float32.
    """

    action: dict[str, Tensor]
    log_prob: Tensor


class Facet(TrainedNetwork):
    """An actor without a network of its own: it acts with that of the actor that it is a facet of."""

    def __init__(self, model: Any, **_: Any):
        nn.Module.__init__(self)
        self.model = model
        self._frozen: list[nn.Module] = []

    def of(self, owner: HybridActor, phase: str) -> Facet:
        """Act with the part of the network of `owner` that `phase` takes."""
        self._phase = phase
        # Not as an attribute of a module: the owner would then be a part of its own part.
        object.__setattr__(self, "_owner", owner)
        return self

    @property
    def network(self) -> nn.Module:
        """The owner's, at this moment, as far as this phase takes it."""
        return self._owner.model.part(self._owner.network, self._phase)

    @property
    def lora(self) -> LoRAConfig | None:
        """The owner's."""
        return self._owner.lora

    def reference(self) -> AbstractContextManager:
        """Within it, the owner is the untrained model."""
        return self._owner.reference()

    def trainable_state(self) -> dict[str, Tensor]:
        """The owner's trained weights."""
        return self._owner.trainable_state()

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Load trained weights into the owner."""
        self._owner.load_trainable_state(state)

    def _recomputing(self) -> AbstractContextManager:
        return self._owner._recomputing()


class TextFacet(TokenActor, Facet):
    """Tokens, of a text or of a picture."""


class LatentFacet(FlowActor, Facet):
    """Latents."""


class HybridActor(TrainedNetwork):
    """One network behind two policies: `text` over the next token, `image` over what is drawn.

    Args:
        unified_model: The adapter of the model family; only its trained half is loaded.
        lora: Train adapters on a frozen network, or all weights if None.
        train_phases: The phases that are trained; weights that only another one reads are frozen.
        temperature: What logits are divided by; positive.
        top_p: Sample among the likeliest tokens of this mass; 1 keeps all.
        top_k: Sample among this many likeliest tokens; 0 keeps all.
        chunk_bytes: Memory for logits at a time when scoring.
        keep_reference: Keep a frozen copy of all weights for `reference()`; adapters need none.
        gradient_checkpointing: Recompute activations in the backward pass, where the network can; the layers
            of transformers do so in texts, not in pictures.
        **drawing: Arguments of `FlowActor`: `guidance`, `dynamics`, `eta`, `storage_dtype`. Pictures of
            tokens know none of them; their `guidance` must be 1.

    Attributes:
        text: The `TokenActor` of the text.
        image: The `FlowActor` of latents, or the `TokenActor` of picture tokens.

    Raises:
        ConfigError: If a setting is out of range, or the network cannot do what it is asked for.
    """

    text: TokenActor
    image: FlowActor | TokenActor

    def __init__(
        self,
        unified_model: UnifiedModel,
        *,
        lora: LoRAConfig | None = None,
        train_phases: Sequence[str] = PHASES,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        chunk_bytes: int = 256 << 20,
        keep_reference: bool = False,
        gradient_checkpointing: bool = False,
        **drawing: Any,
    ):
        unknown = [phase for phase in train_phases if phase not in PHASES]
        if unknown or not train_phases:
            raise ConfigError(f"`train_phases` must name some of {PHASES}, got {list(train_phases)}.")
        super().__init__(
            unified_model,
            lora=lora,
            keep_reference=keep_reference,
            gradient_checkpointing=gradient_checkpointing,
        )
        sampling = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "chunk_bytes": chunk_bytes,
        }
        self.text = TextFacet(unified_model.text, **sampling).of(self, "text")
        if unified_model.discrete:
            if drawing.get("guidance", 1.0) != 1.0:
                raise ConfigError(
                    f"`guidance` must be 1 where pictures are tokens, got {drawing['guidance']}; the model's "
                    "own option says how they are guided."
                )
            self.image = TextFacet(unified_model.image, **sampling).of(self, "image")
        else:
            self.image = LatentFacet(unified_model.image, **drawing).of(self, "image")
        for phase in set(PHASES) - set(train_phases):
            for parameter in unified_model.private(self.network, phase):
                parameter.requires_grad_(False)

    @property
    def unified_model(self) -> UnifiedModel:
        """The model family's adapter."""
        return self.model

    def facet(self, phase: str) -> TokenActor | FlowActor:
        """The actor of `phase`."""
        return self.text if phase == "text" else self.image

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, Tensor], uniform: Tensor | None = None, noise: Tensor | None = None
    ) -> HybridStep:
        """Go on with every episode in its own phase, without a cache.

        It reads the whole text for every step, for agents that act step by step; whole episodes come from
        `unirl_env.rollouts.hybrid`.

        Args:
            obs: An observation of `HybridVectorEnv` as tensors.
            uniform: `[B]` in [0, 1), for tokens; None takes the likeliest.
            noise: Like the latents; None denoises without noise.
        """
        writes, draws = ((obs["phase"] == place).nonzero().flatten() for place in (0, 1))
        log_prob = torch.zeros(len(obs["phase"]), device=obs["phase"].device)
        action = {"token": torch.full_like(obs["phase"], WAIT)}
        if len(writes):
            step = self.text.act(_said(obs, writes), None if uniform is None else uniform[writes])
            action["token"][writes], log_prob[writes] = step.token, step.log_prob
        if "image_tokens" in obs:
            action["image_token"] = torch.full_like(obs["phase"], WAIT)
            if len(draws):
                step = self.image.act(_painted(obs, draws), None if uniform is None else uniform[draws])
                action["image_token"][draws], log_prob[draws] = step.token, step.log_prob
        elif "latent" in obs:
            action["latent"] = obs["latent"].clone()
            if len(draws):
                names = self.model.context_keys
                names = (*ANNOUNCED, *names, *(NEGATIVE + name for name in names))
                seen = {name: obs[name][draws] for name in names if name in obs}
                if noise is None:
                    seen["stochastic"] = torch.zeros_like(seen["sigma"], dtype=torch.bool)
                step = self.image.act(seen, None if noise is None else noise[draws])
                action["latent"] = action["latent"].to(step.latent.dtype)
                action["latent"][draws], log_prob[draws] = step.latent, step.log_prob
        return HybridStep(action, log_prob)

    def score(self, phase: str, obs: Mapping[str, Tensor], action: Tensor) -> TokenStep | SDEStep:
        """Score given actions `[N, ...]` of `phase`, with gradient to the trainable weights."""
        return self.facet(phase).score(obs, action)

    def _adapted(self) -> Iterator[nn.Module]:
        # One backbone is the part of both phases.
        yield from dict.fromkeys(self.model.part(self.network, phase) for phase in PHASES)


WRITTEN = ("tokens", "length", "prompt_length", "is_action", "pixel_values", "image_grid_thw", "positions")
"""Entries of an observation that a language model reads."""


def _said(obs: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The texts at `rows`, as an observation of `TokenVectorEnv`."""
    return {name: obs[name][rows] for name in WRITTEN if name in obs}


def _painted(obs: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The texts at `rows`, and behind each of them the tokens of its picture so far."""
    said, painted = _said(obs, rows), obs["image_tokens"][rows]
    length, count = said["length"], obs["image_length"][rows]
    tokens = torch.cat([said["tokens"], torch.zeros_like(painted)], 1)
    place = length[:, None] + torch.arange(painted.shape[1], device=painted.device)
    return {**said, "tokens": tokens.scatter(1, place, painted), "length": length + count}
