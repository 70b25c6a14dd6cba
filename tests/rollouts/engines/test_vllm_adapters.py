"""vLLM in this process, adapters trained: real vLLM on a CPU with the embedded model."""

import os

import pytest
import torch
from policies import MAX_LENGTH, gap, greedy, make_actor, requests, train

from unirl_env.envs.writing import TokenVectorEnv
from unirl_env.errors import EngineError, StaleWeights
from unirl_env.policies.packing import pack_continuations
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.drivers.tokens import TextDriver
from unirl_env.rollouts.engines import ENGINES
from unirl_env.rollouts.engines.local import LocalEngine
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Prompt, Scores
from unirl_env.wrappers import RewardWrapper

pytest.importorskip("vllm", reason="vLLM is not installed here; `make test-vllm` installs it")


@pytest.fixture(scope="module")
def engine():
    model = make_actor().model
    made = ENGINES.get("vllm")(
        model.pretrained,
        eos_ids=model.eos_ids,
        lora_rank=6,
        max_length=MAX_LENGTH,
        dtype="float32",
        cache_bytes=64 << 20,
        options={"max_num_seqs": 32},
    )
    yield made
    made.close()


def answers(engine, asked, **options):
    return [answer.tokens for answer in engine.generate(asked, **options)]


def test_greedy_answers_are_the_trained_networks_after_each_publication(engine):
    actor, asked = make_actor(rank=6), requests()
    untrained = greedy(actor, asked)
    assert answers(engine, asked, temperature=0, base=True) == untrained
    engine.load_weights(1, actor)
    for version in (2, 3, 4):
        assert answers(engine, asked, temperature=0) == greedy(actor, asked)
        train(actor, seed=version)
        # The same comparison, without the publication.
        assert answers(engine, asked, temperature=0) != greedy(actor, asked)
        engine.load_weights(version, actor)
        assert answers(engine, asked, temperature=0, base=True) == untrained
    assert answers(engine, asked, temperature=0) == greedy(actor, asked)
    assert engine._llm.llm_engine.list_loras() == {engine._count}


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_p": 0.9}], ids=str)
def test_log_probs_are_those_of_our_own_scoring(engine, monkeypatch, settings):
    actor = train(make_actor(rank=6, **settings), seed=5)
    for name in ("temperature", "top_p", "top_k"):
        monkeypatch.setattr(engine, name, getattr(actor.head(), name))
    asked = requests(16)
    engine.load_weights(1, actor)
    assert gap(actor, asked, engine.generate(asked)) < 1e-4


def test_only_the_adapters_in_use_stay_on_the_disk(engine):
    actor = train(make_actor(rank=6), seed=1)
    directories = []
    for version in (1, 1, 2):
        engine.load_weights(version, actor)
        directories += list(engine._folder._made)
    assert [os.path.isdir(directory) for directory in directories] == [False, False, True]


def test_adapters_that_cannot_be_read_leave_no_version(engine, monkeypatch):
    actor = make_actor(rank=6)
    engine.load_weights(1, actor)
    monkeypatch.setattr(actor.model, "save_adapters", lambda network, directory: None)
    with pytest.raises(EngineError, match="vLLM refused"):
        engine.load_weights(2, actor)
    with pytest.raises(StaleWeights):
        engine.generate(requests(1))


def test_a_restart_forgets_the_weights_and_nothing_else(engine):
    actor, asked = train(make_actor(rank=6), seed=7), requests(8)
    engine.load_weights(5, actor)
    before = engine.generate(asked)
    engine.restart()
    assert engine.weights_version is None
    engine.load_weights(5, actor)
    assert [answer.tokens for answer in engine.generate(asked)] == [answer.tokens for answer in before]


def test_rollouts_agree_with_those_of_the_policys_own_network(engine):
    """Answers, a tool's replies and rewards; then the learner's scoring of what vLLM sampled."""
    # A small change: the embedded model must still end its turns, or the tool is never asked.
    actor = train(make_actor(rank=6), seed=6, size=0.004)
    model = actor.model

    def make_env(num_envs):
        env = TokenVectorEnv(
            model,
            num_envs=num_envs,
            prompts=["unused"],
            max_prompt_tokens=160,
            max_new_tokens=60,
            tool=lambda text, prompt: f"you said {text[:3]!r}",
            max_turns=3,
            array_backend="torch",
            autoreset_mode="disabled",
        )
        return RewardWrapper(env, lambda samples, prompts: Scores([float(len(s.tokens)) for s in samples]))

    prompts = [Prompt("37+48="), Prompt("tell me a story " * 9)]
    mine = Rollout(make_env, {"text": TextDriver(LocalEngine(actor))})
    theirs = Rollout(make_env, {"text": TextDriver(engine, actor)})
    theirs.load_weights(1)
    mine.load_weights(1)
    expected = mine.collect(RolloutRequest(prompts, seed=3, group_size=2, weights_version=1, temperature=0))
    batch = theirs.collect(RolloutRequest(prompts, seed=3, group_size=2, weights_version=1, temperature=0))
    assert torch.equal(batch.phases["text"].action, expected.phases["text"].action)
    assert torch.equal(batch.phases["text"].mask, expected.phases["text"].mask)
    assert torch.equal(batch.rewards, expected.rewards)
    assert ((batch.phases["text"].action >= 0) & ~batch.phases["text"].mask).any()  # the tool spoke

    batch = theirs.collect(RolloutRequest(prompts, seed=3, group_size=8, weights_version=1))
    phase = batch.phases["text"]
    packed = pack_continuations(phase, torch.arange(len(batch)))
    with torch.no_grad():
        scored = actor.score(packed.observation, packed.action).log_prob
    assert (scored - phase.log_prob[packed.episode, packed.step]).abs().max() < 1e-4
    assert len(set(map(tuple, phase.action.tolist()))) > 8


def test_a_model_that_is_nowhere_is_named(tmp_path):
    with pytest.raises(EngineError, match=r"must be able to serve .*nowhere.*Check that the directory"):
        ENGINES.get("vllm")(str(tmp_path / "nowhere"), eos_ids=(1,), dtype="float32", cache_bytes=64 << 20)
