"""What engines with a network of their own share: labels of weights, and directories they are read from."""

from __future__ import annotations

import math
import os.path
import shutil
import tempfile
import uuid
import weakref
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from unirl_env.errors import ConfigError, EngineError, StaleWeights
from unirl_env.policies.heads import check_sampling
from unirl_env.rollouts.engines.base import Answer, Engine, Request
from unirl_env.rollouts.engines.pictures import Pictures

if TYPE_CHECKING:
    from unirl_env.policies.actor import Actor

MEMORY = Path("/dev/shm")
"""A file system in memory, where Linux has one."""


class Made(NamedTuple):
    """What an engine made of one request.

    Attributes:
        tokens: The new tokens.
        log_probs: One for each of them.
        labels: The labels of the weights that made them, as the engine itself reports them.
    """

    tokens: Sequence[int]
    log_probs: Sequence[float]
    labels: set[str]


class DiskEngine(Engine):
    """Publishes weights through a directory, and believes no answer whose weights it did not publish.

    Every publication has a label that no other one has, not even of another run on the same server, and the
    engine reports the label with each answer. With adapters, the label is the adapter's name, too, so that an
    older adapter cannot answer.

    Leaves say how to load, label, forget and generate.

    Args:
        pretrained: The hub id or directory of the untrained model.
        eos_ids: Tokens that end a turn.
        temperature: What logits are divided by.
        top_p: Sample among the likeliest tokens of this mass; 1 keeps all.
        top_k: Sample among this many likeliest tokens; 0 keeps all.
        lora_rank: The largest rank of the adapters to come; None if all weights are trained.
        revision: Branch, tag or commit of the hub repository.
        max_length: Tokens of context and continuation together; None takes the model's own limit.
        dtype: Of the engine's weights and activations.
        max_images: The most pictures of one prompt; 0 for models that read text alone.
        min_pixels: Of a picture after resizing; must be the language model's own.
        max_pixels: Of a picture after resizing; must be the language model's own.
        folder: Where weights are written for the engine; None takes memory, see `WeightsFolder`.

    Raises:
        ConfigError: If a setting is out of range.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        eos_ids: Sequence[int],
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        lora_rank: int | None = None,
        revision: str | None = None,
        max_length: int | None = None,
        dtype: str = "bfloat16",
        max_images: int = 0,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        folder: str | None = None,
    ):
        check_sampling(temperature, top_p, top_k)
        self.pretrained, self.revision = str(pretrained), revision
        self.eos_ids = tuple(int(token) for token in eos_ids)
        self.temperature, self.top_p, self.top_k = float(temperature), float(top_p), int(top_k)
        self.lora_rank, self.max_length, self.dtype = lora_rank, max_length, str(dtype).removeprefix("torch.")
        self.pictures = Pictures(
            self.pretrained,
            revision,
            max_images=max_images,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )
        self.run = uuid.uuid4().hex[:8]
        self._folder = WeightsFolder(folder)
        self._count = 0
        self._forget_all()

    # What a leaf answers.

    @abstractmethod
    def _start(self) -> None:
        """Make the engine, or wait for it."""

    @abstractmethod
    def _stop(self) -> None:
        """End it, if it is ours."""

    @abstractmethod
    def _add_adapter(self, label: str, directory: str) -> None:
        """Load the adapter in `directory` under the name `label`."""

    @abstractmethod
    def _remove_adapter(self, label: str) -> None:
        """Unload the adapter of this name."""

    @abstractmethod
    def _reload(self, directory: str, label: str) -> None:
        """Load all weights from `directory`, forget all cached states, and report `label` from now on."""

    @abstractmethod
    def _relabel(self, label: str) -> None:
        """Forget all cached states, and report `label` from now on."""

    @abstractmethod
    def _make(self, requests: Sequence[Request], temperature: float, adapter: str | None) -> list[Made]:
        """Continue every request, with the adapter of that name or without any."""

    # What they share.

    def generate(
        self, requests: Sequence[Request], *, temperature: float | None = None, base: bool = False
    ) -> list[Answer]:
        """Continue every request's context; see `Engine.generate`.

        With `base` and all weights trained, the engine loads the untrained weights for this call.
        """
        if not requests:
            return []
        temperature = self.temperature if temperature is None else float(temperature)
        self._check_requests(requests)
        label = self._hold(base)
        made = self._make(requests, temperature, None if base else self._adapter)
        pairs = zip(requests, made, strict=True)
        return [self._answer(request, one, label, temperature) for request, one in pairs]

    def load_weights(self, version: int, actor: Actor) -> None:
        """Take over `actor`'s trained weights under the name `version`.

        Raises:
            ConfigError: If the actor trains adapters and the engine expects none, or the other way round.
            EngineError: If the engine refuses the weights.
            EngineLost: If the engine died.
        """
        self._check_actor(actor)
        self._count += 1
        label = f"{self.run}-v{version}-{self._count}"
        if self.lora_rank is None:
            self._trained = self._take(label, actor)
        else:
            directory = self._folder.write(label, actor)
            old = self._drop_version()
            self._add_adapter(label, directory)
            self._relabel(label)
            if old is not None:
                self._remove_adapter(old)
            self._adapter = label
            self._folder.keep(directory)
        self._held = self._label = label
        self.weights_version = version

    def _take(self, label: str, actor: Actor) -> Callable[[str], None]:
        """Load all of `actor`'s weights under the name `label`, and return what does so again."""
        directory = self._folder.write(label, actor)
        self._drop_version()
        self._reload(directory, label)
        self._folder.keep(directory)
        return partial(self._reload, directory)

    def _drop_version(self) -> str | None:
        """Let no version answer any more, should loading fail half-way; returns the adapter that did."""
        old, self.weights_version, self._adapter, self._held = self._adapter, None, None, None
        return old

    def restart(self) -> None:
        """End what is left of the engine and make it again, with the untrained weights.

        Raises:
            EngineError: If it cannot be made.
        """
        self._stop()
        self._forget_all()
        self._start()

    def close(self) -> None:
        """Give back all that is held, and remove the weights that were written."""
        self._stop()
        self._folder.close()

    def _forget_all(self) -> None:
        """Before any weights are loaded, as after a restart."""
        self.weights_version = None
        self._label: str | None = None
        self._held: str | None = None
        self._adapter: str | None = None
        self._trained: Any = None

    def _hold(self, base: bool) -> str:
        """The label of what is asked for, after loading it if something else is held."""
        if not base and self.weights_version is None:
            raise StaleWeights(
                f"{type(self).__name__} must hold published weights before it answers, got none; call "
                "`load_weights` first, or generate with `base=True`."
            )
        untrained = f"{self.run}-base"
        if self.lora_rank is None:
            wanted = untrained if base else self._label
            if self._held != wanted:
                self._held = None
                load = partial(self._reload, self._untrained()) if base else self._trained
                load(wanted)
        else:
            # The adapter is chosen request by request, so one label stands for both.
            wanted = self._label or untrained
            if self._held is None:
                self._relabel(wanted)
        self._held = wanted
        return wanted

    def _untrained(self) -> str:
        if self.revision is None or os.path.isdir(self.pretrained):
            return self.pretrained
        from huggingface_hub import snapshot_download

        return snapshot_download(self.pretrained, revision=self.revision)

    def _check_actor(self, actor: Actor) -> None:
        rank = actor.lora.rank if actor.lora is not None else None
        if (rank is None) != (self.lora_rank is None) or (rank or 0) > (self.lora_rank or 0):
            raise ConfigError(
                f"`lora_rank` of the engine must fit the policy's ({rank}), got {self.lora_rank}; make the "
                f"engine with `lora_rank={rank}`."
            )

    def _check_requests(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.pictures.accept(request)
            length = len(request.tokens) + request.max_new_tokens
            if self.max_length is not None and length > self.max_length:
                raise EngineError(
                    f"A context and its continuation must fit into {self.max_length} tokens, got "
                    f"{len(request.tokens)} + {request.max_new_tokens}; try an engine with "
                    f"`max_length={length}`, or a smaller `max_new_tokens`."
                )

    def _answer(self, request: Request, made: Made, label: str, temperature: float) -> Answer:
        if made.labels != {label}:
            raise StaleWeights(
                f"{type(self).__name__} must answer with the weights {label!r}, got an answer of "
                f"{sorted(made.labels)}; does another run publish to the same server?"
            )
        tokens = tuple(int(token) for token in made.tokens)
        log_probs = tuple(float(value) for value in made.log_probs) if temperature else (0.0,) * len(tokens)
        if not tokens or len(tokens) > request.max_new_tokens or not all(map(math.isfinite, log_probs)):
            raise EngineError(
                f"{type(self).__name__} must answer with 1 to {request.max_new_tokens} tokens and finite "
                f"log-probabilities, got {len(tokens)} tokens and {log_probs[:8]}; this is a fault of the "
                "engine, or of weights that are not finite."
            )
        return Answer(tokens, log_probs)


class WeightsFolder:
    """Directories of weights, one for each publication; only the one in use stays.

    Args:
        place: An existing folder that the engine's processes can read, for instance on a shared file system.
            None takes memory if the weights fit into a half of it (the old ones stay until the new ones are
            loaded), and the system's folder for temporary files otherwise.
    """

    def __init__(self, place: str | None = None):
        self.place = place
        self._made: dict[str, str] = {}
        # Also at the interpreter's end, when nobody closed the engine.
        self._finalizer = weakref.finalize(self, _remove_all, self._made)

    def write(self, label: str, actor: Actor) -> str:
        """Write `actor`'s adapters, or all weights if it trains all, into a new directory.

        Args:
            label: Names the publication.
            actor: The policy.

        Returns:
            The directory.
        """
        size = _bytes(actor.trainable_state() if actor.lora is not None else actor.network)
        directory = tempfile.mkdtemp(prefix=f"unirl-{label}-", dir=self._place(size))
        self._made[directory] = label
        if actor.lora is not None:
            actor.save_adapters(directory)
        else:
            actor.save_weights(directory)
        return directory

    def keep(self, directory: str) -> None:
        """Remove all directories but this one."""
        for other in [made for made in self._made if made != directory]:
            _remove(self._made, other)

    def close(self) -> None:
        """Remove all directories."""
        _remove_all(self._made)

    def _place(self, size: int) -> str | None:
        if self.place is not None:
            return self.place
        fits = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2 * size
        return str(MEMORY) if fits else None


def _bytes(weights: Mapping[str, Any] | nn.Module) -> int:
    tensors = weights.values() if isinstance(weights, Mapping) else weights.parameters()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _remove(made: dict[str, str], directory: str) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    made.pop(directory, None)


def _remove_all(made: dict[str, str]) -> None:
    for directory in list(made):
        _remove(made, directory)
