"""The cache with room: what it holds is what transformers' own holds."""

import torch
from transformers import DynamicCache, Qwen3Config
from transformers.cache_utils import DynamicLayer

from unirl_env.models.shared.cache import LEAST_ROOM, RoomyLayer, roomy_cache


def states(batch, tokens):
    return torch.randn(batch, 2, tokens, 4), torch.randn(batch, 2, tokens, 4)


def test_it_holds_what_dynamic_layers_hold():
    torch.manual_seed(0)
    ours, theirs = RoomyLayer(), DynamicLayer()
    batch = 3
    for turn in range(3 * LEAST_ROOM):
        new = states(batch, 5 if turn in (0, 40) else 1)
        for mine, expected in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(mine, expected)
        assert ours.get_seq_length() == theirs.get_seq_length()
        index = {0: [0, 0, 1, 1, 2, 2], 30: [0, 2, 5], 31: [2], 70: [0, 0, 0]}.get(turn)
        if index is not None:
            ours.batch_select_indices(torch.tensor(index))
            theirs.batch_select_indices(torch.tensor(index))
            batch = len(index)


def test_states_move_seldom():
    layer = RoomyLayer()
    layer.update(*states(2, 8))
    places = set()
    for _ in range(1000):
        layer.update(*states(2, 1))
        places.add(layer.keys.data_ptr())
    assert len(places) <= 6


def test_what_was_returned_does_not_change():
    layer = RoomyLayer()
    layer.update(*states(2, 8))
    keys, _ = layer.update(*states(2, 1))
    before = keys.clone()
    layer.update(*states(2, 1))
    assert torch.equal(keys, before)


def test_layers_of_other_kinds_stay():
    config = Qwen3Config(
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=4,
        use_sliding_window=True,
    )
    own = [type(layer) for layer in DynamicCache(config=config).layers]
    assert [type(layer) for layer in roomy_cache(config).layers] == [own[0], RoomyLayer]
