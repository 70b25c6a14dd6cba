"""What a few hundred bad clients do to the reward service: its memory, and how long a good client waits.

    python benchmarks/service_under_attack.py --out benchmarks/results/service_under_attack.json

Each attack meets a fresh service process at its usual limits, beside one client that asks for the score of a
picture over and over, on a connection of its own each time. Noted are the resident memory of the service
before, at its peak and ten seconds after, the good client's latencies, and how many of the bad connections
are still open at the end. `--code` measures another checkout of the library, such as an earlier one.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import torch
from PIL import Image

from unirl_env.rewards.wire import TENSORS, ScoreRequest, encode_request
from unirl_env.types import Prompt, Sample

ROOT = Path(__file__).parents[1]
CLIENTS = 300
PICTURE = 256
PACE = 0.25
"""Seconds between two bytes that trickle, and between two questions of the good client."""
HOST = "127.0.0.1"


class Service:
    """A service process, and what it takes."""

    def __init__(self, code: Path):
        words = [sys.executable, "-m", "unirl_env.service", "--reward", "jpeg", "port=0"]
        environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True, cwd="/")
        for line in self.process.stdout:
            if line.startswith("Ready at"):
                self.port = int(line.strip().rpartition(":")[2])
                break

    def memory(self, name: str = "VmRSS") -> float:
        """Megabytes that are resident now, or were at the peak (`VmHWM`)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split(f"{name}:")[1].split()[0]) / 1024

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


Attack = Callable[[int], Awaitable[list[Any]]]


async def connected(port: int, sent: bytes = b"") -> asyncio.StreamWriter:
    """A connection that has said `sent`."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(sent)
    writer.reader = reader
    return writer


async def trickle(writer: asyncio.StreamWriter, piece: bytes) -> None:
    """Say a little now and then, as long as the other side listens."""
    with contextlib.suppress(OSError):
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(PACE)


async def crowd(port: int, sent: bytes, piece: bytes = b"", count: int = CLIENTS) -> list[Any]:
    """Connections that begin with `sent` and trickle `piece`."""
    writers = await asyncio.gather(*(connected(port, sent) for _ in range(count)))
    if piece:
        for writer in writers:
            writer.task = asyncio.create_task(trickle(writer, piece))
    return list(writers)


async def post(port: int, content: bytes, kind: str, count: int) -> list[Any]:
    """The same request from several clients at once; what they were told."""

    async def one() -> int | str:
        # A client that trusts nobody is made in no time, and there is nothing to encrypt here.
        async with httpx.AsyncClient(timeout=120, verify=False) as client:
            try:
                url = f"http://{HOST}:{port}/score"
                return (await client.post(url, content=content, headers={"Content-Type": kind})).status_code
            except httpx.HTTPError as error:
                return type(error).__name__

    return list(await asyncio.gather(*(one() for _ in range(count))))


def head(length: int) -> bytes:
    """The head of a request whose body has `length` bytes."""
    lines = ("POST /score HTTP/1.1", "Host: a", "Content-Type: application/json", f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def flat_png(side: int) -> bytes:
    """A picture of one colour: many pixels in few bytes."""
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (9, 9, 9)).save(stream, "PNG")
    return stream.getvalue()


def in_json(sample: dict[str, Any], prompt: dict[str, Any], times: int = 1) -> bytes:
    """A request with the same item several times."""
    item = {"sample": sample, "prompt": {"text": "x", **prompt}}
    return json.dumps({"reward": "jpeg", "items": [item] * times}).encode()


def one_picture_often(times: int) -> bytes:
    """A request of `times` samples that are all the same tensor of the file."""
    picture = torch.rand(3, 2048, 2048)
    sound = encode_request(ScoreRequest("", "jpeg", (Sample(image=picture),), (Prompt("x"),)))
    from safetensors.torch import load, save

    tensors = load(sound)
    words = json.loads(tensors["request"].numpy().tobytes())
    words["items"] = words["items"] * times
    tensors["request"] = torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)
    return save(tensors)


def attacks() -> dict[str, Attack]:
    """By name, what a bad client does to the port."""
    big = base64.b64encode(flat_png(3900)).decode()
    small = base64.b64encode(flat_png(1)).decode()
    values = "[" + ",".join(["[]"] * 9_000_000) + "]"
    nested = (
        b'{"reward": "jpeg", "items": [{"sample": {}, "prompt": {"text": "x", "metadata": {"a": %s}}}]}'
        % (values.encode())
    )
    return {
        "nothing": lambda port: crowd(port, b"", count=0),
        "300 silent": lambda port: crowd(port, b""),
        "1000 silent": lambda port: crowd(port, b"", count=1000),
        "300 trickle a head": lambda port: crowd(port, b"POST /score HTTP/1.1\r\nX: ", b"a"),
        "300 trickle a body": lambda port: crowd(port, head(10**6), b" "),
        "20 heads without an end": lambda port: crowd(
            port, b"GET /health HTTP/1.1\r\n", b"X: " + b"a" * 2**18 + b"\r\n", 20
        ),
        "20 x 40 pictures of 15 million pixels in 50 kB": lambda port: post(
            port, in_json({"pictures_png": [big] * 40}, {}), "application/json", 20
        ),
        "20 x 50 000 pictures of a pixel": lambda port: post(
            port, in_json({"image_png": small}, {"images_png": [small] * 50_000}), "application/json", 20
        ),
        "20 x 9 million lists in 27 MB": lambda port: post(port, nested, "application/json", 20),
        "4 x one picture 1000 times": lambda port: post(port, one_picture_often(1000), TENSORS, 4),
    }


async def measured(service: Service, attack: Attack, seconds: float) -> dict[str, Any]:
    """One attack, and what came of it."""
    picture = Sample(image=torch.rand(3, PICTURE, PICTURE))
    good = encode_request(ScoreRequest("", "jpeg", (picture,), (Prompt("x"),)))
    latencies: list[float] = []
    failed = 0
    peak = 0.0
    ended = False

    async def ask() -> None:
        nonlocal failed
        while not ended:
            began = time.perf_counter()
            said = await post(service.port, good, TENSORS, 1)
            latencies.append(time.perf_counter() - began)
            failed += said != [200]
            await asyncio.sleep(PACE)

    async def watch() -> None:
        nonlocal peak
        while not ended:
            peak = max(peak, service.memory())
            await asyncio.sleep(0.02)

    await post(service.port, good, TENSORS, 3)
    before = service.memory()
    watching = asyncio.create_task(watch())
    asking = asyncio.create_task(ask())
    began = time.perf_counter()
    said = await attack(service.port)
    await asyncio.sleep(max(0.0, seconds - (time.perf_counter() - began)))
    lasted = time.perf_counter() - began
    writers = [one for one in said if isinstance(one, asyncio.StreamWriter)]
    open_still = sum(not one.is_closing() and not one.reader.at_eof() for one in writers)
    ended = True
    await asyncio.gather(watching, asking)
    for writer in writers:
        writer.close()
    await asyncio.sleep(10)
    answers = [one for one in said if not isinstance(one, asyncio.StreamWriter)]
    return {
        "seconds": round(lasted, 1),
        "rss_mb": {"before": round(before), "peak": round(peak), "after": round(service.memory())},
        "good_client": {
            "asked": len(latencies),
            "failed": failed,
            "p50_ms": round(1000 * statistics.median(latencies), 1),
            "max_ms": round(1000 * max(latencies), 1),
        },
        "open_at_the_end": open_still if writers else 0,
        "answers": {str(one): answers.count(one) for one in dict.fromkeys(answers)},
    }


def main() -> None:
    """Measure all attacks, or those whose names hold a word."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--code", type=Path, default=ROOT, help="the checkout that is measured")
    parser.add_argument("--seconds", type=float, default=75.0, help="of each attack, at least")
    parser.add_argument("--only", default="", help="a word in the names of attacks")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = {}
    for name, attack in attacks().items():
        if given.only not in name:
            continue
        service = Service(given.code.resolve())
        try:
            found[name] = asyncio.run(measured(service, attack, given.seconds))
        finally:
            service.close()
        print(name, json.dumps(found[name]), flush=True)
        if given.out is not None:
            given.out.write_text(json.dumps({"cores": os.cpu_count(), "attacks": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
