"""No reward of videos pays for a clip that only looks as if it moved, and each pays for honest ones."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from degenerate_clips import CAPTION, SIZES, degenerate_clips, honest_clips, lines, smooth, table, textured

from unirl_env.rewards import MotionScorer, TemporalConsistency
from unirl_env.types import Sample

SMALL, LARGE = SIZES
BOTH = [SMALL, pytest.param(LARGE, marks=pytest.mark.slow)]
PAGE = Path(__file__).parents[2] / "docs" / "rewards.md"

NOTHING = [
    *("frozen thing", "frozen texture", "blank", "pure noise"),
    *("noise over a frozen thing", "noise over a frozen texture"),
    *("flicker of a frozen thing", "flicker of a frozen texture", "flicker of a frozen thing, at random"),
    *("unrelated smooth pictures", "unrelated smooth grey pictures", "unrelated textured pictures"),
    *("cuts between smooth pictures", "cuts between textured pictures"),
    *("jumps to random places", "one jump", "to and fro"),
]
"""What neither moves nor, mostly, continues: motion of it is 0."""
BROKEN = ["moves, then vanishes", "moves, then cut to another thing", "moves and flickers"]
"""Honest motion with a fault: consistency says so."""
STEADY = ["reversed", "zoom on the thing", "zoom into a texture"]
"""Motion that a reward without a caption cannot fault."""


@cache
def rows(size):
    return table(size)


@pytest.mark.parametrize("size", BOTH)
def test_every_clip_has_its_bound(size):
    assert {*NOTHING, *BROKEN, *STEADY} == set(degenerate_clips(*SIZES[size]))
    assert set(rows(size)) == {*NOTHING, *BROKEN, *STEADY, *honest_clips(*SIZES[size])}


@pytest.mark.parametrize("size", BOTH)
def test_honest_motion_is_paid(size):
    for clip in honest_clips(*SIZES[size]):
        found = rows(size)[clip]
        assert found["motion"] > 0.9 and found["temporal_consistency"] > 0.75, (clip, found)
        assert found["product"] == pytest.approx(found["motion"] * found["temporal_consistency"], abs=1e-5)


@pytest.mark.parametrize("size", BOTH)
def test_what_does_not_move_is_not_paid(size):
    for clip in NOTHING:
        assert rows(size)[clip]["product"] <= 0.02, (clip, rows(size)[clip])


@pytest.mark.parametrize("size", BOTH)
def test_what_does_not_continue_is_inconsistent(size):
    found = {clip: scores["temporal_consistency"] for clip, scores in rows(size).items()}
    assert all(found[clip] < 0.15 for clip in found if clip.startswith("unrelated")), found
    assert found["pure noise"] < 0.1 and found["jumps to random places"] < 0.1, found
    assert all(found[clip] < 0.55 for clip in found if clip.startswith("cuts")), found
    for clip in BROKEN:
        assert found[clip] < found["a red circle moves right"] - 0.15, (clip, found[clip])
    assert found["frozen thing"] == found["frozen texture"] == found["blank"] == 1


@pytest.mark.parametrize("size", BOTH)
def test_time_has_no_direction_without_a_caption(size):
    forwards, backwards = rows(size)["a red circle moves right"], rows(size)["reversed"]
    assert backwards["product"] == pytest.approx(forwards["product"], abs=0.05)
    assert backwards["moving_shapes"] < 0.45 and backwards["moving_template"] < 0.05


@pytest.mark.parametrize("size", BOTH)
def test_only_the_clip_of_the_caption_is_paid_in_full(size):
    for clip, found in rows(size).items():
        if clip == "a red circle moves right":
            assert found["moving_shapes"] > 0.95 and found["moving_template"] > 0.8
        else:
            assert found["moving_shapes"] < 0.45, (clip, found)
            # The held-out reward is a fit over all pixels: faults weigh by their size.
            assert found["moving_template"] < (0.8 if clip in BROKEN else 0.35), (clip, found)


@pytest.mark.parametrize("cells", [2, 4, 5])
@pytest.mark.parametrize("make", [smooth, textured])
def test_unrelated_pictures_of_other_detail_light_and_shape_are_no_motion_either(cells, make):
    films = [
        torch.stack([0.2 * cells * make(40, 56, 1000 * cells + t) for t in range(6)]).clamp(0, 1),
        torch.stack([make(48, 48, 1000 * cells + t) ** cells for t in range(11)]),
    ]
    samples = [Sample(video=film) for film in films]
    consistent, moving = (
        scorer(samples, [CAPTION] * 2).value for scorer in (TemporalConsistency(), MotionScorer())
    )
    assert (moving <= 0.02).all() and (consistent < 0.25).all(), (consistent, moving)


def held_table():
    found = re.search(r"\| clip \|.*?\n\n", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found, "docs/rewards.md has no table of degenerate clips"
    return found[0].strip().splitlines()


@pytest.mark.parametrize("at", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_page_holds_this_table(at):
    """Made by `python tests/rewards/degenerate_clips.py`; last digits may differ between machines."""
    fresh, held = list(lines([rows(list(SIZES)[at])] * 2)), held_table()
    assert len(fresh) == len(held) and fresh[:2] == held[:2]
    for new, old in zip(fresh[2:], held[2:], strict=True):
        (clip, *cells), (held_clip, *held_cells) = (line.strip("| ").split(" | ") for line in (new, old))
        assert clip == held_clip
        for cell, held_cell in zip(cells, held_cells, strict=True):
            new_number, old_number = (float(each.split(" / ")[at]) for each in (cell, held_cell))
            assert new_number == pytest.approx(old_number, abs=0.021), (clip, cell, held_cell)
