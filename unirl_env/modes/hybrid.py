"""The hybrid mode: a text and then a picture, by one policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from unirl_env.envs.hybrid import HybridVectorEnv
from unirl_env.envs.tokens import MAX_NEW_TOKENS
from unirl_env.errors import ConfigError
from unirl_env.models import UNIFIED_MODELS, UnifiedModel
from unirl_env.modes.denoising import check_latents
from unirl_env.modes.mode import MakeEnv, Mode
from unirl_env.modes.tokens import check_tokens, read_once
from unirl_env.policies.actor import Actor
from unirl_env.rollouts.play import Rollout, drivers_of
from unirl_env.types import Prompt

__all__ = ["HYBRID", "Hybrid"]

LOCAL_OPTIONS = {"rows"}
"""What `engine_options` can say of the engine in this process."""


class Hybrid(Mode):
    """Episodes of `HybridVectorEnv`."""

    name = "unified_model"
    argument = "unified_model"
    models = UNIFIED_MODELS
    environment = HybridVectorEnv
    embedded = "unirl/TinyUnified-T2I-v0"
    gives: ClassVar = {"text": False, "tokens": False, "image": False}
    steps = may_skip = True

    def phases(self, config: Any) -> dict[str, str]:
        """Those of text and image that are not empty."""
        options, found = config.env_options(), {}
        if options.get("max_new_tokens", MAX_NEW_TOKENS):
            found["text"] = "tokens"
        if self._discrete(config):
            found["image"] = "tokens"
        elif options.get("num_steps") != 0:
            found["image"] = "latents"
        return found

    def actor_options(self, config: Any) -> dict[str, Any]:
        """What is trained, and the settings of both heads; pictures of tokens have no denoising kernel."""
        names = ["temperature", "top_p", "top_k", "guidance"]
        if not self._discrete(config):
            names += ["dynamics", "eta", "storage_dtype"]
        return {"train_phases": config.trained, **{name: getattr(config.policy, name) for name in names}}

    def env_options(self, config: Any) -> dict[str, Any]:
        """Negative prompts where guidance needs them."""
        return {"with_negative": True} if config.policy.guidance != 1.0 else {}

    def rollout(self, config: Any, make_env: MakeEnv, actor: Actor) -> Rollout:
        """The network beside its environment."""
        drivers = drivers_of(actor, **config.engine_options)
        return Rollout(make_env, drivers, batch_size=config.rollout_batch_size)

    def check(self, config: Any) -> None:
        """Both phases' settings; and nothing but this process generates."""
        if config.engine != "local":
            raise ConfigError(
                f"`engine` must be 'local' for a model that writes and draws, got {config.engine!r}: vLLM "
                "and SGLang generate tokens alone."
            )
        unknown = set(config.engine_options) - LOCAL_OPTIONS
        if unknown:
            raise ConfigError(
                f"`engine_options` must be of {sorted(LOCAL_OPTIONS)} here, got {sorted(unknown)}."
            )
        phases = self.phases(config)
        if not phases:
            raise ConfigError(
                "`max_new_tokens` and `num_steps` must leave a phase to play, got 0 and 0; try num_steps=10."
            )
        check_tokens(config)
        if phases.get("image") == "latents" and "image" in config.trained:
            check_latents(config)
        elif self._discrete(config) and config.policy.guidance != 1.0:
            raise ConfigError(
                f"`policy.guidance` must be 1 where pictures are tokens, got {config.policy.guidance}; try "
                "`model_options={'guidance': ...}`, which is the model's own."
            )

    def check_prompts(self, model: Any, prompts: Iterable[Prompt], arguments: Mapping[str, Any]) -> None:
        """As the view that writes reads them."""
        read_once(model.text, prompts, arguments)

    def _discrete(self, config: Any) -> bool:
        name = self.choice(config.env_options()).name
        return (name if isinstance(name, UnifiedModel) else UNIFIED_MODELS.get(name)).discrete


HYBRID = Hybrid()
