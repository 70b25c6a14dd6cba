"""vLLM in this process with pictures: real vLLM on a CPU with an untrained tiny Qwen3-VL."""

from dataclasses import replace

import pytest
import torch
from policies import gap, greedy, make_actor, picture_requests, train

from pretraining.qwen_vl_build import build_tiny_qwen_vl
from unirl_env.errors import ConfigError, EngineError
from unirl_env.models.qwen_vl import QwenVL
from unirl_env.rollouts.engines import ENGINES, Request
from unirl_env.types import Prompt

pytest.importorskip("vllm", reason="vLLM is not installed here; `make test-vllm` installs it")


@pytest.fixture(scope="module")
def model(tmp_path_factory, quiet_models):
    return QwenVL(str(build_tiny_qwen_vl(tmp_path_factory.mktemp("models") / "vl", seed=2)), max_images=2)


@pytest.fixture(scope="module", params=[None, 4], ids=["all weights", "adapters"])
def rank(request):
    return request.param


@pytest.fixture(scope="module")
def engine(model, rank):
    made = ENGINES.get("vllm")(
        model.pretrained,
        eos_ids=model.eos_ids,
        lora_rank=rank,
        dtype="float32",
        max_images=model.max_images,
        min_pixels=model.min_pixels,
        max_pixels=model.max_pixels,
        cache_bytes=64 << 20,
        options={"max_num_seqs": 16},
    )
    yield made
    made.close()


def answers(engine, asked, **options):
    return [answer.tokens for answer in engine.generate(asked, **options)]


def test_answers_and_log_probs_are_the_trained_networks(engine, model, rank):
    actor, asked = make_actor(rank, model), picture_requests(model)
    untrained = greedy(actor, asked)
    assert answers(engine, asked, temperature=0, base=True) == untrained
    for version in (1, 2):
        train(actor, seed=version)
        engine.load_weights(version, actor)
        assert answers(engine, asked, temperature=0) == greedy(actor, asked)
        # The same pictures again, whose features the engine keeps.
        assert gap(actor, asked, engine.generate(asked)) < 1e-4
        train(actor, seed=version + 10)
        assert answers(engine, asked, temperature=0) != greedy(actor, asked)
    assert answers(engine, asked, temperature=0, base=True) == untrained


def test_a_continuation_is_read_behind_the_pictures(engine, model, rank):
    actor = train(make_actor(rank, model), seed=4)
    engine.load_weights(1, actor)
    asked = picture_requests(model)
    whole = answers(engine, asked, temperature=0)
    later = [
        replace(one, tokens=one.tokens + said[:4], position=4, max_new_tokens=8)
        for one, said in zip(asked, whole, strict=True)
    ]
    assert answers(engine, later, temperature=0) == [said[4:] for said in whole]


def test_other_pixel_limits_are_noticed(engine, model):
    other = QwenVL(model.pretrained, min_pixels=4 * 16**2, max_pixels=64**2)
    prompt = Prompt("what ?", images=(torch.rand(3, 64, 64),))
    read = other.encode(prompt)
    asked = Request(tuple(read.tokens.tolist()), prompt, read.inputs, max_new_tokens=2)
    with pytest.raises(EngineError, match=r"resizes pictures otherwise; try `min_pixels`"):
        engine.generate([asked], base=True)


def test_more_pictures_than_the_engine_expects_are_refused(engine):
    prompt = Prompt("what ?", images=(torch.rand(3, 32, 32),) * 3)
    with pytest.raises(EngineError, match="try an engine with `max_images=3`"):
        engine.generate([Request((1, 2), prompt)], base=True)


def test_sglang_takes_no_pictures(model):
    with pytest.raises(ConfigError, match="take vLLM"):
        ENGINES.get("sglang")(model.pretrained, eos_ids=model.eos_ids, max_images=1)
