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

from unirl_env.arguments.values import require
from unirl_env.command_line import Parser
from unirl_env.errors import ConfigError
from unirl_env.http import is_loopback
from unirl_env.rewards.secrets import secret
from unirl_env.rewards.spec import needs_of
from unirl_env.rewards.wire import Limits
from unirl_env.settings.fields import Settings, check_values, setting
from unirl_env.settings.literal import first_line, yaml_values

REWARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
TOKEN = re.compile(r"[!-~]{16,}")
TEXTS = ("host", "token_env")


@dataclass
class ServiceSettings(Settings):
    """The settings of a reward service; every one can be overridden as `name=value`."""

    rewards: dict[str, Any] = setting({})
    """The service's name of a reward to what `build_scorer` understands, as in `{mine: {name: clip}}`."""
    host: str = setting("127.0.0.1")
    """The address to listen at. Only this machine by default: any other one needs a token."""
    port: int = setting(8191, least=0, most=65535)
    """The port; 0 takes a free one, which is printed."""
    token_env: str = setting("UNIRL_SERVICE_TOKEN")
    """The environment variable that holds the token; where it is set, clients must send it. A token does not
    stand in a file that is committed, copied and printed."""
    max_batch: int = setting(64, least=1)
    """The most samples of one call of a pointwise scorer: larger ones fill a GPU better, and make whoever
    comes next wait longer. Other scorers get every request as it is."""
    max_wait_ms: float = setting(5.0, least=0)
    """How long the first sample of a batch waits for company of other clients, in milliseconds."""
    max_waiting: int = setting(4096, least=1)
    """Samples that may wait at one reward; what comes then is told to come again (429)."""
    max_bytes: int = setting(8 * 2**30, least=1)
    """Bytes of all requests that are being read, wait or are scored, with their pictures unpacked; what comes
    then is told to come again. It bounds the memory of the service."""
    remember: int = setting(1024, least=0)
    """Finished requests that are remembered, so that an attempt that is repeated is not scored twice."""
    remember_seconds: float = setting(600.0, least=0)
    """How long: as long as a client may go on trying."""
    head_seconds: float = setting(10.0, above=0, most=math.inf)
    """How long the head of a request may take to arrive, from the opening of a connection or the end of the
    last answer on it; a connection that says nothing is not waited for."""
    read_seconds: float = setting(60.0, above=0, most=math.inf)
    """How long the body of a request may take to arrive, and how long an answer may wait to be taken; a
    connection that trickles is not waited for."""
    max_connections: int = setting(512, least=1)
    """Connections at once; a runner asks over `concurrency` of them. Whoever comes then takes the place of
    the one that has been silent longest."""
    stuck_seconds: float = setting(1800.0, above=0, most=math.inf)
    """How long one call of a scorer may last before `/health` says `stuck` (503), so that whoever looks after
    the service starts it anew."""
    drain_seconds: float = setting(30.0, least=0)
    """How long requests in flight may take to finish after SIGTERM."""
    decoders: int = setting(2, least=1)
    """Threads that decode requests: pictures take time, and nobody else should wait meanwhile."""
    limits: Limits = field(default_factory=Limits)
    """What one request may hold at most."""

    def check(self, prefix: str = "") -> None:
        """Refuse what cannot work, before anything is loaded.

        Args:
            prefix: What stands before the names in an error.

        Raises:
            ConfigError: Naming the setting.
        """
        check_values(self, prefix)
        check_values(self.limits, f"{prefix}limits.")
        for name, spec in self.rewards.items():
            if not REWARD_NAME.fullmatch(name):
                raise ConfigError(
                    f"A reward of the service must be named by letters, digits, '_' and '-', got {name!r}."
                )
            if not (isinstance(spec, str | Mapping) or callable(spec)):
                raise ConfigError(
                    f"`rewards.{name}` must be a name or a mapping with a `name`, got {spec!r:.80}; try "
                    "`jpeg`."
                )
            needs_of(spec)
        if self.max_waiting < self.limits.samples:
            raise ConfigError(
                "`max_waiting` must be at least `limits.samples`, or the largest request never finds room, "
                f"got {self.max_waiting} and {self.limits.samples}."
            )
        largest = self.limits.body + self.limits.unpacked
        if self.max_bytes < largest:
            raise ConfigError(
                "`max_bytes` must be at least `limits.body` and `limits.unpacked` together, or the largest "
                f"request never finds room, got {self.max_bytes} and {largest}."
            )


def read_settings(
    path: str | Path | None = None, overrides: Sequence[str] = (), rewards: Sequence[str] = ()
) -> ServiceSettings:
    """The settings of a YAML file, with overrides; every text is literal.

    Args:
        path: A file that mirrors `ServiceSettings`; None starts from the defaults.
        overrides: `key=value` each, dotted below the top: `port=9000`, `limits.samples=64`,
            `rewards.clip.device=cuda`.
        rewards: Further rewards, `name` or `name=how to build it` in YAML.

    Raises:
        ConfigError: If the file cannot be read, or a name or value does not fit; see also
            `ServiceSettings.check`.
    """
    values: dict[str, Any] = {"rewards": {}, "limits": {}}
    if path is not None:
        for key, value in _loaded(path).items():
            _set(values, str(key), value, str(path))
        require("rewards", values["rewards"], isinstance(values["rewards"], dict), "a mapping")
    for item in rewards:
        name, found, spec = item.partition("=")
        _set(values, "rewards", {**values["rewards"], name: read_value(item, spec) if found else name}, item)
    for item in overrides:
        key, found, value = item.partition("=")
        if not found or not key:
            raise ConfigError(f"A setting must be `name=value`, got {item!r}; try `port=9000`.")
        _set(values, key, read_value(item, value), item)
    settings = ServiceSettings(**{**values, "limits": Limits(**values["limits"])})
    settings.check()
    return settings


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


def command_line(program: str, description: str) -> Parser:
    """What every door of the service takes: `--config`, `--reward` and `key=value`."""
    parser = Parser(prog=program, description=f"{description}; see docs/service.md.")
    parser.add_argument("--config", help="a YAML file of the settings")
    parser.add_argument(
        "--reward",
        action="append",
        default=[],
        metavar="NAME[=REWARD]",
        help="a reward to serve, and how to build it: --reward jpeg --reward my='{name: clip, scale: 2.5}'",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings: port=9000 rewards.sharp.device=cuda"
    )
    return parser


def settings_of(
    config: str | Path | None, overrides: Sequence[str] = (), rewards: Sequence[str] = ()
) -> tuple[ServiceSettings, str | None]:
    """The settings of a service that serves something, and its token; see `read_settings`.

    Raises:
        ConfigError: If nothing is to be served, too.
    """
    settings = read_settings(config, overrides, rewards)
    if not settings.rewards:
        raise ConfigError(
            "`rewards` must hold at least one reward, got none; try `--reward jpeg`, or `--config` with a "
            "file of `rewards: {sharp: {name: clip}}`."
        )
    return settings, secret(settings.token_env)


def read_value(item: str, text: str) -> Any:
    """A value in YAML.

    Args:
        item: What errors show.
        text: The value.

    Raises:
        ConfigError: If it is none.
    """
    try:
        return yaml_values(f"v: {text}", item)["v"]
    except ConfigError as error:
        raise ConfigError(f"{item!r} must have a value in YAML, got: {first_line(error)}") from error


def _loaded(path: str | Path) -> dict[str, Any]:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"`--config` must be a YAML file, got {path}: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"{path} must be YAML in UTF-8, got: {first_line(error)}") from error
    return yaml_values(text, str(path))


def _set(values: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Take over one setting; what a mapping of limits does not name stays as it was."""
    *parents, last = key.split(".")
    if parents[:1] != ["rewards"]:
        known = [one.name for one in dataclasses.fields(ServiceSettings)]
        known += [f"limits.{one.name}" for one in dataclasses.fields(Limits)]
        if key == "limits" and isinstance(value, Mapping):
            for name, limit in value.items():
                _set(values, f"limits.{name}", limit, source)
            return
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            remedy = f"did you mean `{near[0]}`?" if near else f"try one of {known}."
            raise ConfigError(
                f"`{key}` of {source} must be a setting of a service, got an unknown name; {remedy}"
            )
        if isinstance(value, str) and key not in TEXTS:
            value = read_value(f"{key}={value}", value)  # a number in quotes
    inner: Any = values
    for parent in parents:
        inner = inner.setdefault(parent, {}) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or key == "limits":
        wanted = key if key == "limits" else ".".join(parents)
        raise ConfigError(f"`{wanted}` must be a mapping, got another value in {source}.")
    inner[last] = value
