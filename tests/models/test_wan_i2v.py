"""What Wan from a picture, 2.1 and 2.2, alone has, on tiny checkpoints."""

from dataclasses import replace

import gymnasium as gym
import pytest
import torch
from models import family_checks as checks
from models.family_checks import edited_copy as edited
from models.wan_cases import WAN_I2V, WAN_I2V_EXPERTS, picture

from unirl_env.errors import ConfigError, ModelNotFound, PromptError
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.types import Prompt

FAMILIES = {"one": WAN_I2V, "experts": WAN_I2V_EXPERTS}
INDEX, NETWORK = "model_index.json", "transformer/config.json"


@pytest.fixture(scope="module")
def folders(checkpoint):
    return {name: checkpoint(family) for name, family in FAMILIES.items()}


@pytest.fixture(params=FAMILIES)
def kind(request, folders):
    return FAMILIES[request.param], folders[request.param]


def test_adapters_of_what_looks_at_the_picture_load_too(folders, tmp_path):
    denoiser, targets = WAN_I2V.denoiser(folders["one"]), ("attn2.to_k", "attn2.add_k_proj", "add_v_proj")
    actor = Actor(denoiser, lora=LoRAConfig(rank=2, alpha=4, targets=targets))
    checks.randomised(actor)
    actor.save_adapters(str(tmp_path))
    prompts, pipeline = list(WAN_I2V.prompts[:1]), WAN_I2V.load(folders["one"])
    start, _, clips = WAN_I2V.drawn(denoiser, actor, 3, prompts)
    pipeline.load_lora_weights(tmp_path)
    expected = WAN_I2V.by_pipeline(pipeline, denoiser, start, 1.0, 3, prompts)
    assert (clips - expected).abs().max() <= 1e-5


def test_the_picture_matters_and_is_no_part_of_the_latent(kind):
    family, folder = kind
    denoiser = family.denoiser(folder)
    assert denoiser.latent_shape == (4, 2, 4, 6)
    other = replace(family.prompts[0], images=(picture(9, 32, 48),))
    assert denoiser.encode([other])["condition"].shape == (1, 8, 2, 4, 6)
    finals = [family.drawn(denoiser, Actor(denoiser), 3, [p])[1] for p in (family.prompts[0], other)]
    assert (finals[0] - finals[1]).abs().max() > 1e-2


def test_a_condition_is_the_same_beside_others(kind):
    family, folder = kind
    denoiser = family.denoiser(folder)
    together = denoiser.encode(family.prompts)
    for row, prompt in enumerate(family.prompts):
        alone = denoiser.encode([prompt])
        for name in ("condition", *(["image_embeds"] if family is WAN_I2V else [])):
            assert torch.equal(alone[name][0], together[name][row])


@pytest.mark.parametrize("count", [0, 2])
def test_a_prompt_without_one_picture_is_refused(kind, count):
    family, folder = kind
    prompt = Prompt("a red circle", images=tuple(picture(seed, 32, 48) for seed in range(count)))
    with pytest.raises(PromptError, match=f"must bring one picture to begin with, got {count} in"):
        gym.make(family.id, **{**family.arguments(folder), "prompts": [prompt]})


@pytest.mark.parametrize("length", [24, 511, 513])
def test_a_length_at_which_the_network_parts_wrongly_is_refused(folders, length):
    with pytest.raises(ConfigError, match=f"`max_sequence_length` must be 512 .* got {length}; try 512"):
        WAN_I2V.denoiser(folders["one"], max_sequence_length=length)
    assert WAN_I2V_EXPERTS.denoiser(folders["experts"], max_sequence_length=length)


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        (INDEX, {"expand_timesteps": True}, "reads 12 channels, and those of a latent are 4"),
        (INDEX, {"image_encoder": [None, None]}, "has no `image_encoder`"),
        (INDEX, {"_class_name": "WanPipeline"}, "is of WanPipeline"),
        (NETWORK, {"pos_embed_seq_len": 10}, "a first and a last picture"),
        (NETWORK, {"in_channels": 4}, "reads 4 channels, and those of a latent, a picture and a mask are 12"),
    ],
)
def test_checkpoints_of_something_else_are_refused(folders, tmp_path, file, change, told):
    changed = edited(folders["one"], tmp_path / "changed", file, **change)
    with pytest.raises(ModelNotFound, match=told):
        WAN_I2V.denoiser(changed)
