"""What every family of clips must show, on its tiny checkpoint against its pipeline.

What a family alone has is in a module of its own, `test_<family>.py`.
"""

import pytest
from models import family_checks as checks
from models.checked_families import Checked, drawn, of_all, trained
from models.hunyuan_video15_cases import HUNYUAN_VIDEO15
from models.hunyuan_video15_i2v_cases import HUNYUAN_VIDEO15_I2V
from models.hunyuan_video_cases import HUNYUAN_VIDEO
from models.ltx_cases import LTX, LTX_I2V
from models.wan_cases import WAN, WAN_5B, WAN_5B_I2V, WAN_EXPERTS, WAN_I2V, WAN_I2V_EXPERTS

TWO_NETWORKS = "a folder for each of two networks: test_wan_experts.py loads both"
FRACTION = ("steps.fraction=[0.1,0.7]",)
"""The recipe's own is one of 30 steps."""
RANGE = ("agent.options.clip_low_nats=2",)
"""The published range of GRPO is 1e-3 for each element; in nats it is that of 33 frames of 240 x 416."""


def nats(elements: int) -> tuple[str, ...]:
    """The range of LTX's recipe for each element, for a latent of so many."""
    return (f"agent.options.clip_low_nats={1e-4 * elements}",)


CLIPS = {
    "wan": Checked(WAN, "diffusion/wan", of_grpo=RANGE, steps=(3, 8)),
    "wan_5b": Checked(WAN_5B, "diffusion/wan", steps=(3,), other=(96, 64)),
    "wan_experts": Checked(
        WAN_EXPERTS, "diffusion/wan", of_grpo=RANGE, apart={checks.whole_weights_load: TWO_NETWORKS}
    ),
    "wan_i2v": Checked(WAN_I2V, "diffusion/wan_i2v"),
    "wan_5b_i2v": Checked(WAN_5B_I2V, "diffusion/wan_i2v", ("model=wan_5b_i2v",), other=(96, 64)),
    "wan_i2v_experts": Checked(
        WAN_I2V_EXPERTS, "diffusion/wan_i2v", apart={checks.whole_weights_load: TWO_NETWORKS}
    ),
    "hunyuan_video": Checked(HUNYUAN_VIDEO, "diffusion/hunyuan_video", ("steps.count=3",), steps=(3, 8)),
    "hunyuan_video15": Checked(HUNYUAN_VIDEO15, "diffusion/hunyuan_video15", steps=(2, 5), other=(24, 16)),
    "hunyuan_video15_i2v": Checked(
        HUNYUAN_VIDEO15_I2V,
        "diffusion/hunyuan_video15",
        ("model=hunyuan_video15_i2v",),
        steps=(2, 3),
        apart={
            checks.another_size_is_the_pipelines: "other clips need other pictures: its own module has both"
        },
    ),
    "ltx": Checked(LTX, "diffusion/ltx", FRACTION, nats(72), steps=(3, 8), other=(96, 64)),
    "ltx_i2v": Checked(
        LTX_I2V, "diffusion/ltx", ("model=ltx_i2v", *FRACTION), nats(36), steps=(3, 8), other=(96, 64)
    ),
}


@pytest.fixture
def case(name, checkpoint):
    """A family and the folder of its checkpoint."""
    family = CLIPS[name].family
    return family, checkpoint(family)


@drawn(CLIPS)
def test_it_films_the_pipelines_clips(case, guidance, num_steps):
    checks.equals_the_pipeline(*case, guidance=guidance, num_steps=num_steps)


@of_all(CLIPS, checks.its_latents_are_the_pipelines)
def test_its_latents_are_the_pipelines(case, name):
    checks.its_latents_are_the_pipelines(*case, most=CLIPS[name].latents)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "close"])
@pytest.mark.parametrize("lora", [True, False], ids=["adapters", "whole"])
@of_all(CLIPS, checks.agrees_with_itself)
def test_it_agrees_with_itself(case, lora, exact):
    checks.agrees_with_itself(*case, lora=lora, exact=exact)


@of_all(CLIPS, checks.adapters_load_in_the_pipeline)
def test_its_adapters_load_in_the_pipeline(case, tmp_path):
    checks.adapters_load_in_the_pipeline(*case, tmp_path)


@of_all(CLIPS, checks.whole_weights_load)
def test_its_whole_weights_load(case, tmp_path):
    checks.whole_weights_load(*case, tmp_path)


@of_all(CLIPS, checks.recomputing_changes_nothing)
def test_recomputed_activations_give_the_same_gradients(case):
    checks.recomputing_changes_nothing(*case)


@of_all(CLIPS, checks.another_size_is_the_pipelines)
def test_clips_of_evaluation_may_have_another_size(case, name):
    checks.another_size_is_the_pipelines(*case, *CLIPS[name].other)


@of_all(CLIPS, checks.keeps_the_contract)
def test_it_keeps_the_contract(case):
    checks.keeps_the_contract(*case)


@trained(CLIPS, checks.trains)
def test_it_trains_by_its_recipe(case, cluster, name, agent):
    row = CLIPS[name]
    checks.trains(*case, row.recipe, agent, *row.told(agent))
