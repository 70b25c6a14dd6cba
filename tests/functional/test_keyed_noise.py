import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import unirl_env.functional as F
from unirl_env.errors import ShapeError
from unirl_env.functional import noise as noise_module
from unirl_env.functional.noise import philox

SEEDS = [F.episode_seed(0, f"prompt {p}", sample) for p in range(3) for sample in range(4)]

PINNED_SEED = 4130601800628720013
PINNED_NOISE = [-0.958814, 0.093998, -0.628448]


def words(*values):
    return [torch.tensor(value) for value in values]


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected):
    assert tuple(int(word) for word in philox(words(*counter), words(*key))) == expected


def test_row_does_not_depend_on_the_batch():
    whole = F.keyed_noise(SEEDS, 3, (4, 7, 5))
    for i, seed in enumerate(SEEDS):
        assert torch.equal(whole[i], F.keyed_noise([seed], 3, (4, 7, 5))[0])
    assert torch.equal(whole.flip(0), F.keyed_noise(SEEDS[::-1], 3, (4, 7, 5)))


def test_row_does_not_depend_on_the_scratch_limit(monkeypatch):
    whole = F.keyed_noise(SEEDS, 0, (33,))
    monkeypatch.setattr(noise_module, "MAX_ELEMENTS_AT_ONCE", 70)
    assert torch.equal(whole, F.keyed_noise(SEEDS, 0, (33,)))


@settings(max_examples=25, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6),
    step=st.integers(-1, 1000),
    elements=st.integers(1, 40),
    data=st.data(),
)
def test_any_selection_of_rows(seeds, step, elements, data):
    rows = data.draw(st.lists(st.integers(0, len(seeds) - 1), min_size=1, max_size=8))
    whole = F.keyed_noise(seeds, step, (elements,))
    assert torch.equal(whole[rows], F.keyed_noise([seeds[r] for r in rows], step, (elements,)))
    assert torch.equal(whole, F.keyed_noise(torch.tensor(seeds), torch.tensor(step), (elements,)))


def test_steps_per_row():
    mixed = F.keyed_noise(SEEDS[:3], [-1, 0, 7], (6,))
    for i, step in enumerate([-1, 0, 7]):
        assert torch.equal(mixed[i : i + 1], F.keyed_noise(SEEDS[i : i + 1], step, (6,)))


def test_layout_of_a_row_does_not_change_its_numbers():
    flat = F.keyed_noise(SEEDS[:2], 1, (24,))
    assert torch.equal(flat.reshape(2, 2, 3, 4), F.keyed_noise(SEEDS[:2], 1, (2, 3, 4)))
    assert F.keyed_noise(SEEDS[:2], 1, ()).shape == (2,)
    assert F.keyed_noise([], 1, (3,)).shape == (0, 3)


def test_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = F.keyed_noise(SEEDS, 0, (5,))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(123)
    assert torch.equal(first, F.keyed_noise(SEEDS, 0, (5,)))


def test_keys_give_different_and_uncorrelated_noise():
    # The second seed differs from the first in bit 40 only: a generator that keeps 32 bits repeats itself.
    seeds = [5, 5 + (1 << 40), 6]
    rows = torch.cat([F.keyed_noise(seeds, step, (20_000,)) for step in (-1, 0, 1)]).double()
    correlation = torch.corrcoef(rows) - torch.eye(9)
    assert correlation.abs().max() < 5 / 20_000**0.5


def test_distribution_is_standard_normal():
    stats = pytest.importorskip("scipy.stats")
    values = F.keyed_noise(SEEDS, 2, (20_000,)).double().flatten().numpy()
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert abs(values.mean()) < 5 / len(values) ** 0.5
    assert abs(values.var() - 1) < 5 * (2 / len(values)) ** 0.5
    assert abs((values**4).mean() - 3) < 5 * (96 / len(values)) ** 0.5
    assert np.isfinite(values).all() and values.max() > 4 and values.min() < -4


def test_values_are_pinned():
    # These numbers are part of the interface: a change of them changes every seeded run.
    assert F.derive_seed("episode", 0, "a cat", 0) == F.episode_seed(0, "a cat", 0)
    assert F.episode_seed(42, "a cat", 3) == PINNED_SEED
    torch.testing.assert_close(
        F.keyed_noise([PINNED_SEED], 0, (3,))[0], torch.tensor(PINNED_NOISE), atol=1e-6, rtol=0
    )


def test_half_precision_is_the_rounded_float():
    exact = F.keyed_noise(SEEDS, 0, (100,))
    assert torch.equal(F.keyed_noise(SEEDS, 0, (100,), dtype=torch.bfloat16), exact.bfloat16())


def test_seeds_tell_types_order_and_borders_apart():
    keys = [(1, 2), (2, 1), ("1", 2), (1, "2"), ("12",), (12,), ("1", "2"), ("", "12"), (1, 2, ""), (-1, 2)]
    seeds = [F.derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert F.derive_seed(np.int64(3)) == F.derive_seed(3)


@given(st.integers(), st.text(), st.integers(0, 10**6))
def test_episode_seed_fits_an_int64(seed, prompt_id, sample):
    value = F.episode_seed(seed, prompt_id, sample)
    assert value == F.episode_seed(seed, prompt_id, sample)
    assert int(torch.tensor([value], dtype=torch.int64)) == value >= 0
    assert value != F.episode_seed(seed + 1, prompt_id, sample)
    assert value != F.episode_seed(seed, prompt_id + "x", sample)
    assert value != F.episode_seed(seed, prompt_id, sample + 1)


@pytest.mark.parametrize(
    "arguments, word",
    [
        (dict(episode_seeds=[-1], step=0, shape=(2,)), "episode_seeds"),
        (dict(episode_seeds=[2**63], step=0, shape=(2,)), "episode_seeds"),
        (dict(episode_seeds=[0.5], step=0, shape=(2,)), "episode_seeds"),
        (dict(episode_seeds=7, step=0, shape=(2,)), "episode_seeds"),
        (dict(episode_seeds=[1, 2], step=[0], shape=(2,)), "step"),
        (dict(episode_seeds=[1, 2], step=-2, shape=(2,)), "step"),
        (dict(episode_seeds=[1, 2], step=0, shape=(2,), dtype=torch.int64), "dtype"),
    ],
)
def test_refuses(arguments, word):
    with pytest.raises(ShapeError, match=word):
        F.keyed_noise(**arguments)


def test_derive_seed_refuses_floats_and_nothing():
    with pytest.raises(ShapeError, match="keys"):
        F.derive_seed(0.5)
    with pytest.raises(ShapeError, match="keys"):
        F.derive_seed()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_agree():
    here, there = (F.keyed_noise(SEEDS, 3, (1000,), device=device) for device in ("cpu", "cuda"))
    torch.testing.assert_close(here, there.cpu(), atol=1e-6, rtol=1e-6)
