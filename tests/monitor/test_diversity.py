"""How different the samples of a group are."""

import itertools
import time

import pytest
import torch

from unirl_env.monitor.iteration_metrics import diversity, far_apart, text_diversity
from unirl_env.types import Sample

GROUP = torch.tensor([0, 0, 1, 1])


def grey(level, side=8, **fields):
    return Sample(image=torch.full((3, side, side), level), **fields)


def test_pictures_differ_by_their_colours():
    same = [grey(0.5)] * 4
    assert diversity(same, GROUP) == {"diversity": 0.0}
    far = [grey(0.0), grey(1.0), grey(0.2), grey(0.5)]
    assert diversity(far, GROUP)["diversity"] == pytest.approx((1.0 + 0.3) / 2), "a mean over groups"
    assert diversity(far, torch.zeros(4))["diversity"] == pytest.approx(0.55, abs=1e-5)


def test_where_something_stands_counts_and_its_grain_does_not():
    def half(side, left):
        image = torch.zeros(3, side, side)
        image[..., : side // 2] = float(left)
        image[..., side // 2 :] = float(not left)
        return Sample(image=image)

    for side in (16, 24, 100, 512):
        found = diversity([half(side, True), half(side, False)], torch.zeros(2))["diversity"]
        assert found == pytest.approx(1.0, abs=0.06)
    checks = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    boards = [
        Sample(image=checks.float().expand(3, -1, -1)),
        Sample(image=1 - checks.float().expand(3, -1, -1)),
    ]
    assert diversity(boards, torch.zeros(2))["diversity"] == pytest.approx(0.0, abs=1e-6)


def test_pairs_are_those_of_two_samples():
    rows = torch.rand(5, 12, generator=torch.Generator().manual_seed(0))
    by_hand = [(a - b).square().mean().sqrt() for a, b in itertools.combinations(rows, 2)]
    assert far_apart(rows) == pytest.approx(float(sum(by_hand)) / 10)
    assert far_apart(torch.ones(4, 3)) == 0.0


def dice(texts):
    """Summed over pairs, one by one."""
    sets = []
    for text in texts:
        signs = ["<", *text, ">"]
        sets.append(set(itertools.pairwise(signs)))
    pairs = list(itertools.combinations(sets, 2))
    return 1 - sum(2 * len(a & b) for a, b in pairs) / sum(len(a) + len(b) for a, b in pairs)


@pytest.mark.parametrize(
    "texts",
    [
        [[1, 2, 3], [1, 2, 4], [7, 8]],
        [[], [5], [5, 5, 5, 5]],
        [[2**31 - 4, 0], [0, 2**31 - 4]],
        [[9], [9]],
        [[1, 2], [3, 4]],
    ],
)
def test_texts_differ_by_their_pairs_of_tokens(texts):
    assert text_diversity(texts) == pytest.approx(dice(texts))


def test_bounds_of_texts():
    assert text_diversity([[1, 2, 3]] * 4) == 0.0
    assert text_diversity([[], []]) == 0.0
    assert text_diversity([[1, 2], [3, 4]]) == 1.0


def test_tokens_count_before_letters_and_letters_where_there_are_none():
    written = [Sample(text="a cat"), Sample(text="a dog")]
    assert diversity(written, torch.zeros(2))["diversity"] == pytest.approx(dice(["a cat", "a dog"]))
    tokens = [Sample(text="same", tokens=torch.tensor([1, 2])), Sample(text="same", tokens=torch.tensor([3]))]
    assert diversity(tokens, torch.zeros(2)) == {"diversity": 1.0}
    assert diversity([Sample(text=""), Sample(text="")], torch.zeros(2)) == {"diversity": 0.0}


def test_texts_with_pictures_have_both():
    found = diversity([grey(0.0, text="a"), grey(1.0, text="a")], torch.zeros(2))
    assert found == {"diversity": pytest.approx(1.0), "diversity/text": 0.0}


def test_texts_that_never_came_to_their_picture_are_left_out():
    samples = [grey(0.0, text="a"), Sample(text="b"), grey(1.0, text="a"), grey(1.0, text="a")]
    assert diversity(samples, torch.tensor([0, 0, 0, 0]))["diversity"] == pytest.approx(2 / 3)
    alone = diversity(samples[:2], torch.tensor([0, 0]))
    assert alone == {"diversity": 1.0}, "no two pictures to compare: the texts are"


def test_latents_have_no_unit():
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([-3.0, -4.0])
    assert diversity([Sample(latent=one), Sample(latent=other)], torch.zeros(2)) == {"diversity": 1.0}
    near = diversity([Sample(latent=one), Sample(latent=1.5 * one)], torch.zeros(2))["diversity"]
    far = diversity([Sample(latent=1000 * one), Sample(latent=1500 * one)], torch.zeros(2))["diversity"]
    assert near == pytest.approx(far) == pytest.approx(0.2)
    zero = Sample(latent=torch.zeros(2))
    assert diversity([zero, zero], torch.zeros(2)) == {"diversity": 0.0}


def test_videos_differ_in_any_of_their_frames():
    still = Sample(video=torch.zeros(9, 3, 8, 8))
    flash = Sample(video=torch.cat([torch.zeros(8, 3, 8, 8), torch.ones(1, 3, 8, 8)]))
    assert diversity([still, flash], torch.zeros(2))["diversity"] == pytest.approx(0.5)
    single = Sample(video=torch.ones(1, 3, 8, 8))
    assert diversity([single, Sample(video=torch.zeros(1, 3, 8, 8))], torch.zeros(2))[
        "diversity"
    ] == pytest.approx(1)


def test_a_sample_alone_in_its_group_has_nothing_to_differ_from():
    assert diversity([grey(0.0), grey(1.0)], torch.arange(2)) == {}


def test_it_costs_next_to_nothing():
    pictures = [Sample(image=torch.rand(3, 512, 512)) for _ in range(24)]
    words = [Sample(tokens=torch.randint(0, 50_000, (8192,))) for _ in range(64)]
    began = time.perf_counter()
    diversity(pictures, torch.arange(2).repeat_interleave(12))
    diversity(words, torch.arange(4).repeat_interleave(16))
    assert time.perf_counter() - began < 2.0


def test_latents_of_several_shapes_are_left_out():
    found = diversity([Sample(latent=torch.ones(n)) for n in (2, 3, 2, 3)], torch.tensor([0, 0, 1, 1]))
    assert found == {}
