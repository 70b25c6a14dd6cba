"""From a run's settings to its world: prompts and arguments, and what can be known before anything loads."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unirl_env.errors import ConfigError
from unirl_env.models.making import ModelChoice, make_model, model_choice
from unirl_env.modes import Mode, mode_of
from unirl_env.prompts.sources import PromptSource
from unirl_env.rewards import for_mode
from unirl_env.rewards.secrets import resolved
from unirl_env.settings import RunConfig
from unirl_env.types import Prompt
from unirl_env.worlds.arguments import check_arguments, pick_device
from unirl_env.worlds.registration import OURS, spec_of

TRAIN, HELDOUT = "train", "heldout"


@dataclass(frozen=True)
class Prompts:
    """The prompt sources of a run, and what evaluation takes from them."""

    train: PromptSource
    heldout: PromptSource | None

    def evaluation_sets(self, count: int) -> dict[str, list[Prompt]]:
        """Up to `count` prompts of each source, the same ones for every run on these sources."""
        sources = {TRAIN: self.train, HELDOUT: self.heldout}
        return {
            name: source.take(0, min(count, len(source)), seed=0)
            for name, source in sources.items()
            if source is not None
        }

    def fingerprints(self) -> dict[str, str]:
        """A hash of each source's contents."""
        sources = {"prompts.train": self.train, "prompts.heldout": self.heldout}
        return {name: source.fingerprint for name, source in sources.items() if source is not None}


def read_prompts(cfg: RunConfig) -> Prompts:
    """The prompts of a run.

    Raises:
        ConfigError: If there are too few, or held-out ones are among those of training.
        PromptError: If a source cannot be used.
    """
    longest = cfg.prompts.max_characters
    train = PromptSource.of(cfg.prompts.train, max_characters=longest)
    heldout = None
    if cfg.prompts.heldout is not None:
        heldout = PromptSource.of(cfg.prompts.heldout, max_characters=longest)
        shared = {_asked(prompt) for prompt in train} & {_asked(prompt) for prompt in heldout}
        if shared:
            raise ConfigError(
                f"`prompts.heldout` must hold prompts that training never sees, got {len(shared)} of "
                f"`prompts.train` ({min(shared)[0][:60]!r}); try removing them, or `prompts.heldout=null`."
            )
    if cfg.rollout.num_prompts > len(train):
        raise ConfigError(
            f"`rollout.num_prompts` must be at most the {len(train)} prompts of `prompts.train`, got "
            f"{cfg.rollout.num_prompts}: an iteration takes distinct prompts; try "
            f"rollout.num_prompts={len(train)} and a larger `rollout.group_size`."
        )
    return Prompts(train, heldout)


def _asked(prompt: Prompt) -> tuple[str, str, str]:
    """What a prompt asks, whatever its id: one question about two pictures is two prompts."""
    return prompt.text, repr(prompt.messages), repr(prompt.images)


def check_world(cfg: RunConfig) -> None:
    """Refuse arguments that no environment or model of this kind takes, and models that are not there.

    Raises:
        ConfigError: Naming the argument.
        ModelNotFound: If `model.pretrained` is a folder that is missing or holds no model.
    """
    spec = spec_of(cfg.model.env, "model.env")
    if spec.vector_entry_point != OURS:
        return  # somebody's own, which takes what it takes
    try:
        check_arguments({**spec.kwargs, **world_options(cfg)})
    except ConfigError as error:
        where = "" if not cfg.model.options or "`model." in str(error) else "`model.options`: "
        raise ConfigError(f"{where}{error}") from error


def check_prompts(cfg: RunConfig, prompts: Iterable[Prompt]) -> None:
    """Let the mode look at every prompt once: one that does not fit would stop the run hours later.

    Raises:
        PromptError: Naming the prompt.
    """
    arguments = _arguments(cfg)
    mode_of(arguments).check_prompts(world_model(cfg), prompts, arguments)


def world_model(cfg: RunConfig) -> Any:
    """The adapter of the environment's model, of which nothing is loaded yet."""
    arguments = _arguments(cfg)
    mode = mode_of(arguments)
    return _made(mode.choice(arguments), mode)


def check_targets(cfg: RunConfig, source: str | Path | None) -> None:
    """Refuse layers for adapters that the weights of a directory have not.

    The weights' names are read, not the weights. A hub id is judged when its network is there.

    Raises:
        ConfigError: Naming the layer, and the nearest that there is.
    """
    targets = cfg.policy.lora_targets
    if not targets or _choice(cfg).family == "unified_model" or source is None:
        return
    layers = _layers(Path(source))
    for target in targets if layers else ():
        if not any(f".{layer}".endswith(f".{target}") for layer in layers):
            short = sorted({layer.rpartition(".")[2] for layer in layers} - {"0"})
            near = difflib.get_close_matches(target, [*short, *layers], n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(short[:20])}."
            raise ConfigError(
                f"`policy.lora_targets` must name layers of {cfg.model.env}, got {target!r}, as which "
                f"none is called; {remedy}"
            )


def model_sources(cfg: RunConfig) -> dict[str, tuple[str, str | None]]:
    """Every model that a run loads weights of, as `(hub id or directory, revision)`.

    Returns:
        The environment's own as `model`, and what it consists of or draws with by the names of the settings;
        models in closed form have none.
    """
    arguments = _arguments(cfg)
    mode = mode_of(arguments)
    choice = mode.choice(arguments)
    described = {"model": choice}
    for name in ("writer", "painter"):
        if isinstance(part := choice.options.get(name), Mapping):
            described[f"model.{name}"] = model_choice(part)
    if isinstance(generator := arguments.get("generator"), Mapping):
        described["model.generator"] = model_choice(generator)
    found = {}
    for name, each in described.items():
        made = _made(each, mode if name == "model" else mode_of({each.family: each.name}))
        pretrained = getattr(made, "pretrained", None)
        if pretrained is not None:
            found[name] = (str(pretrained), each.options.get("revision"))
    return found


def world_generator(cfg: RunConfig) -> Any:
    """The adapter of what draws the texts of a run, likewise; None where nothing does."""
    generator = _arguments(cfg).get("generator")
    if not isinstance(generator, Mapping):
        return None
    each = model_choice(generator)
    return _made(each, mode_of({each.family: each.name}))


def frame_rate(model: Any) -> float | None:
    """Frames per second of the clips that a model makes; None where it makes none or says nothing."""
    return getattr(model, "fps", None)


def mode_of_run(cfg: RunConfig) -> Mode:
    """The mode of a run's environment, from its id and `model.options`.

    Raises:
        ConfigError: If there is no such id, or its mode is none.
    """
    return mode_of(model_arguments(cfg))


def model_arguments(cfg: RunConfig) -> dict[str, Any]:
    """What says which model and mode a run has: the arguments of its id, and `model.options` over them."""
    return {**spec_of(cfg.model.env, "model.env").kwargs, **cfg.model.options}


def world_options(cfg: RunConfig) -> dict[str, Any]:
    """Keyword arguments of the environment; what is null keeps the id's own default."""
    model = cfg.model
    chosen = {
        "pretrained": model.pretrained,
        "revision": model.revision,
        "num_steps": model.num_steps,
        "height": model.height,
        "width": model.width,
        "num_frames": model.num_frames,
        "dtype": model.dtype,
        "device": pick_device(model.device),
        "offload": model.offload or None,
        "rows_per_forward": model.rows_per_forward,
        "compile": model.compile or None,
        "max_new_tokens": model.max_new_tokens,
        "max_prompt_tokens": model.max_prompt_tokens,
        "prompts": cfg.prompts.train,
        "max_characters": cfg.prompts.max_characters,
        "scorer": for_mode(cfg.reward.train, mode_of_run(cfg), arguments=model_arguments(cfg)),
        "overlap": cfg.reward.overlap or None,
        "on_invalid": "raise" if cfg.reward.on_error == "raise" else "nan",
    }
    return {name: value for name, value in chosen.items() if value is not None} | resolved(
        model.options, "model.options"
    )


def _arguments(cfg: RunConfig) -> dict[str, Any]:
    """All arguments of the environment: those of its id, and the settings over them."""
    return {**spec_of(cfg.model.env, "model.env").kwargs, **world_options(cfg)}


def _choice(cfg: RunConfig) -> ModelChoice:
    arguments = _arguments(cfg)
    return mode_of(arguments).choice(arguments)


def _made(choice: ModelChoice, mode: Mode) -> Any:
    return make_model(mode.models, choice.name, choice.options)


def _layers(source: Path) -> set[str]:
    """Names of the layers whose weights a directory holds: of its network, where it is a pipeline's.

    Those of several networks begin with the names of their folders.
    """
    from safetensors import safe_open

    parts = [part for name in ("transformer", "transformer_2", "unet") if (part := source / name).is_dir()]
    found: set[str] = set()
    for folder in parts or [source]:
        prefix = f"{folder.name}." if len(parts) > 1 else ""
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                found |= {
                    prefix + name.removesuffix(".weight") for name in file.keys() if name.endswith(".weight")
                }
    return found
