"""Requests in many words, plans in few, and what is held out."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import unirl_env
from pretraining.unified_data import (
    WORDS,
    captions,
    mistaken,
    plan_of,
    said,
    sample_edit,
    write_prompts,
)
from unirl_env.media.pixels import load_picture
from unirl_env.prompts.shapes import parse_caption
from unirl_env.prompts.sources import PromptSource
from unirl_env.rewards import PlanScorer, ShapesScorer
from unirl_env.types import Prompt, Sample

PROMPTS = Path(unirl_env.__file__).parent / "prompts" / "sets"
SIZES = {"unified_train": 243, "unified_heldout": 54, "unified_edits_train": 162, "unified_edits_heldout": 45}


def rows_of(name):
    return [json.loads(line) for line in (PROMPTS / f"{name}.jsonl").read_text().splitlines()]


def test_every_wording_means_one_caption():
    """By a second reading of the words."""
    meanings = {way: word for word, ways in WORDS.items() for way in ways}
    assert len(meanings) == sum(map(len, WORDS.values())), "no two words share a synonym"
    rng, texts = np.random.default_rng(0), {}
    for caption in captions() + captions(held_out=True):
        for _ in range(20):
            text = said(caption, rng).text
            colour, shape, place = re.fullmatch(r"an? (\w+) (\w+) ((?:at|in) .+)", text).groups()
            assert text.startswith("an ") == (colour[0] in "aeiou")
            plan = " ".join(meanings[part] for part in (colour, shape, place))
            assert plan == plan_of(caption) and texts.setdefault(text, caption) == caption


def test_a_mistake_is_one_part_and_never_what_is_held_out():
    rng = np.random.default_rng(0)
    for caption in captions() * 4:
        other = mistaken(caption, rng)
        judged = PlanScorer()([Sample(text=plan_of(other))], [Prompt(caption.text)])
        assert judged.value.item() == pytest.approx(2 / 3) and other in captions()


def test_an_edit_says_the_one_part_that_changes():
    rng = np.random.default_rng(0)
    for wanted in captions() + captions(held_out=True):
        request = sample_edit(wanted, rng)
        old, new = (plan_of(c).split(" ", 2) for c in (request.source, request.wanted))
        (changed,) = (b for a, b in zip(old, new, strict=True) if a != b)
        assert request.wanted == wanted and any(request.text.endswith(way) for way in WORDS[changed])
        assert request.source in captions()


def test_plans_of_captions_are_right():
    for caption in captions() + captions(held_out=True):
        assert PlanScorer()([Sample(text=plan_of(caption))], [Prompt(caption.text)]).value.item() == 1


class TestPromptFiles:
    def test_are_what_the_script_writes(self, tmp_path):
        write_prompts(tmp_path)
        for name, size in SIZES.items():
            written = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
            assert len(written) == size
            kept = ("id", "prompt", "caption", "source")
            for one, other in zip(written, rows_of(name), strict=True):
                assert {k: one.get(k) for k in kept} == {k: other.get(k) for k in kept}

    @pytest.mark.parametrize("kind", ["unified", "unified_edits"])
    def test_train_and_held_out_share_nothing(self, kind):
        train, held_out = rows_of(f"{kind}_train"), rows_of(f"{kind}_heldout")
        assert len({row["id"] for row in train + held_out}) == len(train + held_out)
        assert not {row["caption"] for row in train} & {row["caption"] for row in held_out}
        for rows, side in ((train, captions()), (held_out, captions(held_out=True))):
            assert {parse_caption(row["caption"]) for row in rows} == set(side)
        if kind == "unified":
            assert len({row["prompt"] for row in train + held_out}) == len(train + held_out)
        else:
            assert all(parse_caption(row["source"]) in captions() for row in train + held_out)

    def test_are_read_with_their_captions_and_pictures(self):
        for name, size in SIZES.items():
            prompts = PromptSource.of(name).prompts
            assert len(prompts) == size and all(parse_caption(p.metadata["caption"]) for p in prompts)
            assert all(len(p.images) == ("edits" in name) for p in prompts)
        assert sum((PROMPTS / f"{name}.jsonl").stat().st_size for name in SIZES) < 200_000

    def test_pictures_show_their_source_and_not_yet_what_is_wanted(self):
        rows = rows_of("unified_edits_heldout")
        pictures = [Sample(image=load_picture(row["image"])) for row in rows]
        before = ShapesScorer()(pictures, [Prompt(row["source"]) for row in rows])
        after = ShapesScorer()(pictures, [Prompt(row["caption"]) for row in rows])
        assert before.parts["strict"].mean() > 0.95 and after.parts["strict"].sum() == 0
