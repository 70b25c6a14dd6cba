"""Many clients at once against a reward service, with as little work of their own as can be.

They share the machine with the service that they measure. So bodies are encoded once, and only the id of a
request is written anew; each client is a thread with one connection that is kept open, and while a socket is
written or awaited, Python's lock is free.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
from torch import Tensor

from unirl_env.rewards.wire import TENSORS, ScoreRequest, encode_request
from unirl_env.types import Prompt, Sample

PLACE = "0" * 32
"""Where the id of a request stands in an encoded body."""
PATIENCE = 200
"""How often a client asks again when the service is full."""


@dataclass(frozen=True)
class Body:
    """An encoded request, but for its id, and the scores `[n]` float32 it must get."""

    before: bytes
    after: bytes
    expected: np.ndarray

    def __len__(self) -> int:
        return len(self.before) + len(PLACE) + len(self.after)

    def parts(self, id: str) -> Iterator[bytes]:
        """The body with an id of its own, in three parts: nothing is copied."""
        yield self.before
        yield id.encode()
        yield self.after


@dataclass
class Tally:
    """What the clients saw."""

    latencies: list[float] = field(default_factory=list)
    pictures: int = 0
    sent: int = 0
    asked_again: int = 0
    unequal: int = 0
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0


def bodies(
    pictures: Sequence[Tensor], expected: Sequence[float], group: int, reward: str, png: bool
) -> list[Body]:
    """Requests of `group` pictures each, encoded."""
    made = []
    for start in range(0, len(pictures) - group + 1, group):
        chosen = range(start, start + group)
        request = ScoreRequest(
            id=PLACE,
            reward=reward,
            samples=tuple(Sample(image=pictures[i]) for i in chosen),
            prompts=tuple(Prompt(f"a picture {i}") for i in chosen),
        )
        before, found, after = encode_request(request, png=png).partition(PLACE.encode())
        if not found:
            raise RuntimeError("The id of a request must stand in its body.")
        made.append(Body(before, after, np.asarray([expected[i] for i in chosen], np.float32)))
    return made


def drive(
    url: str, requests: Sequence[Body], clients: int, most_pictures: int, most_seconds: float | None
) -> Tally:
    """Send requests from `clients` threads until so many pictures are sent or so many seconds are over."""
    tally, lock = Tally(), threading.Lock()
    group = len(requests[0].expected)
    mark = os.urandom(4).hex()
    work: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(-(-most_pictures // group)):
        work.put(number)
    begin = time.perf_counter()

    def client() -> None:
        own = Tally()
        line = http.client.HTTPConnection(urlsplit(url).netloc, timeout=600)
        try:
            while most_seconds is None or time.perf_counter() - begin < most_seconds:
                number = work.get_nowait()
                _one(line, requests[number % len(requests)], f"{mark}{number:024x}", own)
        except queue.Empty:
            pass
        except Exception as error:
            own.errors.append(f"{type(error).__name__}: {error}")
        finally:
            line.close()
            with lock:
                _add(tally, own)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tally.seconds = time.perf_counter() - begin
    return tally


def _one(line: http.client.HTTPConnection, body: Body, id: str, tally: Tally) -> None:
    """One request to its end; waits and asks again where the service says that it is full."""
    headers = {"Content-Type": TENSORS, "Content-Length": str(len(body))}
    begin = time.perf_counter()
    for _ in range(PATIENCE):
        try:
            line.request("POST", "/score", body=body.parts(id), headers=headers)
            reply = line.getresponse()
            status, text = reply.status, reply.read()
        except (OSError, http.client.HTTPException) as error:
            line.close()
            tally.errors.append(f"{type(error).__name__}: {error}")
            return
        if status not in (429, 503):
            break
        tally.asked_again += 1
        time.sleep(float(reply.getheader("Retry-After") or 1))
    if status != 200:
        tally.errors.append(f"{status}: {text[:200]!r}")
        return
    value = np.asarray(json.loads(text)["scores"]["value"], np.float32)
    tally.latencies.append(time.perf_counter() - begin)
    tally.pictures += len(value)
    tally.sent += len(body)
    if not np.array_equal(value, body.expected):
        tally.unequal += 1


def _add(total: Tally, own: Tally) -> None:
    total.latencies += own.latencies
    total.errors += own.errors
    for name in ("pictures", "sent", "asked_again", "unequal"):
        setattr(total, name, getattr(total, name) + getattr(own, name))
