"""Packing: every trained token once, predicted from its place; positions go on where the prompt ends."""

import pytest
import torch

from unirl_env.episode import Phase
from unirl_env.policies.packing import pack_continuations, pack_prefixes, sequence_lengths

PROMPTS = torch.tensor([[11, 12, 13, 0], [21, 22, 23, 24]])
PROMPT_LENGTH = torch.tensor([3, 4])
ACTION = torch.tensor([[1, 2, 3, -1, -1], [4, -1, -1, -1, -1], [5, 6, 7, 8, 9]])
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 0, 0, 1]], dtype=torch.bool)
ROW = torch.tensor([0, 1, 1])


def phase(**context):
    return Phase(
        observation={},
        action=ACTION,
        log_prob=torch.zeros(3, 5),
        mask=MASK,
        context={"prompt": PROMPTS, "prompt_length": PROMPT_LENGTH, **context},
        context_row=ROW,
        ragged=True,
    )


def test_sequences_lie_end_to_end_without_their_last_token():
    packed = pack_continuations(phase(), torch.tensor([0, 2]))
    obs = packed.observation
    assert obs["tokens"].tolist() == [11, 12, 13, 1, 2, 21, 22, 23, 24, 5, 6, 7, 8]
    assert obs["lengths"].tolist() == [5, 8] == sequence_lengths(phase())[[0, 2]].tolist()
    assert obs["positions"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 7]]


def test_each_trained_token_is_predicted_by_the_token_before_it():
    packed = pack_continuations(phase(), torch.tensor([2, 1, 0]))
    assert packed.episode.tolist() == [2, 2, 2, 1, 0, 0, 0]
    assert packed.step.tolist() == [0, 1, 4, 0, 0, 1, 2]
    assert packed.action.tolist() == [5, 6, 9, 4, 1, 2, 3]
    assert packed.observation["tokens"][packed.observation["source"]].tolist() == [24, 5, 8, 24, 13, 1, 2]


def test_the_packed_row_knows_no_order_of_the_batch():
    whole = pack_continuations(phase(), torch.tensor([0, 1, 2]))
    for episode in range(3):
        alone = pack_continuations(phase(), torch.tensor([episode]))
        here = whole.episode == episode
        assert torch.equal(alone.action, whole.action[here])
        assert torch.equal(alone.step, whole.step[here])


def test_rotary_positions_of_pictures_go_on_after_the_prompts_largest():
    positions = torch.tensor(
        [[[0, 1, 1, 9], [0, 1, 2, 9], [0, 3, 1, 9]], [[0, 1, 1, 2], [0, 1, 1, 2], [0, 1, 2, 2]]]
    )
    grid = torch.tensor([[[1, 1, 2]], [[0, 0, 0]]])
    pixels = torch.arange(2 * 3 * 2, dtype=torch.float32).view(2, 3, 2)
    obs = pack_continuations(
        phase(positions=positions, image_grid_thw=grid, pixel_values=pixels), torch.tensor([0, 2])
    ).observation
    assert obs["positions"][:, :5].tolist() == [[0, 1, 1, 4, 5], [0, 1, 2, 4, 5], [0, 3, 1, 4, 5]]
    assert obs["positions"][:, 5:].tolist() == [[0, 1, 1, 2, 3, 4, 5, 6]] * 2 + [[0, 1, 2, 2, 3, 4, 5, 6]]
    assert torch.equal(obs["pixel_values"], pixels[0, :2]) and obs["image_grid_thw"].tolist() == [[1, 1, 2]]


def test_a_prompt_of_several_episodes_lies_there_once():
    packed = pack_continuations(phase(), torch.tensor([2, 1, 0]), branching=True)
    obs = packed.observation
    assert obs["tokens"].tolist() == [11, 12, 13, 21, 22, 23, 24, 5, 6, 7, 8, 1, 2]
    assert obs["lengths"].tolist() == [3, 4, 4, 2] and obs["follows"].tolist() == [-1, -1, 1, 0]
    assert obs["positions"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 3, 4]]
    plain = pack_continuations(phase(), torch.tensor([2, 1, 0]))
    for name in ("action", "episode", "step"):
        assert torch.equal(getattr(packed, name), getattr(plain, name))
    seen = [each.observation["tokens"][each.observation["source"]] for each in (packed, plain)]
    assert torch.equal(*seen)


def test_without_a_shared_prompt_nothing_branches():
    index = torch.tensor([0, 2])
    packed, plain = (pack_continuations(phase(), index, branching=on) for on in (True, False))
    assert packed.observation.keys() == plain.observation.keys()
    assert torch.equal(packed.observation["tokens"], plain.observation["tokens"])


def test_what_follows_a_shared_picture_has_the_positions_after_it():
    positions = torch.tensor(
        [[[0, 1, 1, 9], [0, 1, 2, 9], [0, 3, 1, 9]], [[0, 1, 1, 2], [0, 1, 1, 2], [0, 1, 2, 2]]]
    )
    grid = torch.tensor([[[0, 0, 0]], [[1, 1, 2]]])
    pixels = torch.arange(2 * 3 * 2, dtype=torch.float32).view(2, 3, 2)
    obs = pack_continuations(
        phase(positions=positions, image_grid_thw=grid, pixel_values=pixels),
        torch.tensor([0, 1, 2]),
        branching=True,
    ).observation
    assert obs["lengths"].tolist() == [3, 4, 2, 4]
    assert obs["positions"][:, :3].tolist() == [[0, 1, 1], [0, 1, 2], [0, 3, 1]]
    assert obs["positions"][0, 7:].tolist() == [4, 5, 3, 4, 5, 6]
    assert torch.equal(obs["pixel_values"], pixels[1, :2]) and obs["image_grid_thw"].tolist() == [[1, 1, 2]]


@pytest.mark.parametrize("rows", [[0], [0, 1, 2]])
def test_prefixes_end_at_their_length(rows):
    tokens = torch.tensor([[11, 12, 13, 1, 0], [21, 22, 23, 24, 0], [21, 22, 23, 24, 5]])[rows]
    obs = {"tokens": tokens, "length": torch.tensor([4, 4, 5])[rows], "is_action": tokens * 0}
    packed = pack_prefixes({**obs, "prompt_length": torch.tensor([3, 4, 4])[rows]})
    assert packed["tokens"][packed["source"]].tolist() == [1, 24, 5][: len(rows)]
    assert int(packed["lengths"].sum()) == len(packed["tokens"])
