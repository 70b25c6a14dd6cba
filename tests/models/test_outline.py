"""Networks without weights: as the loaded ones in everything but memory, and filled from the same files."""

import copy
import logging
import shutil
from functools import partial

import pytest
import torch
from bagel_cases import build
from hunyuan_cases import write_tiny_checkpoint
from janus_cases import write_tiny_janus
from safetensors.torch import load_file, save_file

from unirl_env.models import tiny
from unirl_env.models.bagel.model import Bagel
from unirl_env.models.causal_lm import CausalLM
from unirl_env.models.hunyuan_image3.model import HunyuanImage3
from unirl_env.models.janus.model import Janus
from unirl_env.models.shared.outline import outlines, outlining
from unirl_env.policies.actor import Actor, LoRAConfig

MODELS = ["TinySD3Denoiser", "TinyQwen3", "TinyQwenVL", "TinyUnified", "TinyPromptEnhancer"]


def made(name, **options):
    return getattr(tiny, name)(**options)


def without_weights(model):
    with outlining():
        return model.network()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """By name, families that are not embedded, with a tiny checkpoint each."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_checkpoint(folder / "hunyuan")
    return {
        "HunyuanImage3": partial(HunyuanImage3, str(folder / "hunyuan")),
        "Bagel": partial(Bagel, build(folder / "bagel")),
        "Janus": partial(Janus, write_tiny_janus(folder / "janus")),
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*MODELS, "HunyuanImage3", "Bagel", "Janus"])
def test_shapes_precisions_tables_and_every_part_are_those_of_the_loaded_network(name, dtype, written):
    make = written.get(name) or getattr(tiny, name)
    loaded, outline = make(dtype=dtype).network(), without_weights(make(dtype=dtype))
    ((part, files),) = outlines(outline)
    assert part is outline
    weights, shapes = dict(loaded.named_parameters()), dict(outline.named_parameters())
    assert list(weights) == list(shapes)
    for key, shape in shapes.items():
        if not shape.is_meta:  # a table that is computed
            assert torch.equal(shape, weights[key])
            continue
        assert (shape.dtype, shape.shape) == (weights[key].dtype, weights[key].shape)
        half = (slice(shape.shape[0] // 2, None), *(slice(0, n) for n in shape.shape[1:]))
        assert torch.equal(files.read(key, half).to(shape.dtype), weights[key][half])
    files.close()
    tables = dict(outline.named_buffers())
    assert tables.keys() == dict(loaded.named_buffers()).keys()
    for key, table in loaded.named_buffers():
        assert table.dtype == tables[key].dtype and torch.equal(table, tables[key])


def test_adapters_have_memory_and_the_same_first_values():
    def actor(model):
        torch.manual_seed(3)
        return Actor(model, lora=LoRAConfig(rank=4), keep_average=True)

    loaded = actor(made("TinyQwen3"))
    with outlining():
        outline = actor(made("TinyQwen3"))
    mine, theirs = outline.trainable_state(), loaded.trainable_state()
    assert mine.keys() == theirs.keys() and len(mine) > 4
    for key, weight in mine.items():
        assert torch.equal(weight, theirs[key]) and torch.equal(outline.copies["ema"][key], weight)
    assert all(p.is_meta for p in outline.network.parameters() if not p.requires_grad)


def test_what_is_checked_of_a_loaded_network_waits_for_the_weights():
    model = made("TinyQwen3")
    outline = without_weights(model)
    ((_, files),) = outlines(outline)
    (check,) = files.checks
    ((_, copied),) = outlines(copy.deepcopy(outline))
    assert copied.checks == [check], "a frozen copy is held against transformers, too"
    check(made("TinyQwen3").network())
    assert model._networks._way.branches


def test_a_network_that_is_stored_by_other_names_is_loaded_whole_and_says_so(tmp_path, caplog):
    own = tmp_path / "own"
    shutil.copytree(made("TinyQwen3").pretrained, own)
    for file in own.glob("*.safetensors"):
        tensors = load_file(file)
        save_file({name.replace("model.", "other."): t for name, t in tensors.items()}, file)
    model = CausalLM(str(own))
    with caplog.at_level(logging.INFO), pytest.raises(Exception, match="its weights lack"):
        without_weights(model)
    assert "is loaded whole: 'model.embed_tokens.weight' is not stored by its name" in caplog.text
