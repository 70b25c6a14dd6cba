from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch

from unirl_env.prompts import moving
from unirl_env.prompts.shapes import BACKGROUND, COLOURS, SHAPES
from unirl_env.prompts.sources import PromptSource

TRAIN, HELD_OUT = moving.split_captions()
ATTRIBUTES = ("colour", "shape", "direction")


def centres(clips):
    """Where what is not background lies, `[N, F, 2]` as x and y in pixels."""
    weight = (clips - torch.tensor(BACKGROUND)[:, None, None]).abs().sum(2)
    axis = torch.arange(clips.shape[-1]) + 0.5
    total = weight.sum((2, 3))
    return torch.stack([(weight.sum(2) * axis).sum(2), (weight.sum(3) * axis).sum(2)], 2) / total[..., None]


def test_every_caption_reads_back():
    captions = moving.all_captions()
    assert len(set(captions)) == 72
    assert all(moving.parse(caption.text) == caption for caption in captions)
    assert moving.parse("A red circle  moves right.") == moving.MovingCaption("red", "circle", "right")
    for text in ("a red circle", "a pink circle moves up", "a red circle moves right fast", ""):
        assert moving.parse(text) is None
    assert set(moving.words()) == {"a", "moves", *COLOURS, *SHAPES, *moving.DIRECTIONS}


def test_what_is_held_out_is_a_sixth_of_which_every_pair_is_trained():
    assert len(TRAIN) == 60 and len(HELD_OUT) == 12 and not set(TRAIN) & set(HELD_OUT)
    for name, times in (("colour", 2), ("shape", 4), ("direction", 3)):
        assert set(Counter(getattr(caption, name) for caption in HELD_OUT).values()) == {times}
    for pair in combinations(ATTRIBUTES, 2):
        held_out = Counter(tuple(getattr(caption, name) for name in pair) for caption in HELD_OUT)
        assert max(held_out.values()) == 1
        assert {tuple(getattr(caption, name) for name in pair) for caption in TRAIN} >= set(held_out)


@pytest.mark.parametrize(("name", "captions"), [("moving_train", TRAIN), ("moving_test", HELD_OUT)])
def test_the_prompt_sets_are_the_split(name, captions):
    prompts = PromptSource.of(name).prompts
    assert [prompt.text for prompt in prompts] == [caption.text for caption in captions]
    for prompt, caption in zip(prompts, captions, strict=True):
        assert prompt.metadata == {key: getattr(caption, key) for key in ATTRIBUTES}


def test_clips_show_one_whole_thing_that_moves_steadily_as_the_caption_says():
    captions = moving.all_captions() * 3
    clips = moving.draw(captions, np.random.default_rng(0))
    assert clips.shape == (216, 9, 3, 32, 32) and clips.dtype == torch.float32
    assert clips.min() >= 0 and clips.max() <= 1
    steps = centres(clips).diff(dim=1)
    along = torch.tensor([moving.DIRECTIONS[caption.direction] for caption in captions]).float()
    speed = (steps * along[:, None]).sum(2)
    assert 1.4 < speed.min() and speed.max() < 2.6
    assert (steps - along[:, None] * speed[..., None]).abs().max() < 0.15  # nothing to the side
    assert (speed - speed.mean(1, keepdim=True)).abs().max() < 0.2  # edges of pixels
    inked = (clips - torch.tensor(BACKGROUND)[:, None, None]).abs().sum((2, 3, 4))
    assert (inked / inked.mean(1, keepdim=True) - 1).abs().max() < 0.05  # never cut by the border
    for clip, caption in zip(clips, captions, strict=True):
        brightest = clip[0].flatten(1)[:, (clip[0] - clip[0, :, :1, :1]).abs().sum(0).argmax()]
        assert torch.allclose(brightest, torch.tensor(COLOURS[caption.colour]), atol=1e-5)


def test_a_clip_is_a_function_of_the_seed_and_the_same_at_any_size_and_rate():
    captions = TRAIN[:5]
    first, again = (moving.draw(captions, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(first, again)
    large = moving.draw(captions, np.random.default_rng(3), size=64)
    assert torch.nn.functional.avg_pool2d(large.flatten(0, 1), 2).sub(first.flatten(0, 1)).abs().mean() < 0.01
    assert torch.equal(moving.draw(captions, np.random.default_rng(3), frames=17)[:, ::2], first)
    assert moving.draw(captions, np.random.default_rng(3), frames=1).shape == (5, 1, 3, 32, 32)
    assert moving.draw([], np.random.default_rng(3)).shape == (0, 9, 3, 32, 32)
