"""What every family of pictures must show, on its tiny checkpoint against its pipeline.

What a family alone has is in a module of its own, `test_<family>.py`. Qwen-Image-Edit is checked in its own,
where its pipelines scale pictures to fewer pixels than they would, and so is Stable Diffusion 3.
"""

from functools import partial

import pytest
from models import family_checks as checks
from models import flux1_cases as flux1
from models import flux2_cases as flux2
from models.checked_families import Checked, drawn, of_all, trained
from models.pixart_cases import PIXART
from models.qwen_image_cases import QWEN_IMAGE
from models.sana_cases import SANA
from models.stable_diffusion_cases import SD15, SDXL
from models.z_image_cases import Z_IMAGE

Picture = partial(Checked, agents=("grpo", "flow_dppo", "drpo"))
DISTILLED = {checks.trains: "its network has the layers of the one that it was distilled from, which trains"}
PACKED = {checks.its_latents_are_the_pipelines: "its case unpacks latents, and compares pictures alone"}
PAINTERS = {checks.draws_for_texts: "every id does so in test_families_as_painters.py"}
UNET = {
    checks.recomputing_changes_nothing: "a UNet's blocks recompute, and the check asks the network itself"
}
RANGE = ("agent.options.clip_low_nats=2",)
"""The published range of GRPO is 5e-3 for each element; in nats it is that of a picture of 512 x 512."""

PICTURES = {
    "flux1": Picture(flux1.DEV, "diffusion/flux1", steps=(3, 5), other=(24, 8)),
    "flux1_schnell": Picture(
        flux1.SCHNELL, "diffusion/flux1", steps=(3, 5), other=(24, 8), apart={**DISTILLED, **PAINTERS}
    ),
    "flux2_klein": Picture(
        flux2.KLEIN, "diffusion/flux2_klein", of_grpo=RANGE, steps=(3, 5), other=(24, 8), apart=PACKED
    ),
    "flux2_klein_distilled": Picture(
        flux2.DISTILLED, "diffusion/flux2_klein", steps=(3, 5), other=(24, 8), apart={**PACKED, **DISTILLED}
    ),
    "flux2": Checked(
        flux2.DEV,
        "diffusion/flux2_klein",
        ("model=flux2",),
        agents=("flow_dppo",),
        steps=(3, 5),
        other=(24, 8),
        apart=PACKED,
    ),
    "qwen_image": Picture(QWEN_IMAGE, "diffusion/qwen_image", steps=(2, 5), other=(24, 8), apart=PAINTERS),
    "z_image": Picture(Z_IMAGE, "diffusion/z_image", steps=(3, 5), other=(24, 8), apart=PAINTERS),
    "sana": Picture(SANA, "diffusion/sana", ("steps={kind: all}",), steps=(3, 8), other=(32, 64)),
    "pixart": Picture(
        PIXART, "diffusion/sdxl", ("model=pixart",), steps=(3, 8), other=(32, 80), latents=2e-5
    ),
    "sd15": Checked(
        SD15,
        "diffusion/sdxl",
        ("model=sd15",),
        agents=("grpo",),
        steps=(3, 10),
        other=(48, 24),
        apart={**UNET, **PAINTERS},
    ),
    "sdxl": Picture(SDXL, "diffusion/sdxl", steps=(3, 10), other=(48, 24), apart=UNET),
}


@pytest.fixture
def case(name, checkpoint):
    """A family and the folder of its checkpoint."""
    family = PICTURES[name].family
    return family, checkpoint(family)


@drawn(PICTURES)
def test_it_draws_the_pipelines_pictures(case, guidance, num_steps):
    checks.equals_the_pipeline(*case, guidance=guidance, num_steps=num_steps)


@of_all(PICTURES, checks.its_latents_are_the_pipelines)
def test_its_latents_are_the_pipelines(case, name):
    checks.its_latents_are_the_pipelines(*case, most=PICTURES[name].latents)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "close"])
@pytest.mark.parametrize("lora", [True, False], ids=["adapters", "whole"])
@of_all(PICTURES, checks.agrees_with_itself)
def test_it_agrees_with_itself(case, lora, exact):
    checks.agrees_with_itself(*case, lora=lora, exact=exact)


@of_all(PICTURES, checks.adapters_load_in_the_pipeline)
def test_its_adapters_load_in_the_pipeline(case, tmp_path):
    checks.adapters_load_in_the_pipeline(*case, tmp_path)


@of_all(PICTURES, checks.whole_weights_load)
def test_its_whole_weights_load(case, tmp_path):
    checks.whole_weights_load(*case, tmp_path)


@of_all(PICTURES, checks.recomputing_changes_nothing)
def test_recomputed_activations_give_the_same_gradients(case):
    checks.recomputing_changes_nothing(*case)


@of_all(PICTURES, checks.another_size_is_the_pipelines)
def test_pictures_of_evaluation_may_have_another_size(case, name):
    checks.another_size_is_the_pipelines(*case, *PICTURES[name].other)


@of_all(PICTURES, checks.draws_for_texts)
def test_it_draws_for_texts(case):
    checks.draws_for_texts(*case)


@of_all(PICTURES, checks.keeps_the_contract)
def test_it_keeps_the_contract(case):
    checks.keeps_the_contract(*case)


@pytest.mark.ray
@trained(PICTURES, checks.trains)
def test_it_trains_by_its_recipe(case, cluster, name, agent):
    row = PICTURES[name]
    checks.trains(*case, row.recipe, agent, *row.told(agent))
