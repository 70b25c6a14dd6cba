"""What SANA alone has, on a tiny checkpoint."""

import math
from dataclasses import replace

import pytest
import torch
from models import family_checks as checks
from models.family_checks import edited_copy as edited
from models.sana_cases import SANA, SHIFT

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ModelNotFound
from unirl_env.models.shared import of_diffusers
from unirl_env.models.shared.solver_schedule import SolverSchedule
from unirl_env.policies.actor import Actor
from unirl_env.types import Prompt

SCHEDULER, TRANSFORMER = "scheduler/scheduler_config.json", "transformer/config.json"
FLOW = {
    **{"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"},
    **{"use_flow_sigmas": True, "flow_shift": SHIFT, "lambda_min_clipped": -math.inf},
}


@pytest.fixture(scope="module")
def folder(checkpoint):
    return checkpoint(SANA)


def test_it_may_carry_a_scheduler_of_flows(folder, tmp_path):
    other = edited(folder, tmp_path / "index", "model_index.json", scheduler=["diffusers", EULER])
    other = edited(other, tmp_path / "euler", SCHEDULER, _class_name=EULER, prediction_type=None)
    (other / SCHEDULER).write_text(f'{{"_class_name": "{EULER}", "shift": 3.0}}')
    family = replace(SANA, prepare=checks.nothing)
    checks.equals_the_pipeline(family, other, guidance=3.5, num_steps=4)


EULER = "FlowMatchEulerDiscreteScheduler"


def test_prompts_are_read_behind_the_instruction_and_negative_ones_are_not(folder):
    denoiser, pipeline = SANA.denoiser(folder), SANA.load(folder)
    prompts = list(SANA.prompts)
    with torch.no_grad():
        embeds, mask, negative, negative_mask = pipeline.encode_prompt(
            [prompt.text for prompt in prompts],
            negative_prompt=[prompt.negative for prompt in prompts],
            max_sequence_length=40,
            complex_human_instruction=denoiser._instruction,
        )
    ours, without = denoiser.encode(prompts), denoiser.encode(prompts, negative=True)
    assert torch.equal(ours["prompt_embeds"], embeds) and torch.equal(ours["prompt_attention_mask"], mask)
    assert torch.equal(without["prompt_embeds"], negative)
    assert torch.equal(without["prompt_attention_mask"], negative_mask)
    plain = SANA.denoiser(folder, instruction=False).encode(prompts)
    assert plain["prompt_embeds"].shape == embeds.shape
    assert not torch.allclose(plain["prompt_embeds"], embeds, atol=1e-2)


def test_masked_places_say_nothing(folder):
    denoiser = SANA.denoiser(folder)
    network, context = denoiser.network(), denoiser.encode(list(SANA.prompts)[2:])
    latent, sigma = torch.randn(1, *denoiser.latent_shape), torch.tensor([0.6])
    padding = (1 - context["prompt_attention_mask"])[..., None].float()
    assert padding.sum() > 0
    other = {**context, "prompt_embeds": context["prompt_embeds"] + 100.0 * padding}
    with torch.no_grad():
        first, second = (denoiser.velocity(network, latent, sigma, each) for each in (context, other))
    assert torch.allclose(first, second, atol=1e-5)


class TestSchedule:
    @pytest.mark.parametrize("num_steps", [5, 20])
    def test_its_levels_are_the_solvers(self, num_steps):
        sigmas = SolverSchedule(FLOW).sigmas(num_steps)
        raw = torch.linspace(0.999, 0.0, num_steps + 1, dtype=torch.float64)
        torch.testing.assert_close(sigmas, (SHIFT * raw / (1 + (SHIFT - 1) * raw)).float())
        assert sigmas[0] == pytest.approx(0.99967, abs=1e-5)

    def test_or_those_of_equal_steps_from_pure_noise(self):
        assert torch.equal(SolverSchedule(FLOW).sigmas(7, even=True), F.flow_sigmas(7, shift=SHIFT))

    def test_the_solver_at_its_first_order_takes_these_steps(self):
        from diffusers import DPMSolverMultistepScheduler

        scheduler = DPMSolverMultistepScheduler.from_config({**FLOW, "solver_order": 1})
        scheduler.set_timesteps(6)
        sigmas = SolverSchedule(FLOW).sigmas(6)
        ours = theirs = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
        for step, time in enumerate(scheduler.timesteps):
            velocity = theirs + 0.1
            theirs = scheduler.step(velocity, time, theirs).prev_sample
            ours = F.sde_step(velocity, ours, sigmas[step], sigmas[step + 1], eta=0.0).latent
            assert (ours - theirs).abs().max() <= 1e-5

    def test_the_first_step_explores_as_from_pure_noise(self, folder):
        denoiser = SANA.denoiser(folder)
        sigmas, x = denoiser.sigmas(20), torch.zeros(1, 2)
        from_noise = F.transition(x, x, 1.0, sigmas[1])[1]
        torch.testing.assert_close(F.transition(x, x, sigmas[0], sigmas[1])[1], from_noise, rtol=2e-2, atol=0)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"prediction_type": "epsilon"}, "`prediction_type` of the scheduler must be 'flow_prediction'"),
            ({"use_flow_sigmas": False}, "`use_flow_sigmas` of the scheduler must be True"),
            ({"final_sigmas_type": "sigma_min"}, "`final_sigmas_type` of the scheduler must be 'zero'"),
            ({"use_karras_sigmas": True}, "`use_karras_sigmas` of the scheduler must be false"),
            ({"algorithm_type": "sde-dpmsolver++"}, "`algorithm_type`.*noise belongs to the policy"),
            ({"thresholding": True}, "`thresholding`.*clips x_0"),
            ({"flow_shift": "3"}, "`scheduler.flow_shift`"),
            ({"new_setting": 1}, "`new_setting` must be a setting of diffusers' DPMSolverMultistep"),
        ],
    )
    def test_what_it_cannot_honour_is_named(self, changes, message):
        with pytest.raises(ConfigError, match=message):
            SolverSchedule({**FLOW, **changes})

    def test_levels_that_do_not_fall_are_named(self):
        with pytest.raises(ConfigError, match=r"must fall from nearly 1 to 0.*'flow_shift': 0\.01"):
            SolverSchedule({**FLOW, "flow_shift": 0.01}).sigmas(4)


class TestRefusals:
    @pytest.mark.parametrize("size", [{"height": 40}, {"width": 8}])
    def test_sizes(self, folder, size):
        with pytest.raises(ConfigError, match=f"`{next(iter(size))}` must be a positive multiple of 16.*try"):
            SANA.denoiser(folder, **size)

    def test_the_distilled_one(self, folder, tmp_path):
        other = edited(folder, tmp_path / "sprint", TRANSFORMER, guidance_embeds=True)
        with pytest.raises(ConfigError, match=r"`guidance_embeds`.*SANA-Sprint.*try"):
            SANA.denoiser(other)

    def test_another_family(self, folder, tmp_path):
        other = edited(folder, tmp_path / "other", TRANSFORMER, _class_name="SD3Transformer2DModel")
        with pytest.raises(ModelNotFound, match="its transformer is a SD3Transformer2DModel, not a Sana"):
            SANA.denoiser(other)

    def test_missing_parts(self, folder, tmp_path):
        torn = edited(folder, tmp_path / "torn", TRANSFORMER)
        (torn / "text_encoder" / "model.safetensors").unlink()
        with pytest.raises(ModelNotFound, match="Try a local directory"):
            SANA.denoiser(torn).encode(list(SANA.prompts))

    def test_another_scheduler(self, folder, tmp_path):
        other = edited(folder, tmp_path / "other", SCHEDULER, _class_name="UniPCMultistepScheduler")
        with pytest.raises(ConfigError, match=r"got 'UniPCMultistepScheduler'; try a copy"):
            SANA.denoiser(other)
        two = edited(folder, tmp_path / "two", "model_index.json", scheduler=["diffusers", EULER])
        with pytest.raises(ConfigError, match=r"of model_index\.json must be that of scheduler"):
            SANA.denoiser(two).sigmas(3)


def test_a_policy_without_guidance_reads_no_negative_prompts(folder):
    denoiser = SANA.denoiser(folder)
    _, _, pictures = SANA.drawn(denoiser, Actor(denoiser), 2, list(SANA.prompts))
    assert pictures.shape == (3, 3, 64, 96)


def test_a_prompt_that_is_cut_is_told_of(folder, caplog, monkeypatch):
    monkeypatch.setattr(of_diffusers, "_told", set())
    denoiser = SANA.denoiser(folder)
    denoiser.encode([Prompt("a red circle")])
    assert "to its end" not in caplog.text
    denoiser.encode([Prompt("a red circle, " * 200)])
    assert "do not read every prompt to its end" in caplog.text and "a red circle, a red" in caplog.text
