"""Loading by id, and what is said when it fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from unirl_env.errors import ModelNotFound
from unirl_env.masks import hide
from unirl_env.quiet import quiet_loading

__all__ = ["cause_of", "load", "not_found", "public"]


def load(loader: Callable[..., Any], pretrained: str, *, kind: str, alternative: str, **options: Any) -> Any:
    """`loader(pretrained, **options)`, with a failure named.

    Args:
        loader: A `from_pretrained`.
        pretrained: A hub id or a directory.
        kind: What it must be, for the error (`"a causal language model"`).
        alternative: The environment id that needs no download.
        **options: For the loader.

    Raises:
        ModelNotFound: Names the id, the cause and the alternative.
    """
    from safetensors import SafetensorError

    try:
        with quiet_loading():
            return loader(pretrained, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise not_found(pretrained, cause_of(error), kind=kind, alternative=alternative) from public(error)


def not_found(pretrained: str, cause: str, *, kind: str, alternative: str) -> ModelNotFound:
    """The error for a model that cannot be loaded."""
    return ModelNotFound(
        f"`pretrained` must be a directory or hub id of {kind}, got {pretrained!r}: {cause}. "
        "Try a local directory, log in to the hub for gated models, or use the embedded "
        f"`{alternative}`, which needs no download."
    )


def cause_of(error: BaseException) -> str:
    """What a library says of a failure, and what lies at its bottom: the library may only guess at that."""
    root = error
    while root.__cause__ or root.__context__:
        root = root.__cause__ or root.__context__
    said = [str(part).strip().splitlines() or [type(part).__name__] for part in (error, root)]
    return ": ".join(dict.fromkeys(lines[0].rstrip(". ") for lines in said))


def public(error: BaseException) -> BaseException | None:
    """`error` as the cause of one of ours; None if a traceback would show a secret with it."""
    chain = "".join(traceback.format_exception(error))
    return error if hide(chain) == chain else None
