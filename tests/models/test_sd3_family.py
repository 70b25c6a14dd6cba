"""The checks of all families, on Stable Diffusion 3."""

from functools import partial

import family_checks as checks
import pytest
from family_checks import Family

from pretraining.sd3_build import build_tiny_sd3


def call(prompts, guidance):
    return {
        "prompt": [prompt.text for prompt in prompts],
        "negative_prompt": [prompt.negative for prompt in prompts],
        "guidance_scale": guidance,
        "max_sequence_length": 10,
    }


SD3 = Family(
    "sd3", "unirl/SD3-T2I-v0", partial(build_tiny_sd3, seed=1), "StableDiffusion3Pipeline", call,
    {"max_sequence_length": 10, "schedule": "pipeline"},
    blind=tuple(f"transformer_blocks.2.attn.{name}" for name in ("add_q_proj", "norm_added_q")),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd3")
    SD3.build(folder)
    return folder


@pytest.mark.parametrize("guidance", SD3.guidances)
@pytest.mark.parametrize("num_steps", [3, 5])
def test_it_draws_the_pipelines_pictures(folder, guidance, num_steps):
    checks.equals_the_pipeline(SD3, folder, guidance=guidance, num_steps=num_steps)


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_it_agrees_with_itself(folder, lora, exact):
    checks.agrees_with_itself(SD3, folder, lora=lora, exact=exact)


def test_what_it_exports_loads(folder, tmp_path):
    checks.adapters_load_in_the_pipeline(SD3, folder, tmp_path / "adapters")
    checks.whole_weights_load(SD3, folder, tmp_path / "weights")
