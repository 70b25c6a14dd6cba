import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ContractError, ShapeError

CUTS = [
    dict(),
    dict(temperature=0.6),
    dict(top_k=5),
    dict(top_p=0.7),
    dict(temperature=1.5, top_k=12, top_p=0.8),
]
each_cut = pytest.mark.parametrize("cut", CUTS, ids=str)


def make_logits(rows=8, vocabulary=40, *, seed=0, scale=2.0):
    return scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def probabilities(logits, temperature=1.0, top_p=1.0, top_k=0, token=None):
    """The distribution of one row from its definition: a list of floats, by sorting and Python sums."""
    scaled = [x / temperature for x in logits.tolist()]
    top = max(scaled)
    mass = [math.exp(x - top) for x in scaled]
    order = sorted(range(len(mass)), key=lambda i: -scaled[i])
    kept = set(range(len(mass)))
    if top_k:
        kept = {i for i in kept if scaled[i] >= scaled[order[min(top_k, len(order)) - 1]]}
    if top_p < 1:
        total, so_far = sum(mass[i] for i in kept), 0.0
        for i in order:
            so_far += mass[i] / total
            if so_far >= top_p:
                break
        kept = {j for j in kept if scaled[j] >= scaled[i]}
    if token is not None:
        kept.add(token)
    total = sum(mass[i] for i in kept)
    return [mass[i] / total if i in kept else 0.0 for i in range(len(mass))]


@each_cut
def test_log_prob_and_entropy_are_those_of_the_definition(cut):
    logits = make_logits()
    for token in range(40):
        step = F.token_step(logits, token=torch.full((8,), token), **cut)
        for row in range(8):
            p = probabilities(logits[row].double(), token=token, **cut)
            entropy = -sum(x * math.log(x) for x in p if x)
            assert step.log_prob[row].item() == pytest.approx(math.log(p[token]), rel=3e-7, abs=1e-6)
            assert step.entropy[row].item() == pytest.approx(entropy, abs=2e-6)


@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.integers(1, 60),
    temperature=st.floats(0.2, 3.0),
    top_p=st.floats(0.05, 1.0),
    top_k=st.integers(0, 70),
    uniform=st.floats(0, 1, exclude_max=True),
)
@settings(max_examples=150, deadline=None)
def test_draws_by_the_inverse_cumulative_distribution(seed, vocabulary, temperature, top_p, top_k, uniform):
    logits = make_logits(1, vocabulary, seed=seed)
    cut = dict(temperature=temperature, top_p=top_p, top_k=top_k)
    u = torch.tensor([uniform], dtype=torch.float64)
    step = F.token_step(logits, uniform=u, **cut)
    token = int(step.token)
    p = probabilities((logits[0] / temperature).double(), top_p=top_p, top_k=top_k)
    below = sum(p[:token])
    near = abs(sum(sorted(p, reverse=True)[:1]) - top_p) < 1e-6  # the cut itself is a matter of rounding
    if not near:
        assert below - 1e-5 <= uniform <= below + p[token] + 1e-5
    again = F.token_step(logits, token=step.token, **cut)
    assert torch.equal(again.log_prob, step.log_prob) and torch.equal(again.entropy, step.entropy)


@each_cut
def test_frequencies_are_the_probabilities(cut):
    logits = make_logits(1, 12)
    draws = 100_000
    uniform = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    step = F.token_step(logits.expand(draws, -1), uniform=uniform, **cut)
    p = torch.tensor(probabilities(logits[0].double(), **cut), dtype=torch.float64)
    counts = torch.bincount(step.token, minlength=12)
    assert bool((counts[p == 0] == 0).all())
    assert ((counts / draws - p).abs() <= 5 * (p * (1 - p) / draws).sqrt() + 1e-12).all()
    torch.testing.assert_close(step.log_prob.double(), p[step.token].log(), atol=2e-6, rtol=0)


def test_impossible_tokens_are_never_drawn():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, -300.0, 0.0, -math.inf]]).expand(5, -1)
    edge = torch.tensor([0.0, 0.5 - 2**-53, 0.5, 1 - 2**-53, 0.25], dtype=torch.float64)
    step = F.token_step(logits, uniform=edge)
    assert step.token.tolist() == [1, 1, 4, 4, 1]
    torch.testing.assert_close(step.log_prob, torch.full((5,), -math.log(2)))
    torch.testing.assert_close(step.entropy, torch.full((5,), math.log(2)))


def test_a_row_does_not_depend_on_the_batch():
    logits, uniform = make_logits(), torch.linspace(0, 0.99, 8, dtype=torch.float64)
    for cut in CUTS:
        whole = F.token_step(logits, uniform=uniform, **cut)
        for row in range(8):
            one = F.token_step(logits[row : row + 1], uniform=uniform[row : row + 1], **cut)
            assert all(torch.equal(a[row : row + 1], b) for a, b in zip(whole, one, strict=True))


def test_ties_of_the_last_token_kept_are_kept():
    logits = torch.log(torch.tensor([[0.4, 0.2, 0.2, 0.15, 0.05]]))
    for cut in (dict(top_k=2), dict(top_p=0.5), dict(top_p=0.6), dict(top_k=4, top_p=0.55)):
        step = F.token_step(logits, token=torch.tensor([1]), **cut)
        assert step.log_prob.exp().item() == pytest.approx(0.2 / 0.8, rel=1e-6)


@pytest.mark.parametrize("cut", [dict(top_k=1), dict(top_p=1e-9), dict(top_p=0.3), dict(top_k=3, top_p=0.3)])
def test_the_likeliest_token_is_always_kept(cut):
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.3, 0.2]]))
    step = F.token_step(logits, uniform=torch.tensor([0.999], dtype=torch.float64), **cut)
    assert step.token.item() == 1 and step.log_prob.item() == 0.0 and step.entropy.item() == 0.0


def test_the_smallest_set_that_reaches_top_p():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.125, 0.125]]))
    for top_p, size in ((0.49999, 1), (0.50001, 2), (0.74999, 2), (0.75001, 4)):
        kept = [t for t in range(4) if drawn(logits, t, top_p)]
        assert kept == list(range(size))


def drawn(logits, token, top_p):
    uniform = torch.linspace(0, 1 - 1e-9, 400, dtype=torch.float64)
    return token in F.token_step(logits.expand(400, -1), uniform=uniform, top_p=top_p).token


def test_wide_nuclei_are_found_exactly():
    # 3000 tokens that are nearly alike: far more than are looked at first.
    logits = make_logits(3, 3000, scale=0.1)
    step = F.token_step(logits, token=logits.argmax(-1), top_p=0.9)
    for row in range(3):
        p = probabilities(logits[row].double(), top_p=0.9)
        assert step.log_prob[row].item() == pytest.approx(math.log(max(p)), abs=2e-6)


def test_a_given_token_outside_the_cut_counts_as_inside():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).requires_grad_()
    for cut, kept in ((dict(top_k=1), 0.5), (dict(top_p=0.7), 0.8)):
        step = F.token_step(logits, token=torch.tensor([3]), **cut)
        p = 0.05 / (kept + 0.05)
        assert step.log_prob.item() == pytest.approx(math.log(p), rel=1e-5)
        (gradient,) = torch.autograd.grad(step.log_prob, logits)
        assert gradient[0, 3].item() == pytest.approx(1 - p, rel=1e-5) and gradient[0, 2] == 0


@each_cut
def test_gradient_is_one_hot_minus_the_probabilities(cut):
    logits = make_logits().requires_grad_()
    token = make_logits(seed=3).argmax(-1)
    step = F.token_step(logits, token=token, **cut)
    (gradient,) = torch.autograd.grad(step.log_prob.sum(), logits)
    for row in range(8):
        p = torch.tensor(probabilities(logits[row].double(), token=int(token[row]), **cut))
        expected = (torch.nn.functional.one_hot(token[row], 40) - p) / cut.get("temperature", 1.0)
        torch.testing.assert_close(gradient[row], expected.float(), atol=2e-6, rtol=1e-5)
    assert not step.entropy.requires_grad


def test_temperature_zero_takes_the_likeliest():
    logits = make_logits().requires_grad_()
    step = F.token_step(logits, temperature=0)
    assert torch.equal(step.token, logits.argmax(-1))
    assert torch.equal(step.log_prob, torch.zeros(8)) and torch.equal(step.entropy, torch.zeros(8))
    assert torch.equal(F.token_step(logits, temperature=0, token=step.token).log_prob, step.log_prob)
    with pytest.raises(ContractError, match="`token`"):
        F.token_step(logits, temperature=0, token=logits.argmin(-1))


def test_inputs_are_left_alone():
    logits = make_logits()
    before = logits.clone()
    for cut in CUTS:
        F.token_step(logits, token=logits.argmax(-1), **cut)
    assert torch.equal(logits, before)


def test_half_precision_is_widened():
    logits = make_logits().bfloat16()
    token = logits.argmax(-1)
    half, wide = F.token_step(logits, token=token), F.token_step(logits.float(), token=token)
    assert half.log_prob.dtype == torch.float32 and torch.equal(half.log_prob, wide.log_prob)


def test_nan_is_not_drawn_from():
    for poison in (math.nan, math.inf):
        logits = make_logits()
        logits[3, 7] = poison
        with pytest.raises(ContractError, match="`logits`"):
            F.token_step(logits, uniform=torch.zeros(8, dtype=torch.float64))
        with pytest.raises(ContractError, match="`logits`"):
            F.token_step(logits, temperature=0)
    assert F.token_step(logits, token=torch.zeros(8).long()).log_prob.isnan().tolist() == [
        row == 3 for row in range(8)
    ]


@pytest.mark.parametrize(
    "change, error, word",
    [
        (dict(logits=torch.zeros(8)), ShapeError, "logits"),
        (dict(logits=torch.zeros(8, 40).long()), ShapeError, "logits"),
        (dict(uniform=None), ShapeError, "uniform"),
        (dict(uniform=torch.zeros(8)), ShapeError, "uniform"),
        (dict(uniform=torch.zeros(7).double()), ShapeError, "uniform"),
        (dict(uniform=None, token=torch.zeros(8)), ShapeError, "token"),
        (dict(uniform=None, token=torch.zeros(7).long()), ShapeError, "token"),
        (dict(token=torch.zeros(8).long()), ConfigError, "token"),
        (dict(temperature=-1.0), ConfigError, "temperature"),
        (dict(temperature=math.nan), ConfigError, "temperature"),
        (dict(top_p=0.0), ConfigError, "top_p"),
        (dict(top_p=1.1), ConfigError, "top_p"),
        (dict(top_k=-1), ConfigError, "top_k"),
    ],
)
def test_refuses(change, error, word):
    arguments = dict(logits=make_logits(), uniform=torch.zeros(8, dtype=torch.float64)) | change
    with pytest.raises(error, match=f"`{word}`"):
        F.token_step(**arguments)
