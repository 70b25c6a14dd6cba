"""What frozen encoders said, kept so that nothing is asked twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from unirl_env.errors import ConfigError, ContractError, PromptError
from unirl_env.models.denoiser import NEGATIVE, Denoiser
from unirl_env.models.unified import UnifiedModel
from unirl_env.models.words import Encoded, Words
from unirl_env.types import Prompt

LARGEST = 2**31 - 1
"""Token ids lie far below; a box up to the end of int64 could not be sampled from."""
ALONG_THE_PROMPT = ("positions",)
"""Inputs whose last axis counts the prompt's tokens."""


class EncodingCache:
    """What an encoder says of things, each distinct thing asked once, and always as many together.

    As many, because an encoder's result may differ in the last bits with the size of its batch.

    Args:
        read: From `at_once` things to their tensors, each `[at_once, ...]`.
        device: Where they are kept.
        at_once: How many are read at a time, the last ones filled up with copies.
    """

    def __init__(
        self, read: Callable[[Sequence[Any]], Mapping[str, Tensor]], *, device: torch.device, at_once: int = 1
    ):
        self.read, self.device, self.at_once = read, device, at_once
        self._kept: OrderedDict[Hashable, tuple[Any, dict[str, Tensor]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __getstate__(self) -> dict[str, Any]:
        # A key may hold the id of an object, which is another one elsewhere.
        return {**self.__dict__, "_kept": OrderedDict()}

    def of(self, keys: Sequence[Hashable], things: Sequence[Any]) -> dict[str, Tensor]:
        """The encodings of B things, each tensor `[B, ...]` and a copy of its own.

        Args:
            keys: What tells the things apart. A key may hold a thing's `id`, because what is kept lives on.
            things: The things.
        """
        asked: dict[Hashable, Any] = {}
        for key, thing in zip(keys, things, strict=True):
            asked.setdefault(key, thing)
        new = [key for key in asked if key not in self._kept]
        for start in range(0, len(new), self.at_once):
            self._read(new[start : start + self.at_once], asked)
        for key in asked:
            self._kept.move_to_end(key)
        rows = [self._kept[key][1] for key in asked]
        place = {key: row for row, key in enumerate(asked)}
        at = torch.tensor([place[key] for key in keys], device=self.device)
        return {name: torch.cat([row[name] for row in rows])[at] for name in rows[0]}

    def forget(self, most: int) -> None:
        """Keep the `most` encodings that were asked for last."""
        while len(self._kept) > most:
            self._kept.popitem(last=False)

    def _read(self, keys: Sequence[Hashable], asked: Mapping[Hashable, Any]) -> None:
        """Keep what the encoder says of at most `at_once` things that it has not been asked for."""
        things = [asked[key] for key in keys]
        # Inference tensors could not be saved for a learner's backward pass.
        with torch.inference_mode(False), torch.no_grad():
            said = self.read([*things, *things[-1:] * (self.at_once - len(things))])
            for row, (key, thing) in enumerate(zip(keys, things, strict=True)):
                # Clones, because a view would keep the others alive.
                self._kept[key] = (
                    thing,
                    {k: v[row : row + 1].to(self.device, copy=True) for k, v in said.items()},
                )


def prompt_key(prompt: Prompt, text: str) -> Hashable:
    """What tells apart the encodings of the `text` of a prompt: the text, unless there is more to read."""
    return (text, id(prompt)) if prompt.images or prompt.messages else text


class Contexts:
    """What a denoiser's text encoders say of prompts.

    Args:
        denoiser: Whose encoders.
        with_negative: Encode negative prompts as well.
        size: How many encoded texts to keep; those of the latest batch are kept in any case.
        device: Where they are kept.

    Raises:
        ConfigError: If negative prompts are asked for and the denoiser has no guidance.
    """

    def __init__(self, denoiser: Denoiser, *, with_negative: bool, size: int, device: torch.device):
        if with_negative and denoiser.unguided:
            raise ConfigError(
                "`with_negative` must be False, and `guidance` and `eval_guidance` 1, got negative prompts "
                f"to encode: {denoiser.unguided}."
            )
        self.denoiser, self.with_negative, self.size = denoiser, with_negative, size
        self._cache = EncodingCache(self._encoded, device=device, at_once=denoiser.prompts_at_once)

    def __len__(self) -> int:
        return len(self._cache)

    def of(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """The context of B prompts, each tensor `[B, ...]` and a copy of its own."""
        context = self._gather(prompts, [prompt.text for prompt in prompts], negative=False)
        return {**context, **self.negative(prompts)}

    def negative(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """What of it is about the negative prompts; nothing unless they are encoded."""
        context = {}
        if self.with_negative:
            found = self._gather(prompts, [prompt.negative for prompt in prompts], negative=True)
            context = {NEGATIVE + name: tensor for name, tensor in found.items()}
        self._cache.forget(max(self.size, 2 * len(prompts)))
        return context

    def _encoded(self, asks: Sequence[tuple[Prompt, bool]]) -> dict[str, Tensor]:
        """Of prompts, all of them negative or none."""
        return self.denoiser.encode([prompt for prompt, _ in asks], negative=asks[0][1])

    def _gather(self, prompts: Sequence[Prompt], texts: list[str], *, negative: bool) -> dict[str, Tensor]:
        keys = [(prompt_key(*pair), negative) for pair in zip(prompts, texts, strict=True)]
        return self._cache.of(keys, [(prompt, negative) for prompt in prompts])


class AtRows(Mapping[str, Tensor]):
    """A context at some of its rows, of which an entry is copied when it is asked for: some are large.

    Args:
        context: Each `[B, ...]`.
        at: `[n]`.
    """

    def __init__(self, context: Mapping[str, Tensor], at: Tensor):
        self.context, self.at = context, at

    def __getitem__(self, name: str) -> Tensor:
        return self.context[name][self.at]

    def __iter__(self) -> Iterator[str]:
        return iter(self.context)

    def __len__(self) -> int:
        return len(self.context)


def context_spaces(context: Mapping[str, Tensor]) -> dict[str, spaces.Box]:
    """The space of each entry of a context `[B, ...]`."""
    boxes = {}
    for name, tensor in context.items():
        shape = tuple(tensor.shape[1:])
        if tensor.is_floating_point():
            boxes[name] = spaces.Box(-np.inf, np.inf, shape, np.float32)
        else:
            boxes[name] = spaces.Box(0, LARGEST, shape, np.int64)
    return boxes


class HybridContexts:
    """The contexts of hybrid episodes whose pictures are latents.

    A model of one backbone reads the tokens of the episode, which are observed anyway; then there is nothing
    here but the negative prompts.

    Args:
        model: Whose image view.
        example: A prompt, from whose context the shapes are read.
        with_negative: Encode negative prompts as well.
        size: How many encodings to keep; those of the latest batch are kept in any case.
        device: Where they are kept.
    """

    def __init__(
        self, model: UnifiedModel, example: Prompt, *, with_negative: bool, size: int, device: torch.device
    ):
        self.size, self.device = size, device
        self._seen = {NEGATIVE + name for name in model.context_keys}
        image: Any = model.image  # of latents: others have no contexts
        self._negatives = Contexts(image, with_negative=with_negative, size=size, device=device)
        self._cache = EncodingCache(lambda pairs: model.context(*pairs[0]), device=device)
        self._blank = self._cache.of([example.text], [(example, None)])

    def blank(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """The context of B episodes whose pictures have not begun: zeros, and the negative prompts."""
        negatives = self._negatives.negative(prompts)
        return {
            **{k: v.new_zeros(len(prompts), *v.shape[1:]) for k, v in self._blank.items()},
            **{name: tensor for name, tensor in negatives.items() if name in self._seen},
        }

    def read(self, prompts: Sequence[Prompt], texts: Sequence[str | None]) -> dict[str, Tensor]:
        """The context of n finished texts, each tensor `[n, ...]`; None where there is no text.

        Raises:
            ContractError: If the model's contexts are not all of one shape.
        """
        if not self._blank:
            return {}
        pairs = list(zip(prompts, texts, strict=True))
        context = self._cache.of([(prompt_key(prompt, prompt.text), text) for prompt, text in pairs], pairs)
        self._cache.forget(max(self.size, len(pairs)))
        for name, like in self._blank.items():
            if name not in context or context[name].shape[1:] != like.shape[1:]:
                got = list(context[name].shape[1:]) if name in context else "none"
                raise ContractError(
                    f"`UnifiedModel.context` must give `{name}` {list(like.shape[1:])} for every text, got "
                    f"{got}."
                )
        return context


def input_limits(language_model: Words, max_prompt_tokens: int) -> dict[str, tuple[Any, ...]]:
    """Name of each input beside the tokens to its padded shape and dtype."""
    limits = {}
    for name, (shape, dtype) in language_model.input_spaces.items():
        along = name in ALONG_THE_PROMPT
        limits[name] = ((*shape[:-1], max_prompt_tokens) if along else tuple(shape), np.dtype(dtype))
    return limits


def space_of(limit: tuple[Any, ...]) -> spaces.Box:
    """The space of one input."""
    shape, dtype = limit
    if dtype.kind == "f":
        return spaces.Box(-np.inf, np.inf, shape, dtype.type)
    return spaces.Box(0, LARGEST, shape, dtype.type)


def encode_prompts(
    language_model: Words,
    prompts: Sequence[Prompt],
    max_prompt_tokens: int,
    limits: Mapping[str, tuple[Any, ...]],
) -> list[Encoded]:
    """The encoding of each prompt; episodes that share a prompt share it.

    Raises:
        PromptError: If an encoding is empty or longer than the limits, or holds a token that the network does
            not know.
    """
    known: dict[int, Encoded] = {}
    for prompt in prompts:
        if id(prompt) not in known:
            encoded = language_model.encode(prompt)
            _check_rows(encoded, prompt, language_model)
            known[id(prompt)] = _checked(encoded, prompt, max_prompt_tokens, limits)
    return [known[id(prompt)] for prompt in prompts]


def _check_rows(encoded: Encoded, prompt: Prompt, language_model: Words) -> None:
    """Refuse tokens beyond the embeddings: reading one would end the run, on a GPU without a word of why."""
    end = language_model.first_id + language_model.vocab_size
    beyond = encoded.tokens[encoded.tokens >= end].unique().tolist()
    if beyond:
        raise PromptError(
            f"A prompt must hold tokens below {end}, for which the network has embeddings, got {beyond[:5]} "
            f"({language_model.decode(beyond[:5])!r}) for prompt {prompt.id[:60]!r}; try it without them, or "
            "`resize_token_embeddings(len(tokenizer))` before the checkpoint is saved."
        )


def _checked(
    encoded: Encoded, prompt: Prompt, max_prompt_tokens: int, limits: Mapping[str, tuple[Any, ...]]
) -> Encoded:
    count = len(encoded.tokens)
    if not count:
        raise PromptError(
            f"A prompt must have a token at least, got none for prompt {prompt.id[:60]!r}; "
            "try a chat template, or a text that is not blank."
        )
    if count > max_prompt_tokens:
        raise PromptError(
            f"A prompt must have at most {max_prompt_tokens} tokens, got {count} for prompt "
            f"{prompt.id[:60]!r}; try a shorter prompt, smaller pictures or a larger `max_prompt_tokens`."
        )
    for name, value in encoded.inputs.items():
        shape, got = limits[name][0] if name in limits else (), tuple(value.shape)
        if len(shape) != len(got) or any(n > most for n, most in zip(got, shape, strict=True)):
            raise PromptError(
                f"`{name}` must fit into {list(shape)}, got {list(got)} for prompt {prompt.id[:60]!r}; "
                "try fewer or smaller pictures, or a model with larger limits."
            )
    return encoded
