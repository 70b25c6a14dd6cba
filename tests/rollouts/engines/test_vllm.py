"""vLLM in this process, all weights trained: real vLLM on a CPU with the embedded model."""

import pytest
import torch
from policies import MAX_LENGTH, gap, greedy, make_actor, requests, train

from unirl_env.errors import ConfigError, EngineError, StaleWeights
from unirl_env.rollouts.engines import ENGINES, Request, vllm
from unirl_env.types import Prompt

pytest.importorskip("vllm", reason="vLLM is not installed here; `make test-vllm` installs it")


@pytest.fixture(scope="module")
def engine():
    model = make_actor().model
    before = torch.get_rng_state()
    made = ENGINES.get("vllm")(
        model.pretrained,
        eos_ids=model.eos_ids,
        max_length=MAX_LENGTH,
        dtype="float32",
        cache_bytes=64 << 20,
        options={"max_num_seqs": 32},
    )
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(StaleWeights, match="call `load_weights` first"):
        made.generate(requests())
    yield made
    made.close()
    assert not torch.distributed.is_initialized()


@pytest.fixture(scope="module")
def untrained():
    return make_actor()


def answers(engine, asked, **options):
    return [answer.tokens for answer in engine.generate(asked, **options)]


@pytest.fixture(params=["memory", "folder"])
def way(engine, request, monkeypatch):
    """How all weights reach the engine: whatever goes the other way fails."""
    monkeypatch.setattr(engine, "_in_memory", request.param == "memory")
    if request.param == "memory":
        monkeypatch.setattr(engine._folder, "write", lambda label, actor: pytest.fail("nothing is written"))
    else:
        monkeypatch.setattr(vllm, "written_state", lambda network: pytest.fail("they are read from files"))
    return request.param


def test_greedy_answers_are_the_trained_networks_after_each_publication(engine, untrained, way):
    actor, asked = make_actor(), requests()
    engine.load_weights(1, actor)
    for version in (2, 3):
        assert answers(engine, asked, temperature=0) == greedy(actor, asked)
        train(actor, seed=version)
        # The same comparison, without the publication.
        assert answers(engine, asked, temperature=0) != greedy(actor, asked)
        engine.load_weights(version, actor)
        assert engine.weights_version == version
    assert answers(engine, asked, temperature=0) == greedy(actor, asked)
    assert answers(engine, asked, temperature=0, base=True) == greedy(untrained, asked)
    assert answers(engine, asked, temperature=0) == greedy(actor, asked)


@pytest.mark.parametrize("forgotten", ["reset_prefix_cache", "repack_heads"])
def test_the_comparison_sees_what_stays_of_old_weights(engine, monkeypatch, forgotten):
    """Long prompts show cached states, the tied output layer shows packed weights."""
    actor, asked = train(make_actor(), seed=3), requests()
    engine.load_weights(1, actor)
    assert answers(engine, asked, temperature=0) == greedy(actor, asked)
    train(actor, seed=4)
    with monkeypatch.context() as patched:
        real = engine._llm.collective_rpc
        if forgotten == "reset_prefix_cache":
            patched.setattr(engine._llm, forgotten, lambda: True)
        else:
            call = lambda name, **kwargs: None if name == forgotten else real(name, **kwargs)  # noqa: E731
            patched.setattr(engine._llm, "collective_rpc", call)
        engine.load_weights(2, actor)
    assert answers(engine, asked, temperature=0) != greedy(actor, asked)
    engine.load_weights(3, actor)
    assert answers(engine, asked, temperature=0) == greedy(actor, asked)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 0.9, "top_p": 0.9},
        {"temperature": 0.8, "top_k": 20},
        {"temperature": 1.2, "top_p": 0.8, "top_k": 12},
    ],
    ids=str,
)
def test_log_probs_are_those_of_our_own_scoring(engine, monkeypatch, settings):
    actor = train(make_actor(**settings), seed=5)
    for name in ("temperature", "top_p", "top_k"):
        monkeypatch.setattr(engine, name, getattr(actor.head(), name))
    asked = requests(16)
    engine.load_weights(1, actor)
    assert gap(actor, asked, engine.generate(asked)) < 1e-4


def test_greedy_answers_have_log_prob_zero(engine, untrained):
    engine.load_weights(1, untrained)
    assert {value for answer in engine.generate(requests(), temperature=0) for value in answer.log_probs} == {
        0.0
    }


def test_draws_are_keyed_by_episode_and_position(engine, untrained):
    engine.load_weights(1, untrained)
    asked = requests(12)
    together = engine.generate(asked)
    assert [answer.tokens for answer in engine.generate(asked[::-1])] == [a.tokens for a in together[::-1]]
    assert engine.generate(asked[5:6])[0].tokens == together[5].tokens
    one = asked[5]
    for other in (
        Request(one.tokens, one.prompt, seed=one.seed + 1, max_new_tokens=24),
        Request(one.tokens, one.prompt, seed=one.seed, position=1, max_new_tokens=24),
    ):
        assert engine.generate([other])[0].tokens != together[5].tokens


def test_an_answer_may_be_its_end_alone_and_ends_nowhere_else(engine, untrained, monkeypatch):
    engine.load_weights(1, untrained)
    (request,) = requests(1)
    first = engine.generate([request], temperature=0)[0].tokens[0]
    monkeypatch.setattr(engine, "eos_ids", (first,))
    assert answers(engine, [request], temperature=0) == [(first,)]
    # Without any, the model's own end tokens do not end the answer either.
    monkeypatch.setattr(engine, "eos_ids", ())
    assert len(engine.generate([request])[0].tokens) == request.max_new_tokens


def test_no_requests_no_answers(engine):
    assert engine.generate([]) == []


def test_weights_that_others_loaded_are_refused(engine, untrained):
    engine.load_weights(1, untrained)
    engine._llm.update_weight_version("somebody else's")
    with pytest.raises(StaleWeights, match="somebody else's"):
        engine.generate(requests(2))
    engine.load_weights(2, untrained)
    assert len(engine.generate(requests(2))) == 2


def test_a_policy_that_has_moved_on_is_not_taken_for_what_was_published(engine, untrained):
    actor, asked = train(make_actor(), seed=6), requests()
    engine.load_weights(1, actor)
    wanted = greedy(actor, asked)
    train(actor, seed=7)
    assert answers(engine, asked, temperature=0) == wanted, "the engine has copies"
    assert answers(engine, asked, temperature=0, base=True) == greedy(untrained, asked)
    with pytest.raises(StaleWeights, match="must still have the weights that were published"):
        engine.generate(asked)
    engine.load_weights(2, actor)
    assert answers(engine, asked, temperature=0) == greedy(actor, asked)


def test_weights_that_cannot_be_read_leave_no_version(engine, untrained, way, monkeypatch):
    engine.load_weights(1, untrained)
    actor = make_actor()
    if way == "folder":
        monkeypatch.setattr(actor.model, "save_weights", lambda network, directory: None)
    else:
        wrong = {"model.no_such.weight": torch.zeros(3)}
        monkeypatch.setattr(vllm, "written_state", lambda network: wrong)
    with pytest.raises(EngineError, match="vLLM refused"):
        engine.load_weights(2, actor)
    monkeypatch.undo()
    assert engine.weights_version is None
    with pytest.raises(StaleWeights):
        engine.generate(requests(1))
    engine.load_weights(3, untrained)
    assert answers(engine, requests(), temperature=0) == greedy(untrained, requests())


def test_too_long_a_context_is_refused_with_a_remedy(engine, untrained):
    engine.load_weights(1, untrained)
    fits = Request((65,) * (MAX_LENGTH - 4), Prompt("long"), max_new_tokens=4)
    assert len(engine.generate([fits])) == 1
    with pytest.raises(EngineError, match=r"fit into 512 tokens, got 508 \+ 5; try .*`max_length=513`"):
        engine.generate([Request(fits.tokens, fits.prompt, max_new_tokens=5)])


def test_a_policy_with_adapters_needs_an_engine_with_adapters(engine):
    with pytest.raises(ConfigError, match="make the engine with `lora_rank=4`"):
        engine.load_weights(1, make_actor(rank=4))
