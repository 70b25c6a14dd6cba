"""The kinds of environments that agents train in: denoising steps, tokens, or both in one episode."""

from __future__ import annotations

from typing import Any

from unirl_env.agents.checks import check_latents, check_tokens
from unirl_env.agents.family import Family, MakeEnv
from unirl_env.agents.hybrid import Hybrid
from unirl_env.envs.tokens import MAX_NEW_TOKENS, MAX_PROMPT_TOKENS
from unirl_env.episode import EpisodeBatch
from unirl_env.errors import ConfigError
from unirl_env.models.options import model_choice
from unirl_env.policies.rl_module import DenoisePolicy, TokenPolicy
from unirl_env.policies.token_actor import TokenActor
from unirl_env.policies.trained import TrainedNetwork
from unirl_env.rewards.secrets import resolved
from unirl_env.rollouts.engines import ENGINES, Engine
from unirl_env.rollouts.local import LocalRollout
from unirl_env.rollouts.tokens import TokenRollout

__all__ = ["FAMILIES", "Family", "family_of"]

PIXELS = ("max_images", "min_pixels", "max_pixels")
"""What engines must know of a model that reads pictures."""


class Denoising(Family):
    """Episodes of `DenoiseVectorEnv`."""

    policy = DenoisePolicy

    def phases(self, config: Any) -> dict[str, str]:
        """One, of latents."""
        return {"image": "latents"}

    def actor_options(self, config: Any) -> dict[str, Any]:
        """Guidance and kernel."""
        policy = config.policy
        return {
            "guidance": policy.guidance,
            "dynamics": policy.dynamics,
            "eta": policy.eta,
            "storage_dtype": policy.storage_dtype,
        }

    def env_options(self, config: Any) -> dict[str, Any]:
        """Negative prompts where guidance needs them."""
        return {"with_negative": config.policy.guidance != 1.0}

    def rollout(self, config: Any, make_env: MakeEnv, actor: TrainedNetwork) -> LocalRollout:
        """The network beside its environment."""
        return LocalRollout(make_env, actor, batch_size=config.rollout_batch_size)

    def rollout_options(self, config: Any) -> dict[str, Any]:
        """How the episodes of a group begin."""
        return {"same_noise": config.same_noise}

    def training_options(self, config: Any, iteration: int, *, checked: bool) -> dict[str, Any]:
        """The steps that explore; the check of the first update compares means, whatever the loss needs."""
        return {
            "stochastic_steps": config.trained_steps(iteration),
            "keep_mean": not checked or "mean" in config.needs,
            "keep_final": "final" in config.needs,
        }

    def evaluation_options(self, config: Any, num_steps: int | None) -> dict[str, Any]:
        """No noise on the way."""
        return {"stochastic_steps": (), "num_steps": num_steps}

    def env_steps(self, batch: EpisodeBatch, config: Any) -> int:
        """T for each episode."""
        return len(batch) * config.num_steps

    def check(self, config: Any) -> None:
        """Steps and engine."""
        check_latents(config)


class Tokens(Family):
    """Episodes of `TokenVectorEnv`."""

    policy = TokenPolicy

    def phases(self, config: Any) -> dict[str, str]:
        """One, of tokens."""
        return {"text": "tokens"}

    def actor_options(self, config: Any) -> dict[str, Any]:
        """What is sampled from."""
        policy = config.policy
        return {"temperature": policy.temperature, "top_p": policy.top_p, "top_k": policy.top_k}

    def env_options(self, config: Any) -> dict[str, Any]:
        """No pictures: padded for every episode they take much memory; rollouts read them once per prompt."""
        return {"with_inputs": False}

    def rollout(self, config: Any, make_env: MakeEnv, actor: TokenActor) -> TokenRollout:
        """An engine that proposes, beside the environment that disposes."""
        return TokenRollout(
            make_env, self._engine(config, actor), actor=actor, batch_size=config.rollout_batch_size
        )

    def _engine(self, config: Any, actor: TokenActor) -> Engine:
        make = ENGINES.get(config.engine)
        options = resolved(config.engine_options, "engine_options")
        try:
            if config.engine == "local":
                return make(actor, **options)
            model, env = actor.language_model, config.env_options()
            settings = {
                "eos_ids": model.eos_ids,
                "temperature": actor.temperature,
                "top_p": actor.top_p,
                "top_k": actor.top_k,
                "lora_rank": config.policy.lora_rank,
                "revision": getattr(model, "revision", None),
                "max_length": env.get("max_prompt_tokens", MAX_PROMPT_TOKENS)
                + env.get("max_new_tokens", MAX_NEW_TOKENS),
                "dtype": str(env.get("dtype", "float32")),
                **{name: getattr(model, name) for name in PIXELS if hasattr(model, name)},
            }
            return make(model.pretrained, **{**settings, **options})
        except TypeError as error:
            raise ConfigError(
                f"`engine_options` must fit the engine {config.engine!r}, got {options}: {error}"
            ) from error

    def rollout_options(self, config: Any) -> dict[str, Any]:
        """Nothing of its own."""
        return {}

    def training_options(self, config: Any, iteration: int, *, checked: bool) -> dict[str, Any]:
        """The policy's own distribution."""
        return {}

    def evaluation_options(self, config: Any, num_steps: int | None) -> dict[str, Any]:
        """The temperature of evaluation."""
        return {"temperature": config.policy.eval_temperature}

    def env_steps(self, batch: EpisodeBatch, config: Any) -> int:
        """One for each token of the policy's."""
        return int(batch.phases["text"].mask.sum())

    def check(self, config: Any) -> None:
        """Sampling, weights of tokens, micro-batches."""
        check_tokens(config)


FAMILIES: dict[str, Family] = {
    "denoiser": Denoising(),
    "language_model": Tokens(),
    "unified_model": Hybrid(),
}
"""By the argument of an environment that names its model."""


def family_of(arguments: dict[str, Any]) -> Family:
    """The family of an environment with these arguments.

    Raises:
        ConfigError: If they name no model.
    """
    return FAMILIES[model_choice(arguments).family]
