"""What a service is told: a dataclass, a YAML file that mirrors it, and overrides."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unirl_env.errors import ConfigError
from unirl_env.http import is_loopback
from unirl_env.rewards.spec import needs_of
from unirl_env.rewards.wire import Limits
from unirl_env.settings.literal import first_line, from_yaml, shielded, unshielded

__all__ = ["ServiceSettings", "check_door", "check_settings", "read_settings"]

COUNTS = ("max_batch", "max_waiting", "max_bytes", "max_connections", "decoders")
REWARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
TOKEN = re.compile(r"[!-~]{16,}")


@dataclass
class ServiceSettings:
    """The settings of a reward service; every one can be overridden as `name=value`."""

    rewards: dict[str, Any] = field(default_factory=dict)
    """The service's name of a reward to what `build_scorer` understands, as in `{mine: {name: clip}}`."""
    host: str = "127.0.0.1"
    """The address to listen at. Only this machine by default: any other one needs a token."""
    port: int = 8191
    """The port; 0 takes a free one, which is printed."""
    token_env: str = "UNIRL_SERVICE_TOKEN"
    """The environment variable that holds the token; where it is set, clients must send it. A token does not
    stand in a file that is committed, copied and printed."""
    max_batch: int = 64
    """The most samples of one call of a pointwise scorer: larger ones fill a GPU better, and make whoever
    comes next wait longer. Other scorers get every request as it is."""
    max_wait_ms: float = 5.0
    """How long the first sample of a batch waits for company of other clients, in milliseconds."""
    max_waiting: int = 4096
    """Samples that may wait at one reward; what comes then is told to come again (429)."""
    max_bytes: int = 8 * 2**30
    """Bytes of all requests that are being read, wait or are scored, with their pictures unpacked; what comes
    then is told to come again. It bounds the memory of the service."""
    remember: int = 1024
    """Finished requests that are remembered, so that an attempt that is repeated is not scored twice."""
    remember_seconds: float = 600.0
    """How long: as long as a client may go on trying."""
    head_seconds: float = 10.0
    """How long the head of a request may take to arrive, from the opening of a connection or the end of the
    last answer on it; a connection that says nothing is not waited for."""
    read_seconds: float = 60.0
    """How long the body of a request may take to arrive, and how long an answer may wait to be taken; a
    connection that trickles is not waited for."""
    max_connections: int = 512
    """Connections at once; a runner asks over `concurrency` of them. Whoever comes then takes the place of
    the one that has been silent longest."""
    stuck_seconds: float = 1800.0
    """How long one call of a scorer may last before `/health` says `stuck` (503), so that whoever looks after
    the service starts it anew."""
    drain_seconds: float = 30.0
    """How long requests in flight may take to finish after SIGTERM."""
    decoders: int = 2
    """Threads that decode requests: pictures take time, and nobody else should wait meanwhile."""
    limits: Limits = field(default_factory=Limits)
    """What one request may hold at most."""


def read_settings(
    path: str | Path | None = None, overrides: Sequence[str] = (), rewards: Sequence[str] = ()
) -> ServiceSettings:
    """The settings of a YAML file, with overrides.

    Args:
        path: A file that mirrors `ServiceSettings`; None starts from the defaults.
        overrides: `key=value` each, dotted below the top: `port=9000`, `limits.samples=64`,
            `rewards.clip.device=cuda`.
        rewards: Further rewards, `name` or `name=how to build it` in YAML.

    Raises:
        ConfigError: If the file cannot be read, or a name or value does not fit; see also `check_settings`.
    """
    cfg = OmegaConf.structured(ServiceSettings)
    OmegaConf.set_readonly(cfg.limits, False)  # a frozen dataclass, of which this is a copy
    if path is not None:
        cfg = _merged(cfg, _loaded(path), str(path))
    for item in rewards:
        name, found, spec = item.partition("=")
        cfg.rewards[name] = _value(item, spec) if found else name
    for item in overrides:
        key, found, value = item.partition("=")
        if not found or not key:
            raise ConfigError(f"A setting must be `name=value`, got {item!r}; try `port=9000`.")
        cfg = _overridden(cfg, key, value)
    try:
        settings = _literal(OmegaConf.to_object(cfg))
    except OmegaConfBaseException as error:
        raise ConfigError(f"The settings must be complete, got: {first_line(error)}") from error
    check_settings(settings)
    return settings


def check_settings(settings: ServiceSettings) -> None:
    """Refuse what cannot work, before anything is loaded.

    Raises:
        ConfigError: Naming the setting.
    """
    for name, spec in settings.rewards.items():
        if not REWARD_NAME.fullmatch(name):
            raise ConfigError(
                f"A reward of the service must be named by letters, digits, '_' and '-', got {name!r}."
            )
        if not (isinstance(spec, str | Mapping) or callable(spec)):
            raise ConfigError(
                f"`rewards.{name}` must be a name or a mapping with a `name`, got {spec!r:.80}; try `jpeg`."
            )
        needs_of(spec)
    _check_numbers(settings)
    if not 0 <= settings.port <= 65535:
        raise ConfigError(f"`port` must be 0 to 65535, got {settings.port}; try 8191.")
    if settings.max_waiting < settings.limits.samples:
        raise ConfigError(
            f"`max_waiting` must be at least `limits.samples`, or the largest request never finds room, got "
            f"{settings.max_waiting} and {settings.limits.samples}."
        )
    largest = settings.limits.body + settings.limits.unpacked
    if settings.max_bytes < largest:
        raise ConfigError(
            "`max_bytes` must be at least `limits.body` and `limits.unpacked` together, or the largest "
            f"request never finds room, got {settings.max_bytes} and {largest}."
        )


def check_door(settings: ServiceSettings, token: str | None) -> None:
    """Refuse to stand open to a network, and tokens that are guessed or cannot be sent.

    Raises:
        ConfigError: If other machines could call without a token, or the token cannot serve as one.
    """
    if token is None and not is_loopback(settings.host):
        raise ConfigError(
            f"`{settings.token_env}` must hold a token where `host` is not this machine alone, got no token "
            f"and {settings.host!r}; try `export {settings.token_env}=$(openssl rand -hex 32)`, or "
            "host=127.0.0.1."
        )
    if token is not None and not TOKEN.fullmatch(token):
        raise ConfigError(
            f"`{settings.token_env}` must hold at least 16 printable ASCII characters without spaces, got "
            f"{len(token)} characters; try `openssl rand -hex 32`."
        )


def _check_numbers(settings: ServiceSettings) -> None:
    numbers = {
        **{name: getattr(settings, name) for name in COUNTS},
        **{f"limits.{one.name}": getattr(settings.limits, one.name) for one in dataclasses.fields(Limits)},
    }
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"`{name}` must be at least 1, got {number}.")
    for name in ("max_wait_ms", "remember", "remember_seconds", "drain_seconds"):
        number = getattr(settings, name)
        if not (math.isfinite(number) and number >= 0):
            raise ConfigError(f"`{name}` must be a finite number of at least 0, got {number}.")
    for name in ("head_seconds", "read_seconds", "stuck_seconds"):
        if not getattr(settings, name) > 0:
            raise ConfigError(f"`{name}` must be above 0, got {getattr(settings, name)}.")


def _loaded(path: str | Path) -> DictConfig:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"`--config` must be a YAML file, got {path}: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"{path} must be YAML in UTF-8, got: {first_line(error)}") from error
    return from_yaml(shielded(text), str(path))


def _merged(cfg: DictConfig, values: DictConfig, source: str) -> DictConfig:
    try:
        return OmegaConf.merge(cfg, values)
    except OmegaConfBaseException as error:
        raise ConfigError(_explained(error, source)) from error


def _overridden(cfg: DictConfig, key: str, value: str) -> DictConfig:
    try:
        # Rewards are free-form; everything else is held against the dataclass.
        free = key.startswith("rewards.")
        OmegaConf.update(cfg, key, _value(f"{key}={value}", value), merge=not free, force_add=free)
        return cfg
    except OmegaConfBaseException as error:
        raise ConfigError(_explained(error, f"{key}={value}")) from error


def _value(item: str, text: str) -> Any:
    try:
        return from_yaml(f"v: {shielded(text)}", item).v
    except ConfigError as error:
        raise ConfigError(f"{item!r} must have a value in YAML, got: {first_line(error)}") from error


def _explained(error: OmegaConfBaseException, source: str) -> str:
    key = str(error.full_key or "")
    names = [one.name for one in dataclasses.fields(ServiceSettings)]
    names += [f"limits.{one.name}" for one in dataclasses.fields(Limits)]
    if key and key not in names and not key.startswith("rewards"):
        near = difflib.get_close_matches(key, names, n=1)
        remedy = f"did you mean `{near[0]}`?" if near else f"try one of {names}."
        return f"`{key}` of {source} must be a setting of a service, got an unknown name; {remedy}"
    what = f"`{key}` of {source}" if key else f"What stands in {source}"
    return f"{what} must have the right type, got: {first_line(error)}"


def _literal(settings: Any) -> Any:
    """The settings with the texts that were written."""
    for one in dataclasses.fields(settings):
        if one.name != "limits":
            setattr(settings, one.name, unshielded(getattr(settings, one.name)))
    return settings
