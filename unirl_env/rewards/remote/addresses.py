"""Where services are: their URLs, checked before anything is sent there."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from unirl_env.errors import ConfigError

__all__ = ["checked_urls", "is_this_machine", "warn_of_plain_http"]

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


def is_this_machine(url: str) -> bool:
    """Whether the host of `url` is a loopback address."""
    host = urlsplit(url).hostname or ""
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
    try:
        parts = urlsplit(url)
        sound = isinstance(url, str) and parts.scheme in ("http", "https") and bool(parts.hostname)
        sound = sound and parts.port != 0 and url.isprintable() and " " not in url
    except (ValueError, AttributeError, TypeError):
        sound = False
    if sound and "@" in parts.netloc:
        raise ConfigError("`urls` must carry no password; try a token in an environment variable.")
    if not sound or parts.query or parts.fragment:
        raise ConfigError(
            f"`urls` must be like http://host:port, got {url!r:.80}; try http://127.0.0.1:8191."
        )
    return url.rstrip("/")
