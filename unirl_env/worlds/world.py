"""Worlds: what is frozen, made once from the arguments of an id, and shared by batches of any size.

An argument that names a part (the model, prompts, scorer, generator, tool) is either words (a registered
name, a dotted path, a list, a mapping) or the thing itself. Here words become things, once; what lies beneath
knows things only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, VectorEnv

from unirl_env.arguments.names import unknown_arguments
from unirl_env.arguments.values import truth, whole
from unirl_env.envs.single import SingleEnv
from unirl_env.envs.vector_env import GenerativeVectorEnv
from unirl_env.errors import ConfigError, ContractError, UnknownArgument
from unirl_env.models import DENOISERS
from unirl_env.models.denoiser import Denoiser
from unirl_env.models.making import UNEXPECTED, make_model, model_choice
from unirl_env.modes import Mode, mode_of
from unirl_env.prompts.sources import MAX_CHARACTERS, PromptSource
from unirl_env.registry import Registry
from unirl_env.rewards.compose import Background
from unirl_env.rewards.spec import build_scorer
from unirl_env.types import Scorer
from unirl_env.worlds.arguments import (
    check_flat,
    check_generator,
    check_own,
    environment_of,
    parted,
    pick_device,
    refuse_unknown,
    require_device,
    require_kinds,
)
from unirl_env.worlds.registration import OURS, spec_of
from unirl_env.wrappers.draw import DrawWrapper, FrozenNetwork
from unirl_env.wrappers.flatten import FlattenForPPO, flatten_for_ppo
from unirl_env.wrappers.reward import UNASKED, RewardWrapper

TOOLS = Registry("tool", {"calculator": "unirl_env.envs.tools:Calculator"})
JUDGING = ("on_invalid", "together")
"""Arguments of `RewardWrapper`."""

ONE_EPISODE = {
    "num_envs": 1,
    "group_size": 1,
    "array_backend": "numpy",
    "autoreset_mode": "disabled",
    "overlap": False,
}


@dataclass(frozen=True, eq=False)
class World:
    """Model, prompts, scorer and generator, from which environments of any size are made.

    Example:
        >>> world = World.of({"denoiser": "gaussian_mixture", "prompts": ["a"], "scorer": "linear"})
        >>> training, evaluation = world.env(64), world.env(8, num_steps=50)

    Attributes:
        mode: What kind of environment this is.
        model: The adapter; its environments use its frozen half.
        prompts: Read and looked at once; None where the environment has none.
        scorer: What judges finished samples; None leaves them unscored.
        generator: What draws finished texts, as arguments of `DrawWrapper`; None leaves them texts.
        environment: The class of the environments.
        device: Where the frozen half and the episodes live.
        arguments: The environments' other arguments, with the tool that they ask.
        outside: How they are wrapped: `on_invalid`, `together`, `flat`.
    """

    mode: Mode
    model: Any
    prompts: PromptSource | None
    scorer: Scorer | None
    generator: Mapping[str, Any] | None
    environment: Callable[..., VectorEnv]
    device: str
    arguments: Mapping[str, Any]
    outside: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> World:
        """The world that the arguments of an id describe; see `unirl_env.worlds.make_vector_env`.

        Raises:
            UnknownArgument: If an argument is unknown.
            ConfigError: If one does not fit.
            PromptError: If a prompt cannot be used.
        """
        device = require_device(pick_device(arguments.get("device", "cpu")))
        mode, choice, own = parted({**arguments, "device": device})
        refuse_unknown(mode, choice, own)
        check_own(own)
        require_kinds(mode, choice)
        model, rest = make_model(mode.models, choice.name, choice.options), dict(choice.rest)
        environment = environment_of(mode, own)
        if "tool" in rest:
            rest["tool"] = _tool(rest["tool"])
        generator = own.get("generator")
        if generator is not None:
            generator = _generator(generator, mode, device)
        prompts = rest.pop("prompts", None)
        if prompts is None and _is_ours(environment):
            raise ConfigError("`prompts` must be given, got None; try prompts=['a cat'], or 'shapes_train'.")
        if prompts is not None:
            prompts = _prompts(prompts, rest)
        scorer = None if own.get("scorer") is None else _scorer(own)
        outside = {name: own[name] for name in (*JUDGING, "flat") if name in own}
        return cls(mode, model, prompts, scorer, generator, environment, device, rest, outside)

    def env(
        self,
        num_envs: int,
        num_steps: int | None = None,
        size: tuple[int, int] | None = None,
        **how: Any,
    ) -> VectorEnv:
        """A batch of episodes.

        Args:
            num_envs: B.
            num_steps: T, instead of the world's own.
            size: Height and width of pictures in pixels, likewise.
            **how: Other arguments of the environment, instead of the world's own.
        """
        given = {**self.arguments, **how}
        if num_steps is not None:
            given["num_steps"] = num_steps
        if self.prompts is not None:
            given.setdefault("prompts", self.prompts)
        if size is not None and not isinstance(self.model, Denoiser):
            raise ConfigError(
                f"`policy.eval_size` must be null but for a denoiser, got {list(size)} for "
                f"{type(self.model).__name__}."
            )
        model = self.model if size is None else self.model.sized(*size)
        env = self._bare(model, num_envs, given)
        if self.generator is not None:
            together = env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
            env = DrawWrapper(env, **{"together": together, **self.generator})
        if self.scorer is not None:
            judging = {name: self.outside[name] for name in JUDGING if name in self.outside}
            env = RewardWrapper(env, self.scorer, **judging)
        flat = self.outside.get("flat", False)
        if not flat:
            return env
        return FlattenForPPO(env) if flat is True else FlattenForPPO(env, flat)

    def _bare(self, model: Any, num_envs: int, given: Mapping[str, Any]) -> VectorEnv:
        try:
            return self.environment(model, num_envs=num_envs, device=self.device, **given)
        except TypeError as error:
            said = UNEXPECTED.search(str(error))
            if said is None or said[1] not in {*given, "num_envs", "device"}:
                raise
            raise UnknownArgument(
                unknown_arguments(
                    self.environment.__qualname__,
                    [said[1]],
                    {*given, *getattr(self.environment, "arguments", ())} - {said[1]},
                )
                if said[1] in given
                else f"`{self.environment.__qualname__}` must take `num_envs` and `device`, got {error}."
            ) from error


class ForeignWorld:
    """A world whose environments a user's own entry point makes, called once for each size.

    It is called as by `gym.make_vec`: with `num_envs` and the arguments of its id, in which model, prompts,
    scorer and generator are things already, so that all sizes share them; a runner adds
    `array_backend="torch"`, `autoreset_mode="disabled"`, `device` and what the mode asks for (`num_steps`,
    `with_negative`). What it returns must answer the contract of a generative environment, and score its
    episodes by a `RewardWrapper`; `check_vector_env` tells.

    Args:
        name: The id.
        arguments: Laid over those that are registered with it.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any]):
        given = {**spec_of(name).kwargs, **arguments}
        mode = mode_of(given)
        choice = model_choice(given, mode.argument)
        self.name, self.mode = name, mode
        self.model = make_model(mode.models, choice.name, choice.options)
        self.prompts = None if given.get("prompts") is None else _prompts(given["prompts"], given)
        self.arguments = {**arguments, mode.argument: self.model}
        if self.prompts is not None:
            self.arguments["prompts"] = self.prompts
        if given.get("scorer") is not None:
            self.arguments["scorer"] = _scorer(given)
        if given.get("generator") is not None:
            generator = _generator(given["generator"], mode, given.get("device", "cpu"))
            self.arguments["generator"] = {"denoiser": generator.pop("generator"), **generator}

    def env(
        self,
        num_envs: int,
        num_steps: int | None = None,
        size: tuple[int, int] | None = None,
        **how: Any,
    ) -> VectorEnv:
        """A batch of episodes; the arguments are those of `World.env`."""
        given = {**self.arguments, **how}
        if size is not None:
            raise ConfigError(
                f"`policy.eval_size` must be null for {self.name}, whose entry point is its own, got "
                f"{list(size)}."
            )
        if num_steps is not None:
            given["num_steps"] = num_steps
        try:
            return gym.make_vec(
                self.name, num_envs=num_envs, vectorization_mode="vector_entry_point", **given
            )
        except UnknownArgument:
            raise  # Of one of ours, and said already.
        except TypeError as error:
            said, every = UNEXPECTED.search(str(error)), {**spec_of(self.name).kwargs, **given}
            if said is None or said[1] not in {*every, "num_envs"}:
                raise
            raise ContractError(
                f"The vector entry point of {self.name} must take `{said[1]}`, which is "
                f"{every.get(said[1], num_envs)!r:.80} here, and takes none ({error}); try `**options` there "
                "that go to a `GenerativeVectorEnv`, or `unirl_env.register(..., env='module:Class')`."
            ) from error


def world_of(name: str, arguments: Mapping[str, Any]) -> World | ForeignWorld:
    """The world of an id.

    Args:
        name: The id, whose prefix is imported first.
        arguments: Laid over those that are registered with it.

    Raises:
        ConfigError: If there is no such id, or an argument does not fit.
    """
    spec = spec_of(name)
    if spec.vector_entry_point == OURS:
        return World.of({**spec.kwargs, **arguments})
    return ForeignWorld(name, arguments)


def _prompts(source: Any, arguments: Mapping[str, Any]) -> PromptSource:
    """The prompts that `source` names."""
    longest = whole("max_characters", arguments.get("max_characters", MAX_CHARACTERS), 1)
    return PromptSource.of(source, max_characters=longest)


def _scorer(arguments: Mapping[str, Any]) -> Scorer:
    """The scorer, in the background where `overlap` says so."""
    scorer = build_scorer(arguments["scorer"])
    background = truth("overlap", arguments.get("overlap", False)) and not isinstance(scorer, Background)
    return Background(scorer) if background else scorer


def _generator(spec: Mapping[str, Any], mode: Mode, device: str) -> dict[str, Any]:
    """The arguments of a `DrawWrapper` that `spec` describes; all of them draw with one network."""
    check_generator(spec, mode)
    choice = model_choice({**spec, "device": pick_device(spec.get("device") or device)})
    model = make_model(DENOISERS, choice.name, choice.options)
    settings = {name: value for name, value in choice.rest.items() if value is not None}
    return {"generator": model, "network": FrozenNetwork(model), **settings}


def _tool(tool: Any) -> Any:
    """A tool by its name or dotted path; what can be called is taken as it is."""
    if not isinstance(tool, str):
        return tool
    found = TOOLS.get(tool)
    return found() if inspect.isclass(found) else found


def _is_ours(environment: Any) -> bool:
    return inspect.isclass(environment) and issubclass(environment, GenerativeVectorEnv)


def make_vector_env(
    num_envs: int = 1,
    *,
    generator: Mapping[str, Any] | None = None,
    scorer: Any = None,
    on_invalid: str | float = UNASKED,
    together: bool = False,
    overlap: bool = False,
    device: str = "cpu",
    flat: bool | Sequence[str] = False,
    **arguments: Any,
) -> gym.vector.VectorEnv:
    """Entry point of the vector environments: the model's environment inside `RewardWrapper`.

    Args:
        num_envs: B.
        generator: Of a language model, what draws its texts: `{"denoiser": "tiny_sd3", ...}` with the
            options of that model and those of `DrawWrapper`; `together` is True by default in autoreset mode
            DISABLED. None leaves texts as they are.
        scorer: Anything that `build_scorer` understands; None leaves the episodes unscored.
        on_invalid: What an invalid score pays: `"raise"`, because no agent is handed NaN unasked, `"nan"`,
            or a number; this library's own agents, which read scores, take the default for `"nan"`. See
            `RewardWrapper`.
        together: Judge all episodes of a batch at its end, in one call of the scorer; see `RewardWrapper`.
        overlap: Judge in the background: a step does not wait for its scores; see `RewardWrapper`.
        device: For the model's frozen half and the episodes; `"auto"` is the GPU where there is one.
        flat: For unmodified agents: see one flat `Box`, the prompt included, and act in one, or by tokens
            (`FlattenForPPO`); a sequence names the entries that are seen. An argument, because
            `gym.make_vec` cannot wrap natively batched environments.
        **arguments: `denoiser`, `language_model` or `unified_model` (a registered name, a dotted path, a
            class or a model), the model's options, those of `DenoiseVectorEnv`, `TokenVectorEnv` or
            `HybridVectorEnv`, and `env`, a class of your own (or its path) in the place of these.

    Raises:
        UnknownArgument: If an argument is unknown; a ConfigError and a TypeError.
        ConfigError: If an argument does not fit.
        PromptError: If a prompt cannot be used, or lacks what the scorer asks for.
    """
    given = {"generator": generator, "scorer": scorer, "on_invalid": on_invalid, "together": together}
    given |= {"overlap": overlap, "device": device, "flat": flat, **arguments}
    return World.of(given).env(num_envs)


def make_env(*, flat: bool | Sequence[str] = False, **arguments: Any) -> gym.Env:
    """Entry point of the single environments: a view of a vector environment of one episode.

    Raises:
        ConfigError: If an argument is unknown or does not fit, or asks for more than one episode can be.
    """
    for name, value in ONE_EPISODE.items():
        if arguments.setdefault(name, value) != value:
            raise ConfigError(
                f"`{name}` must be {value!r} for a single environment, got {arguments[name]!r}; "
                "try gym.make_vec."
            )
    check_flat(flat)
    env = SingleEnv(make_vector_env(**arguments))
    if not flat:
        return env
    return flatten_for_ppo(env) if flat is True else flatten_for_ppo(env, flat)
