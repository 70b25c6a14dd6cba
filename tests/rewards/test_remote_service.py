"""The remote scorer and the real service: what comes back is bitwise what the scorer gives here."""

import json
import threading
import time

import gymnasium as gym
import numpy as np
import pytest
import torch

import unirl_env  # noqa: F401
from unirl_env.errors import ConfigError, ContractError
from unirl_env.prompts import shapes
from unirl_env.rewards import RemoteScorer, build_scorer, score_safely
from unirl_env.rewards.wire import Limits
from unirl_env.types import Prompt, Sample, Scores

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

TOKEN = "a-token-for-these-tests"
REWARDS = {
    "shapes": "shapes",
    "template": "template",
    "exact": "exact",
    "format": "format",
    "length": {"name": "length", "target": 60, "width": 50, "unit": "characters"},
    "math": "math",
    "linear": {"name": "linear", "weights": 0.37},
    "overlong": {"name": "overlong", "scorer": "exact", "mode": "soft", "max_tokens": 8, "buffer": 4},
    "sum": {"name": "weighted_sum", "parts": {"shapes": 0.7, "template": {"weight": 0.3}}},
    "watched": {"name": "weighted_sum", "parts": {"shapes": 1.0, "linear": 0.0}},
    "product": {"name": "product", "parts": {"shapes": {}, "template": {}}},
    "minimum": {"name": "minimum", "parts": {"shapes": {}, "template": {}}},
    "gate": {"name": "gate", "gate": "template", "scorer": "shapes", "threshold": 0.5},
    "pictured": {"name": "pictured", "scorer": "shapes"},
    "normalized": {"name": "normalized", "scorer": "sharpness", "mean": 0.2, "std": 0.3},
    "geneval": {"name": "geneval", "detector": "shapes", "value": "soft"},
    "jpeg": "jpeg",
    "sharpness": "sharpness",
    "saturation": "saturation",
    "regex": {"name": "regex", "pattern": "so so"},
    "over_frames": {"name": "over_frames", "scorer": "shapes"},
    "motion": "motion",
    "temporal_consistency": "temporal_consistency",
}
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


class Batch:
    """A scorer whose scores depend on their company."""

    name = "batch"

    def __call__(self, samples, prompts):
        lengths = torch.tensor([float(len(sample.text)) for sample in samples])
        return Scores(lengths - lengths.mean(), {"count": torch.full((len(samples),), float(len(samples)))})


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The words for a CLIP of random weights."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clip")
    (folder / "Tiny-Remote.json").write_text(json.dumps(CLIP))
    open_clip.add_model_config(folder / "Tiny-Remote.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("Tiny-Remote").state_dict(), folder / "weights.pt")
    return {
        "name": "clip",
        "model": "Tiny-Remote",
        "pretrained": str(folder / "weights.pt"),
        "rows_per_forward": 4,
    }


class Running:
    """An app behind a port of this machine, in a thread."""

    def __init__(self, app):
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    def stop(self):
        self.server.should_exit = True
        self.thread.join(10)


def serving(scorers, **settings):
    from unirl_env.service.app import create_app
    from unirl_env.service.service_settings import ServiceSettings

    return Running(create_app(ServiceSettings(**settings), token=TOKEN, scorers=scorers))


@pytest.fixture(scope="module")
def url(clip):
    scorers = {name: build_scorer(spec) for name, spec in {**REWARDS, "clip": clip}.items()}
    running = serving({**scorers, "batch": Batch()})
    yield running.url
    running.stop()


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("UNIRL_SERVICE_TOKEN", TOKEN)


def judged(count=21, seed=0):
    """Samples of all kinds with their prompts; some pictures are good, some bad, and one is not finite."""
    captions = shapes.all_captions("place")[:count]
    drawn = shapes.draw(captions[::-1], np.random.default_rng(seed), 32)
    drawn[::2] = shapes.draw(captions, np.random.default_rng(seed + 1), 32)[::2]
    noise = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    pictures = (0.9 * torch.as_tensor(drawn) + 0.1 * noise).clamp(0, 1).float()
    pictures[3, 1, 5, 5] = torch.nan
    samples, prompts = [], []
    for i, caption in enumerate(captions):
        text = f"<think>{'so ' * i}</think> the answer is $\\frac{{{i}}}{{{2 + i % 2}}}$"
        samples.append(
            Sample(
                image=pictures[i],
                video=torch.stack([pictures[i].roll(k * (i % 3), -1) for k in range(3)]),
                text=str(i % 3) if i % 4 == 0 else text,
                latent=noise[i, :, :2, :2].contiguous(),
                tokens=torch.arange(i % 12),
                truncated=i % 5 == 0,
            )
        )
        prompts.append(Prompt(caption.text, metadata={"answer": f"{i}/2" if i % 4 else "0"}))
    return samples, prompts


def assert_bitwise(left, right):
    assert left.valid.tolist() == right.valid.tolist()
    assert left.value.view(torch.int32).tolist() == right.value.view(torch.int32).tolist()
    assert list(left.parts) == list(right.parts)
    for name, part in left.parts.items():
        assert part.isnan().tolist() == right.parts[name].isnan().tolist(), name
        assert torch.equal(part.nan_to_num(9.0), right.parts[name].nan_to_num(9.0)), name


@pytest.mark.parametrize("reward", [*REWARDS, "clip"])
@pytest.mark.parametrize("request_size", [4, 100])
def test_remote_scores_are_local_scores(url, clip, reward, request_size):
    local = build_scorer({**REWARDS, "clip": clip}[reward])
    remote = RemoteScorer(url, reward, request_size=request_size)
    assert remote.pointwise == getattr(local, "pointwise", False)
    expected = score_safely(local, *judged())
    assert_bitwise(score_safely(remote, *judged()), expected)
    assert expected.valid.any() and expected.value[expected.valid].unique().numel() > 1
    assert remote.counts["failures"] == 0


def test_scores_that_depend_on_their_company_get_it_whole(url):
    remote = RemoteScorer(url, "batch", request_size=2)
    assert_bitwise(remote(*judged()), Batch()(*judged()))


def test_many_clients_at_once_get_their_own_scores(url):
    names = ["shapes", "exact", "clip", "sum"]
    expected = {name: RemoteScorer(url, name, request_size=100)(*judged()) for name in names}
    found = []

    def ask(name, size):
        scores = RemoteScorer(url, name, request_size=size, concurrency=8)(*judged())
        found.append((name, scores))

    threads = [threading.Thread(target=ask, args=(name, size)) for name in names for size in (1, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for name, scores in found:
        assert_bitwise(scores, expected[name])


def test_pictures_as_png_score_as_their_rounded_copies(url):
    samples, prompts = judged(6)
    rounded = [Sample(image=(sample.image * 255).round() / 255) for sample in samples]
    found = RemoteScorer(url, "template", png=True)(samples, prompts)
    assert_bitwise(found, build_scorer("template")(rounded, prompts))


def test_refusals_of_the_real_service_mean_what_they_say(url, monkeypatch):
    exact = RemoteScorer(url, "exact")
    samples, prompts = judged(4)
    with pytest.raises(ContractError, match=r"got 422: .*answer"):
        score_safely(exact, samples, [Prompt("no answer is known")] * 4)
    exact.reward = "inexact"
    with pytest.raises(ConfigError, match=r"got 404: .*'inexact'"):
        exact(samples, prompts)
    monkeypatch.setenv("UNIRL_SERVICE_TOKEN", "wrong-token-wrong-token")
    with pytest.raises(ConfigError, match=r"got 401.*UNIRL_SERVICE_TOKEN"):
        RemoteScorer(url, "exact")


def test_requests_too_large_for_the_real_service_are_halved():
    running = serving({"template": build_scorer("template")}, limits=Limits(body=60_000, samples=64))
    try:
        samples, prompts = judged(21)
        remote = RemoteScorer(running.url, "template", request_size=21)
        assert_bitwise(remote(samples, prompts), build_scorer("template")(samples, prompts))
        assert remote.counts["attempts"] > 8
    finally:
        running.stop()


def test_a_full_service_and_a_draining_one_are_come_round_by():
    scorer = build_scorer("template")

    class Slow:
        pointwise, needs, name = True, ("image",), "template"

        def __call__(self, samples, prompts):
            time.sleep(0.05)
            return scorer(samples, prompts)

    full = serving({"template": Slow()}, max_waiting=2, max_batch=2, limits=Limits(samples=2))
    other = serving({"template": Slow()})
    try:
        samples, prompts = judged(21)
        remote = RemoteScorer([full.url, other.url], "template", request_size=2, backoff=0.02)
        assert_bitwise(remote(samples, prompts), scorer(samples, prompts))
        assert remote.counts["full"] and not remote.counts["failures"]
        full.server.config.app.state.service.drain()
        remote = RemoteScorer([full.url, other.url], "template", request_size=2, backoff=0.02)
        assert_bitwise(remote(samples, prompts), scorer(samples, prompts))
        assert remote.counts["failures"] >= 1
    finally:
        full.stop()
        other.stop()


def test_an_environment_paid_by_the_service_is_the_one_paid_here(url):
    def walked(scorer):
        env = gym.make_vec(
            "unirl/TinySD3-T2I-v0",
            num_envs=4,
            info_objects=True,
            vectorization_mode="vector_entry_point",
            num_steps=2,
            array_backend="torch",
            scorer=scorer,
        )
        obs, _ = env.reset(seed=3)
        generator = torch.Generator().manual_seed(5)
        paid = []
        for _ in range(2):
            action = obs["latent"] + 0.1 * torch.randn(obs["latent"].shape, generator=generator)
            obs, reward, _, _, info = env.step(action)
            paid.append(reward)
        env.close()
        return torch.stack(paid), info["scores"]

    remote, remote_scores = walked({"name": "remote", "urls": [url], "reward": "shapes"})
    local, local_scores = walked("shapes")
    assert torch.equal(remote, local) and remote[1].isfinite().all()
    assert_bitwise(remote_scores, local_scores)
