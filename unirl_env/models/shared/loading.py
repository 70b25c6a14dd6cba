"""Loading by id, and what is said when it fails."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unirl_env.errors import ConfigError, ModelNotFound, UnirlError
from unirl_env.errors.masks import hide
from unirl_env.errors.quiet import quiet_loading
from unirl_env.models.shared.outline import is_outlining, outline_of

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
EMBEDDED = {"image": "unirl/TinySD3-T2I-v0", "video": "unirl/TinyVideo-T2V-v0"}
"""By what a denoiser makes, the environment id that needs no download."""
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
"""Weights that run code of whoever made them while they are read."""
DEPTHS = ("", "*/", "*/*/")
"""Where a directory holds weights: itself, or the folders of a pipeline's parts."""


def require_source(pretrained: str, alternative: str) -> None:
    """Refuse a directory that is not there or whose weights are only pickled, and what is no hub id.

    Args:
        pretrained: What was given.
        alternative: The environment id that needs no download.

    Raises:
        ModelNotFound: Naming it, and what to do.
    """
    try:
        _require_source(pretrained)
    except ModelNotFound as error:
        raise ModelNotFound(f"{error} The embedded `{alternative}` needs no download.") from None


def _require_source(pretrained: str) -> None:
    path = Path(pretrained)
    if not pretrained.strip() or "\0" in pretrained:
        raise ModelNotFound(
            f"`pretrained` must be a directory or a hub id, got {pretrained!r}; try "
            "'Qwen/Qwen3-0.6B', or None."
        )
    if path.is_dir():
        _require_weights(path)
    elif path.is_file():
        raise ModelNotFound(
            f"`pretrained` must be a directory or a hub id, got the file {pretrained!r}; try the directory "
            "that it lies in."
        )
    elif pretrained.startswith("~"):
        raise ModelNotFound(
            f"`pretrained` must be a directory or a hub id, got {pretrained!r}, in which nothing expands "
            f"'~'; try {str(path.expanduser())!r}."
        )
    elif not HUB_ID.fullmatch(pretrained) or pretrained.startswith("."):
        raise ModelNotFound(
            f"`pretrained` must be a directory that exists or a hub id such as 'Qwen/Qwen3-0.6B', got "
            f"{pretrained!r}, which is neither; try the path from where you are, {str(Path.cwd())!r}."
        )


def _require_weights(path: Path) -> None:
    """Refuse a directory without weights in safetensors; pipelines have theirs in folders of their own."""
    if not any(path.iterdir()):
        raise ModelNotFound(
            f"`pretrained` must be a directory with a model, got {str(path)!r}, which is empty."
        )
    if any(any(path.glob(f"{depth}*.safetensors")) for depth in DEPTHS):
        return
    found = (file for depth in DEPTHS for pattern in PICKLED for file in path.glob(f"{depth}{pattern}"))
    pickled = sorted(file.name for file in found)
    if pickled:
        raise ModelNotFound(
            f"`pretrained` must have its weights in safetensors, got {str(path)!r} with {pickled[0]}: a "
            "pickle runs code while it is read. Try converting it once where you trust it: "
            f"`AutoModelForCausalLM.from_pretrained({str(path)!r}).save_pretrained(...)`, of diffusers "
            "`DiffusionPipeline` likewise."
        )


@dataclass(frozen=True)
class Source:
    """Where a model is loaded from, and what is said when that fails.

    Attributes:
        pretrained: A hub id or a directory.
        kind: What it must be, for the error (`"a causal language model"`).
        alternative: The environment id that needs no download.
        options: What every loader is given: `revision`, `subfolder`, `trust_remote_code`.
    """

    pretrained: str
    kind: str
    alternative: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self, loader: Callable[..., Any], **options: Any) -> Any:
        """`loader(pretrained, **options)`, a `from_pretrained`, with a failure named.

        Raises:
            ModelNotFound: Names the id, the cause and the alternative.
        """
        try:
            with quiet_loading():
                return loader(self.pretrained, **self.options, **options)
        except (UnirlError, MemoryError):
            raise
        except Exception as error:  # a damaged directory can make a library fail in any way
            raise self.not_found(cause_of(error)) from public(error)

    def path(self, file: str, *, needed: bool = True) -> Path | None:
        """Where a file of it lies, downloaded if it must be; None if there is none and none is needed.

        Raises:
            ModelNotFound: If there is no such file.
        """
        from transformers.utils import cached_file

        found = self.load(cached_file, filename=file, _raise_exceptions_for_missing_entries=needed)
        return None if found is None else Path(found)

    def json(self, file: str, *, needed: bool = True) -> dict[str, Any]:
        """What a JSON file of it holds; nothing if there is none and none is needed.

        Raises:
            ModelNotFound: If there is no such file, or it is none of JSON.
        """
        path = self.path(file, needed=needed)
        try:
            return {} if path is None else json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise self.not_found(f"its {file} is not a valid JSON file: {error}") from error

    def not_found(self, cause: str) -> ModelNotFound:
        """The error for a model that cannot be loaded."""
        return ModelNotFound(
            f"`pretrained` must be a directory or hub id of {self.kind}, got {self.pretrained!r}: {cause}. "
            "Try a local directory, log in to the hub for gated models, or use the embedded "
            f"`{self.alternative}`, which needs no download."
        )


def complete(loader: Callable[..., Any]) -> Callable[..., Any]:
    """A `from_pretrained` of weights, from safetensors only, that refuses a checkpoint which lacks some.

    Transformers and diffusers fill them in with random numbers, and only warn. Within `outlining`, it is
    built without its weights, if it can be.
    """

    def load_complete(pretrained: str, **options: Any) -> Any:
        outline = outline_of(loader, pretrained, options) if is_outlining() else None
        if outline is not None:
            return outline
        network, report = loader(pretrained, use_safetensors=True, output_loading_info=True, **options)
        for kind, said in (("missing_keys", "lack"), ("mismatched_keys", "have another shape in")):
            found = [name if isinstance(name, str) else name[0] for name in report.get(kind, ())]
            if found:
                raise ValueError(f"its weights {said} {len(found)} tensors, such as {min(found)!r}")
        return network

    return load_complete


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


def as_dtype(name: str, value: str | torch.dtype) -> torch.dtype:
    """The floating dtype that `value` is or names; `name` is what an error calls it.

    Raises:
        ConfigError: If it is none.
    """
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"`{name}` must be a floating dtype of torch, got {value!r}; try 'bfloat16'.")
    return dtype
