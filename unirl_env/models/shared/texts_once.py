"""What a network computes of texts alone, computed once for all steps: keys and values of cross-attention.

A block that attends from latents to a text computes the text's keys and values anew at every step, although
neither latents nor noise levels enter them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from unirl_env.models.shared.of_diffusers import OfDiffusers

LAYERS = ("attn2.to_k", "attn2.to_v")
"""How the names of such layers end in diffusers' blocks."""
LIGHT = 8
"""How many times as many tokens a latent has whose texts are not worth it."""
SAID = "of_text:"
"""Prefix of what layers say of texts, beside the entries of a context."""
_LAYERS: WeakKeyDictionary[nn.Module, dict[str, nn.Module]] = WeakKeyDictionary()
"""The layers of networks that have read texts: to look for hundreds by name takes long at each step."""


class TextsOnce(OfDiffusers):
    """A family whose texts do not read the latent: while one plays, they are read once for all steps.

    Where something is trained, a gradient would need all of the pass that reads them; `rows_per_forward`
    promises every bit, compiled blocks keep their layers, and of divided weights a layer has its own only
    within its block: then all steps read them, as in the pipeline.
    """

    def read(self, network: nn.Module, context: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The context, and what the layers say of its texts, where these weigh beside the latent."""
        divided = any(isinstance(weight, DTensor) for weight in network.parameters())
        plain = self.rows_per_forward is None and not self.acceleration.compile and not divided
        any_of_it = next(iter(context.values()))
        weighs = any_of_it.shape[1] * LIGHT >= self.num_tokens
        if torch.is_grad_enabled() or not plain or not weighs:
            return context
        latent = torch.zeros(len(any_of_it), *self.latent_shape, device=any_of_it.device)
        sigma = torch.full((len(any_of_it),), sum(self.known_sigmas) / 2, device=any_of_it.device)
        return {
            **context,
            **said_of(network, LAYERS, lambda: self._velocity(network, latent, sigma, context)),
        }

    def _velocity(
        self, network: nn.Module, latent: Tensor, sigma: Tensor, context: Mapping[str, Tensor]
    ) -> Tensor:
        said = {name: value for name, value in context.items() if name.startswith(SAID)}
        own = {name: value for name, value in context.items() if name not in said}
        with saying(network, said):
            return super()._velocity(network, latent, sigma, own)


def said_of(network: nn.Module, layers: Sequence[str], forward: Callable[[], Any]) -> dict[str, Tensor]:
    """What the layers of `network` whose names end so answer to texts, by `SAID` and their names.

    All of them are given the same: what the first one is given in a pass, which ends there.

    Args:
        network: With adapters, if it has some.
        layers: Endings of names.
        forward: A pass of P texts.

    Returns:
        Each `[P, ...]`.
    """
    named = [(name, layer) for name, layer in network.named_modules() if name.endswith(tuple(layers))]

    def hear(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        raise _HeardError(given[0])

    hooks = [layer.register_forward_pre_hook(hear) for _, layer in named]
    try:
        forward()
    except _HeardError as heard:
        text = heard.text
    else:
        return {}
    finally:
        for hook in hooks:
            hook.remove()
    _LAYERS[network] = {SAID + name: layer for name, layer in named}
    return {name: layer(text) for name, layer in _LAYERS[network].items()}


class _HeardError(Exception):
    """Ends a pass with what its first layer of texts was given."""

    def __init__(self, text: Tensor):
        self.text = text


@contextmanager
def saying(network: nn.Module, said: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it, layers answer what `said_of` has found of them, in the place of computing it."""
    layers = [(name, _LAYERS[network][name]) for name in said]
    for name, layer in layers:
        # As `layer.forward = ...`, without the search among weights and modules.
        layer.__dict__["forward"] = _answering(said[name])
    try:
        yield
    finally:
        for _, layer in layers:
            del layer.__dict__["forward"]


def _answering(value: Tensor) -> Callable[..., Tensor]:
    return lambda *given, **more: value
