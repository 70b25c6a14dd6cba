"""What the tests of the service share: scorers that count, requests, clients of an app in this process."""

import asyncio
import base64
import io
import json
import threading

import httpx
import torch
from PIL import Image

from unirl_env.errors import ContractError
from unirl_env.rewards.wire import TENSORS, ScoreRequest, encode_request
from unirl_env.service.app import create_app
from unirl_env.service.service_settings import ServiceSettings
from unirl_env.types import Prompt, Sample, Scores

TOKEN = "a-token-of-the-tests-0123456789"


class Counting:
    """The number of characters of every text; remembers who asked for what, in which thread."""

    name = "counting"
    needs = ("text",)

    def __init__(self, pointwise=True):
        self.pointwise = pointwise
        self.calls, self.threads = [], set()
        self.gate = threading.Event()  # closed gates hold a call up
        self.gate.set()
        self.inside = threading.Event()

    def __call__(self, samples, prompts):
        self.calls.append([sample.text for sample in samples])
        self.threads.add(threading.get_ident())
        self.inside.set()
        self.gate.wait(20)
        if any(sample.text is None for sample in samples):
            raise ContractError("`Sample.text` must be there; try another sample.")
        if any(sample.text == "boom" for sample in samples):
            raise RuntimeError("a secret of /the/server")
        lengths = torch.tensor([float(len(sample.text)) for sample in samples])
        return Scores(lengths, {"company": torch.full((len(samples),), float(len(samples)))})


def made(scorers=None, *, token=None, **changes):
    """An app, and its scorer if it is only one."""
    scorers = scorers or {"count": Counting()}
    settings = ServiceSettings(**changes)
    return create_app(settings, token=token, scorers=scorers), next(iter(scorers.values()))


def client(app, **options):
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    return httpx.AsyncClient(transport=transport, base_url="http://service", timeout=60, **options)


def called(app, method, path, **options):
    """One request; for tests that need no company."""

    async def action():
        async with client(app) as caller:
            return await caller.request(method, path, **options)

    return asyncio.run(action())


def body(texts, reward="count", id="", metadata=None):
    prompt = {"text": "x", "metadata": metadata or {}}
    return {
        "id": id,
        "reward": reward,
        "items": [{"sample": {} if text is None else {"text": text}, "prompt": prompt} for text in texts],
    }


def asked(app, texts, **options):
    return called(app, "POST", "/score", json=body(texts, **options))


def values(reply):
    assert reply.status_code == 200, reply.text
    return reply.json()["scores"]["value"]


def tensors(samples, prompts=None, reward="count", id=""):
    """A request in tensors, as keywords of a call."""
    prompts = prompts or [Prompt("x")] * len(samples)
    content = encode_request(ScoreRequest(id, reward, tuple(samples), tuple(prompts)))
    return {"content": content, "headers": {"Content-Type": TENSORS}}


def error(reply):
    """`(status, code, message)` of an answer that must have the one form of errors."""
    assert set(reply.json()) == {"error"} and set(reply.json()["error"]) == {"code", "message"}
    assert "Traceback" not in reply.text and '.py"' not in reply.text
    return reply.status_code, reply.json()["error"]["code"], reply.json()["error"]["message"]


def metric(app, name, **labels):
    """The value of one counter; 0 where it was never counted."""
    return app.state.service.metrics.registry.get_sample_value(f"unirl_service_{name}", labels) or 0.0


def png(height=4, width=4, shade=128, kind="RGB"):
    stream = io.BytesIO()
    Image.new(kind, (width, height), (shade,) * 3 if kind == "RGB" else shade).save(stream, "PNG")
    return stream.getvalue()


def png64(**options):
    return base64.b64encode(png(**options)).decode()


async def until(condition, seconds=20):
    """Wait for something that happens in another thread."""
    for _ in range(int(seconds / 0.005)):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


def nested(depth):
    return json.loads("[" * depth + "]" * depth)


SAMPLE, PROMPT = Sample(text="four"), Prompt("x")
