"""Checkpoints: tensors as safetensors, everything else as JSON, whole or not there at all.

A checkpoint is a folder `checkpoints/<iteration>/`. It is written beside its place, flushed to the disk and
then renamed, so that a killed run never leaves half of one. Its manifest holds a SHA-256 of each file;
reading checks them. Nothing is pickled: opening a checkpoint runs no code.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unirl_env.errors import CheckpointError

__all__ = ["Checkpoint", "best", "listing", "newest", "prune", "read", "set_score", "write"]

FORMAT = 1
TENSORS, META, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's manifest says.

    Attributes:
        path: Its folder.
        iteration: How many iterations were finished.
        score: What `best` compares; None if it was never measured.
    """

    path: Path
    iteration: int
    score: float | None = None


def write(
    folder: Path,
    iteration: int,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    score: float | None = None,
) -> Checkpoint:
    """Write `folder/<iteration>`; a sound checkpoint of this iteration is left as it is.

    Raises:
        CheckpointError: If `meta` is not JSON.
    """
    place = folder / f"{iteration:06d}"
    if place.exists():
        try:
            check(place)
            return describe(place)
        except CheckpointError:
            shutil.rmtree(place)
    draft = folder / f".draft-{iteration:06d}-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(_apart(tensors), draft / TENSORS)
    try:
        (draft / META).write_text(json.dumps(meta, indent=1))
    except (TypeError, ValueError) as error:
        shutil.rmtree(draft)
        raise CheckpointError(f"A checkpoint's `meta` must be JSON, got: {error}.") from error
    files = {name: _facts(draft / name) for name in (TENSORS, META)}
    manifest = {"format": FORMAT, "iteration": iteration, "score": _finite(score), "files": files}
    (draft / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (*sorted(draft.iterdir()), draft):
        _flush(path)
    draft.rename(place)
    _flush(folder)
    return describe(place)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the meta of a checkpoint, after its files have been checked.

    Raises:
        CheckpointError: Naming the file that is missing or damaged, and what to do.
    """
    check(path)
    try:
        return load_file(path / TENSORS), json.loads((path / META).read_text())
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(_damaged(path, path / TENSORS, str(error))) from error


def check(path: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: Naming the file that is missing or damaged, and what to do.
    """
    for name, facts in _manifest(path)["files"].items():
        if not (path / name).is_file():
            raise CheckpointError(_damaged(path, path / name, "no such file"))
        if _facts(path / name) != facts:
            raise CheckpointError(_damaged(path, path / name, "other contents than its manifest says"))


def describe(path: Path) -> Checkpoint:
    """What the manifest of `path` says, without reading the other files."""
    manifest = _manifest(path)
    return Checkpoint(path, manifest["iteration"], manifest["score"])


def listing(folder: Path) -> list[Checkpoint]:
    """The checkpoints in `folder` whose manifests can be read, oldest first."""
    found = []
    for path in sorted(folder.glob("[0-9]*")):
        try:
            found.append(describe(path))
        except CheckpointError:
            continue
    return sorted(found, key=lambda checkpoint: checkpoint.iteration)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest sound checkpoint, and a message for each newer one that had to be passed over."""
    warnings: list[str] = []
    for path in sorted(folder.glob("[0-9]*"), reverse=True):
        try:
            check(path)
            return describe(path), warnings
        except CheckpointError as error:
            warnings.append(str(error))
    return None, warnings


def best(folder: Path) -> Checkpoint | None:
    """The checkpoint with the highest score; the newest of several."""
    scored = [checkpoint for checkpoint in listing(folder) if checkpoint.score is not None]
    return max(scored, key=lambda checkpoint: (checkpoint.score, checkpoint.iteration), default=None)


def set_score(checkpoint: Checkpoint, score: float) -> Checkpoint:
    """Note what an evaluation found; the manifest is replaced in one step."""
    manifest = {**_manifest(checkpoint.path), "score": _finite(score)}
    draft = checkpoint.path / f".{MANIFEST}"
    draft.write_text(json.dumps(manifest, indent=1))
    _flush(draft)
    draft.replace(checkpoint.path / MANIFEST)
    _flush(checkpoint.path)
    return describe(checkpoint.path)


def prune(folder: Path, keep_last: int) -> None:
    """Keep the last `keep_last` checkpoints (at least one) and the best one; drop abandoned drafts."""
    found, champion = listing(folder), best(folder)
    for checkpoint in found[: -max(1, keep_last)]:
        if champion is None or checkpoint.path != champion.path:
            # Renamed first: a removal that is cut short must not look like a damaged checkpoint.
            doomed = folder / f".gone-{checkpoint.path.name}"
            checkpoint.path.rename(doomed)
            shutil.rmtree(doomed)
    for rest in (*folder.glob(".draft-*"), *folder.glob(".gone-*")):
        shutil.rmtree(rest, ignore_errors=True)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each with memory of its own, as safetensors wants them."""
    found, owners = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        owner = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if owner in owners else tensor
        owners.add(owner)
    return found


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text())
        missing = {"format", "iteration", "score", "files"} - manifest.keys()
    except OSError as error:
        raise CheckpointError(_damaged(path, file, error.strerror or str(error))) from error
    except (ValueError, AttributeError) as error:
        raise CheckpointError(_damaged(path, file, f"no JSON manifest ({error})")) from error
    if missing:
        raise CheckpointError(_damaged(path, file, f"no {', '.join(sorted(missing))}"))
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{file} must be of format {FORMAT}, got {manifest['format']}; try the version of unirl_env that "
            f"wrote it."
        )
    return manifest


def _damaged(path: Path, file: Path, cause: str) -> str:
    return (
        f"{file} must be as it was written, got {cause}; try an older checkpoint in {path.parent}, or "
        f"`resume=auto`, which takes the newest sound one."
    )


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _finite(score: float | None) -> float | None:
    return float(score) if score is not None and math.isfinite(score) else None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
