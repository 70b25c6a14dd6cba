"""The worlds of the judge: their exact numbers against differences, and against sums made in another way."""

import math

import pytest
import torch

from unirl_env.agents.contract.gradients import agreement
from unirl_env.agents.contract.words import EndingWords, all_words, worth
from unirl_env.agents.contract.worlds import BEST_ON_THE_LINE, RESTING_ON_THE_LINE, LineWorld, WordWorld
from unirl_env.types import Prompt, Sample

BEST_NUMBERS = [1.48501, -0.79583, 1.1803, -0.92515, -0.90541]
"""Where `test_optimum` finds the gradient to be zero."""


class Weighing:
    """The settings that a pull depends on."""

    def __init__(self, weighing="token_mean", kl_estimator="k2"):
        self.weighing, self.kl_estimator = weighing, kl_estimator


def moved(network, far=0.3, seed=1):
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight += far * torch.randn_like(weight)
    return network


def slopes(world, network, reference, function, step):
    """Differences of `function(value)` in the direction of each of a few weights."""
    weights = [(w, i) for w in network.parameters() for i in range(w.numel())]
    found = []
    for weight, i in weights:
        ends = []
        for side in (step, -step):
            with torch.no_grad():
                weight.view(-1)[i] += side
                ends.append(float(function(world.value(network, reference))))
                weight.view(-1)[i] -= side
        found.append((ends[0] - ends[1]) / (2 * step))
    return torch.tensor(found, dtype=torch.float64)


def test_words_are_what_the_environment_writes():
    model = EndingWords()
    words = all_words(model, "B")
    assert len(words.reward) == 1 + 2 * (1 + 2 * 3), "A, or two letters that go on"
    assert sorted(words.mask.sum(1).tolist()).count(1) == 1
    state = {
        "asked": torch.tensor([1, 1]),
        "code": torch.tensor([0, 5 * 3 + 1]),
        "count": torch.tensor([1, 3]),
    }
    assert [s.text for s in model.sample(state)] == ["A", "BCB"]
    assert model.terminated({**state, "count": torch.tensor([1, 2])}).tolist() == [True, False]
    assert model.terminated({**state, "count": torch.tensor([0, 3])}).tolist() == [False, True]
    prompts = [Prompt("B"), Prompt("B")]
    found = worth([Sample(text="A"), Sample(text="BCB")], prompts).value
    assert float(found[0]) == pytest.approx(0.6 * math.sin(1) + 0.4 * math.cos(1.7))
    assert len(all_words(EndingWords(ends=False), "A").reward) == 27


@pytest.mark.parametrize("ends", [True, False])
def test_the_value_of_words_is_that_of_a_walk(ends):
    """The same expectation by going through the tree letter by letter."""
    world = WordWorld(ends)
    reference, network = world.model.network(), moved(world.model.network())

    def walk(tables, asked, code, count, text):
        if count == 3 or (ends and text.endswith("A")):
            return float(worth([Sample(text=text)], [Prompt("ABC"[asked])]).value), 0.0
        row = asked * world.model.prefixes + (3**count - 1) // 2 + code
        new, old = (torch.log_softmax(t[row].detach().double(), 0) for t in tables)
        reward, kl = 0.0, float((new.exp() * (new - old)).sum())
        for letter in range(3):
            ahead = walk(tables, asked, code * 3 + letter, count + 1, text + "ABC"[letter])
            reward, kl = (
                reward + float(new[letter].exp()) * ahead[0],
                kl + float(new[letter].exp()) * ahead[1],
            )
        return reward, kl

    walks = [walk((network.logits, reference.logits), asked, 0, 0, "") for asked in range(3)]
    with torch.no_grad():
        value = world.value(network, reference)
    assert float(value.reward) == pytest.approx(sum(w[0] for w in walks) / 3, abs=1e-6)
    assert float(value.kl) == pytest.approx(sum(w[1] for w in walks) / 3, abs=1e-6)


def test_the_gradient_of_words_is_that_of_differences():
    world = WordWorld()
    reference, network = world.model.network(), moved(world.model.network())
    exact = world.policy_gradient(network)
    torch.testing.assert_close(
        -exact, slopes(world, network, reference, lambda v: v.reward, 1e-2), atol=1e-4, rtol=0.01
    )
    whole = world.pull(network, reference, Weighing(), whole=True)
    length = float(exact.norm() / world.policy_gradient(network, "token_mean").norm())
    differences = slopes(world, network, reference, lambda v: v.kl, 1e-2)
    torch.testing.assert_close(whole * length, differences, atol=1e-4, rtol=0.01)
    assert 1 < length < 3, "rows are letters, of which a word has so many"


def test_the_two_directions_of_a_kl_and_the_weights_of_texts_differ():
    world = WordWorld()
    reference, network = world.model.network(), moved(world.model.network(), far=1.0)
    one, other = (world.pull(network, reference, Weighing(kl_estimator=k)) for k in ("k2", "k3"))
    assert float((one - other).norm() / one.norm()) > 0.3
    by_token, by_text = (world.policy_gradient(network, w) for w in ("token_mean", "sequence_mean"))
    assert float(torch.cosine_similarity(by_token, by_text, 0)) < 0.97
    even = WordWorld(ends=False)
    same = [even.policy_gradient(even.model.network(), w) for w in ("token_mean", "sequence_mean")]
    torch.testing.assert_close(*same)


def test_the_best_of_words_is_above_where_a_loss_rests():
    world = WordWorld(ends=False)
    network = world.model.network()
    start = float(world.value(network, network).reward)
    assert start < world.rests(network, 0.2) < world.best(network, 0.2) < world.best(network, 0.0)
    assert world.best(network, 0.0) == pytest.approx(
        sum(float(words.reward.max()) for words in world.words) / 3
    )
    assert world.best(network, 100.0) == pytest.approx(start, abs=2e-2)


def test_the_gradient_on_the_line_is_that_of_differences():
    world = LineWorld()
    network, reference = moved(world.model.network(), far=0.2), world.model.network()
    exact = -15 * world.policy_gradient(network)
    # Differences see the last step, too, which has no log-probability and moves a little.
    differences = slopes(world, network, reference, lambda v: v.reward, 1e-2)
    assert float(torch.cosine_similarity(exact, differences, 0)) > 0.99
    whole = 15 * world.pull(network, reference, Weighing(), whole=True)
    torch.testing.assert_close(
        whole, slopes(world, network, reference, lambda v: v.kl, 1e-2), atol=2e-3, rtol=0.01
    )
    visited = 15 * world.pull(network, reference, Weighing())
    assert 0.01 < float((visited - whole).norm() / whole.norm()) < 1


def test_the_best_on_the_line_is_the_best_mixture():
    world = LineWorld()
    reference, network = world.model.network(), world.model.network()
    with torch.no_grad():
        network.log_weights.copy_(torch.tensor([0.0, BEST_NUMBERS[0]]))
        network.means.copy_(torch.tensor(BEST_NUMBERS[1:3])[:, None])
        network.log_stds.copy_(torch.tensor(BEST_NUMBERS[3:])[:, None])
    value = world.value(network, reference)
    found = value.reward - value.kl
    assert float(found.detach()) == pytest.approx(BEST_ON_THE_LINE, abs=2e-5)
    gradient = torch.autograd.grad(found, list(network.parameters()))
    assert max(float(part.abs().max()) for part in gradient) < 1e-3
    assert RESTING_ON_THE_LINE < BEST_ON_THE_LINE


@pytest.mark.parametrize("bias", [0.0, 0.4])
def test_a_bias_is_told_from_noise(bias):
    torch.manual_seed(0)
    exact = torch.randn(30, dtype=torch.float64)
    side = torch.randn(30, dtype=torch.float64)
    side -= exact * (side @ exact) / (exact @ exact)
    inside = []
    for _ in range(50):
        noise = torch.randn(32, 30, dtype=torch.float64) * 0.5 * exact.norm() / 30**0.5
        found = agreement(exact + bias * exact.norm() / side.norm() * side + noise, exact)
        inside.append(found.low <= bias <= found.high)
        assert found.size[1] < 1.1 and found.size[2] > 0.9
        assert found.bias == pytest.approx(bias, abs=0.1)
    assert sum(inside) >= 43, "about 95 of 100"
