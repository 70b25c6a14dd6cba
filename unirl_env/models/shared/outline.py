"""Networks without their weights, for processes of which none is to hold all of one.

Within `outlining`, what `complete` loads is built from its configuration alone: its parameters have shapes
and no memory (torch's meta device), and its tables are there. Its `Outline` reads any part of any
weight from the files. A network whose weights are stored under other names than its own is loaded whole.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

MARK = "unirl_outline"
ADAPTED = ".base_layer."
"""What peft puts into the name of a weight that it attaches to."""
STEMS = ("model", "diffusion_pytorch_model")
"""What transformers and diffusers call the files of weights."""
_OUTLINING: ContextVar[bool] = ContextVar("outlining", default=False)


@contextmanager
def outlining() -> Iterator[None]:
    """Within it, networks are built without their weights, where that can be."""
    before = _OUTLINING.set(True)
    try:
        yield
    finally:
        _OUTLINING.reset(before)


def is_outlining() -> bool:
    """Whether networks are to be built without their weights."""
    return _OUTLINING.get()


class Outline:
    """How a network without weights gets them.

    Args:
        files: By the name of each parameter, the file of safetensors that holds it, and its name there.

    Attributes:
        checks: What is to be called with the network once it has its weights.
    """

    def __init__(self, files: Mapping[str, tuple[Path, str]]):
        self._files, self._opened = dict(files), dict[Path, Any]()
        self.checks: list[Callable[[nn.Module], Any]] = []

    def read(self, name: str, part: tuple[slice, ...]) -> Tensor:
        """A part of a weight as it is stored; nothing else is read.

        Args:
            name: Of the parameter, as `network.named_parameters()` has it, with adapters or without.
            part: Of each dimension, which indices.
        """
        path, key = self._files[name.replace(ADAPTED, ".")]
        if path not in self._opened:
            self._opened[path] = _opened(path)
        return self._opened[path].get_slice(key)[part]

    def close(self) -> None:
        """Let go of the files."""
        self._opened.clear()


def to_be_filled(network: nn.Module, files: Mapping[str, tuple[Path, str]]) -> nn.Module:
    """A network whose parameters are on the meta device, with the way to its weights; see `Outline`."""
    setattr(network, MARK, Outline(files))
    return network.eval()


def outlines(network: nn.Module) -> Iterator[tuple[nn.Module, Outline]]:
    """The parts of a network that are without weights, and how they get them."""
    for module in network.modules():
        outline = vars(module).get(MARK)
        if outline is not None:
            yield module, outline


def on_device(network: nn.Module, device: torch.device | str) -> nn.Module:
    """`network.to(device)`; one without weights stays without."""
    return network if MARK in vars(network) else network.to(device)


def when_filled(network: nn.Module, check: Callable[[nn.Module], Any]) -> None:
    """Call `check(network)`: now, or for a network without weights when it has got them."""
    outline = vars(network).get(MARK)
    if outline is None:
        check(network)
    else:
        outline.checks.append(check)


@contextmanager
def stood_in_for(network: nn.Module) -> Iterator[None]:
    """Within it, parameters without memory are such as have the memory of one number.

    For what is made like them, and must have memory: adapters.
    """
    without = [
        (module, name, parameter)
        for module in network.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.is_meta
    ]
    try:
        for module, name, parameter in without:
            number = torch.zeros((), dtype=parameter.dtype)
            stand_in = nn.Parameter(number.expand(parameter.shape), requires_grad=False)
            module._parameters[name] = stand_in
        yield
    finally:
        for module, name, parameter in without:
            module._parameters[name] = parameter


def outline_of(loader: Callable[..., Any], pretrained: str, options: Mapping[str, Any]) -> nn.Module | None:
    """The network that `loader(pretrained, **options)` would load, without its weights; None if it cannot be.

    Args:
        loader: The `from_pretrained` of a class of transformers or diffusers.
        pretrained: A hub id or a directory.
        options: `dtype`, `subfolder`, `revision`, `attn_implementation`, `trust_remote_code`, `config`.
    """
    where = {name: options[name] for name in ("subfolder", "revision") if options.get(name) is not None}
    paths = _paths(pretrained, where)
    if not paths:
        return None
    network = _built(getattr(loader, "__self__", None), pretrained, options, where)
    if network is None:
        return None
    opened = {path: _opened(path) for path in paths}
    stored = {key: (path, key) for path, file in opened.items() for key in file.keys()}

    def shape(path: Path, key: str) -> list[int]:
        return [*opened[path].get_slice(key).get_shape()]

    files = {
        name: stored[key]
        for name, parameter in network.named_parameters()
        if (key := _stored_name(name, network, stored)) and shape(*stored[key]) == [*parameter.shape]
    }
    lacking = [name for name, _ in network.named_parameters() if name not in files]
    if lacking:
        logger.info("%s is loaded whole: %r is not stored by its name.", type(network).__name__, lacking[0])
        return None
    for name, table in list(network.named_buffers()):
        if name in stored:
            table.data = opened[stored[name][0]].get_tensor(name).to(table.dtype)
    return to_be_filled(network, files)


def _built(
    kind: Any, pretrained: str, options: Mapping[str, Any], where: Mapping[str, Any]
) -> nn.Module | None:
    """A network of the configuration, with memory for its tables alone, in the wanted precision."""
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    dtype, settings = options.get("dtype"), {}
    if options.get("attn_implementation") is not None:
        settings["attn_implementation"] = options["attn_implementation"]
    with ExitStack() as stack:
        stack.enter_context(no_init_weights())
        stack.enter_context(init_empty_weights(include_buffers=False))
        if hasattr(kind, "load_config"):
            network = kind.from_config(kind.load_config(pretrained, **where))
        elif kind is not None:
            config = options.get("config") or _configuration(kind, pretrained, options, where)
            make = getattr(kind, "_from_config", None) or kind.from_config
            network = make(config, dtype=dtype, **settings)
        else:
            return None
    if hasattr(network, "tie_weights"):
        network.tie_weights()
    kept = [*(getattr(network, "_keep_in_fp32_modules_strict", None) or ())]
    if dtype == torch.float16:
        kept += getattr(network, "_keep_in_fp32_modules", None) or ()
    # Of tables, those that are stored have the network's precision, and those that are computed their own.
    for name, tensor in network.state_dict(keep_vars=True).items():
        if dtype is not None and tensor.is_floating_point():
            precise = any(re.search(rf"(^|\.){part}($|\.)", name) for part in kept)
            tensor.data = tensor.data.to(torch.float32 if precise else dtype)
    return network


def _configuration(kind: Any, pretrained: str, options: Mapping[str, Any], where: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    own = getattr(kind, "config_class", None)
    if own is not None:
        return own.from_pretrained(pretrained, **where)
    trusted = bool(options.get("trust_remote_code"))
    return AutoConfig.from_pretrained(pretrained, trust_remote_code=trusted, **where)


def _paths(pretrained: str, where: Mapping[str, Any]) -> list[Path]:
    """The files of weights; none where they are not in safetensors, or called otherwise."""
    from transformers.utils import cached_file

    def found(file: str) -> Path | None:
        path = cached_file(pretrained, file, _raise_exceptions_for_missing_entries=False, **where)
        return None if path is None else Path(path)

    for stem in STEMS:
        if (index := found(f"{stem}.safetensors.index.json")) is not None:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            paths = [found(name) for name in names]
            return [path for path in paths if path is not None] if all(paths) else []
        if (single := found(f"{stem}.safetensors")) is not None:
            return [single]
    return []


def _stored_name(name: str, network: nn.Module, stored: Mapping[str, Any]) -> str | None:
    """What a parameter is called in the files: its name, with or without that of the inner model."""
    prefix = f"{getattr(network, 'base_model_prefix', '') or ''}."
    names: Sequence[str] = (name, f"{prefix}{name}", name.removeprefix(prefix))
    return next((key for key in names if key in stored), None)


def _opened(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(path, framework="pt")
