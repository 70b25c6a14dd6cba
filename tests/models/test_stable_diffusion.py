"""What Stable Diffusion 1.5 and XL alone have, on tiny checkpoints."""

import json

import models.stable_diffusion_cases as cases
import pytest
import torch
from models import family_checks as checks
from models.family_checks import edited_copy as edited
from models.stable_diffusion_cases import SD15, SDXL

from unirl_env.errors import ConfigError, ModelNotFound
from unirl_env.policies.actor import Actor
from unirl_env.types import Prompt

SCHEDULER, UNET = "scheduler/scheduler_config.json", "unet/config.json"
BOTH = pytest.mark.parametrize("family", [SD15, SDXL], ids=lambda family: family.name)


@pytest.fixture(scope="module")
def folders(checkpoint):
    return {family.name: checkpoint(family) for family in (SD15, SDXL)}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        (SD15, {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}),
        (
            SD15,
            {
                "_class_name": "DDIMScheduler",
                "set_alpha_to_one": True,
                "steps_offset": 0,
                "clip_sample": True,
            },
        ),
        (SDXL, {"timestep_spacing": "trailing", "use_karras_sigmas": True}),
        (SDXL, {"final_sigmas_type": "sigma_min", "prediction_type": "v_prediction"}),
    ],
)
def test_it_draws_them_by_other_schedulers(folders, tmp_path, family, changes):
    folder = edited(folders[family.name], tmp_path / "other", SCHEDULER, **changes)
    if "_class_name" in changes:
        index = json.loads((folder / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", changes["_class_name"]]
        (folder / "model_index.json").write_text(json.dumps(index))
    checks.equals_the_pipeline(family, folder, guidance=3.5, num_steps=5)


def test_a_decoder_may_have_means_and_stds(folders, tmp_path):
    statistics = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.8, 1.0, 2.0]}
    folder = edited(folders[SDXL.name], tmp_path / "scaled", "vae/config.json", **statistics)
    checks.equals_the_pipeline(SDXL, folder, guidance=1.0, num_steps=3)


@BOTH
def test_sizes_need_not_suit_the_unets_halves(folders, family):
    """5 and 7 places are no multiples of two; the UNet is told how far to grow again."""
    denoiser, pipeline = (
        family.denoiser(folders[family.name], height=40, width=56),
        family.load(folders[family.name]),
    )
    start, _, pictures = family.drawn(denoiser, Actor(denoiser), 3, list(family.prompts))
    expected = family.by_pipeline(pipeline, denoiser, start, 1.0, 3, list(family.prompts))
    assert pictures.shape[2:] == (40, 56) and (pictures - expected).abs().max() <= 1e-5


@BOTH
def test_in_half_precision_velocities_are_taken_in_float32(folders, family):
    """The network rounds to 1 in 256; near pure noise a difference of rounded numbers would be all error."""
    prompts, found = list(family.prompts), []
    for dtype in ("float32", "bfloat16"):
        denoiser = family.denoiser(folders[family.name], dtype=dtype)
        context, network = denoiser.encode(prompts), denoiser.network()
        assert {p.dtype for p in network.parameters()} == {denoiser.dtype}
        latent = torch.randn(3, *denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
        sigma = torch.full((3,), denoiser.known_sigmas[1])
        with torch.no_grad():
            velocity = denoiser.velocity(network, latent, sigma, context)
        assert velocity.dtype == torch.float32
        predicted = velocity * (1 - sigma.view(-1, 1, 1, 1)) + latent
        found.append(predicted)
        assert denoiser.decode(latent)[0].image.dtype == torch.float32
    assert (found[0] - found[1]).abs().max() <= 0.05 * found[0].abs().max()


def test_the_decoder_of_xl_is_spared_float16(folders):
    denoiser = SDXL.denoiser(folders[SDXL.name], dtype="float16")
    assert denoiser.frozen.vae.dtype == torch.float32 and denoiser.frozen.text_encoder.dtype == torch.float16


def test_an_empty_negative_prompt_of_xl_is_none(folders, tmp_path):
    prompts = [Prompt("a red circle"), Prompt("two blue squares")]
    folder = folders[SDXL.name]
    for zeros in (True, False):
        denoiser, pipeline = SDXL.denoiser(folder), SDXL.load(folder)
        start, _, pictures = SDXL.drawn(denoiser, Actor(denoiser, guidance=3.5), 3, prompts)
        cases.of_single_steps(pipeline, denoiser, 3)
        expected = pipeline(
            prompt=[prompt.text for prompt in prompts],
            guidance_scale=3.5,
            height=denoiser.height,
            width=denoiser.width,
            num_inference_steps=3,
            latents=cases.as_noise(pipeline, start),
            output_type="pt",
        ).images
        assert (pictures - expected).abs().max() <= 1e-5
        context = denoiser.encode(prompts[:1], negative=True)
        assert all(bool((tensor == 0).all()) == zeros for tensor in context.values())
        if zeros:
            folder = edited(folder, tmp_path / "said", "model_index.json", force_zeros_for_empty_prompt=False)


def test_its_steps_with_noise_are_those_of_ddim(folders):
    """DDPO's kernel on the pipeline's own scheduler: one step of each, with the same fresh noise."""
    denoiser, pipeline = SD15.denoiser(folders[SD15.name]), SD15.load(folders[SD15.name])
    cases.of_single_steps(pipeline, denoiser, 4)
    scheduler, sigmas = pipeline.scheduler, denoiser.sigmas(4)
    actor = Actor(denoiser, dynamics="ddim", eta=1.0)
    prompts = list(SD15.prompts)
    latent, noise = (
        torch.randn(3, *denoiser.latent_shape, generator=torch.Generator().manual_seed(s)) for s in (0, 1)
    )
    context, wide = denoiser.encode(prompts), [(s**2 + (1 - s) ** 2) ** 0.5 for s in sigmas]
    for step, time in enumerate(scheduler.timesteps[:-1]):
        obs = {"latent": latent, "sigma": sigmas[step].expand(3), "sigma_next": sigmas[step + 1].expand(3)}
        with torch.no_grad():
            ours = actor.act({**obs, **context}, noise).latent
            seen = latent / wide[step]
            output = pipeline.unet(seen, time, encoder_hidden_states=context["prompt_embeds"]).sample
        theirs = scheduler.step(output, time, seen, eta=1.0, variance_noise=noise).prev_sample
        assert (ours / wide[step + 1] - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.abs().max()))


def test_finished_latents_are_noised_at_levels_that_it_knows(folders):
    denoiser = SD15.denoiser(folders[SD15.name])
    low, high = denoiser.known_sigmas
    assert (low, high) == pytest.approx((0.0283, 0.936), abs=1e-3)
    finished = torch.ones(1, *denoiser.latent_shape)
    last = float(denoiser.sigmas(4)[-1])
    assert torch.allclose(denoiser.data(finished), finished / (last**2 + (1 - last) ** 2) ** 0.5)
    assert torch.equal(SDXL.denoiser(folders[SDXL.name]).data(finished), finished), "it ends at 0"


@pytest.mark.ray
def test_an_agent_of_finished_latents_trains_it(folders, cluster):
    words = ["policy.dynamics=flow", "steps.kind=fraction"]
    checks.trains(SDXL, folders[SDXL.name], "diffusion/sdxl", "nft", *words)


class TestRefusals:
    @BOTH
    @pytest.mark.parametrize("size", [{"height": 30}, {"width": 2}])
    def test_sizes(self, folders, family, size):
        with pytest.raises(ConfigError, match=f"`{next(iter(size))}` must be a positive multiple of 8.*try"):
            family.denoiser(folders[family.name], **size)

    @pytest.mark.parametrize(
        ("family", "changes", "message"),
        [
            (SD15, {"time_cond_proj_dim": 16}, "`time_cond_proj_dim` of the UNet must be None.*try"),
            (SD15, {"in_channels": 9}, "`out_channels` of the UNet must be 9"),
            (SDXL, {"addition_embed_type": None}, "`addition_embed_type` of the UNet must be 'text_time'"),
            (SDXL, {"sample_size": [8, 8]}, "`sample_size` of the UNet must be a whole number"),
        ],
    )
    def test_unets_for_something_else(self, folders, tmp_path, family, changes, message):
        folder = edited(folders[family.name], tmp_path / "other", UNET, **changes)
        with pytest.raises(ConfigError, match=message):
            family.denoiser(folder)

    def test_the_other_generation(self, folders):
        with pytest.raises(ModelNotFound, match="StableDiffusionXLPipeline, not of StableDiffusionPipeline"):
            checks.make_model(checks.DENOISERS, "sd15", {"pretrained": str(folders[SDXL.name])})

    def test_another_family(self, folders, tmp_path):
        folder = edited(folders[SD15.name], tmp_path / "other", UNET, _class_name="FluxTransformer2DModel")
        with pytest.raises(
            ModelNotFound, match="its unet is a FluxTransformer2DModel, not a UNet2DCondition"
        ):
            SD15.denoiser(folder)

    def test_missing_parts(self, folders, tmp_path):
        folder = edited(folders[SD15.name], tmp_path / "torn", UNET)
        (folder / "text_encoder" / "model.safetensors").unlink()
        with pytest.raises(ModelNotFound, match="Try a local directory"):
            SD15.denoiser(folder).encode(list(SD15.prompts))
        (folder / SCHEDULER).unlink()
        with pytest.raises(ModelNotFound, match=r"scheduler_config\.json"):
            SD15.denoiser(folder)

    def test_schedulers(self, folders, tmp_path):
        folder = edited(folders[SDXL.name], tmp_path / "other", SCHEDULER, _class_name="LCMScheduler")
        with pytest.raises(ConfigError, match=r"one of DDIMScheduler.*got 'LCMScheduler'; try a copy"):
            SDXL.denoiser(folder)
        folder = edited(
            folders[SDXL.name], tmp_path / "two", "model_index.json", scheduler=["diffusers", "DDIMScheduler"]
        )
        with pytest.raises(ConfigError, match=r"of model_index\.json must be that of scheduler"):
            SDXL.denoiser(folder).sigmas(3)

    @pytest.mark.parametrize("option", [{"schedule": "flow"}, {"max_sequence_length": 40}])
    def test_options(self, folders, option):
        with pytest.raises(ConfigError, match=f"`{next(iter(option))}` must be"):
            SDXL.denoiser(folders[SDXL.name], **option)
