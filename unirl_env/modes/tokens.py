"""The token mode: texts, written token by token by a language model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from unirl_env.envs.encodings import encode_prompts, input_limits
from unirl_env.envs.tokens import MAX_NEW_TOKENS, MAX_PROMPT_TOKENS, TokenVectorEnv
from unirl_env.errors import ConfigError
from unirl_env.models import LANGUAGE_MODELS, LanguageModel
from unirl_env.modes.mode import MakeEnv, Mode
from unirl_env.policies.actor import Actor
from unirl_env.rewards.secrets import resolved
from unirl_env.rollouts.drivers.tokens import TextDriver
from unirl_env.rollouts.engines import ENGINES, Engine
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Prompt

__all__ = ["ENHANCING", "TOKENS", "Enhancing", "Tokens", "check_tokens", "read_once"]

PIXELS = ("max_images", "min_pixels", "max_pixels")
"""What engines must know of a model that reads pictures."""


class Tokens(Mode):
    """Episodes of `TokenVectorEnv`."""

    name = "ar"
    argument = "language_model"
    models = LANGUAGE_MODELS
    environment = TokenVectorEnv
    embedded = "unirl/TinyQwen3-Math-v0"
    gives: ClassVar[Mapping[str, bool]] = {"text": True, "tokens": True}
    engines = generator = True
    head_settings = ("temperature", "top_p", "top_k")

    def phases(self, config: Any) -> dict[str, str]:
        """One, of tokens."""
        return {"text": "tokens"}

    def env_options(self, config: Any) -> dict[str, Any]:
        """No pictures: padded for every episode they take much memory; rollouts read them once per prompt."""
        return {"with_inputs": False}

    def rollout(self, config: Any, make_env: MakeEnv, actor: Actor) -> Rollout:
        """An engine that proposes, beside the environment that disposes."""
        driver = TextDriver(self._engine(config, actor), actor)
        return Rollout(make_env, {"text": driver}, batch_size=config.rollout_batch_size)

    def _engine(self, config: Any, actor: Actor) -> Engine:
        make = ENGINES.get(config.engine)
        options = resolved(config.engine_options, "engine_options")
        try:
            if config.engine == "local":
                return make(actor, **options)
            model, env, head = actor.model, config.env_options(), actor.head("text")
            settings = {
                "eos_ids": model.eos_ids,
                "temperature": head.temperature,
                "top_p": head.top_p,
                "top_k": head.top_k,
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

    def check(self, config: Any) -> None:
        """Sampling, weights of tokens, micro-batches."""
        check_tokens(config)

    def check_prompts(self, model: Any, prompts: Iterable[Prompt], arguments: Mapping[str, Any]) -> None:
        """Let the model read each: one that does not fit would stop the run hours later."""
        read_once(model, prompts, arguments)


class Enhancing(Tokens):
    """The same with a frozen generator, which draws what is written."""

    name = "pe"
    embedded = "unirl/TinyPromptEnhancer-T2I-v0"
    gives: ClassVar[Mapping[str, bool]] = {"text": True, "tokens": True, "image": False, "pictures": False}


def check_tokens(config: Any) -> None:
    """Refuse an engine that is none: neither a registered name nor the path of one's own.

    Raises:
        ConfigError: Naming the nearest that there is.
    """
    if config.engine not in ENGINES:
        ENGINES.get(config.engine)


def read_once(model: LanguageModel, prompts: Iterable[Prompt], arguments: Mapping[str, Any]) -> None:
    """Let a language model read every prompt.

    Raises:
        PromptError: Naming the prompt and the limit.
    """
    most = arguments.get("max_prompt_tokens", MAX_PROMPT_TOKENS)
    limits = input_limits(model, most)
    for prompt in prompts:
        # One at a time: the pictures of all of them may not fit into memory.
        encode_prompts(model, [prompt], most, limits)


TOKENS, ENHANCING = Tokens(), Enhancing()
