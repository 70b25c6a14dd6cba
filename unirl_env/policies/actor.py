"""The denoising policy in plain torch: a network, its adapters, and one Gaussian step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

import unirl_env.functional as F
from unirl_env.arguments.values import number
from unirl_env.errors import ContractError
from unirl_env.functional import SDEStep
from unirl_env.models.denoiser import NEGATIVE, Denoiser
from unirl_env.models.shared.loading import as_dtype
from unirl_env.policies.trained import LoRAConfig, TrainedNetwork

__all__ = ["FlowActor", "LoRAConfig"]

ANNOUNCED = ("latent", "sigma", "sigma_next", "step", "stochastic")
"""Observation keys that are not context."""
ROW = "context_row"
"""Which context each row has, where contexts are given once."""


class FlowActor(TrainedNetwork):
    """Turns the velocity of a denoising network into a Gaussian over the next latent.

    Sampling and scoring are one code path, so that scoring what was sampled gives ratio one.

    Args:
        denoiser: The adapter of the model family; only its trained half is loaded.
        lora: Train adapters on a frozen network, or all weights if None.
        guidance: Classifier-free guidance; other than 1 it needs negative prompts in the observation, and
            evaluates both in one batched forward.
        dynamics: `flow`, `dance` or `cps`.
        eta: Noise level.
        storage_dtype: What latents are rounded to before they are scored; the learner replays just that.
        keep_reference: Keep a frozen copy of all weights for `reference()`; adapters need none.
        gradient_checkpointing: Recompute activations in the backward pass, where the network can.

    Raises:
        ConfigError: If a setting is out of range, or the network cannot do what it is asked for.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        lora: LoRAConfig | None = None,
        guidance: float = 1.0,
        dynamics: str = "flow",
        eta: float = 0.7,
        storage_dtype: torch.dtype | str = torch.float32,
        keep_reference: bool = False,
        gradient_checkpointing: bool = False,
    ):
        # An impossible kernel is refused here, before a model is loaded.
        eta, guidance = number("eta", eta), number("guidance", guidance)
        F.transition(torch.zeros(1, 1), torch.zeros(1, 1), 0.5, 0.25, dynamics=dynamics, eta=eta)
        storage_dtype = as_dtype("storage_dtype", storage_dtype)
        super().__init__(
            denoiser,
            lora=lora,
            keep_reference=keep_reference,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.guidance, self.dynamics, self.eta = guidance, dynamics, eta
        self.storage_dtype = storage_dtype

    @property
    def denoiser(self) -> Denoiser:
        """The model family's adapter."""
        return self.model

    def read(self, obs: Mapping[str, Tensor]) -> Any:
        """What all steps of the episodes of `obs` share: their contexts as the network reads them.

        Whoever takes many steps reads once and hands the result to `act`.

        Args:
            obs: Context, each `[N, ...]`; or each `[P, ...]` with `context_row` `[N]`.

        Raises:
            ContractError: If guidance lacks negative prompts.
        """
        row = obs.get(ROW)
        known = (*ANNOUNCED, ROW)
        context = {k: v for k, v in obs.items() if k not in known and not k.startswith(NEGATIVE)}
        if self.guidance != 1.0:
            missing = [name for name in context if NEGATIVE + name not in obs]
            if missing or not context:
                raise ContractError(
                    f"`guidance` {self.guidance} needs negative prompts in the observation, got none; "
                    "make the environment with `with_negative=True`."
                )
            count = len(next(iter(context.values())))
            context = {k: _cat_padded(obs[NEGATIVE + k], v) for k, v in context.items()}
            row = None if row is None else torch.cat([row, row + count])
        reading = self.denoiser.read(self.network, context)
        return reading if row is None else self.denoiser.pick(reading, row)

    def act(self, obs: Mapping[str, Tensor], noise: Tensor | None = None, *, reading: Any = None) -> SDEStep:
        """Sample the next latents.

        Args:
            obs: An observation of `DenoiseVectorEnv`, each `[N, ...]`.
            noise: `[N, ...]` standard normal, like the latents; None where no step is stochastic.
            reading: What `read` returned for these N episodes; None reads them now.
        """
        return self._step(obs, reading, noise=noise)

    def score(self, obs: Mapping[str, Tensor], next_latent: Tensor) -> SDEStep:
        """Score given next latents `[N, ...]`, with gradient to the trainable weights."""
        return self._step(obs, None, next_latent=next_latent)

    def velocity(self, obs: Mapping[str, Tensor], reading: Any = None) -> Tensor:
        """The guided velocity `[N, ...]` in float32."""
        latent, sigma = obs["latent"], obs["sigma"]
        reading = self.read(obs) if reading is None else reading
        if self.guidance == 1.0:
            return self.denoiser.velocity(self.network, latent, sigma, reading).float()
        doubled = self.denoiser.velocity(
            self.network, torch.cat([latent, latent]), torch.cat([sigma, sigma]), reading
        )
        without, with_prompt = doubled.float().chunk(2)
        return without + self.guidance * (with_prompt - without)

    def _step(
        self,
        obs: Mapping[str, Tensor],
        reading: Any,
        *,
        noise: Tensor | None = None,
        next_latent: Tensor | None = None,
    ) -> SDEStep:
        return F.sde_step(
            self.velocity(obs, reading),
            obs["latent"],
            obs["sigma"],
            obs["sigma_next"],
            dynamics=self.dynamics,
            eta=self.eta,
            noise=noise,
            next_latent=next_latent,
            stochastic=obs.get("stochastic"),
            storage_dtype=self.storage_dtype,
        )


def _cat_padded(first: Tensor, second: Tensor) -> Tensor:
    """One after the other; texts `[P, L]` of unequal width are filled up with 0."""
    if first.shape[1:] == second.shape[1:]:
        return torch.cat([first, second])
    width = max(first.shape[1], second.shape[1])
    wide = (nnf.pad(part, [0] * 2 * (part.ndim - 2) + [0, width - part.shape[1]]) for part in (first, second))
    return torch.cat(list(wide))
