import math

import pytest
import torch

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ShapeError
from unirl_env.functional import tokens
from unirl_env.functional.vocabulary import scratch_bytes

N, V, D = 23, 500, 16
CUTS = [
    dict(),
    dict(temperature=0.7),
    dict(top_k=20),
    dict(top_p=0.8),
    dict(temperature=1.3, top_k=50, top_p=0.9),
]
each_cut = pytest.mark.parametrize("cut", CUTS, ids=str)


def make(dtype=torch.float32, *, seed=0, rows=N):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, D, generator=g).to(dtype).requires_grad_()
    weight = (0.5 * torch.randn(V, D, generator=g)).to(dtype).requires_grad_()
    token = torch.randint(V, (rows,), generator=g)
    return hidden, weight, token, torch.randn(rows, generator=g)


def rows_at_a_time(rows, cut):
    return rows * scratch_bytes(V, cut.get("top_p", 1.0), cut.get("top_k", 0))


@each_cut
@pytest.mark.parametrize("rows", [1, 7, N, 1000])
def test_equals_the_step_on_whole_logits(cut, rows):
    hidden, weight, token, grad = make()
    whole = F.token_step(hidden @ weight.T, token=token, **cut)
    parts = F.score_tokens(hidden, weight, token, chunk_bytes=rows_at_a_time(rows, cut), **cut)
    assert parts.token is token
    torch.testing.assert_close(parts.log_prob, whole.log_prob, atol=1e-6, rtol=2e-7)
    torch.testing.assert_close(parts.entropy, whole.entropy, atol=1e-6, rtol=2e-7)
    expected = torch.autograd.grad((grad * whole.log_prob).sum(), (hidden, weight))
    got = torch.autograd.grad((grad * parts.log_prob).sum(), (hidden, weight))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@each_cut
def test_gradient_against_a_softmax_in_double_precision(cut):
    hidden, weight, token, grad = make()
    got = torch.autograd.grad(
        (
            grad * F.score_tokens(hidden, weight, token, chunk_bytes=rows_at_a_time(5, cut), **cut).log_prob
        ).sum(),
        (hidden, weight),
    )
    h, w = hidden.double(), weight.double()
    scaled = (h @ w.T).detach() / cut.get("temperature", 1.0)
    kept = torch.ones_like(scaled, dtype=torch.bool)
    if "top_k" in cut:
        kept = scaled >= scaled.sort(-1).values[:, -cut["top_k"]][:, None]
    if "top_p" in cut:
        order = scaled.masked_fill(~kept, -math.inf).softmax(-1).sort(-1, descending=True)
        before = order.values.cumsum(-1) - order.values
        kept = kept & torch.zeros_like(kept).scatter(-1, order.indices, before < cut["top_p"])
    kept = kept.scatter(-1, token[:, None], True)
    logits = (h @ w.T / cut.get("temperature", 1.0)).masked_fill(~kept, -math.inf)
    log_prob = logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]
    expected = torch.autograd.grad((grad * log_prob).sum(), (hidden, weight))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@each_cut
def test_a_frozen_output_layer_gives_the_same_gradient(cut):
    hidden, weight, token, grad = make()
    settings = dict(chunk_bytes=rows_at_a_time(4, cut), **cut)
    both, frozen = (F.score_tokens(hidden, w, token, **settings) for w in (weight, weight.detach()))
    assert torch.equal(both.log_prob, frozen.log_prob) and torch.equal(both.entropy, frozen.entropy)
    expected = torch.autograd.grad((grad * both.log_prob).sum(), hidden)[0]
    got = torch.autograd.grad((grad * frozen.log_prob).sum(), hidden)[0]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


@each_cut
def test_scoring_what_was_drawn_gives_its_log_prob(cut):
    hidden, weight, _, _ = make()
    seeds = [F.episode_seed(0, "prompt", sample) for sample in range(N)]
    drawn = F.token_step(hidden @ weight.T, uniform=F.keyed_uniform(seeds, 0), **cut)
    scored = F.score_tokens(hidden, weight, drawn.token, chunk_bytes=rows_at_a_time(6, cut), **cut)
    torch.testing.assert_close(scored.log_prob, drawn.log_prob, atol=1e-6, rtol=0)
    torch.testing.assert_close(scored.entropy, drawn.entropy, atol=1e-6, rtol=0)


def test_half_precision_rounds_the_logits_as_the_network_does():
    hidden, weight, token, grad = make(torch.bfloat16)
    logits = hidden @ weight.T
    assert logits.dtype == torch.bfloat16
    whole, parts = F.token_step(logits, token=token), F.score_tokens(hidden, weight, token)
    assert parts.log_prob.dtype == torch.float32
    torch.testing.assert_close(parts.log_prob, whole.log_prob, atol=1e-6, rtol=2e-7)
    expected = torch.autograd.grad((grad * whole.log_prob).sum(), (hidden, weight))
    for head in (weight, weight.detach()):
        got = F.score_tokens(hidden, head, token, chunk_bytes=rows_at_a_time(3, {}))
        wanted = (hidden, weight) if head.requires_grad else (hidden,)
        gradients = torch.autograd.grad((grad * got.log_prob).sum(), wanted)
        for one, other in zip(gradients, expected, strict=False):
            assert one.dtype == torch.bfloat16
            torch.testing.assert_close(one, other, atol=0.03, rtol=0.02)


def test_an_output_layer_in_another_precision_is_rounded_to_that_of_the_states():
    hidden, weight, token, grad = make()
    half = hidden.detach().bfloat16().requires_grad_()
    mixed = F.score_tokens(half, weight, token)
    assert torch.equal(mixed.log_prob, F.score_tokens(half, weight.bfloat16(), token).log_prob)
    gradients = torch.autograd.grad((grad * mixed.log_prob).sum(), (half, weight))
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32]


def test_only_the_wanted_gradients_are_made():
    hidden, weight, token, _ = make()
    step = F.score_tokens(hidden.detach(), weight, token)
    (gradient,) = torch.autograd.grad(step.log_prob.sum(), weight)
    assert gradient.shape == weight.shape
    assert not F.score_tokens(hidden.detach(), weight.detach(), token).log_prob.requires_grad
    with torch.no_grad():
        assert not F.score_tokens(hidden, weight, token).log_prob.requires_grad
    assert not F.score_tokens(hidden, weight, token).entropy.requires_grad


def test_backward_may_run_twice():
    for freeze in (False, True):
        hidden, weight, token, grad = make()
        step = F.score_tokens(hidden, weight.detach() if freeze else weight, token)
        first, second = (
            torch.autograd.grad(step.log_prob, hidden, grad, retain_graph=True)[0] for _ in range(2)
        )
        assert torch.equal(first, second)


@pytest.mark.parametrize("cut", [dict(), dict(top_p=0.9)], ids=str)
def test_no_chunk_is_larger_than_it_may_be(cut, monkeypatch):
    largest = []
    linear = tokens.nnf.linear

    def spy(*arguments):
        out = linear(*arguments)
        largest.append(out.numel() * 4)
        return out

    monkeypatch.setattr(tokens.nnf, "linear", spy)
    hidden, weight, token, _ = make()
    budget = 60_000
    F.score_tokens(hidden, weight, token, chunk_bytes=budget, **cut).log_prob.sum().backward()
    assert len(largest) >= 4 and 2 * max(largest) <= budget
    largest.clear()
    F.score_tokens(hidden, weight, token, chunk_bytes=1)
    assert largest == [4 * V] * N


def test_a_frozen_output_layer_makes_backward_compute_no_logits(monkeypatch):
    calls = []
    linear = tokens.nnf.linear
    monkeypatch.setattr(tokens.nnf, "linear", lambda *a: calls.append(a) or linear(*a))
    hidden, weight, token, _ = make()
    for head, expected in ((weight.detach(), 0), (weight, 1)):
        log_prob = F.score_tokens(hidden, head, token).log_prob
        calls.clear()
        log_prob.sum().backward()
        assert len(calls) == expected


def test_no_tokens_at_all():
    hidden, weight, token, _ = make(rows=0)
    step = F.score_tokens(hidden, weight, token)
    assert step.log_prob.shape == (0,)
    gradients = torch.autograd.grad(step.log_prob.sum(), (hidden, weight))
    assert gradients[0].shape == (0, D) and not gradients[1].any()


def test_inputs_are_left_alone():
    hidden, weight, token, _ = make()
    before = hidden.detach().clone(), weight.detach().clone(), token.clone()
    F.score_tokens(hidden, weight, token, top_p=0.9).log_prob.sum().backward()
    assert all(torch.equal(one, other) for one, other in zip(before, (hidden, weight, token), strict=True))


@pytest.mark.parametrize(
    "change, error, word",
    [
        (dict(hidden=torch.zeros(2, 3, D)), ShapeError, "hidden"),
        (dict(hidden=torch.zeros(N, D + 1)), ShapeError, "hidden"),
        (dict(weight=torch.zeros(V, D).long()), ShapeError, "weight"),
        (dict(token=torch.zeros(N)), ShapeError, "token"),
        (dict(token=torch.zeros(N + 1).long()), ShapeError, "token"),
        (dict(temperature=0.0), ConfigError, "temperature"),
        (dict(top_p=0.0), ConfigError, "top_p"),
        (dict(chunk_bytes=0), ConfigError, "chunk_bytes"),
    ],
)
def test_refuses(change, error, word):
    hidden, weight, token, _ = make()
    arguments = dict(hidden=hidden, weight=weight, token=token) | change
    with pytest.raises(error, match=f"`{word}`"):
        F.score_tokens(**arguments)


class TestEntropy:
    """The gradient of the entropy, where it is asked for."""

    def expected(self, hidden, weight, token, cut):
        """In double precision, by autograd through a masked softmax."""
        scaled = hidden.double() @ weight.double().T / cut.get("temperature", 1.0)
        kept = torch.ones_like(scaled, dtype=torch.bool)
        if "top_k" in cut:
            kept = scaled >= scaled.sort(-1).values[:, -cut["top_k"]][:, None]
        if "top_p" in cut:
            order = scaled.masked_fill(~kept, -math.inf).softmax(-1).sort(-1, descending=True)
            before = order.values.cumsum(-1) - order.values
            kept = kept & torch.zeros_like(kept).scatter(-1, order.indices, before < cut["top_p"])
        kept = kept.scatter(-1, token[:, None], True)
        logs = scaled.masked_fill(~kept, -1e9).log_softmax(-1)
        return -(logs.exp() * logs.masked_fill(~kept, 0.0)).sum(-1), logs.gather(-1, token[:, None])[:, 0]

    @each_cut
    @pytest.mark.parametrize("frozen", [False, True])
    def test_it_is_that_of_the_softmax_of_what_is_kept(self, cut, frozen):
        hidden, weight, token, grad = make()
        other = torch.randn(N, generator=torch.Generator().manual_seed(5))
        head, wanted = (weight.detach(), (hidden,)) if frozen else (weight, (hidden, weight))
        step = F.score_tokens(
            hidden, head, token, chunk_bytes=rows_at_a_time(5, cut), entropy_gradient=True, **cut
        )
        entropy, log_prob = self.expected(hidden, weight, token, cut)
        torch.testing.assert_close(step.entropy, entropy.float(), atol=1e-5, rtol=1e-5)
        for mine, theirs in (
            ((other * step.entropy).sum(), (other * entropy).sum()),
            ((grad * step.log_prob).sum(), (grad * log_prob).sum()),
            (
                (other * step.entropy + grad * step.log_prob).sum(),
                (other * entropy + grad * log_prob).sum(),
            ),
        ):
            got = torch.autograd.grad(mine, wanted, retain_graph=True)
            for one, right in zip(got, torch.autograd.grad(theirs, wanted, retain_graph=True), strict=True):
                torch.testing.assert_close(one, right, atol=2e-5, rtol=1e-4)

    @each_cut
    def test_asking_changes_nothing_else(self, cut):
        for freeze in (False, True):
            hidden, weight, token, grad = make()
            head = weight.detach() if freeze else weight
            plain, asked = (
                F.score_tokens(hidden, head, token, entropy_gradient=asking, **cut)
                for asking in (False, True)
            )
            assert torch.equal(plain.log_prob, asked.log_prob) and torch.equal(plain.entropy, asked.entropy)
            assert not plain.entropy.requires_grad and asked.entropy.requires_grad
            one, other = (
                torch.autograd.grad((grad * step.log_prob).sum(), hidden)[0] for step in (plain, asked)
            )
            torch.testing.assert_close(one, other, atol=0, rtol=0)
        with torch.no_grad():
            assert not F.score_tokens(hidden, weight, token, entropy_gradient=True).entropy.requires_grad

    def test_in_half_precision(self):
        hidden, weight, token, grad = make(torch.bfloat16)
        entropy, _ = self.expected(hidden, weight, token, {})
        expected = torch.autograd.grad((grad * entropy).sum(), (hidden, weight))
        for head in (weight, weight.detach()):
            step = F.score_tokens(
                hidden, head, token, entropy_gradient=True, chunk_bytes=rows_at_a_time(3, {})
            )
            wanted = (hidden, weight) if head.requires_grad else (hidden,)
            got = torch.autograd.grad((grad * step.entropy).sum(), wanted)
            for one, right in zip(got, expected, strict=False):
                assert one.dtype == torch.bfloat16
                torch.testing.assert_close(one, right, atol=0.03, rtol=0.05)

    def test_of_equal_logits_it_is_zero_and_uphill_it_is_towards_them(self):
        weight, token = torch.eye(4), torch.tensor([0, 1])
        hidden = torch.tensor([[2.0, 2.0, 2.0, 2.0], [3.0, 0.0, 0.0, 0.0]], requires_grad=True)
        step = F.score_tokens(hidden, weight, token, entropy_gradient=True)
        (slope,) = torch.autograd.grad(step.entropy.sum(), hidden)
        assert step.entropy[0].item() == pytest.approx(math.log(4), abs=1e-6)
        torch.testing.assert_close(slope[0], torch.zeros(4))
        assert slope[1, 0] < 0 < slope[1, 1]
