"""The denoising mode: pictures or clips, made in steps of a flow or diffusion model."""

from __future__ import annotations

from typing import Any, ClassVar

from unirl_env.envs.denoising import DenoiseVectorEnv
from unirl_env.episode import EpisodeBatch
from unirl_env.errors import ConfigError
from unirl_env.models import DENOISERS
from unirl_env.modes.mode import MakeEnv, Mode
from unirl_env.rollouts.local import LocalRollout

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

    @property
    def policy(self) -> type:
        """A Gaussian over the next latent."""
        from unirl_env.policies.rl_module import DenoisePolicy

        return DenoisePolicy

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

    def rollout(self, config: Any, make_env: MakeEnv, actor: Any) -> LocalRollout:
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
