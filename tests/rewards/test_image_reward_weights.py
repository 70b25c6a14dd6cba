"""Every published weight has one place, and every place its weight."""

import os
import pickle

import pytest
import torch
from image_reward_cases import POSITIONS, full_size, golden, golden_state, write_model
from safetensors.torch import save_file

from unirl_env.errors import ModelNotFound
from unirl_env.rewards.learned.image_reward import ImageRewardScore
from unirl_env.rewards.learned.image_reward_weights import UNUSED, load_network, own_names


def test_the_published_weights_fill_the_full_size_network_exactly():
    state, text = full_size()
    assert len(state) == 625
    names = own_names(state)
    network = load_network(state, text)
    assert set(state) - set(names) == UNUSED
    assert sorted(names.values()) == sorted(network.state_dict()) and len(set(names.values())) == 620
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert all(shapes[own] == state[name].shape for name, own in names.items())
    vision, words = network.vision.config, network.text.config
    assert (vision.num_attention_heads, vision.image_size, vision.num_hidden_layers) == (16, 224, 24)
    assert (words.num_attention_heads, words.encoder_hidden_size) == (12, 1024)
    assert vision.layer_norm_eps == 1e-6 and words.layer_norm_eps == 1e-12


def test_what_no_score_depends_on_may_be_missing():
    state, text = golden_state(), golden()[1]
    network = load_network({k: v for k, v in state.items() if k not in UNUSED}, text, vision_heads=2)
    assert len(network.state_dict()) == len(state) - len(UNUSED)


@pytest.mark.parametrize("name", ["mlp.layers.7.bias", "blip.text_encoder.embeddings.LayerNorm.weight"])
def test_a_missing_weight_is_an_error(name):
    state, text = golden_state(), golden()[1]
    state.pop(name)
    with pytest.raises(ValueError, match="1 weights are missing: "):
        load_network(state, text, vision_heads=2)


def test_an_unknown_weight_is_an_error():
    state, text = golden_state(), golden()[1]
    with pytest.raises(ValueError, match=r"1 weights are not ImageReward's: module\.x"):
        load_network(state | {"module.x": torch.zeros(1)}, text, vision_heads=2)
    with pytest.raises(ValueError, match=r"1 weights have no place: text\.pooler"):
        load_network(state | {"blip.text_encoder.pooler.bias": torch.zeros(1)}, text, vision_heads=2)


def test_another_shape_or_other_sizes_are_an_error():
    state, text = golden_state(), golden()[1]
    with pytest.raises(ValueError, match=r"1 weights differ in shape: head\.0\.bias"):
        load_network(state | {"mlp.layers.0.bias": torch.zeros(3)}, text, vision_heads=2)
    with pytest.raises(ValueError, match=r"weights have no place: text\.encoder\.layer\.1"):
        load_network(state, text | {"num_hidden_layers": 1}, vision_heads=2)
    text.pop("vocab_size")
    with pytest.raises(ValueError, match="'vocab_size' is missing"):
        load_network(state, text, vision_heads=2)


def test_files_are_read_without_running_what_is_in_them(tmp_path):
    state, _ = write_model(tmp_path)
    tokenizer = str(tmp_path / "tokenizer")
    (tmp_path / "ImageReward.pt").unlink()
    mark = tmp_path / "ran"

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(mark),)

    (tmp_path / "ImageReward.pt").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(ModelNotFound, match=r"`image_reward` must find .*ImageReward\.pt"):
        ImageRewardScore(str(tmp_path), tokenizer=tokenizer)
    assert not mark.exists()

    torch.save({"state": 3}, tmp_path / "ImageReward.pt")
    with pytest.raises(ModelNotFound, match="its values are no tensors"):
        ImageRewardScore(str(tmp_path), tokenizer=tokenizer)
    torch.save({POSITIONS: state[POSITIONS]}, tmp_path / "ImageReward.pt")
    with pytest.raises(ModelNotFound, match="is missing"):
        ImageRewardScore(str(tmp_path), tokenizer=tokenizer)
    save_file(state, tmp_path / "ImageReward.safetensors")
    assert ImageRewardScore(str(tmp_path), tokenizer=tokenizer)._network.side == 8
    (tmp_path / "med_config.json").write_text("[]")
    with pytest.raises(ModelNotFound, match="holds no sizes"):
        ImageRewardScore(str(tmp_path), tokenizer=tokenizer)
