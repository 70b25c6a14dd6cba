"""Checkpoints: tensors as safetensors, everything else as JSON, whole or not there at all.

A checkpoint is a folder `checkpoints/<iteration>/`. It is written beside its place, flushed to the disk and
then renamed, so that a killed run never leaves half of one. Its manifest holds a SHA-256 of each file;
reading checks them. Nothing is pickled: opening a checkpoint runs no code.

Its tensors lie in one file, or in parts that learners have written themselves (`agents/parallel/stored.py`):
then whoever asks for them is given the folder.

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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

WHOLE, PARTED = 1, 2
"""The formats: tensors in one file, and in parts."""
TENSORS, META, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
PART = re.compile(r"shard-[0-9]{5,}-model-[0-9]{5,}-of-[0-9]{5,}\.safetensors")
"""What the files of parts are called, by the learner that wrote them."""
FILES = re.compile("|".join((*map(re.escape, (TENSORS, META, MANIFEST, f".{MANIFEST}")), PART.pattern)))
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
    draft = begin(folder, iteration)
    if draft is None:
        return describe(_place(folder, iteration))
    with _or_nothing(draft):
        save_file(_apart(tensors), draft / TENSORS)
        return _finish(draft, iteration, {TENSORS: facts(draft / TENSORS)}, meta, score)


def begin(folder: Path, iteration: int) -> Path | None:
    """An empty folder in which `folder/<iteration>` is drafted; None if it is there already, and sound.

    Raises:
        DiskError: If none can be made.
    """
    place = _place(folder, iteration)
    if os.path.lexists(place):
        try:
            check(place)
            return None
        except CheckpointError:
            set_aside(place)
    draft = folder / f".draft-{iteration:06d}-{os.getpid()}"
    with _or_nothing(draft):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    return draft


def finish(
    draft: Path,
    iteration: int,
    parts: Mapping[str, Mapping[str, Any]],
    meta: Mapping[str, Any],
    score: float | None = None,
) -> Checkpoint:
    """Make a checkpoint of a draft into which others have written its tensors, and all have confirmed it.

    Args:
        draft: What `begin` returned.
        iteration: As there.
        parts: The `facts` of each of their files, by its name.
        meta: Whatever JSON.
        score: What `best` compares.

    Raises:
        CheckpointError: If `meta` is not JSON, or a file is not to be seen here.
        DiskError: If it cannot be written; the older checkpoints stay, and nothing is left of the new one.
    """
    with _or_nothing(draft):
        for name, told in parts.items():
            size = (draft / name).stat().st_size if (draft / name).is_file() else None
            if size != told["bytes"]:
                raise CheckpointError(
                    f"{draft / name} must have the {told['bytes']} bytes that a learner wrote, got "
                    f"{'no such file' if size is None else size}; try a `logging.folder` on a disk that "
                    "all machines share."
                )
        return _finish(draft, iteration, parts, meta, score)


def abandon(draft: Path) -> None:
    """Take away what was drafted."""
    shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _or_nothing(draft: Path) -> Iterator[None]:
    """Within it, what fails leaves nothing of a draft behind, and what a disk refuses is a DiskError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        abandon(draft)
        raise disk_error(error, draft.parent) from error
    except BaseException:
        abandon(draft)
        raise


def _finish(
    draft: Path,
    iteration: int,
    parts: Mapping[str, Mapping[str, Any]],
    meta: Mapping[str, Any],
    score: float | None,
) -> Checkpoint:
    """Write meta and manifest of a draft whose tensors are there, and rename it when all is on the disk."""
    try:
        text = json.dumps(meta, indent=1)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"A checkpoint's `meta` must be JSON, got: {error}.") from error
    (draft / META).write_text(text, encoding="utf-8")
    files = {**parts, META: facts(draft / META)}
    manifest = {
        "format": WHOLE if TENSORS in parts else PARTED,
        "iteration": iteration,
        "score": _finite(score),
        "files": files,
    }
    (draft / MANIFEST).write_text(json.dumps(manifest, indent=1))
    # Parts were flushed by whoever wrote them.
    for name in (META, MANIFEST, TENSORS):
        if (draft / name).exists():
            _flush(draft / name)
    _flush(draft)
    place = _place(draft.parent, iteration)
    draft.rename(place)
    _flush(draft.parent)
    return describe(place)


def read(path: Path) -> tuple[dict[str, Tensor] | Path, dict[str, Any]]:
    """The tensors and the meta of a checkpoint, after its files have been checked.

    Returns:
        Tensors by name, or the folder in which they lie in parts; and the meta.

    Raises:
        CheckpointError: Naming the file that is missing or damaged, and what to do.
    """
    check(path)
    parted = _manifest(path)["format"] == PARTED
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
        return path.resolve() if parted else load_file(path / TENSORS), meta
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(_damaged(path, path / TENSORS, str(error))) from error


def check(path: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: Naming the file that is missing or damaged, and what to do.
    """
    manifest = _manifest(path)
    for name, told in manifest["files"].items():
        if not (path / name).is_file():
            raise CheckpointError(_damaged(path, path / name, "no such file"))
        try:
            found = facts(path / name)
        except OSError as error:
            raise CheckpointError(_damaged(path, path / name, error.strerror or str(error))) from error
        if found != told:
            raise CheckpointError(_damaged(path, path / name, "other contents than its manifest says"))
    # Whoever reads parts reads all files that look like some.
    extra = [file.name for file in path.glob("*.safetensors") if file.name not in manifest["files"]]
    if manifest["format"] == PARTED and extra:
        raise CheckpointError(
            f"{path} must hold no tensors but its own, got {min(extra)}; try moving it elsewhere."
        )


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


def _place(folder: Path, iteration: int) -> Path:
    return folder / f"{iteration:06d}"


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
    if manifest["format"] not in (WHOLE, PARTED):
        raise CheckpointError(
            f"{file} must be of format {WHOLE} or {PARTED}, got {manifest['format']}; try the version of "
            f"unirl_env that wrote it."
        )
    if type(manifest["iteration"]) is not int:
        raise CheckpointError(_damaged(path, file, f"{manifest['iteration']!r} for an iteration"))
    files, parted = manifest["files"], manifest["format"] == PARTED
    if not isinstance(files, dict) or not _complete(files, parted):
        wanted = "parts of the tensors" if parted else TENSORS
        raise CheckpointError(_damaged(path, file, f"no entry for {wanted} or {META}"))
    return manifest


def _complete(files: Mapping[str, Any], parted: bool) -> bool:
    """Whether the manifest names all that a checkpoint must have, and nothing that lies elsewhere."""
    tensors = any(PART.fullmatch(name) for name in files) if parted else TENSORS in files
    return tensors and META in files and all(FILES.fullmatch(name) for name in files)


def _damaged(path: Path, file: Path, cause: str) -> str:
    return (
        f"{file} must be as it was written, got {cause}; try an older checkpoint in {path.parent}, or "
        f"`resume=auto`, which takes the newest sound one."
    )


def facts(path: Path) -> dict[str, Any]:
    """The size and the SHA-256 of a file, as a manifest has them."""
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
