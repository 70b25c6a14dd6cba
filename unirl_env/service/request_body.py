"""From the bytes of a connection to a request, within limits."""

from __future__ import annotations

import asyncio
import hashlib
import io
import threading
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from unirl_env.errors import WireError
from unirl_env.rewards.wire import TENSORS, Limits, ScoreRequest, decode_request
from unirl_env.rewards.wire.messages import RANKS, json_in
from unirl_env.service.error_replies import RETRY_SECONDS, Refused
from unirl_env.service.schema import LONGEST_ID, read_json
from unirl_env.types import Sample

JSON = "application/json"
VALUE_BYTES = 128
"""What one value of a JSON text takes at most besides its letters."""


class MemoryBudget:
    """The bytes of all requests at once.

    Args:
        most: How many there may be.
    """

    def __init__(self, most: int):
        self.most = most
        self.taken = 0
        self._lock = threading.Lock()

    def change(self, count: int) -> bool:
        """Take `count` bytes, or give them back where it is negative; False if there is no room."""
        with self._lock:
            if count > 0 and self.taken + count > self.most:
                return False
            self.taken += count
            return True


class Reservation:
    """What one request takes of the budget, until the end of a `with`."""

    def __init__(self, room: MemoryBudget):
        self._room = room
        self._count = 0

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self.resize(0)

    def resize(self, count: int) -> None:
        """Take `count` bytes in all.

        Raises:
            Refused: If there is no room.
        """
        if not self._room.change(count - self._count):
            raise Refused(
                429,
                "busy",
                f"All requests together must have at most {self._room.most} bytes; try again later.",
                {"Retry-After": str(RETRY_SECONDS)},
            )
        self._count = count


@dataclass(frozen=True)
class Read:
    """A request and what tells it from others.

    Attributes:
        request: What is asked.
        digest: Of its bytes and their content type.
        size: Bytes of its tensors and, at most, of its words.
    """

    request: ScoreRequest
    digest: bytes
    size: int


def content_type(request: Request) -> str:
    """`TENSORS` or `JSON`.

    Raises:
        Refused: If it is another one, or the body is compressed.
    """
    given = request.headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if kind not in (TENSORS, JSON):
        raise Refused(
            415,
            "unknown_type",
            f"`Content-Type` must be {JSON} or {TENSORS}, got {given!r:.100}; try {JSON}.",
        )
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() != "identity":
        raise Refused(415, "unknown_type", f"A request must not be compressed, got {coding!r:.100}.")
    return kind


async def read_body(request: Request, most: int, seconds: float, hold: Reservation) -> bytes:
    """The body, counted while it comes in.

    Args:
        request: Whose body has not been read.
        most: Its most bytes.
        seconds: How long it may take.
        hold: Where its bytes are taken.

    Raises:
        Refused: If it is too large, too slow, or ends too early.
    """
    said = request.headers.get("content-length", "")
    if said.isascii() and said.isdigit() and (len(said) > 18 or int(said) > most):
        raise _too_large(most)
    # One buffer: a list of pieces of a byte each takes many times as much as they hold.
    whole, size = io.BytesIO(), 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > most:
                    raise _too_large(most)
                hold.resize(size)
                whole.write(chunk)
    except TimeoutError:
        raise Refused(
            408, "too_slow", f"A request must arrive within {seconds:g} seconds; try fewer samples at once."
        ) from None
    except ClientDisconnect:
        raise Refused(400, "malformed", "A request must be sent whole; the connection ended.") from None
    return whole.getvalue()


def read_request(body: bytes, kind: str, limits: Limits, hold: Reservation | None = None) -> Read:
    """What `body` asks; takes time, and belongs in a thread.

    Args:
        body: The bytes that came.
        kind: `TENSORS` or `JSON`.
        limits: What they may hold.
        hold: Where the bytes of what they become are taken, each time before something is unpacked.

    Raises:
        Refused: If it is malformed or too large, or there is no room for it.
    """
    words = most = 0

    def claim(count: int) -> None:
        nonlocal most
        most = max(most, count)
        if hold is not None:
            hold.resize(len(body) + words + most)

    try:
        words = _weight(body if kind == JSON else json_in(body, limits), limits)
        claim(0)
        decode = decode_request if kind == TENSORS else read_json
        request = decode(body, limits, claim)
        if len(request.id) > LONGEST_ID:
            raise WireError(f"`id` must have at most {LONGEST_ID} characters, got {len(request.id)}.")
    except WireError as error:
        raise Refused(400, "malformed", str(error)) from error
    digest = hashlib.sha256(kind.encode() + b"\0")
    digest.update(body)
    # Tokens that stood in JSON are a tensor by now.
    listed = request.samples if kind == JSON else ()
    tokens = sum(0 if one.tokens is None else len(one.tokens) for one in listed)
    return Read(request, digest.digest(), _size(request) + max(0, words - tokens * VALUE_BYTES))


def _weight(text: bytes | memoryview, limits: Limits) -> int:
    """The most bytes that JSON takes once it is read.

    Raises:
        WireError: If it holds more values than it may.
    """
    plain = bytes(text[: limits.words])  # a longer one is refused by whoever reads it
    values = sum(map(plain.count, (b",", b":", b"[", b"{")))
    if values > limits.values:
        raise WireError(
            f"The JSON of a request must have at most {limits.values} values, got {values}; try tensors."
        )
    return len(plain) * (1 if plain.isascii() else 4) + values * VALUE_BYTES


def _size(request: ScoreRequest) -> int:
    tensors = {
        id(tensor): tensor.nbytes
        for one in (*request.samples, *request.prompts)
        for tensor in ([getattr(one, name) for name in RANKS] if isinstance(one, Sample) else one.images)
        if tensor is not None
    }
    return sum(tensors.values())


def _too_large(most: int) -> Refused:
    return Refused(
        413,
        "too_large",
        f"A request must have at most {most} bytes in this form; try fewer samples at once, or tensors.",
    )
