"""Generation in this process: the same answers however they are asked for, with true log-probabilities."""

import pytest
import torch

import unirl_env.functional as F
from pretraining.qwen3_build import build_tiny_qwen3
from unirl_env.errors import ConfigError, EngineError
from unirl_env.models.causal_lm import CausalLM
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.rollouts.engines import ENGINES, Request
from unirl_env.rollouts.engines.local import LocalEngine
from unirl_env.types import Prompt

PROMPTS = [
    Prompt("1 + 1 = ?"),
    Prompt("say something longer than that"),
    Prompt("?"),
    Prompt("and 12 * 3 = ?"),
]


def sharpened(actor):
    """Untrained weights so large that tokens, places and masks matter."""
    with torch.no_grad():
        for parameter in actor.network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return actor


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return CausalLM(str(build_tiny_qwen3(tmp_path_factory.mktemp("models") / "qwen3", seed=5, width=64)))


@pytest.fixture(scope="module")
def actor(model):
    return sharpened(Actor(model))


def ask(model, prompts=PROMPTS, group=4, tokens=20, seed=0):
    """Groups of requests, whose members want answers of different lengths."""
    requests = []
    for prompt in prompts:
        encoded = model.encode(prompt)
        requests += [
            Request(
                tokens=tuple(encoded.tokens.tolist()),
                prompt=prompt,
                inputs=encoded.inputs,
                seed=F.episode_seed(seed, prompt.id, sample),
                max_new_tokens=tokens + sample,
            )
            for sample in range(group)
        ]
    return requests


def scored(actor, request, answer):
    """Log-probabilities of an answer as the learner computes them, without a cache."""
    tokens = torch.tensor(request.tokens + answer.tokens)[:-1]
    positions = torch.arange(len(tokens)).expand(actor.model.position_axes, -1)
    inputs = dict(request.inputs)
    if (known := inputs.pop("positions", None)) is not None:
        after = known.max() + 1 + torch.arange(len(tokens) - known.shape[1])
        positions = torch.cat([known, after.expand(3, -1)], 1)
    obs = {
        "tokens": tokens,
        "lengths": torch.tensor([len(tokens)]),
        "positions": positions,
        "source": torch.arange(len(request.tokens) - 1, len(tokens)),
        **inputs,
    }
    with torch.no_grad():
        return actor.score(obs, torch.tensor(answer.tokens)).log_prob


def deviation(actor, requests, answers):
    """The largest difference between the answers' own log-probabilities and the learner's."""
    return max(
        (scored(actor, request, answer) - torch.tensor(answer.log_probs)).abs().max().item()
        for request, answer in zip(requests, answers, strict=True)
    )


def assert_alike(found, expected):
    assert [answer.tokens for answer in found] == [answer.tokens for answer in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(
            torch.tensor(one.log_probs), torch.tensor(other.log_probs), rtol=0, atol=1e-5
        )


class TestTheLaw:
    @pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9}])
    def test_log_probs_are_those_of_the_learner(self, model, actor, sampling):
        own = Actor(model, **sampling)
        own.network = actor.network
        requests = ask(model, tokens=30)
        answers = LocalEngine(own).generate(requests)
        assert deviation(own, requests, answers) < 1e-5
        assert min(min(answer.log_probs) for answer in answers) < -0.5, "else they would agree too easily"

    def test_answers_do_not_depend_on_the_batch(self, model, actor):
        requests = ask(model)
        whole = LocalEngine(actor).generate(requests)
        assert len({answer.tokens for answer in whole}) > 8, "members of a group explore apart"
        assert_alike([LocalEngine(actor).generate([r])[0] for r in requests], whole)
        assert_alike(LocalEngine(actor).generate(requests[::-1])[::-1], whole)
        assert_alike(LocalEngine(actor, rows=3).generate(requests), whole)
        halves = [LocalEngine(actor).generate(requests[i::2]) for i in range(2)]
        assert_alike([halves[i % 2][i // 2] for i in range(len(requests))], whole)

    def test_an_answer_can_be_continued(self, model, actor):
        engine = LocalEngine(actor, eos_ids=())
        (request,) = ask(model, PROMPTS[:1], group=1, tokens=80)
        (whole,) = engine.generate([request])
        first = whole.tokens[:30]
        rest = Request(
            tokens=request.tokens + first,
            prompt=request.prompt,
            seed=request.seed,
            position=len(first),
            max_new_tokens=50,
        )
        (found,) = engine.generate([rest])
        assert first + found.tokens == whole.tokens and len(whole.tokens) == 80

    def test_greedy_is_that_of_transformers(self, model, actor):
        requests = ask(model, group=2)
        answers = LocalEngine(actor).generate(requests, temperature=0)
        for request, answer in zip(requests, answers, strict=True):
            made = actor.network.generate(
                torch.tensor([request.tokens]),
                do_sample=False,
                max_new_tokens=request.max_new_tokens,
                eos_token_id=list(model.eos_ids),
            )
            assert answer.tokens == tuple(made[0, len(request.tokens) :].tolist())
            assert set(answer.log_probs) == {0.0}

    def test_another_seed_is_another_answer(self, model, actor):
        engine = LocalEngine(actor)
        first, again, other = (engine.generate(ask(model, seed=seed)) for seed in (0, 0, 1))
        assert_alike(first, again)
        assert all(one.tokens != two.tokens for one, two in zip(first, other, strict=True))

    def test_the_temperature_can_be_asked_for(self, model, actor):
        requests = ask(model)
        hot = Actor(model, temperature=2.0)
        hot.network = actor.network
        assert_alike(
            LocalEngine(actor).generate(requests, temperature=2.0), LocalEngine(hot).generate(requests)
        )


class TestEnds:
    def test_an_answer_ends_with_its_first_end_or_at_its_limit(self, model, actor):
        requests = ask(model, group=8)
        free = LocalEngine(actor, eos_ids=()).generate(requests)
        assert [len(answer.tokens) for answer in free] == [r.max_new_tokens for r in requests]
        ends = (1, 5, 40, 77, 120, 200)
        expected = []
        for answer in free:
            places = [i for i, token in enumerate(answer.tokens) if token in ends]
            expected.append(answer.tokens[: places[0] + 1] if places else answer.tokens)
        assert len({len(tokens) for tokens in expected}) > 6, "they end apart"
        found = LocalEngine(actor, eos_ids=ends).generate(requests)
        assert [answer.tokens for answer in found] == expected
        assert deviation(actor, requests, found) < 1e-5

    def test_all_may_end_at_once(self, model, actor):
        answers = LocalEngine(actor, eos_ids=range(model.vocab_size)).generate(ask(model))
        assert [len(answer.tokens) for answer in answers] == [1] * 16

    def test_one_token_is_an_answer(self, model, actor):
        answers = LocalEngine(actor).generate(ask(model, group=1, tokens=1))
        assert [len(answer.tokens) for answer in answers] == [1] * 4

    def test_nothing_to_do(self, actor):
        assert LocalEngine(actor).generate([]) == []


class TestTheWork:
    """What is computed, seen at the network's door."""

    @pytest.fixture
    def calls(self, model, monkeypatch):
        seen, hidden = [], model.hidden

        def spy(network, tokens, positions, **options):
            seen.append((tuple(tokens.shape), options))
            return hidden(network, tokens, positions, **options)

        monkeypatch.setattr(model, "hidden", spy)
        return seen

    def test_a_context_is_read_once(self, model, actor, calls):
        LocalEngine(actor, eos_ids=()).generate(ask(model, PROMPTS[:2], group=3, tokens=4))
        longest = max(len(model.encode(prompt).tokens) for prompt in PROMPTS[:2])
        assert calls[0][0] == (2, longest) and [shape for shape, _ in calls[1:]][:3] == [(6, 1)] * 3

    def test_finished_rows_leave(self, model, actor, calls):
        requests = ask(model, PROMPTS[:1], group=8, tokens=1)
        LocalEngine(actor, eos_ids=()).generate(requests)
        # Limits are 1 ... 8 tokens; they leave when a quarter has finished.
        assert [shape[0] for shape, _ in calls[1:]] == [8, 6, 6, 4, 3, 2, 1]

    def test_contexts_of_one_length_need_no_mask(self, model, actor, calls):
        LocalEngine(actor).generate(ask(model, [Prompt("12?"), Prompt("34?")], tokens=2))
        assert all(options["mask"] is None for _, options in calls)

    def test_rows_bound_the_batch(self, model, actor, calls):
        LocalEngine(actor, rows=5, eos_ids=()).generate(ask(model, tokens=2))
        assert max(shape[0] for shape, _ in calls) == 5


class TestWeights:
    def test_of_its_own_actor_only_the_version_changes(self, model, actor):
        engine = LocalEngine(actor)
        assert engine.weights_version is None
        engine.load_weights(3, actor)
        assert engine.weights_version == 3

    def test_of_another_actor_they_are_taken_over(self, model):
        ours, theirs = (Actor(model, lora=LoRAConfig(rank=2)) for _ in range(2))
        for tensor in theirs.trainable_state().values():
            tensor.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
        engine, requests = LocalEngine(ours), ask(model, group=1)
        before = engine.generate(requests)
        expected = LocalEngine(theirs).generate(requests)
        engine.load_weights(1, theirs)
        assert_alike(engine.generate(requests), expected)
        assert [answer.tokens for answer in before] != [answer.tokens for answer in expected]
        assert_alike(engine.generate(requests, base=True), before)
        assert_alike(engine.generate(requests), expected)

    def test_a_copy_kept_of_all_weights_is_the_base(self, model):
        own = Actor(model, keep_reference=True)
        engine, requests = LocalEngine(own), ask(model, group=1)
        before = engine.generate(requests)
        sharpened(own)
        assert_alike(engine.generate(requests, base=True), before)

    def test_a_network_that_recomputes_still_generates(self, model, actor):
        own = Actor(model, gradient_checkpointing=True)
        own.network.load_state_dict(actor.network.state_dict())
        requests = ask(model, group=1)
        assert_alike(LocalEngine(own).generate(requests), LocalEngine(actor).generate(requests))


class TestRefusals:
    def test_rows(self, actor):
        with pytest.raises(ConfigError, match="`rows`"):
            LocalEngine(actor, rows=0)

    def test_a_context_beyond_the_model(self, model, actor):
        requests = ask(model, group=1, tokens=model.max_context)
        with pytest.raises(EngineError, match=f"the model's {model.max_context} tokens"):
            LocalEngine(actor).generate(requests)

    def test_it_cannot_be_restarted(self, actor):
        with pytest.raises(EngineError, match="lives in this process"):
            LocalEngine(actor).restart()

    def test_it_has_a_name(self):
        assert ENGINES.get("local") is LocalEngine
