"""The routes of the reward service."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import Depends, FastAPI, Request, Security
from fastapi.security import HTTPBearer
from starlette.responses import Response

from unirl_env import __version__
from unirl_env.rewards.spec import build_scorer
from unirl_env.rewards.wire import PROTOCOL, TENSORS, scores_as_json
from unirl_env.service.batching import Abandoned, Outcome, Unjudgeable
from unirl_env.service.error_replies import RETRY_SECONDS, Refused, Reply, reply_in_one_form
from unirl_env.service.request_body import Reservation, content_type, read_body, read_request
from unirl_env.service.reward_service import RewardService
from unirl_env.service.schema import SCORE_BODY, HealthReply, RewardsReply, ScoreReply, add_score_body, errors
from unirl_env.service.service_settings import ServiceSettings
from unirl_env.types import Scorer

BEARER = Security(HTTPBearer(auto_error=False, description="The token of the service, if it has one."))
"""Describes the token; `check_token` judges it."""


def create_app(
    settings: ServiceSettings,
    *,
    token: str | None = None,
    scorers: Mapping[str, Scorer] | None = None,
) -> FastAPI:
    """The service as an ASGI application.

    `POST /score`, `GET /rewards` and `GET /metrics` ask for the token, if there is one; `GET /health` and
    `GET /openapi.json`, which tell nothing of what is served, do not.

    Args:
        settings: How to serve; `host` and `port` are for whoever runs the app.
        token: What clients must send as `Authorization: Bearer <token>`; None lets everybody in.
        scorers: Name to scorer, already built; None builds those of `settings.rewards`.

    Returns:
        The app; its `state.service` is the `RewardService`, to drain and to close.

    Raises:
        ConfigError: If the settings cannot work.
        UnirlError: Whatever building a scorer raises.
    """
    settings.check()
    if scorers is None:
        scorers = {name: build_scorer(spec) for name, spec in settings.rewards.items()}
    service = RewardService(settings, scorers)
    pool = ThreadPoolExecutor(settings.decoders, "decoding")

    app = FastAPI(
        title="Reward service",
        version=__version__,
        docs_url=None,  # their pages load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    reply_in_one_form(app)
    add_score_body(app)

    async def known_caller(request: Request, _: Any = BEARER) -> None:
        check_token(request, token)

    async def caller(_: Any = BEARER) -> None:
        """Only described here; `/score` checks it where it counts what it answers."""

    # Without a token the description must not ask for one either.
    told, counted = ([Depends(known_caller)], [Depends(caller)]) if token is not None else ([], [])

    @app.get("/health", response_model=HealthReply, responses=errors(405) | {503: {"model": HealthReply}})
    async def health() -> Reply:
        """Whether requests are taken, and scorers come to an end."""
        status = "draining" if service.draining else "stuck" if service.stuck else "ok"
        found = {"status": status, "protocol": PROTOCOL, "version": __version__}
        return Reply(found, 200 if status == "ok" else 503)

    @app.get(
        "/rewards",
        response_model=RewardsReply,
        responses=errors(401, 405),
        dependencies=told,
    )
    async def rewards() -> Reply:
        """What can be asked for."""
        return Reply(service.described())

    @app.get(
        "/metrics",
        response_class=Response,
        responses=errors(401, 405) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        dependencies=told,
    )
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post(
        "/score",
        response_model=ScoreReply,
        responses=errors(400, 401, 404, 405, 408, 409, 413, 415, 422, 429, 503),
        openapi_extra=SCORE_BODY,
        dependencies=counted,
    )
    async def score(request: Request) -> Reply:
        """Judge samples."""
        answer = _Answer()
        began = time.perf_counter()
        try:
            with service.taken(), Reservation(service.room) as hold:
                check_token(request, token)
                if service.draining:
                    raise _draining("The service ends")
                return await _scored(service, pool, request, hold, answer)
        except Refused as error:
            answer.status = error.status
            raise
        finally:
            if answer.repeated:
                service.metrics.repeated(answer.reward)
            else:
                service.metrics.answered(answer.reward, answer.status, time.perf_counter() - began)

    return app


def check_token(request: Request, token: str | None) -> None:
    """Refuse a request without the token, in a time that tells nothing about it.

    Raises:
        Refused: If it is missing or wrong.
    """
    if token is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode(), token.encode())
    if scheme.lower() != "bearer" or not right:
        raise Refused(
            401,
            "unauthorized",
            "`Authorization` must be `Bearer <token>` with the token of the service; ask whoever runs it.",
            {"WWW-Authenticate": "Bearer"},
        )


class _Answer:
    """What the metrics will say of a request."""

    def __init__(self) -> None:
        self.reward = ""
        self.status = 500
        self.repeated = False


async def _scored(
    service: RewardService, pool: ThreadPoolExecutor, request: Request, hold: Reservation, answer: _Answer
) -> Reply:
    settings, loop = service.settings, asyncio.get_running_loop()
    kind = content_type(request)
    limits = settings.limits
    most = limits.body if kind == TENSORS else min(limits.body, limits.words)
    body = await read_body(request, most, settings.read_seconds, hold)
    read = await loop.run_in_executor(pool, read_request, body, kind, limits, hold)
    del body
    hold.resize(read.size)
    asked = read.request
    if service.knows(asked.reward):
        answer.reward = asked.reward
    future, answer.repeated = service.ask(asked, read.digest)
    id, reward = asked.id, asked.reward
    del asked, read  # whoever scores them holds them
    # Shielded: another attempt may wait for the same work.
    outcome: Outcome = await asyncio.shield(asyncio.wrap_future(future))
    if isinstance(outcome, Unjudgeable):
        raise Refused(422, "cannot_judge", outcome.message)
    if isinstance(outcome, Abandoned):
        raise _draining("The service ended before the scores were there")
    answer.status = 200
    return Reply({"id": id, "reward": reward, "scores": scores_as_json(outcome)})


def _draining(what: str) -> Refused:
    return Refused(
        503, "draining", f"{what}; ask another one, or try again later.", {"Retry-After": str(RETRY_SECONDS)}
    )
