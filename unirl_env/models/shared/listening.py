"""Networks of diffusers without weights, which hand what they are given to whoever listens."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import nn

from unirl_env.models.shared.loading import EMBEDDED, Source


class Call(NamedTuple):
    """One call of the network.

    Attributes:
        arguments: By the names of its `forward`; what was left out has its default.
        rows: How many latents it was given.
        answer: A tensor `[rows, ...]`, or a list of as many.
    """

    arguments: dict[str, Any]
    rows: int
    answer: Any


class _Listening:
    """What makes a network of diffusers listen: its class is one of this and of its own."""

    hear: Any
    place: torch.device

    @property
    def device(self) -> torch.device:
        """Where it answers; its weights are nowhere."""
        return self.place

    def to(self, *args: Any, **options: Any) -> Any:
        """Stay without weights, wherever the pipeline's parts go."""
        return self

    def forward(self, *args: Any, **options: Any) -> Any:
        """Note the arguments and answer."""
        return self.hear(*args, **options)


def listening(kind: Any, config: Mapping[str, Any], *, dtype: torch.dtype, device: torch.device) -> Any:
    """A network of the class `kind` without weights, for `RecordedPipeline`."""
    with torch.device("meta"):
        network = kind.from_config(config)
    nn.Module.to(network, dtype).eval().requires_grad_(False)
    network.place = device
    network.__class__ = type(kind.__name__, (_Listening, kind), {"__module__": kind.__module__})
    return network


def open_listening(
    pretrained: str, *, revision: str | None, dtype: torch.dtype, device: torch.device
) -> tuple[Any, str]:
    """The pipeline of a checkpoint with a network that listens, and what the pipeline calls that network.

    Raises:
        ModelNotFound: If it cannot be loaded.
    """
    import diffusers

    source = Source(pretrained, "a pipeline of diffusers", EMBEDDED["image"], {"revision": revision})
    index = source.load(diffusers.DiffusionPipeline.load_config)
    name = "transformer" if "transformer" in index else "unet"
    kind = getattr(diffusers, index[name][-1])
    network = listening(kind, source.load(kind.load_config, subfolder=name), dtype=dtype, device=device)
    absent = {part: None for part, entry in index.items() if isinstance(entry, list) and entry[0] is None}
    loader = getattr(diffusers, index["_class_name"]).from_pretrained
    pipeline = source.load(loader, dtype=dtype, **{**absent, name: network})
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.to(device).eval().requires_grad_(False)
    return pipeline, name


def heard(network: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Call:
    """A call of a network that listens, before it is answered."""
    forward = next(
        kind.__dict__["forward"] for kind in type(network).__mro__[2:] if "forward" in kind.__dict__
    )
    bound = inspect.signature(forward).bind(network, *args, **options)
    bound.apply_defaults()
    arguments = dict(list(bound.arguments.items())[1:])
    latents = next(iter(arguments.values()))
    return Call(arguments, len(latents), None)


def as_output(answer: Any, arguments: Mapping[str, Any]) -> Any:
    """What a network of diffusers returns, by the `return_dict` among its arguments."""
    if not arguments.get("return_dict", True):
        return (answer,)
    return import_module("diffusers.models.modeling_outputs").Transformer2DModelOutput(sample=answer)
