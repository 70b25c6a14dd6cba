"""Where a run's numbers come from: versions, machine, model and prompts, one entry for each start."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from unirl_env.errors import ConfigError

__all__ = ["fingerprint", "model_fingerprint", "record", "session"]

PACKAGES = (
    "unirl-env",
    "torch",
    "ray",
    "gymnasium",
    "diffusers",
    "transformers",
    "peft",
    "numpy",
    "safetensors",
)
WHOLE = 64 * 2**20
"""Files up to this size are hashed whole, larger ones by their ends: a big model takes minutes otherwise."""


def fingerprint(path: Path) -> str:
    """A hash over the names, sizes and contents of the files under `path`."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= WHOLE:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
            else:
                digest.update(stream.read(WHOLE // 2))
                stream.seek(-WHOLE // 2, os.SEEK_END)
                digest.update(stream.read())
    return digest.hexdigest()


def model_fingerprint(pretrained: str | Path, revision: str | None = None) -> str:
    """What tells one model from another: a hash of a directory, or a hub id with its commit."""
    if Path(pretrained).is_dir():
        return fingerprint(Path(pretrained))
    from huggingface_hub import try_to_load_from_cache

    known = try_to_load_from_cache(str(pretrained), "model_index.json", revision=revision)
    commit = Path(known).parent.name if isinstance(known, str) else revision or "unknown"
    return f"{pretrained}@{commit}"


def session(command: Sequence[str], iteration: int) -> dict[str, Any]:
    """What is true of one start of a run: when, by which command, with which versions, on which machine."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "iteration": iteration,
        "command": list(command),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "versions": versions,
    }


def record(path: Path, sources: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Add a session to `path`; the sources must be those that the run began with.

    Args:
        path: `provenance.json`.
        sources: Fingerprints of the model and of the prompt sets, and the seed.
        entry: What `session` returned.

    Raises:
        ConfigError: If the model or the prompts are not those of the earlier sessions.
    """
    known: dict[str, Any] = {"sources": dict(sources), "sessions": []}
    if path.exists():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            pass  # Half a file from a killed start: there is nothing to compare with.
    changed = [name for name, value in sources.items() if known["sources"].get(name, value) != value]
    if changed:
        raise ConfigError(
            f"A continued run must have the sources it began with, got another {', '.join(changed)} than "
            f"{path} names; try restoring them, or a fresh run under another `name=`."
        )
    known["sessions"].append(dict(entry))
    draft = path.with_name(f".{path.name}")
    draft.write_text(json.dumps(known, indent=1), encoding="utf-8")
    draft.replace(path)
    return known
