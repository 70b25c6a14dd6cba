import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import unirl_env.functional as F
from unirl_env.errors import ShapeError
from unirl_env.functional import noise as noise_module
from unirl_env.functional.noise import philox

SEEDS = [F.episode_seed(0, f"prompt {p}", sample) for p in range(3) for sample in range(4)]
PINNED = [0.3715007949292686, 0.021929573605697472, 0.2804538618281476]


def test_is_53_bits_of_a_counter_of_its_own():
    for seed in SEEDS[:3]:
        for step in (-1, 0, 1, 4095):
            counter = [torch.tensor(word) for word in (0, step + 1, 1, 0)]
            words = philox(counter, [torch.tensor(seed & 0xFFFFFFFF), torch.tensor(seed >> 32)])
            bits = (int(words[0]) >> 5 << 26) | int(words[1]) >> 6
            value = F.keyed_uniform([seed], step)
            assert value.dtype == torch.float64 and value.item() == bits / 2**53


@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6),
    step=st.integers(-1, 10_000),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_any_selection_of_rows(seeds, step, data):
    rows = data.draw(st.lists(st.integers(0, len(seeds) - 1), min_size=1, max_size=8))
    whole = F.keyed_uniform(seeds, step)
    assert bool(((whole >= 0) & (whole < 1)).all())
    assert torch.equal(whole[rows], F.keyed_uniform([seeds[r] for r in rows], step))
    assert torch.equal(whole, F.keyed_uniform(torch.tensor(seeds), [step] * len(seeds)))


def test_steps_per_row():
    mixed = F.keyed_uniform(SEEDS[:3], [-1, 0, 7])
    assert mixed.tolist() == [F.keyed_uniform([s], k).item() for s, k in zip(SEEDS, (-1, 0, 7), strict=False)]
    assert F.keyed_uniform([], 0).shape == (0,)


def test_distribution_is_uniform_over_seeds_and_over_steps():
    stats = pytest.importorskip("scipy.stats")
    over_steps = F.keyed_uniform([SEEDS[0]] * 20_000, torch.arange(20_000))
    over_seeds = F.keyed_uniform(torch.arange(20_000), 3)
    for values in (over_steps, over_seeds):
        assert stats.kstest(values.numpy(), "uniform").pvalue > 1e-3
        assert abs(torch.corrcoef(torch.stack([values[1:], values[:-1]]))[0, 1]) < 5 / 20_000**0.5


def test_uses_no_counter_that_the_normal_noise_uses(monkeypatch):
    counters = []
    real = noise_module.philox

    def spy(counter, key):
        words = torch.broadcast_tensors(*counter, *key)
        counters.append(set(zip(*(word.flatten().tolist() for word in words), strict=True)))
        return real(counter, key)

    monkeypatch.setattr(noise_module, "philox", spy)
    for step in (-1, 0, 1):
        F.keyed_noise(SEEDS, step, (4, 8, 8))
        F.keyed_uniform(SEEDS, step)
    assert len(counters) == 6
    assert len(set.union(*counters)) == sum(len(part) for part in counters)


def test_values_are_pinned():
    # These numbers are part of the interface: a change of them changes every seeded run.
    seed = F.episode_seed(42, "a cat", 3)
    assert F.keyed_uniform([seed] * 3, [0, 1, 2]).tolist() == PINNED


@pytest.mark.parametrize(
    "seeds, step, word",
    [([-1], 0, "episode_seeds"), (7, 0, "episode_seeds"), ([1, 2], [0], "step"), ([1], -2, "step")],
)
def test_refuses(seeds, step, word):
    with pytest.raises(ShapeError, match=f"`{word}`"):
        F.keyed_uniform(seeds, step)
