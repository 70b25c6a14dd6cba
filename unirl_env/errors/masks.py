"""Secrets in settings and in texts: where they stand, and what is written in their place.

Settings name secrets as `env:NAME`, the environment variable that holds one. One that is written out is
used all the same, and stands in no file: there, `env:UNIRL_...` takes its place, a variable that is named
after the setting and is read when the run goes on. Only texts are secrets: numbers such as `max_tokens` never
are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
REFERENCE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
SHORTEST = 4
"""Letters; what is shorter is masked where it stands, and not looked for in texts."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_LAST = {
    *("secret", "secrets", "password", "passwd", "passphrase", "authorization", "auth", "apikey"),
    *("credential", "credentials", "bearer", "cookie", "cookies"),
}
_KEYS = {
    *(
        "api",
        "access",
        "secret",
        "private",
        "auth",
        "account",
        "subscription",
        "license",
        "licence",
        "master",
    ),
    *("service", "client", "signing", "encryption", "functions"),
}
"""What stands before `key` where it opens something; the `key` of an answer among metadata does not."""
_NO_TOKENS = {
    *("pad", "eos", "bos", "sep", "cls", "unk", "mask", "stop", "end", "begin", "start", "image", "img"),
    *("vision", "video", "special", "think", "thought", "call", "tool", "eot", "im", "fim", "open", "close"),
}
"""What stands before `token` where it is one of a vocabulary."""
_SENT = {"headers", "params", "query", "cookies", "auth", "engine_options"}
"""Mappings whose entries go to a server as they are, in which more names mean a secret."""
_SENT_WORDS = {
    "token",
    "key",
    "secret",
    "auth",
    "authorization",
    "cookie",
    "password",
    "session",
    "signature",
}
_SENT_WORDS |= {"sig", "credential", "apikey"}
_VALUES = re.compile(
    r"(?:sk|pk|rk)-[\w-]{8,}|hf_\w{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|xox[abeprs]-[\w-]{10,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{30,}|eyJ[\w-]+\.[\w-]+\.[\w-]*"
    r"|(?:Bearer|Basic|Token)\s+\S+"
)
"""How the keys of well-known services and the contents of headers look, whatever setting they stand in."""
_USER = re.compile(r"(?<=://)([^/?#@\s]+)(?=@)")
_QUERY = re.compile(r"""(?<=[?&;])([^=&#;\s'"]+)=([^&#;\s'"]+)""")
_PAIRS = re.compile(r"""([A-Za-z_][\w.-]*)['"]?\s*[=:]\s*['"]?([^,}\]\s'"]+)""")
_NOTHING = {"null", "none", "true", "false"}
_known: set[str] = set()
Path = tuple[str, ...]
Mark = Callable[[Path, str], str]


def remember(*values: str | None) -> None:
    """Take the values for secrets from now on, in this process."""
    _known.update(value for value in values if value and len(value) >= SHORTEST)


def remember_command(words: Iterable[str]) -> None:
    """Take what a command line gives settings with names of secrets for secrets, before it is understood."""
    for word in words:
        for name, value in _PAIRS.findall(word):
            if is_secret_name(name.rpartition(".")[2]) and value.lower() not in _NOTHING:
                remember(REFERENCE.sub("", value))
        masked(word)


def hide(text: str) -> str:
    """`text` with `***` in place of every secret that is known, also as JSON and URLs spell them."""
    for value in sorted(_known, key=len, reverse=True):
        for spelled in {value, quote(value, safe=""), json.dumps(value)[1:-1]}:
            text = text.replace(spelled, HIDDEN)
    return text


def is_secret_name(name: str, inside: Iterable[str] = ()) -> bool:
    """Whether a setting of this name holds a secret; `inside` are the names of what it stands in."""
    words = [word.lower() for word in _WORDS.findall(name)]
    outer = [str(each).lower() for each in inside]
    if not words or words[-1] == "env" or (outer and outer[-1].endswith("_env")):
        return False  # The name of a variable is none.
    before = words[-2] if len(words) > 1 else ""
    if words[-1] in _LAST or (words[-1] == "key" and before in _KEYS) or (words[-1] == "pwd" and before):
        return True  # A bare PWD is where a shell is.
    if words[-1] == "token":
        return before not in _NO_TOKENS
    return bool(_SENT & set(outer)) and bool(_SENT_WORDS & set(words))


def variable_of(path: Iterable[str]) -> str:
    """The environment variable that stands for what was written out at `path`."""
    return "_".join(["UNIRL", *(re.sub(r"\W", "_", part).upper() for part in path)])


def masked(settings: Any, path: Path = ()) -> Any:
    """Nested settings in which `env:UNIRL_...` takes the place of what is secret; it is remembered, too."""

    def mark(where: Path, value: str) -> str:
        remember(value)
        return f"env:{variable_of(where)}"

    return _marked(settings, path, mark)


def same_secrets(settings: Any, path: Path = ()) -> Any:
    """Nested settings that are equal where they differ in secrets only, written out or named."""
    return _marked(settings, path, lambda where, value: HIDDEN, named=True)


def _marked(value: Any, path: Path, mark: Mark, named: bool = False) -> Any:
    if isinstance(value, Mapping):
        return {name: _marked(inner, (*path, str(name)), mark, named) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(inner, (*path, str(place)), mark, named) for place, inner in enumerate(value)]
    if not isinstance(value, str) or not value:
        return value
    if REFERENCE.fullmatch(value):
        return HIDDEN if named else value
    if _is_secret(path, value):
        return mark(path, value)
    return _marked_address(value, path, mark, named) if "://" in value else value


def _is_secret(path: Path, value: str) -> bool:
    names = [part for part in path if not part.isdigit()]
    by_name = bool(names) and is_secret_name(names[-1], names[:-1]) and not value.startswith(("<", "["))
    return by_name or value in _known or _VALUES.fullmatch(value) is not None


def _marked_address(value: str, path: Path, mark: Mark, named: bool) -> str:
    """The user before the host, and what the query calls by a secret's name."""

    def put(where: Path, text: str) -> str:
        return (HIDDEN if named else text) if REFERENCE.fullmatch(text) else mark(where, text)

    def of_query(found: re.Match[str]) -> str:
        name, text = found.groups()
        secret = is_secret_name(name, ("query",)) or _is_secret((), text)
        return f"{name}={put((*path, name), text) if secret else text}"

    value = _USER.sub(lambda found: put((*path, "user"), found[0]), value)
    return _QUERY.sub(of_query, value)
