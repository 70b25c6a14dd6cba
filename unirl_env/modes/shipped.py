"""The shipped modes: latents, texts, both in one episode, and decision processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from unirl_env.envs.acting import MDPVectorEnv
from unirl_env.envs.denoising import DenoiseVectorEnv
from unirl_env.envs.encodings import encode_prompts, input_limits
from unirl_env.envs.hybrid import HybridVectorEnv
from unirl_env.envs.writing import MAX_NEW_TOKENS, MAX_PROMPT_TOKENS, TokenVectorEnv
from unirl_env.errors import ConfigError
from unirl_env.models import DENOISERS, LANGUAGE_MODELS, UNIFIED_MODELS, UnifiedModel
from unirl_env.models import MDPS as PROCESSES
from unirl_env.models.making import model_choice
from unirl_env.models.shared.loading import EMBEDDED
from unirl_env.modes.mode import MakeEnv, Mode, Playing
from unirl_env.policies.actor import Actor
from unirl_env.rewards.secrets import resolved
from unirl_env.rollouts.drivers.tokens import TextDriver
from unirl_env.rollouts.engines import ENGINES, Engine
from unirl_env.rollouts.play import Rollout, drivers_of
from unirl_env.settings import PolicySettings
from unirl_env.types import Prompt

PIXELS = ("max_images", "min_pixels", "max_pixels")
"""What engines must know of a model that reads pictures."""
LOCAL_OPTIONS = {"rows"}
"""What `engine_options` can say of the engine in this process."""


class Denoising(Mode):
    """Episodes of `DenoiseVectorEnv`."""

    name = "diffusion"
    argument = "denoiser"
    models = DENOISERS
    environment = DenoiseVectorEnv
    embedded = EMBEDDED["image"]
    gives: ClassVar[Mapping[str, bool]] = {"image": True, "latent": True}
    steps = True
    head_settings = ("guidance", "guidance_at_once", "dynamics", "eta", "storage_dtype")

    def phases(self, config: Any) -> dict[str, str]:
        """One, of latents, called by what the model makes: `image` or `video`."""
        return {_makes(config.env_options()): "latents"}

    def given(self, arguments: Mapping[str, Any]) -> Mapping[str, bool]:
        """Pictures or clips, or a bare latent."""
        return {_makes(arguments): True, "latent": True}

    def env_options(self, config: Any) -> dict[str, Any]:
        """Negative prompts where guidance needs them."""
        return {"with_negative": _guides(config.policy)}

    def check(self, config: Any) -> None:
        """Steps and engine."""
        _check_latents(config)

    def check_prompts(self, model: Any, prompts: Iterable[Prompt], arguments: Mapping[str, Any]) -> None:
        """Let the model refuse what it cannot draw."""
        for prompt in prompts:
            model.check_prompt(prompt)


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
            model, env = actor.model, config.env_options()
            head: Any = actor.head("text")
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
        """Refuse an engine that is none: neither a registered name nor the path of one's own."""
        if config.engine not in ENGINES:
            ENGINES.get(config.engine)

    def check_prompts(self, model: Any, prompts: Iterable[Prompt], arguments: Mapping[str, Any]) -> None:
        """Let the model read each: one that does not fit would stop the run hours later."""
        most = arguments.get("max_prompt_tokens", MAX_PROMPT_TOKENS)
        limits = input_limits(model, most)
        for prompt in prompts:
            # One at a time: the pictures of all of them may not fit into memory.
            encode_prompts(model, [prompt], most, limits)


class Enhancing(Tokens):
    """The same with a frozen generator, which draws what is written."""

    name = "pe"
    embedded = "unirl/TinyPromptEnhancer-T2I-v0"
    gives: ClassVar[Mapping[str, bool]] = {"text": True, "tokens": True, "image": False, "pictures": False}

    def given(self, arguments: Mapping[str, Any]) -> Mapping[str, bool]:
        """Pictures or clips, whichever the generator makes."""
        generator = arguments.get("generator")
        if not isinstance(generator, Mapping) or generator.get("denoiser") is None:
            return self.gives
        return {"text": True, "tokens": True, "video": False} if _makes(generator) == "video" else self.gives


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
            names += ["guidance_at_once", "dynamics", "eta", "storage_dtype"]
        return {"train_phases": config.trained, **{name: getattr(config.policy, name) for name in names}}

    def env_options(self, config: Any) -> dict[str, Any]:
        """Negative prompts where guidance needs them."""
        return {"with_negative": True} if _guides(config.policy) else {}

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
        if phases.get("image") == "latents" and "image" in config.trained:
            _check_latents(config)
        elif self._discrete(config) and config.policy.guidance != 1.0:
            raise ConfigError(
                f"`policy.guidance` must be 1 where pictures are tokens, got {config.policy.guidance}; try "
                "`model_options={'guidance': ...}`, which is the model's own."
            )

    def check_prompts(self, model: Any, prompts: Iterable[Prompt], arguments: Mapping[str, Any]) -> None:
        """As the view that writes reads them."""
        TOKENS.check_prompts(model.text, prompts, arguments)

    def _discrete(self, config: Any) -> bool:
        name = self.choice(config.env_options()).name
        return (name if isinstance(name, UnifiedModel) else UNIFIED_MODELS.get(name)).discrete


class Processes(Playing):
    """Episodes of `MDPVectorEnv`: finite or continuous processes, given as pure functions over states."""

    name = "mdp"
    argument = "mdp"
    models = PROCESSES
    environment = MDPVectorEnv


def _makes(arguments: Mapping[str, Any]) -> str:
    """What the denoiser among arguments makes, as its class says; a function that chooses one: pictures."""
    name = model_choice(arguments, "denoiser").name
    return getattr(DENOISERS.get(name) if isinstance(name, str) else name, "makes", "image")


def _guides(policy: PolicySettings) -> bool:
    """Whether negative prompts are needed, in training or in evaluation."""
    return not {policy.guidance, policy.eval_guidance} <= {1.0, None}


def _check_latents(config: Any) -> None:
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


DENOISING, TOKENS, ENHANCING, HYBRID, MDPS = Denoising(), Tokens(), Enhancing(), Hybrid(), Processes()
