"""The reward service on many machines, as an application of Ray Serve.

`python -m unirl_env.service.deploy --config my_service.yaml --replicas 4 --gpus-per-replica 0.25`, or, on a
cluster that is served to already, `serve run unirl_env.service.deploy:application config=my_service.yaml
replicas=4`. Every replica is the whole service in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from unirl_env.arguments.signatures import require_own
from unirl_env.command_line import Parser
from unirl_env.errors import ConfigError, ScorerError, UnirlError
from unirl_env.service.app import create_app
from unirl_env.service.service_settings import (
    ServiceSettings,
    check_door,
    command_line,
    read_value,
    settings_of,
)
from unirl_env.settings.fields import Settings, setting

PROGRAM = "python -m unirl_env.service.deploy"
MISTAKE = 2
NAME = "rewards"
"""Of the application, in `serve status`."""
MARGIN_SECONDS = 5.0
"""What a replica gets beyond `drain_seconds` to end its threads."""


@dataclass
class Replicas(Settings):
    """How many replicas there are, and what each of them takes."""

    replicas: int | None = setting(None, least=1)
    """How many, where the number is fixed; 1 if nothing is said."""
    min_replicas: int | None = setting(None, least=0)
    """The fewest, where Serve follows the load; 0 lets all of them end while nobody asks."""
    max_replicas: int | None = setting(None, least=1)
    """The most, where Serve follows the load."""
    target_ongoing_requests: float = setting(16.0, above=0)
    """Requests per replica that Serve aims at: more replicas above, fewer below."""
    gpus_per_replica: float = setting(0.0, least=0)
    """Of a GPU; fractions share one, whose memory must hold all of them."""
    cpus_per_replica: float = setting(1.0, least=0)
    """Cores that Ray reserves, and threads with which a scorer computes on them."""
    max_ongoing_requests: int = setting(256, least=1)
    """Requests that one replica has at once, which must fill its batches: Serve's own default is 5."""
    max_queued_requests: int = setting(1024, least=1)
    """Requests that wait at one door for a replica; what comes then is told to come again (429)."""

    @property
    def follows_load(self) -> bool:
        """Whether Serve changes their number."""
        return self.min_replicas is not None or self.max_replicas is not None

    def check(self, prefix: str = "") -> None:
        """Refuse numbers that are out of range, or contradict each other.

        Args:
            prefix: What stands before the names in an error.

        Raises:
            ConfigError: Naming them.
        """
        super().check(prefix)
        if self.follows_load and self.replicas is not None:
            raise ConfigError(
                f"`replicas` must not be given together with `min_replicas` or `max_replicas`, got "
                f"{self.replicas}; try one of them."
            )
        if self.follows_load and (self.min_replicas or 0) > (self.max_replicas or math.inf):
            raise ConfigError(
                f"`max_replicas` must be at least `min_replicas`, got {self.max_replicas} and "
                f"{self.min_replicas}."
            )
        if self.gpus_per_replica > 1 and self.gpus_per_replica % 1:
            raise ConfigError(
                f"`gpus_per_replica` must be whole above 1, got {self.gpus_per_replica}; "
                f"try {math.ceil(self.gpus_per_replica)}."
            )


NUMBERS = tuple(field.name for field in fields(Replicas))


def replicas_of(values: Mapping[str, Any]) -> Replicas:
    """`Replicas` from words.

    Raises:
        ConfigError: If they are unknown, out of range, or contradict each other.
    """
    require_own(values, NUMBERS, "What is said of replicas must be settings of theirs")
    read = {
        name: read_value(name, value) if isinstance(value, str) else value for name, value in values.items()
    }
    replicas = Replicas(**read)
    replicas.check()
    return replicas


@serve.ingress()
class RewardReplica:
    """One replica: its scorers are built where it runs, never in the process that deploys it."""

    def __init__(self, settings: ServiceSettings, token: str | None):
        self._settings, self._token = settings, token

    def __serve_build_asgi_app__(self):
        self._app = create_app(self._settings, token=self._token)
        return self._app

    def check_health(self) -> None:
        """What Serve asks every few seconds; a replica that fails it is replaced.

        Raises:
            ScorerError: If a call of a scorer does not come to an end.
        """
        if self._app.state.service.stuck:
            raise ScorerError(
                f"A call of a scorer must end within `stuck_seconds`, {self._settings.stuck_seconds} s."
            )


def application(args: Mapping[str, Any]) -> serve.Application:
    """The builder for `serve run` and for configuration files of Serve.

    Where Serve listens is not known here, so there must be a token, in the variable `token_env` of the
    environment in which this function is called.

    Args:
        args: `config`, the path of a file of `ServiceSettings`; the fields of `Replicas`; all other names
            are settings that override those of the file.

    Raises:
        ConfigError: If a setting is unknown or impossible, or there is no token.
    """
    args = dict(args)
    config = args.pop("config", None)
    own = {name: args.pop(name) for name in NUMBERS if name in args}
    settings, token = settings_of(config, [f"{name}={_word(value)}" for name, value in args.items()])
    if token is None:
        raise ConfigError(
            f"`{settings.token_env}` must hold a token, because Serve decides where it listens; try "
            f"`export {settings.token_env}=$(openssl rand -hex 32)`, or `{PROGRAM} --host 127.0.0.1` for "
            "this machine alone."
        )
    check_door(settings, token)
    return bound(settings, replicas_of(own), token)


def bound(settings: ServiceSettings, replicas: Replicas, token: str | None) -> serve.Application:
    """The service as Serve deploys it.

    Raises:
        ConfigError: If a reward computes on a GPU and replicas get none.
    """
    if not replicas.gpus_per_replica and _on_gpu(settings.rewards):
        raise ConfigError(
            "`gpus_per_replica` must be above 0 where a reward has `device: cuda`, got 0, with which Ray "
            "hides all GPUs from a replica; try 1, or 0.25 for four on each."
        )
    options: dict[str, Any] = {}
    if replicas.follows_load:
        least = 1 if replicas.min_replicas is None else replicas.min_replicas
        options["autoscaling_config"] = AutoscalingConfig(
            min_replicas=least,
            max_replicas=replicas.max_replicas or max(least, 1),
            target_ongoing_requests=replicas.target_ongoing_requests,
        )
    else:
        options["num_replicas"] = replicas.replicas or 1
    deployment = serve.deployment(
        RewardReplica,
        name="replica",
        ray_actor_options={"num_cpus": replicas.cpus_per_replica, "num_gpus": replicas.gpus_per_replica},
        max_ongoing_requests=replicas.max_ongoing_requests,
        max_queued_requests=replicas.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=settings.drain_seconds + MARGIN_SECONDS,
        health_check_period_s=5,
        **options,
    )
    return deployment.bind(settings, token)


def serve_rewards(settings: ServiceSettings, replicas: Replicas, token: str | None) -> bool:
    """Start Serve if it does not run, and deploy the service there; Ray must be running or startable.

    Returns:
        Whether Serve was started here, at `settings.host` and `settings.port`.

    Raises:
        ConfigError: If other machines could call without a token.
    """
    check_door(settings, token)
    if settings.port == 0:
        raise ConfigError("`port` must be above 0 for Ray Serve, got 0; try 8191.")
    app = bound(settings, replicas, token)
    started = not serve.status().proxies
    if not started and token is None:
        raise ConfigError(
            f"`{settings.token_env}` must hold a token where Serve already runs, because it decides where it "
            f"listens; try `export {settings.token_env}=$(openssl rand -hex 32)`."
        )
    serve.start(http_options={"host": settings.host, "port": settings.port})
    serve.run(app, name=NAME, route_prefix="/")
    return started


def main(words: Sequence[str] | None = None) -> int:
    """Deploy the service, and keep it until SIGINT or SIGTERM; the exit code is 2 for a mistake."""
    try:
        _deploy(_parser().parse_intermixed_args(words))
        return 0
    except UnirlError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return MISTAKE


def _deploy(given: argparse.Namespace) -> None:
    import ray

    doors = {"host": given.host, "port": given.port}
    overrides = [f"{name}={value}" for name, value in doors.items() if value is not None]
    numbers = {name: value for name in NUMBERS if (value := getattr(given, name)) is not None}
    settings, token = settings_of(given.config, [*given.overrides, *overrides], given.reward)
    replicas = replicas_of(numbers)
    check_door(settings, token)
    ray.init(address=given.address, ignore_reinit_error=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # after Ray, which takes them for itself
        signal.signal(number, _interrupt)
    ran_before = bool(serve.status().proxies)
    try:
        serve_rewards(settings, replicas, token)
        where = (
            "the address of the Serve that runs" if ran_before else f"http://{settings.host}:{settings.port}"
        )
        print(f"Rewards {list(settings.rewards)} are served at {where}.", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print("Ending.", flush=True)
    finally:  # also where it was not ready yet: replicas that find no room are waited for without end
        if ran_before:
            serve.delete(NAME)
        else:
            serve.shutdown()


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _parser() -> Parser:
    parser = command_line(PROGRAM, "Serve rewards by Ray Serve")
    parser.add_argument("--host", help="where the door of every machine listens")
    parser.add_argument("--port", type=int)
    parser.add_argument("--address", help="of a running Ray cluster, or 'auto'; by default Ray starts here")
    for name in NUMBERS:
        parser.add_argument("--" + name.replace("_", "-"), metavar="N")
    return parser


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _on_gpu(spec: Any) -> bool:
    """Whether somewhere in the words of a reward stands `device: cuda`."""
    if isinstance(spec, Mapping):
        own = str(spec.get("device", "")).startswith("cuda")
        return own or any(_on_gpu(value) for value in spec.values())
    return isinstance(spec, list | tuple) and any(_on_gpu(value) for value in spec)


if __name__ == "__main__":
    # Replicas unpickle what is named by its module, and theirs is another `__main__`.
    from unirl_env.service.deploy import main as imported

    sys.exit(imported())
