"""What a model must answer to be trained: its network, and how that is saved.

A policy needs no more of a model than this half; the other one, of the world, encodes and decodes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, Unpack

from torch import Tensor, nn

from unirl_env.arguments.copies import FromArguments

if TYPE_CHECKING:
    from unirl_env.models.shared.routers import Router

BRANCHES = "unirl_branches"
"""What a network that was found to read `follows` rightly is marked with."""


class Identified(FromArguments, ABC):
    """A model of any kind. It is pickled as its constructor's arguments, without what it has loaded.

    A constructor takes what it wants, by keyword, and loads nothing large. This library gives it

    - `device` and `dtype` (as texts), always, as far as it takes them. One that does not take them lives on
      the CPU and in float32: asked for anything else, it is an error that names the argument and the class;
    - `pretrained`, `revision`, `height`, `width`, `offload` and the others of `unirl_env.arguments.names`
      (`MODEL_OPTIONS`), where the id or the user says them;
    - whatever stands in the environment's `model_options`.

    The policy's copy is made from the same ones, without `device` and `offload`: where it goes, a network is
    moved to.
    """

    role: ClassVar[str] = "model"

    def identity(self) -> dict[str, Any]:
        """What tells this model from another one, its class and weights, as plain values by name.

        A state goes on in no other.
        """
        role, kind = self.role, f"{type(self).__module__}.{type(self).__qualname__}"
        places = {f"{role}.{name}": getattr(self, name, None) for name in ("pretrained", "revision", "dtype")}
        return {role: kind, **{name: str(value) for name, value in places.items() if value is not None}}


class Backbone(Identified):
    """The trained half of any model.

    Attributes:
        lora_targets: Names of the network's linear layers that adapters attach to.
        uneven: Why the rows of a batch decide how often the network is passed, for which learners that hold
            parts of it cannot wait; empty where they do not.
    """

    lora_targets: tuple[str, ...]
    uneven: str = ""

    @abstractmethod
    def network(self) -> nn.Module:
        """A fresh copy of the trained half, in evaluation mode."""

    def save_adapters(self, network: nn.Module, directory: str) -> None:
        """Write the network's adapters where the family's own library loads them.

        Raises:
            NotImplementedError: If the family has no such form.
        """
        raise NotImplementedError(f"{type(self).__name__} has no published form for adapters.")

    def save_weights(self, network: nn.Module, directory: str) -> None:
        """Write all weights of the network, adapters merged in, where the family's own library loads them.

        Raises:
            NotImplementedError: If the family has no such form.
        """
        raise NotImplementedError(f"{type(self).__name__} has no published form for whole weights.")


class ForwardOptions(TypedDict, total=False):
    """How a network reads tokens; what is left out or None is not there.

    Attributes:
        inputs: `Encoded.inputs`, those of all sequences concatenated; with a cache, only together with the
            prompt.
        lengths: `[n]` int64 with sum L, packed only.
        follows: `[n]` int64, packed only: the sequence that each goes on from, as if its tokens stood before
            its own, or -1. Only networks whose texts may branch are given it; see `TokenBackbone.branches`.
        mask: `[B, past + t]` bool, True where a token is real; with a cache only. None: all are.
        cache: A `DynamicCache` of transformers, updated in place.
    """

    inputs: Mapping[str, Tensor] | None
    lengths: Tensor | None
    follows: Tensor | None
    mask: Tensor | None
    cache: Any


class TokenBackbone(Backbone):
    """The trained half of a model that says tokens: from tokens to the logits of the next one.

    Attributes:
        vocab_size: Number of token ids that the output layer knows.
        first_id: The token that the output layer's first row stands for.
        eos_ids: Any of these tokens ends an answer.
        pad_id: Fills what is not text.
        max_context: The most tokens that the network reads at once.
        position_axes: A, the number of position indices of a token: 1 for text, 3 with pictures.
        streams: How many rows of a cache belong to a sequence: B rows for each stream, one after another.
    """

    vocab_size: int
    first_id: int = 0
    eos_ids: tuple[int, ...]
    pad_id: int
    max_context: int
    position_axes: int = 1
    streams: int = 1

    @abstractmethod
    def hidden(
        self, network: nn.Module, tokens: Tensor, positions: Tensor, **how: Unpack[ForwardOptions]
    ) -> Tensor:
        """The last hidden states, from which `head` makes logits.

        Packed, to score: n sequences one after another in a single row, without padding; each sees itself
        alone. With a cache, to generate: B padded rows, continuing what the cache holds.

        Args:
            network: What `network()` returned, adapters included.
            tokens: `[1, L]` packed, or `[B, t]` the next tokens of each row.
            positions: `[A, 1, L]`, or `[A, B, t]`.
            **how: See `ForwardOptions`.

        Returns:
            `[1, L, D]`, or `[B, t, D]`.
        """

    @abstractmethod
    def head(self, network: nn.Module) -> Tensor:
        """The weight `[V, D]` of the output layer: `logits = hidden @ head.T`.

        Whatever the family does between hidden states and logits stands in one of the two.
        """

    def routers(self, network: nn.Module) -> Sequence[Router]:
        """What chooses experts in `network`, once for each token in `hidden`, in the order of its layers.

        None where there are no experts; `policy.replay_routing` is refused then.
        """
        return ()

    def padded(self, network: nn.Module) -> bool:
        """Whether texts of unequal length can be generated together, padded on the left."""
        return True

    def branches(self, network: nn.Module) -> bool:
        """Whether several sequences of a packed row can go on from one, which is then read once for all."""
        return getattr(network, BRANCHES, False)
