"""Policies as RLlib modules: an actor behind RLlib's forward methods."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

import unirl_env.functional as F
from unirl_env.errors import ContractError
from unirl_env.functional import SDEStep, TokenStep
from unirl_env.models import DENOISERS, LANGUAGE_MODELS, UNIFIED_MODELS
from unirl_env.models.making import make_model
from unirl_env.policies.actor import ROW, FlowActor, LoRAConfig
from unirl_env.policies.hybrid_actor import HybridActor
from unirl_env.policies.token_actor import TokenActor
from unirl_env.policies.trained import TrainedNetwork
from unirl_env.registry import Registry

__all__ = ["DenoisePolicy", "GenerativePolicy", "HybridPolicy", "TokenPolicy"]


class GenerativePolicy(TorchRLModule):
    """The trained half of a generative model.

    Its state is the trainable weights alone, as tensors: adapters are kilobytes where the network is
    gigabytes, and every copy of the network starts from the same pretrained weights. `model_config` holds

    - `model`: name, path or class of the model family, and `model_options`, its arguments; or a model;
    - `lora`: arguments of `LoRAConfig`, or None to train all weights;
    - `actor`: further arguments of the actor;
    - `seed`: key of the adapters' initial weights, the same on every runner and learner.
    """

    models: Registry
    actor_class: type[TrainedNetwork]

    def setup(self) -> None:
        """Load the network and attach the adapters."""
        try:
            self.actor = self._make_actor(self.model_config).eval()
        except AttributeError as error:
            # RLlib takes an AttributeError of `setup` for an outdated constructor, and hides it.
            raise ContractError(f"The model or the actor is incomplete: {error}.") from error

    def _make_actor(self, options: Mapping[str, Any]) -> TrainedNetwork:
        model = make_model(self.models, options["model"], options.get("model_options", {}))
        lora = options.get("lora")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(F.derive_seed("adapters", options.get("seed", 0)))
            return self.actor_class(
                model, lora=LoRAConfig(**lora) if lora is not None else None, **options.get("actor", {})
            )

    def reference(self) -> AbstractContextManager:
        """Within it, the module is the untrained model."""
        return self.actor.reference()

    def velocity(self, phase: str, obs: Mapping[str, Tensor]) -> Tensor:
        """The guided velocity `[N, ...]` float32 of `phase` given `obs`, with gradient.

        Args:
            phase: One that denoises latents.
            obs: `latent` `[N, ...]`, `sigma` `[N]`, and contexts, each `[N, ...]` or once with `context_row`.

        Raises:
            ContractError: If the phase does not denoise, or the observation is not one of N rows.
        """
        actor = self._actor_of(phase)
        if not isinstance(actor, FlowActor):
            raise ContractError(
                f"A velocity must be asked of a phase that denoises latents, got `{phase}`, in which "
                f"{type(actor).__name__} acts; try `context.score`."
            )
        _require_rows(obs)
        return actor.velocity(obs)

    def _actor_of(self, phase: str) -> TrainedNetwork:
        """What acts in `phase`."""
        return self.actor

    def train(self, mode: bool = True) -> GenerativePolicy:
        """Take note of the mode; the network stays in evaluation mode.

        Dropout would score an action under another policy than the one that sampled it.
        """
        self.training = mode
        return self

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """A copy of the trainable weights on the CPU."""
        return {
            name: tensor.detach().to("cpu", copy=True)
            for name, tensor in self.actor.trainable_state().items()
        }

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Load trainable weights; those that `state` does not name stay as they are."""
        self.actor.load_trainable_state(state)

    def _forward_train(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Score `actions` `[N, ...]` given `obs`: the fields of the actor's step, with gradient."""
        return self.actor.score(batch[Columns.OBS], batch[Columns.ACTIONS])._asdict()


class DenoisePolicy(GenerativePolicy):
    """The trained half of a denoiser, as a Gaussian policy over the next latent."""

    models = DENOISERS
    actor_class = FlowActor

    def act(self, obs: Mapping[str, Tensor], noise: Tensor | None) -> SDEStep:
        """Sample the next latents `[N, ...]`; without noise, rows must be deterministic."""
        with torch.no_grad():
            return self.actor.act(obs, noise)

    def _forward_exploration(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Sample: `obs` and `noise` in, RLlib's action columns and `mean`, `std` out, all `[N, ...]`."""
        step = self.act(batch[Columns.OBS], batch["noise"])
        return {
            Columns.ACTIONS: step.latent,
            Columns.ACTION_LOGP: step.log_prob,
            "mean": step.mean,
            "std": step.std,
        }

    def _forward_inference(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """The next latents of the deterministic ODE."""
        obs = dict(batch[Columns.OBS])
        obs["stochastic"] = torch.zeros_like(obs["sigma"], dtype=torch.bool)
        return {Columns.ACTIONS: self.act(obs, None).latent}


class TokenPolicy(GenerativePolicy):
    """A language model, as a categorical policy over the next token."""

    models = LANGUAGE_MODELS
    actor_class = TokenActor

    def act(self, obs: Mapping[str, Tensor], uniform: Tensor | None) -> TokenStep:
        """Sample the next tokens `[N]`; without uniforms, the likeliest ones."""
        return self.actor.act(obs, uniform)

    def _forward_exploration(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Sample: `obs` and `uniform` `[N]` in, RLlib's action columns and `entropy` out."""
        step = self.act(batch[Columns.OBS], batch["uniform"])
        return {Columns.ACTIONS: step.token, Columns.ACTION_LOGP: step.log_prob, "entropy": step.entropy}

    def _forward_inference(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """The likeliest next tokens."""
        return {Columns.ACTIONS: self.act(batch[Columns.OBS], None).token}


class HybridPolicy(GenerativePolicy):
    """A unified model, as a policy over the next token and then over the picture."""

    models = UNIFIED_MODELS
    actor_class = HybridActor

    def _actor_of(self, phase: str) -> TrainedNetwork:
        return self.actor.facet(phase)

    def _forward_exploration(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Sample: `obs`, `uniform` `[N]` and `noise` in, RLlib's action columns out, actions in parts."""
        step = self.actor.act(batch[Columns.OBS], batch["uniform"], batch.get("noise"))
        return {Columns.ACTIONS: step.action, Columns.ACTION_LOGP: step.log_prob}

    def _forward_inference(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        """The likeliest next tokens, and the next latents of the deterministic ODE."""
        return {Columns.ACTIONS: self.actor.act(batch[Columns.OBS]).action}

    def _forward_train(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Score `actions` `[N, ...]` of `phase` given `obs`: the fields of the step, with gradient."""
        return self.actor.score(batch["phase"], batch[Columns.OBS], batch[Columns.ACTIONS])._asdict()


def _require_rows(obs: Mapping[str, Tensor]) -> None:
    """Raise ContractError unless latents, noise levels and contexts are of the same N rows."""
    shapes = {name: list(obs[name].shape) for name in ("latent", "sigma", ROW) if name in obs}
    lead = shapes.get("latent", [])[:1]
    if not lead or shapes.get("sigma") != lead or shapes.get(ROW, lead) != lead:
        raise ContractError(
            f"`observation` must hold `latent` [N, ...], `sigma` [N] and, if any, `{ROW}` [N], got {shapes}; "
            "try rows.observed(latent=..., sigma=...), after rows.repeat(draws) for several of each row."
        )
