"""Checkpoints: tensors as safetensors, everything else as JSON, whole or not there at all.

A checkpoint is a folder `checkpoints/<iteration>/`. It is written beside its place, flushed to the disk and
then renamed, so that a killed run never leaves half of one. Its manifest holds a SHA-256 of each file;
reading checks them. Nothing is pickled: opening a checkpoint runs no code.

Only names of this module's own (`NNNNNN`, `.draft-NNNNNN-N`, `.gone-NNNNNN`, `aside-NNNNNN`) are touched,
with its own files in them; a copy `000004-good` beside the checkpoints is a person's. A link to a checkpoint
on another disk counts as that checkpoint; it is unlinked when its turn comes to go.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unirl_env.errors import CheckpointError
from unirl_env.run.failure import disk_error
from unirl_env.run.record.files import (
    free_place,
    is_dangling,
    iteration_of,
    numbered,
    remove_files,
    replace_text,
)

FORMAT = 1
TENSORS, META, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
FILES = re.compile("|".join(map(re.escape, (TENSORS, META, MANIFEST, f".{MANIFEST}"))))
"""What the files of a checkpoint are called."""
LEFT_OVER = re.compile(r"\.(draft-[0-9]{6,}-[0-9]+|gone-[0-9]{6,}(-[0-9]+)?)")
"""Checkpoints that were not finished, and that were not taken away to the end."""


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
        DiskError: If it cannot be written, for instance because the disk is full; the older checkpoints stay,
            and nothing is left of the new one.
    """
    place = folder / f"{iteration:06d}"
    if os.path.lexists(place):
        try:
            check(place)
            return describe(place)
        except CheckpointError:
            set_aside(place)
    draft = folder / f".draft-{iteration:06d}-{os.getpid()}"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        _fill(draft, iteration, tensors, meta, score)
        draft.rename(place)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise disk_error(error, folder) from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return describe(place)


def _fill(
    draft: Path, iteration: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], score: float | None
) -> None:
    """Write the files of a checkpoint, and return when they are on the disk."""
    save_file(_apart(tensors), draft / TENSORS)
    try:
        text = json.dumps(meta, indent=1)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"A checkpoint's `meta` must be JSON, got: {error}.") from error
    (draft / META).write_text(text, encoding="utf-8")
    files = {name: _facts(draft / name) for name in (TENSORS, META)}
    manifest = {"format": FORMAT, "iteration": iteration, "score": _finite(score), "files": files}
    (draft / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (*sorted(draft.iterdir()), draft):
        _flush(path)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the meta of a checkpoint, after its files have been checked.

    Raises:
        CheckpointError: Naming the file that is missing or damaged, and what to do.
    """
    check(path)
    try:
        return load_file(path / TENSORS), json.loads((path / META).read_text(encoding="utf-8"))
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
        try:
            found = _facts(path / name)
        except OSError as error:
            raise CheckpointError(_damaged(path, path / name, error.strerror or str(error))) from error
        if found != facts:
            raise CheckpointError(_damaged(path, path / name, "other contents than its manifest says"))


def describe(path: Path) -> Checkpoint:
    """What the manifest of `path` says, without reading the other files."""
    manifest = _manifest(path)
    return Checkpoint(path, manifest["iteration"], manifest["score"])


def listing(folder: Path) -> list[Checkpoint]:
    """The checkpoints in `folder` whose manifests can be read and agree with their names, oldest first."""
    found = []
    for path in _own(folder):
        try:
            found.append(_as_named(path))
        except CheckpointError:
            continue
    return found


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest sound checkpoint, and a message for each newer one that had to be passed over."""
    warnings: list[str] = []
    for path in reversed(_own(folder)):
        try:
            found = _as_named(path)
            check(path)
            return found, warnings
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
    replace_text(checkpoint.path / MANIFEST, json.dumps(manifest, indent=1))
    _flush(checkpoint.path)
    return describe(checkpoint.path)


def prune(folder: Path, keep_last: int) -> None:
    """Keep the last `keep_last` checkpoints (at least one) and the best one; drop abandoned drafts."""
    _clear(folder)
    found, champion = listing(folder), best(folder)
    for checkpoint in found[: -max(1, keep_last)]:
        if champion is not None and checkpoint.path == champion.path:
            continue
        # Renamed first: a removal that is cut short must not look like a damaged checkpoint.
        checkpoint.path.rename(free_place(folder / f".gone-{checkpoint.path.name}"))
    _clear(folder)


def set_aside(path: Path) -> Path:
    """Rename a checkpoint to `aside-<iteration>`, where nothing takes it for one; the new path."""
    place = free_place(path.with_name(f"aside-{path.name}"))
    path.rename(place)
    return place


def _own(folder: Path) -> list[Path]:
    """What may be a checkpoint by its name and its files, or a link to one, by its number."""
    return [
        path
        for _, path in numbered(folder)
        if is_dangling(path) or any((path / name).exists() for name in (TENSORS, META, MANIFEST))
    ]


def _as_named(path: Path) -> Checkpoint:
    found = describe(path)
    if found.iteration != iteration_of(path.name):
        raise CheckpointError(
            f"{path} must be of the iteration that its name says, got a checkpoint of iteration "
            f"{found.iteration}, perhaps a copy; try `resume={path}` to go on from it all the same."
        )
    return found


def _clear(folder: Path) -> None:
    """Take away what is left over; what a person put into it goes back to where it lay."""
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if LEFT_OVER.fullmatch(path.name):
            remove_files(path, FILES.pattern)
            if path.is_dir() and path.name.startswith(".gone-"):
                path.rename(free_place(folder / path.name.removeprefix(".gone-")))


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
    if is_dangling(path):
        raise CheckpointError(_damaged(path, path, f"a link to {path.readlink()}, which is not there"))
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
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
    if type(manifest["iteration"]) is not int:
        raise CheckpointError(_damaged(path, file, f"{manifest['iteration']!r} for an iteration"))
    if not isinstance(manifest["files"], dict) or not manifest["files"].keys() >= {TENSORS, META}:
        raise CheckpointError(_damaged(path, file, f"no entry for {TENSORS} or {META}"))
    return manifest


def _damaged(path: Path, file: Path, cause: str) -> str:
    return (
        f"{file} must be as it was written, got {cause}; try an older checkpoint in {path.parent}, or "
        f"`resume=auto`, which takes the newest sound one."
    )


def _facts(path: Path) -> dict[str, Any]:
    # The size of what is read, also of a file that is a link.
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
