"""Where a run's numbers come from: versions, machine, model and prompts, one entry for each start."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from unirl_env.errors import ConfigError
from unirl_env.errors.masks import hide
from unirl_env.run.record.files import replace_text

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
INDEXES = ("model_index.json", "config.json", "tokenizer_config.json", "preprocessor_config.json")
"""Files of which a published model has at least one, by which its commit is found out."""
COMMIT = re.compile("[0-9a-f]{40}")
UNKNOWN = "unknown"
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
    """What tells one model from another: a hash of a directory, or a hub id with its commit.

    The hub is asked as the libraries that load the model ask it; without a way there, the local copy tells.
    """
    if Path(pretrained).is_dir():
        return fingerprint(Path(pretrained))
    return f"{pretrained}@{_commit(str(pretrained), revision) or revision or UNKNOWN}"


def _commit(pretrained: str, revision: str | None) -> str | None:
    """The commit that a branch or a tag means now; None if that cannot be found out."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    # What is in the cache first: without a way to the hub, each name that is not costs a time-out.
    held = [name for name in INDEXES if isinstance(try_to_load_from_cache(pretrained, name), str)]
    for name in held or INDEXES:
        try:
            found = Path(hf_hub_download(pretrained, name, revision=revision))
        except EntryNotFoundError:
            continue
        except Exception:  # Not to be had: whoever loads the model says why.
            return None
        if COMMIT.fullmatch(found.parent.name):
            return found.parent.name
    return None


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
        "command": [hide(word) for word in command],
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
        sources: Fingerprints of the models and of the prompt sets, and the seed.
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
    for name, value in sources.items():
        before = known["sources"].get(name, value)
        if _same(before, value):
            known["sources"][name] = value
            continue
        raise ConfigError(
            f"A continued run must have the sources it began with, got another {name} than {path} names: "
            f"{value!r:.120} in place of {before!r:.120}; try {_remedy(name, before, value)}."
        )
    known["sessions"].append(dict(entry))
    replace_text(path, json.dumps(known, indent=1))
    return known


def _same(before: Any, now: Any) -> bool:
    if before == now:
        return True
    (one, _, old), (other, _, new) = (str(value).rpartition("@") for value in (before, now))
    if not one or one != other:
        return False
    found_out = [bool(COMMIT.fullmatch(commit)) for commit in (old, new)]
    # Where a commit was not found out there is nothing to compare it with.
    return any(found_out) != all(found_out) or (not any(found_out) and UNKNOWN in (old, new))


def _remedy(name: str, before: Any, now: Any) -> str:
    ids = [str(value).rpartition("@") for value in (before, now)]
    if ids[0][0] and ids[0][0] == ids[1][0] and COMMIT.fullmatch(ids[0][2]):
        setting = "model.revision" if name == "model" else f"the revision of `{name}`"
        return f"`{setting}={ids[0][2]}`, since its branch has moved, or a fresh run under another `name=`"
    return "restoring it, or a fresh run under another `name=`"
