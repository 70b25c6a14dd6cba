"""The policy as RLlib's module: an `Actor` behind RLlib's forward methods."""

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
from unirl_env.models.making import make_model
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.policies.heads import ROW
from unirl_env.policies.parts import gathered
from unirl_env.policies.stepping import act_by_phase
from unirl_env.registry import Registry


class GenerativePolicy(TorchRLModule):
    """The trained half of a generative model.

    Its state is the trainable weights alone, as tensors: adapters are kilobytes where the network is
    gigabytes, and every copy of the network starts from the same pretrained weights. `model_config` holds

    - `model`: path or class of the model family, and `model_options`, its arguments; or a model;
    - `models`: what the family is called by its registry (`"denoiser"`), if it has one;
    - `lora`: arguments of `LoRAConfig`, or None to train all weights;
    - `actor`: further arguments of the `Actor`;
    - `seed`: key of the adapters' initial weights, the same on every runner and learner.
    """

    def setup(self) -> None:
        """Load the network and attach the adapters."""
        try:
            self.actor = self._make_actor(self.model_config).eval()
        except AttributeError as error:
            # RLlib takes an AttributeError of `setup` for an outdated constructor, and hides it.
            raise ContractError(f"The model or the actor is incomplete: {error}.") from error

    def _make_actor(self, options: Any) -> Actor:
        models = Registry(options.get("models", "model"))
        model = make_model(models, options["model"], options.get("model_options", {}))
        lora = options.get("lora")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(F.derive_seed("adapters", options.get("seed", 0)))
            return Actor(
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
        self.actor.latent_head(phase)
        _require_rows(obs)
        return self.actor.velocity(obs, phase=phase)

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
        """A copy of the trainable weights on the CPU, and of their average if one is kept.

        Where learners hold parts of them, all must ask, and the first one gets them.
        """
        return gathered(self.actor.state())

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Load trainable weights; those that `state` does not name stay as they are."""
        self.actor.load_trainable_state(state)

    def _forward_exploration(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Draw: `obs` and `draws` in, RLlib's action columns and what else the step says out.

        Hybrid episodes take `uniform` `[N]` and `noise` in the place of `draws`; their actions are in parts.
        """
        if self._hybrid:
            step: Any = act_by_phase(self.actor, batch[Columns.OBS], batch["uniform"], batch.get("noise"))
        else:
            with torch.no_grad():
                step = self.actor.act(batch[Columns.OBS], batch["draws"])
        named = {name: getattr(step, name) for name in step._fields[2:]}
        return {Columns.ACTIONS: step[0], Columns.ACTION_LOGP: step.log_prob, **named}

    def _forward_inference(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        """The likeliest actions: of latents, those of the deterministic ODE."""
        if self._hybrid:
            return {Columns.ACTIONS: act_by_phase(self.actor, batch[Columns.OBS]).action}
        with torch.no_grad():
            return {Columns.ACTIONS: self.actor.likeliest(batch[Columns.OBS])[0]}

    def _forward_train(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Score `actions` `[N, ...]` of `phase` given `obs`: the fields of the step, with gradient."""
        step = self.actor.score(batch[Columns.OBS], batch[Columns.ACTIONS], phase=batch.get("phase"))
        return step._asdict()

    @property
    def _hybrid(self) -> bool:
        return len(self.actor.heads) > 1


def _require_rows(obs: Mapping[str, Tensor]) -> None:
    """Raise ContractError unless latents, noise levels and contexts are of the same N rows."""
    shapes = {name: list(obs[name].shape) for name in ("latent", "sigma", ROW) if name in obs}
    lead = shapes.get("latent", [])[:1]
    if not lead or shapes.get("sigma") != lead or shapes.get(ROW, lead) != lead:
        raise ContractError(
            f"`observation` must hold `latent` [N, ...], `sigma` [N] and, if any, `{ROW}` [N], got {shapes}; "
            "try rows.observed(latent=..., sigma=...), after rows.repeat(draws) for several of each row."
        )
