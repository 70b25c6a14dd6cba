"""What Wan 2.2 A14B, of two networks, alone has, on a tiny checkpoint."""

from contextlib import nullcontext

import pytest
import torch
from models import family_checks as checks
from models.family_checks import edited_copy as edited
from models.wan_cases import BOUNDARY, LOW_GUIDANCE, WAN, WAN_EXPERTS

from unirl_env.errors import ConfigError, ModelNotFound
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.prompts.sources import PromptSource
from unirl_env.run.agent_setup import agent_config
from unirl_env.run.world_setup import check_targets
from unirl_env.train import settings

INDEX = "model_index.json"
RANGE = "agent.options.clip_low_nats=2"
"""The recipe's is that of a larger clip."""


@pytest.fixture(scope="module")
def folder(checkpoint):
    return checkpoint(WAN_EXPERTS)


@pytest.fixture(scope="module")
def denoiser(folder):
    return WAN_EXPERTS.denoiser(folder)


def test_steps_of_one_network_alone_train_it(folder, cluster):
    """The other one's weights get no gradient at all."""
    steps = ("steps.fraction=[0.0,0.2]", "steps.count=1")
    checks.trains(WAN_EXPERTS, folder, "diffusion/wan", "grpo", RANGE, *steps)


def test_whole_weights_of_both_load(folder, denoiser, tmp_path):
    from diffusers import WanTransformer3DModel

    actor = Actor(denoiser)
    with torch.no_grad():
        for parameter in actor.network.parameters():
            parameter.add_(0.01)
    actor.save_weights(str(tmp_path))
    own = actor.network.state_dict()
    for part in ("transformer", "transformer_2"):
        loaded = WanTransformer3DModel.from_pretrained(tmp_path, subfolder=part).state_dict()
        assert loaded and all(torch.equal(own.pop(f"{part}.{name}"), each) for name, each in loaded.items())
    assert not own


def test_adapters_of_one_alone_are_one_folder(folder, denoiser, tmp_path):
    target = "transformer_2.blocks.1.attn1.to_q"
    actor = Actor(denoiser, lora=LoRAConfig(rank=2, alpha=4, targets=(target,)))
    checks.randomised(actor)
    actor.save_adapters(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["transformer_2"]
    pipeline = WAN_EXPERTS.load(folder)
    pipeline.load_lora_weights(tmp_path / "transformer_2", load_into_transformer_2=True)
    loaded = [name for name, _ in pipeline.transformer_2.named_parameters() if "lora_A" in name]
    assert loaded == ["blocks.1.attn1.to_q.lora_A.default_0.weight"]


@pytest.mark.parametrize("rows", [None, 2])
def test_mixed_rows_are_bitwise_what_each_network_says(folder, rows):
    """Lots are formed of rows of one level: a lot of both would pass the other one's rows along."""
    denoiser = WAN_EXPERTS.denoiser(folder, rows_per_forward=rows)
    networks, plain = denoiser.network(), denoiser._alone("transformer")
    context = {name: each[[0, 1, 2, 0, 1]] for name, each in denoiser.encode(WAN.prompts).items()}
    latent = torch.randn(5, *denoiser.latent_shape, generator=torch.Generator().manual_seed(2))
    sigma = torch.tensor([0.2, 0.95, BOUNDARY, 0.874, 1.0])
    high = sigma >= BOUNDARY
    with torch.no_grad():
        mixed = denoiser.velocity(networks, latent, sigma, context)
        for network, some in ((networks.transformer, high), (networks.transformer_2, ~high)):
            alone = plain.velocity(
                network, latent[some], sigma[some], {n: c[some] for n, c in context.items()}
            )
            assert torch.equal(mixed[some], alone)


def test_each_level_has_its_guidance(folder, denoiser):
    without, there = torch.zeros(3, *denoiser.latent_shape), torch.ones(3, *denoiser.latent_shape)
    sigma = torch.tensor([1.0, BOUNDARY, 0.8])
    got = denoiser.guided(without, there, 3.5, sigma)[:, 0, 0, 0, 0]
    assert torch.equal(got, torch.tensor([3.5, 3.5, LOW_GUIDANCE]))
    same = WAN_EXPERTS.denoiser(folder, low_guidance=None)
    assert torch.equal(same.guided(without, there, 3.5, sigma), 3.5 * there)


def test_the_boundary_is_where_the_pipeline_has_it(folder, denoiser):
    """At the very level, where the next smaller number is below it."""
    exactly = torch.tensor([BOUNDARY])
    below = torch.nextafter(exactly, torch.zeros(1))
    assert denoiser._is_high(torch.cat([exactly, below])).tolist() == [True, False]


def run_of(folder, *overrides):
    """Settings of a run on the tiny checkpoint."""
    sizes = ["model.height=32", "model.width=48", "model.num_frames=5", "model.dtype=float32"]
    rest = ["model.eval_num_steps=null", "prompts.heldout=null", "reward.heldout=null"]
    return settings("diffusion/wan", [f"model.pretrained={folder}", *sizes, *rest, *overrides])


@pytest.mark.parametrize("how", [["sharded"], ["hybrid", "learner.shard_size=2"]])
def test_learners_that_divide_the_networks_are_refused(folder, how):
    learners = ("rollout.num_learners=2", "rollout.num_env_runners=1")
    cfg = run_of(folder, f"learner.parallel={how[0]}", *how[1:], *learners)
    told = r"`learner\.parallel` must be replicated for this model, got .* by their noise level"
    with pytest.raises(ConfigError, match=told):
        agent_config(cfg, PromptSource.of(list(WAN.prompts))).validate()


@pytest.mark.parametrize(
    ("target", "known"),
    [("transformer_2.blocks.0.attn1.to_q", True), ("transformer_3.blocks.0.attn1.to_q", False)],
)
def test_layers_of_one_network_have_its_name(folder, target, known):
    cfg = run_of(folder, f"policy.lora_targets=[{target}]")
    with (
        nullcontext()
        if known
        else pytest.raises(ConfigError, match=r"`policy\.lora_targets` must name layers")
    ):
        check_targets(cfg, folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"transformer_2": [None, None]}, r"boundary_ratio 0.875 and the networks \['transformer'\]"),
        ({"boundary_ratio": None}, "boundary_ratio None"),
        ({"transformer": [None, None]}, r"the networks \['transformer_2'\]"),
        ({"boundary_ratio": 875}, "between 0 and 1"),
    ],
)
def test_half_of_a_checkpoint_is_refused(folder, tmp_path, change, told):
    with pytest.raises(ModelNotFound, match=told):
        WAN_EXPERTS.denoiser(edited(folder, tmp_path / "changed", INDEX, **change))


@pytest.mark.parametrize("part", ["transformer", "transformer_2"])
def test_a_folder_that_is_not_there_is_named(folder, tmp_path, part):
    changed = edited(folder, tmp_path / "changed", INDEX)
    (changed / part).rename(tmp_path / "away")
    with pytest.raises(ModelNotFound, match="no file named config"):
        WAN_EXPERTS.denoiser(changed)


def test_one_network_has_no_second_guidance(tmp_path, quiet_models):
    WAN.build(tmp_path)
    with pytest.raises(
        ConfigError, match="`low_guidance` must be null for a checkpoint of one network, got 2"
    ):
        WAN.denoiser(tmp_path, low_guidance=2)
