"""From the words that name a model to the model, for environments and for policies."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from unirl_env.arguments.names import FAMILIES, MODEL_OPTIONS
from unirl_env.errors import ConfigError, ContractError, UnknownArgument
from unirl_env.models.denoiser import Denoiser
from unirl_env.models.process import MDP
from unirl_env.models.unified import UnifiedModel
from unirl_env.models.words import LanguageModel, Words
from unirl_env.registry import Registry

KINDS = {
    "denoiser": Denoiser,
    "language model": Words,
    "mdp": MDP,
    "unified model": UnifiedModel,
}
"""By what a registry calls its models, what all of them are: of a language model, the half of the world."""
PLAIN = {"device": "cpu", "dtype": "float32", "offload": False}
"""What a model is that takes no such option: it need not be told so."""
TAKES = {"device": "device='cpu'", "dtype": "dtype='float32'", "offload": "offload=False"}
UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")
MISSING = re.compile(r"missing (?:a required|\d+ required (?:positional|keyword-only)) arguments?: (.+)")


def is_model(models: Registry, found: Any) -> bool:
    """Whether it is a model that is made already, and nothing that makes one.

    Args:
        models: Where names of its kind are looked up.
        found: A model, a class, or a function.
    """
    if models.kind in KINDS:
        return isinstance(found, tuple(KINDS.values()))
    return not (inspect.isclass(found) or inspect.isroutine(found) or isinstance(found, partial))


def model_class(models: Registry, model: Any) -> Any:
    """What makes a model, or the model itself, whichever is named.

    Args:
        models: Where names are looked up.
        model: A registered name, a dotted path, a class, or a model.

    Raises:
        ConfigError: If nothing of the name is there, or it is a model of another kind.
    """
    found = models.get(model) if isinstance(model, str) else model
    wanted = KINDS.get(models.kind)
    if wanted is None:
        return found
    kind = found if inspect.isclass(found) else type(found)
    other = next((name for name, known in KINDS.items() if issubclass(kind, known)), models.kind)
    if other == models.kind and (callable(found) or is_model(models, found)):
        return found
    argument, right = models.kind.replace(" ", "_"), other.replace(" ", "_")
    remedy = f"{right}={model!r}" if right != argument else "'package.module:Class'"
    whole = LanguageModel if wanted is Words else wanted
    raise ConfigError(
        f"`{argument}` must be a {whole.__name__}, by its name, its path, its class or itself, got "
        f"{model!r}, a {kind.__name__}; try {remedy}."
    )


def make_model(models: Registry, model: Any, options: Mapping[str, Any], label: str | None = None) -> Any:
    """A model; what is large in it loads on first use.

    Args:
        models: Where names are looked up.
        model: A registered name, a dotted path, a class, or a model, which is returned as it is.
        options: Arguments of the class.
        label: What messages call it.

    Raises:
        ConfigError: If nothing of the name is there, or the options do not fit the class.
        ContractError: If the class lacks a part of the contract.
    """
    target = model_class(models, model)
    if is_model(models, target):
        return target
    label = label or label_of(model)
    kind = KINDS.get(models.kind)
    _require_whole(models.kind, kind, label, getattr(target, "__abstractmethods__", ()))
    # Its own words before it runs: half a model would be made twice.
    made, _ = _fitting(target, target, check_options(target, options, label), label)
    if kind is not None and not isinstance(made, kind):
        _require_whole(
            models.kind, kind, label, {n for n in kind.__abstractmethods__ if not hasattr(made, n)}
        )
    return made


def label_of(model: Any) -> str:
    """What messages call a model."""
    return f"model {model if isinstance(model, str) else getattr(model, '__qualname__', model)!r}"


def check_options(target: Any, options: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Those of `options` that a class is to be given, as far as its own words tell.

    Raises:
        ConfigError: If it does not take one, or needs another one.
    """
    try:
        bound = inspect.signature(target).bind
    except (TypeError, ValueError):  # written in C
        return dict(options)
    return _fitting(bound, target, options, label)[1]


def _fitting(
    call: Callable[..., Any], target: Any, options: Mapping[str, Any], label: str
) -> tuple[Any, dict[str, Any]]:
    """What `call` gives, and the options that it took: without those that need not be said."""
    given = dict(options)
    while True:
        try:
            return call(**given), given
        except TypeError as error:
            # A class that passes its options on finds only inside that one is unknown.
            said = str(error)
            refused = UNEXPECTED.search(said)
            plain = [option for option in PLAIN if option in given and _is_plain(option, given[option])]
            if refused and refused[1] in plain:
                del given[refused[1]]
            elif "takes no arguments" in said and plain:
                given = {option: value for option, value in given.items() if option not in plain}
            elif "argument" in said:
                raise _misfit(target, given, error, label) from error
            else:
                raise


def _is_plain(option: str, value: Any) -> bool:
    value = str(value).removeprefix("torch.") if isinstance(value, torch.dtype | torch.device) else value
    return value == PLAIN[option]


def _misfit(target: Any, given: Mapping[str, Any], error: TypeError, label: str) -> ConfigError:
    said, remedy = str(error), ""
    refused, missing = UNEXPECTED.search(said), MISSING.search(said)
    who = getattr(target, "__qualname__", label)
    if refused and (option := refused[1]) in TAKES and option in given:
        remedy = (
            f": {option}={given[option]!r} was asked for, and a model whose constructor takes no `{option}` "
            f"is {option}={PLAIN[option]!r}; try that, or `def __init__(self, {TAKES[option]})` in {who}"
        )
    elif missing:
        option = missing[1].split(",")[0].strip("' ")
        place = f"{option}=..." if option in MODEL_OPTIONS else f"model_options={{'{option}': ...}}"
        remedy = (
            f": {who} is not made without `{option}`; try {place} among the environment's arguments, or a "
            "default in its constructor"
        )
    kind = UnknownArgument if refused else ConfigError
    return kind(f"The options of {label} do not fit: {error}{remedy}.")


def _require_whole(name: str, kind: Any, label: str, missing: Any) -> None:
    """Refuse a model without some methods of its contract."""
    if missing:
        raise ContractError(
            f"The {label} is incomplete: a {name} must have all methods of its contract, got none called "
            f"{', '.join(sorted(missing))}; `{getattr(kind, '__module__', '')}` says what they are."
        )


@dataclass(frozen=True)
class ModelChoice:
    """The model that an environment's arguments describe.

    Attributes:
        family: Which of `FAMILIES` named it.
        name: The registered name or dotted path of its adapter, or an adapter.
        options: The adapter's arguments.
        rest: The environment's other arguments.
    """

    family: str
    name: Any
    options: dict[str, Any]
    rest: dict[str, Any]


def model_choice(arguments: Mapping[str, Any], argument: str | None = None) -> ModelChoice:
    """Part an environment's arguments into the model's and the rest.

    `model_options` holds what only one adapter knows. Options that are None take the adapter's default.

    Args:
        arguments: Those of an environment.
        argument: Which of them names the model; None: the one of `FAMILIES` that is there.

    Raises:
        ConfigError: Unless exactly one names a model.
    """
    rest = dict(arguments)
    rest.pop("mode", None)
    families = FAMILIES if argument is None else (argument,)
    named = {family: rest.pop(family, None) for family in families}
    named = {family: model for family, model in named.items() if model is not None}
    # An id that named another family's model, of which a user has said None.
    rest = {name: value for name, value in rest.items() if name not in FAMILIES or value is not None}
    if len(named) != 1:
        raise ConfigError(
            f"One of {', '.join(f'`{family}`' for family in families)} must name a model family, got "
            f"{sorted(named) or 'none'}; try `denoiser='sd3'` or `language_model='causal_lm'`."
        )
    ((family, name),) = named.items()
    special = rest.pop("model_options", None) or {}
    if not isinstance(special, Mapping):
        raise ConfigError(f"`model_options` must be a mapping, got {special!r}; try {{'dtype': 'bfloat16'}}.")
    options = {key: rest.pop(key) for key in MODEL_OPTIONS if key in rest}
    return ModelChoice(family, name, {k: v for k, v in {**options, **special}.items() if v is not None}, rest)
