"""The denoising policy in plain torch: a network, its adapters, and one Gaussian step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import unirl_env.functional as F
from unirl_env.errors import CheckpointError, ConfigError, ContractError
from unirl_env.functional import SDEStep
from unirl_env.models.base import Denoiser
from unirl_env.models.options import as_dtype

__all__ = ["FlowActor", "LoRAConfig"]

ANNOUNCED = ("latent", "sigma", "sigma_next", "step", "stochastic")
"""Observation keys that are not context."""
NEGATIVE = "negative_"


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters, by peft.

    Attributes:
        rank: Their rank.
        alpha: Their scale is `alpha / rank`.
        targets: Names of layers; None takes the model family's own list.
    """

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] | None = None


class FlowActor(nn.Module):
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
        super().__init__()
        self.denoiser = denoiser
        self.guidance, self.dynamics, self.eta = float(guidance), dynamics, float(eta)
        # An impossible kernel is refused here, before a model is loaded.
        F.transition(torch.zeros(1, 1), torch.zeros(1, 1), 0.5, 0.25, dynamics=dynamics, eta=self.eta)
        self.storage_dtype = as_dtype("storage_dtype", storage_dtype)
        self.network = denoiser.network().eval()
        self.lora = lora
        self._frozen: list[nn.Module] = []
        if lora is None:
            self.network.requires_grad_(True)
            if keep_reference:
                # In a list, so that the copy is neither moved into the state nor into the optimizer.
                self._frozen = [copy.deepcopy(self.network).requires_grad_(False)]
        else:
            self._attach_adapters(lora)
        if gradient_checkpointing:
            if not hasattr(self.network, "enable_gradient_checkpointing"):
                raise ConfigError(f"{type(self.network).__name__} cannot checkpoint gradients; turn it off.")
            self.network.enable_gradient_checkpointing()

    def act(self, obs: Mapping[str, Tensor], noise: Tensor | None = None) -> SDEStep:
        """Sample the next latents.

        Args:
            obs: An observation of `DenoiseVectorEnv`, each `[N, ...]`.
            noise: `[N, ...]` standard normal, like the latents; None where no step is stochastic.
        """
        return self._step(obs, noise=noise)

    def score(self, obs: Mapping[str, Tensor], next_latent: Tensor) -> SDEStep:
        """Score given next latents `[N, ...]`, with gradient to the trainable weights."""
        return self._step(obs, next_latent=next_latent)

    def velocity(self, obs: Mapping[str, Tensor]) -> Tensor:
        """The guided velocity `[N, ...]` in float32."""
        latent, sigma = obs["latent"], obs["sigma"]
        context = {k: v for k, v in obs.items() if k not in ANNOUNCED and not k.startswith(NEGATIVE)}
        if self.guidance == 1.0:
            return self.denoiser.velocity(self.network, latent, sigma, context).float()
        missing = [name for name in context if NEGATIVE + name not in obs]
        if missing or not context:
            raise ContractError(
                f"`guidance` {self.guidance} needs negative prompts in the observation, got none; "
                "make the environment with `with_negative=True`."
            )
        both = {name: torch.cat([obs[NEGATIVE + name], tensor]) for name, tensor in context.items()}
        doubled = self.denoiser.velocity(
            self.network, torch.cat([latent, latent]), torch.cat([sigma, sigma]), both
        )
        without, with_prompt = doubled.float().chunk(2)
        return without + self.guidance * (with_prompt - without)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within it, the actor is the untrained model.

        Raises:
            ContractError: If all weights are trained and no copy was kept.
        """
        if self.lora is not None:
            layers = list(self._adapter_layers())
            for layer in layers:
                layer.enable_adapters(False)
            try:
                yield
            finally:
                for layer in layers:
                    layer.enable_adapters(True)
            return
        if not self._frozen:
            raise ContractError(
                "The untrained weights must be kept, got none; try `keep_reference=True`, or adapters."
            )
        trained, self.network = self.network, self._frozen[0]
        try:
            yield
        finally:
            self.network = trained

    def trainable_state(self) -> dict[str, Tensor]:
        """The trained weights by name; references, not copies."""
        return {name: p.detach() for name, p in self.network.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Load trained weights; those that `state` does not name stay as they are.

        Raises:
            CheckpointError: If a name is unknown or a shape differs.
        """
        own = self.trainable_state()
        for name, value in state.items():
            if name not in own or own[name].shape != value.shape:
                expected = list(own[name].shape) if name in own else "no such weight"
                raise CheckpointError(
                    f"Weight `{name}` must fit this policy ({expected}), got shape {list(value.shape)}; "
                    "check `lora_rank`, `lora_targets` and the model."
                )
        # Nothing is written before all of it fits.
        for name, value in state.items():
            own[name].copy_(value)

    def save_adapters(self, directory: str) -> None:
        """Write the adapters in the form that the family's own pipeline loads.

        Raises:
            ConfigError: If all weights are trained.
        """
        if self.lora is None:
            raise ConfigError("There are no adapters to export: this policy trains all weights.")
        self.denoiser.save_adapters(self.network, directory)

    def _apply(self, function, recurse=True):  # the frozen copy follows `.to(...)`
        self._frozen = [module._apply(function) for module in self._frozen]
        return super()._apply(function, recurse)

    def _step(
        self, obs: Mapping[str, Tensor], *, noise: Tensor | None = None, next_latent: Tensor | None = None
    ) -> SDEStep:
        return F.sde_step(
            self.velocity(obs),
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

    def _attach_adapters(self, lora: LoRAConfig) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        targets: Sequence[str] = lora.targets or self.denoiser.lora_targets
        if not targets:
            raise ConfigError(
                f"{type(self.denoiser).__name__} names no layers for adapters; train all weights instead "
                "(`lora_rank: null`)."
            )
        config = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, target_modules=list(targets), init_lora_weights="gaussian"
        )
        self.network.requires_grad_(False)
        try:
            inject_adapter_in_model(config, self.network)
        except ValueError as error:
            raise ConfigError(
                f"`lora_targets` must name layers of the network, got {list(targets)}: {error}"
            ) from error
        for name, parameter in self.network.named_parameters():
            if "lora_" in name:
                # Small steps vanish in half precision; the adapters are small enough for float32.
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)

    def _adapter_layers(self) -> Iterator[nn.Module]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return (module for module in self.network.modules() if isinstance(module, BaseTunerLayer))
