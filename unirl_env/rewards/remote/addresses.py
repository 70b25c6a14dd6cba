"""Where services are: their URLs, checked before anything is sent there."""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import SplitResult, urlsplit

from unirl_env.arguments.values import require
from unirl_env.errors import ConfigError

__all__ = ["checked_urls", "is_loopback", "is_this_machine", "require_address", "warn_of_plain_http"]

logger = logging.getLogger(__name__)


def checked_urls(urls: Any) -> tuple[str, ...]:
    """The URLs of a service, without a slash at their ends.

    Args:
        urls: One, or several.

    Raises:
        ConfigError: If there is none, one is none, one stands twice, or one carries a password.
    """
    if isinstance(urls, Mapping | bytes) or not urls:
        raise ConfigError(f"`urls` must hold at least one URL, got {urls!r}; try http://127.0.0.1:8191.")
    found = tuple(_checked(url) for url in ([urls] if isinstance(urls, str) else urls))
    if len(set(found)) < len(found):
        raise ConfigError(f"`urls` must be different replicas, got {list(found)}.")
    return found


def require_address(url: Any) -> None:
    """Refuse what is no address of a server. One with a password is not shown.

    Raises:
        ConfigError: Naming it.
    """
    if _has_password(url):
        raise ConfigError("`url` must hold no user and no password; try `token_env` or `headers_env`.")
    require("url", url, _parts(url) is not None, "like http://host:port/path")


def is_this_machine(url: str) -> bool:
    """Whether the host of `url` is a loopback address."""
    return is_loopback(urlsplit(url).hostname or "")


def is_loopback(host: str) -> bool:
    """Whether only this machine can call `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@lru_cache(maxsize=256)
def warn_of_plain_http(url: str, token_env: str) -> None:
    """Warn, once per URL, that a token goes over the network for all to read."""
    logger.warning(
        "The token of %s is sent to %s without encryption; try https, or a tunnel, where others share the "
        "network.",
        token_env,
        url,
    )


def _checked(url: Any) -> str:
    if _has_password(url):
        raise ConfigError("`urls` must carry no password; try a token in an environment variable.")
    parts = _parts(url)
    plain = parts is not None and url.isprintable() and " " not in url
    if not plain or parts.query or parts.fragment:
        raise ConfigError(
            f"`urls` must be like http://host:port, got {url!r:.80}; try http://127.0.0.1:8191."
        )
    return url.rstrip("/")


def _parts(url: Any) -> SplitResult | None:
    """Of the address of a server; None if it is none."""
    try:
        parts = urlsplit(url)
        sound = isinstance(url, str) and parts.scheme in ("http", "https") and bool(parts.hostname)
        return parts if sound and parts.port != 0 else None
    except (ValueError, AttributeError, TypeError):
        return None


def _has_password(url: Any) -> bool:
    """Whether a user or a password stands before the host, also of what is no address otherwise."""
    return isinstance(url, str) and "@" in re.split("[/?#]", url.split("//", 1)[-1], maxsplit=1)[0]
