"""Whose settings a run's folder holds: what a stranger's would run or send is asked about first.

Settings may name code (`reward.train=package.module:scorer`), let a model bring its own, and name variables
of the environment whose contents go to servers. That is fine in what a person types, and in what she wrote
earlier; a folder that was downloaded may name anything. `config.yaml` therefore ends in a line that signs it,
by a key that is made once for each account (`~/.config/unirl_env/key`). Another machine with the same key,
in a shared home or copied there, takes the folder for its own.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from unirl_env.errors import ConfigError
from unirl_env.settings import RunConfig
from unirl_env.worlds.ids import IDS

logger = logging.getLogger(__name__)

LINE = "# signed: "
PURPOSE = b"unirl_env settings v1\0"
"""Signed along, so that no other use of the key can make a signature of settings."""
KEY_BYTES = 32
SECTIONS = ("model", "reward", "agent", "rollout")
"""What may name code; prompts are texts and data."""

_COLON = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_DOTS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_VARIABLE = re.compile(r"(^|=|//)env:[A-Za-z_]\w*")


class NoKey(Exception):
    """There is no key here that could be trusted, with the reason."""


def key_path() -> Path:
    """Where the key of this account lies."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".config"
    return root / "unirl_env" / "key"


def signed(text: str, cfg: RunConfig) -> str:
    """`text`, the YAML of `cfg`, with the line that signs it; as it is where no key can be had."""
    try:
        return f"{text}{LINE}{_signature(text, _key(make=True))}\n"
    except NoKey as error:
        if any(foreign(cfg)):
            logger.warning(
                "The settings of this run are not signed, and continuing it will take `--trust`: %s.", error
            )
        return text


def require_trust(path: Path, cfg: RunConfig, trust: bool = False) -> None:
    """Refuse a folder's settings that name code or secrets, unless this account has signed them.

    Args:
        path: The folder's `config.yaml`.
        cfg: What it holds.
        trust: Whether the person has read it and says yes.

    Raises:
        ConfigError: Naming the settings.
    """
    found = [] if trust else list(foreign(cfg))
    if not found:
        return
    reason = _why_not(path)
    if reason is None:
        return
    named = "; ".join(f"`{setting}` is {value!r:.100}, {what}" for setting, value, what in found)
    raise ConfigError(
        f"The settings of {path} must be signed by this account to name code or secrets, got some that "
        f"{reason}: {named}. Read them; if you trust whoever wrote them, try `--trust`, or copy their key to "
        f"{key_path()}."
    )


def foreign(cfg: RunConfig) -> Iterator[tuple[str, Any, str]]:
    """`(setting, value, what it does)` of all that names code or secrets; what ships with us does neither."""
    module, colon, name = cfg.model.env.rpartition(":")
    if colon and (module != __name__.partition(".")[0] or name not in IDS):
        yield "model.env", cfg.model.env, "which is imported"
    for section in SECTIONS:
        values = vars(getattr(cfg, section))
        yield from _foreign({name: value for name, value in values.items() if name != "env"}, section)


def _foreign(value: Any, place: str) -> Iterator[tuple[str, Any, str]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            inside = f"{place}.{name}"
            if what := _names_code(str(name)):
                yield inside, name, what
            if what := _does(str(name), inner, place):
                yield inside, inner, what
            else:
                yield from _foreign(inner, inside)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _foreign(inner, place)
    elif isinstance(value, str):
        if _VARIABLE.search(value):
            yield place, value, "which is read from the environment and may be sent anywhere"
        elif what := _names_code(value):
            yield place, value, what


def _does(name: str, value: Any, place: str) -> str | None:
    """What an option does by its name."""
    if name.replace("-", "_").endswith("remote_code") and value:
        return "which runs the code of a model"
    if name.endswith("_env") and value:
        return "which is read from the environment and sent to a server"
    if name == "name" and value == "remote":
        return "a service that is sent the token of the environment"
    if name == "options" and place == "rollout.engine_options" and value:
        return "which an engine takes as its command line"
    return None


def _names_code(value: str) -> str | None:
    """Whether `Registry.get` would import `value`."""
    if _COLON.fullmatch(value):
        return "which is imported"
    if _DOTS.fullmatch(value) and _is_module(value.partition(".")[0]):
        return "which is imported"
    return None


def _is_module(name: str) -> bool:
    # Of a name without dots this looks for a file and imports nothing.
    with suppress(ImportError, ValueError, AttributeError):
        return importlib.util.find_spec(name) is not None
    return True


def _why_not(path: Path) -> str | None:
    """Why the file is not taken for one that this account wrote; None if it is."""
    body, line, signature = path.read_text(encoding="utf-8").rpartition(f"\n{LINE}")
    if not line:
        return "have no signature"
    try:
        key = _key(make=False)
    except NoKey as error:
        return f"cannot be checked, because {error}"
    wanted = _signature(f"{body}\n", key)
    same = hmac.compare_digest(signature.strip().encode(), wanted.encode())
    return None if same else "were signed by another account, or changed afterwards"


def _signature(text: str, key: bytes) -> str:
    return hmac.new(key, PURPOSE + text.encode(), hashlib.sha256).hexdigest()


def _key(make: bool) -> bytes:
    """The key of this account.

    Raises:
        NoKey: If there is none, or others can read or write it.
    """
    try:
        path = key_path()
        if make and not path.exists():
            _make(path)
        state = path.stat()
        if state.st_mode & 0o077:
            raise NoKey(f"{path} can be read by others; try `chmod 600 {path}`")
        key = path.read_bytes()
    except (OSError, RuntimeError) as error:
        raise NoKey(f"there is no key ({error})") from error
    if len(key) != KEY_BYTES:
        raise NoKey(f"{path} holds no key of {KEY_BYTES} bytes; try removing it")
    return key


def _make(path: Path) -> None:
    """Put a new key there, whole and at once, unless another process was faster."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".key-{secrets.token_hex(8)}")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(secrets.token_bytes(KEY_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        except OSError:  # Some file systems know no links.
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
