"""Pipelines of clips without a leaf, read off their calls."""

import pytest
import torch
from models import any_video_cases as cases
from models import family_checks as checks
from models.wan_cases import WAN

from unirl_env.errors import ConfigError
from unirl_env.models import DENOISERS, check_denoiser
from unirl_env.models.any_pipeline import PipelineDenoiser
from unirl_env.models.any_video_pipeline import LEAVES, VideoPipelineDenoiser
from unirl_env.worlds.ids import IDS


@pytest.fixture(scope="module")
def folders(tmp_path_factory, quiet_models):
    made = {name: tmp_path_factory.mktemp(name) for name in cases.PIPELINES}
    for name, folder in made.items():
        cases.PIPELINES[name].build(folder)
    return made


@pytest.fixture(params=cases.PIPELINES)
def case(request, folders):
    return cases.PIPELINES[request.param], folders[request.param]


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_it_films_the_pipelines_clips(case, guidance):
    checks.equals_the_pipeline(*case, guidance=guidance)


def test_its_latents_are_the_pipelines(case):
    checks.its_latents_are_the_pipelines(*case)


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_it_agrees_with_itself(case, lora, exact):
    checks.agrees_with_itself(*case, lora=lora, exact=exact)


def test_what_it_exports_loads(case, tmp_path):
    checks.adapters_load_in_the_pipeline(*case, tmp_path / "adapters")
    checks.whole_weights_load(*case, tmp_path / "weights")


def test_clips_of_evaluation_may_have_another_size(case):
    checks.another_size_is_the_pipelines(*case, 64, 32)


def test_it_keeps_the_contract(case):
    checks.keeps_the_contract(*case)


def test_the_judge_acquits_it(case):
    family, folder = case
    report = check_denoiser(family.denoiser(folder))
    assert max(report.gaps.values()) <= 1e-5 and report.guidances == (1.0, 3.5)


@pytest.mark.parametrize("agent", ["awm", "grpo", "flow_dppo", "drpo"])
def test_it_trains_by_a_recipe(folders, cluster, agent):
    small = ["agent.options.clip_low_nats=0.0192"] if agent == "grpo" else []
    checks.trains(
        cases.SKYREELS, folders["SkyReelsV2"], "diffusion/wan", agent, "model=diffusers_video", *small
    )


def test_what_is_read_off(case):
    family, folder = case
    denoiser = family.denoiser(folder)
    way = denoiser.way
    assert (way.slope, way.offset, way.sign) == (1000, 0, 1) and way.latent == "hidden_states"
    assert (way.num_frames, way.height, way.width) == (5, 32, family.width)
    assert (
        denoiser.makes == "video"
        and denoiser.fps == 16
        and denoiser.latent_shape == (4, 2, 4, family.width // 8)
    )
    (sample,) = denoiser.decode(torch.zeros(1, *denoiser.latent_shape))
    assert sample.video.shape == (5, 3, 32, family.width) and sample.video.dtype == torch.uint8


def test_frames_that_a_pipeline_rounds_are_refused(case):
    family, folder = case
    with pytest.raises(ConfigError, match=r"frames` must be a size that .* draws, got 7, .*; try (5|9)"):
        _ = family.denoiser(folder, num_frames=7).latent_shape


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    ],
)
def test_the_solvers_of_published_checkpoints_are_refused_with_the_remedy(tmp_path, name, settings):
    import diffusers

    cases.build_skyreels(tmp_path, getattr(diffusers, name)(**settings))
    with pytest.raises(ConfigError, match=f"got '{name}'; try a copy of the checkpoint with a FlowMatch"):
        cases.SKYREELS.denoiser(tmp_path)


def test_a_scheduler_that_counts_the_other_way_is_refused(tmp_path):
    folder = cases.build_mochi(tmp_path / "mochi")
    with pytest.raises(ConfigError, match="`invert_sigmas` of the scheduler must be false"):
        VideoPipelineDenoiser(str(folder))


def test_pictures_and_clips_are_told_apart(folders, tmp_path):
    from models.any_pipeline_cases import AURA_FLOW

    with pytest.raises(ConfigError, match=r"got one that makes clips .*try unirl/Diffusers-T2V-v0"):
        _ = PipelineDenoiser(str(folders["SkyReelsV2"]), height=32, width=48).way
    AURA_FLOW.build(tmp_path)
    with pytest.raises(ConfigError, match=r"got one that makes pictures .*try unirl/Diffusers-T2I-v0"):
        _ = VideoPipelineDenoiser(str(tmp_path), height=32, width=48, max_sequence_length=12).way
    with pytest.raises(ConfigError, match=r"`num_frames` must be null for AuraFlowPipeline.*got 5"):
        VideoPipelineDenoiser(str(tmp_path), num_frames=5)


def test_a_pipeline_that_has_a_leaf_is_sent_there(tmp_path):
    WAN.build(tmp_path)
    with pytest.raises(ConfigError, match="got a WanPipeline; try unirl/Wan-T2V-v0"):
        VideoPipelineDenoiser(str(tmp_path))
    for pipeline, id in LEAVES.items():
        assert DENOISERS.get(IDS[id]["denoiser"]).pipeline == pipeline


def test_frames_a_second_are_positive(folders):
    with pytest.raises(ConfigError, match="`fps` must be positive, got 0; try 16"):
        cases.SKYREELS.denoiser(folders["SkyReelsV2"], fps=0)
