"""Prompts as a language model reads them, checked against the limits of the environment's spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from unirl_env.errors import PromptError
from unirl_env.models.words import Encoded, LanguageModel
from unirl_env.types import Prompt

__all__ = ["encode_prompts", "input_limits", "padded_inputs", "space_of"]

ALONG_THE_PROMPT = ("positions",)
"""Inputs whose last axis counts the prompt's tokens."""
LARGEST = 2**31 - 1
"""Positions and grid sizes lie far below; a box up to the end of int64 could not be sampled from."""


def input_limits(language_model: LanguageModel, max_prompt_tokens: int) -> dict[str, tuple[Any, ...]]:
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
    language_model: LanguageModel,
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


def padded_inputs(
    encodings: Sequence[Encoded], limits: Mapping[str, tuple[Any, ...]]
) -> dict[str, torch.Tensor]:
    """The inputs of B encodings, each `[B, *limit]`, zeros where an encoding has less."""
    padded = {}
    for name, (shape, dtype) in limits.items():
        rows = torch.zeros(len(encodings), *shape, dtype=getattr(torch, dtype.name))
        for row, encoded in zip(rows, encodings, strict=True):
            if name in encoded.inputs:
                value = encoded.inputs[name]
                row[tuple(map(slice, value.shape))] = value.to(rows)
        padded[name] = rows
    return padded


def _check_rows(encoded: Encoded, prompt: Prompt, language_model: LanguageModel) -> None:
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
