"""The denoising mode: pictures or clips, made in steps of a flow or diffusion model."""

from __future__ import annotations

from typing import Any, ClassVar

from unirl_env.envs.denoise import DenoiseVectorEnv
from unirl_env.errors import ConfigError
from unirl_env.models import DENOISERS
from unirl_env.modes.mode import MakeEnv, Mode
from unirl_env.rollouts.play import Rollout

__all__ = ["DENOISING", "Denoising", "check_latents"]


class Denoising(Mode):
    """Episodes of `DenoiseVectorEnv`."""

    name = "diffusion"
    argument = "denoiser"
    models = DENOISERS
    environment = DenoiseVectorEnv
    embedded = "unirl/TinySD3-T2I-v0"
    gives: ClassVar = {"image": True, "latent": True}
    steps = True
    head_settings = ("guidance", "dynamics", "eta", "storage_dtype")

    def phases(self, config: Any) -> dict[str, str]:
        """One, of latents."""
        return {"image": "latents"}

    def env_options(self, config: Any) -> dict[str, Any]:
        """Negative prompts where guidance needs them."""
        return {"with_negative": config.policy.guidance != 1.0}

    def rollout(self, config: Any, make_env: MakeEnv, actor: Any) -> Rollout:
        """The network beside its environment."""
        return Rollout(make_env, actor, batch_size=config.rollout_batch_size)

    def check(self, config: Any) -> None:
        """Steps and engine."""
        check_latents(config)


def check_latents(config: Any) -> None:
    """Refuse settings of an agent that cannot work where latents are denoised.

    Raises:
        ConfigError: Naming the setting, its value and the remedy.
    """
    if config.engine != "local":
        raise ConfigError(
            f"`engine` must be 'local' where latents are denoised, got {config.engine!r}: vLLM and SGLang "
            "generate tokens."
        )
    try:
        config.trained_steps(0)
    except ConfigError as error:
        raise ConfigError(
            f"`steps` must leave a step to train of the {config.num_steps} denoising steps of an "
            f"episode: {error}"
        ) from error


DENOISING = Denoising()
